"""A report as Markdown for a code host: the verdict first, short enough for a comment, with pictures beside it.

    to_markdown(document)                            # pictures left out, and said so
    to_markdown(document, pictures="run")            # <picture> elements of run-forest.svg and run-forest-dark.svg
    picture_files(document, "run")                   # {"run-forest.svg": "<svg ...", ...}

Text from the store (variants, reasons, machines) is escaped, so that it shows as it is and makes no markup. Details
stay in the HTML and JSON forms. Refuses nothing. Torch-free.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from harness.gate_report import escape_markdown
from reports.document import Block, Command, Document, Drawing, Grid, Listing, Missing, Note, Paragraph, Picture
from reports.drawing import to_svg
from reports.language import Language, say

_UNPRINTABLE = re.compile("[^\t\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_markdown(document: Document, *, pictures: str | None = None) -> str:
    """The summary sections. `pictures`: how the names of the picture files begin; None where none are written."""
    language = document.language
    lines = [f"# {escape_markdown(document.title)}", "", f"**{escape_markdown(document.sentence)}**", ""]
    if document.synthetic:
        lines += [f"> ⚠ {synthetic_note(language)}", ""]
    for section in document.sections:
        if section.place == "summary":
            lines += [f"## {escape_markdown(section.title)}", ""]
            for block in section.blocks:
                lines += _block(block, language, pictures)
    if document.problems:
        problems = "; ".join(document.problems)
        lines += [f"> ⚠ {say(language, 'Files that could not be read')}: {escape_markdown(problems)}", ""]
    hidden = pictures is None and any(
        isinstance(block, Picture)
        for section in document.sections
        if section.place == "summary"
        for block in section.blocks
    )
    if hidden:
        note = say(language, "Pictures are left out here; --to DIR writes them, -o html has everything in one file.")
        lines += [f"_{escape_markdown(note)}_", ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def picture_files(document: Document, prefix: str) -> dict[str, str]:
    """File name -> SVG of every picture that the Markdown shows, light and dark."""
    return {
        picture_name(prefix, picture, scheme): to_svg(picture.figure, scheme=scheme)
        for section in document.sections
        if section.place == "summary"
        for picture in section.blocks
        if isinstance(picture, Picture)
        for scheme in ("light", "dark")
    }


def picture_name(prefix: str, picture: Picture, scheme: str) -> str:
    """`run-forest.svg`, `run-forest-dark.svg`."""
    return f"{prefix}-{picture.name}{'-dark' if scheme == 'dark' else ''}.svg"


def synthetic_note(language: Language) -> str:
    """What stands on everything that was never measured."""
    return say(language, "Synthetic data: made up by `harness sample-store`, measured by nobody.")


def _block(block: Block, language: Language, pictures: str | None) -> list[str]:
    match block:
        case Paragraph(text):
            return [escape_markdown(text), ""]
        case Listing(items):
            return [*(f"- {escape_markdown(item)}" for item in items), ""]
        case Note(text, tone):
            return [f"> {'⚠ ' if tone == 'warning' else ''}{escape_markdown(text)}", ""]
        case Missing(what, command):
            return [f"> {escape_markdown(missing_text(what, command, language))}{_code(command)}", ""]
        case Command(text, purpose):
            return [*([f"{escape_markdown(purpose)}:", ""] if purpose else []), *_fenced(text, "sh"), ""]
        case Drawing(text):
            return [*_fenced(text, "text"), ""]
        case Picture():
            return (
                [] if pictures is None else [_picture(block, pictures), "", f"_{escape_markdown(block.caption)}_", ""]
            )
        case Grid():
            return _grid(block, language)


def missing_text(what: str, command: str, language: Language) -> str:
    """What is missing, up to the command that follows it."""
    return (
        say(language, "Missing: {what}. Fill it with", what=what)
        if command
        else say(language, "Missing: {what}.", what=what)
    )


def _code(command: str) -> str:
    if not command:
        return ""
    text = " ".join(_UNPRINTABLE.sub("?", command).split())
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    padding = " " if "`" in text else ""
    return f" {ticks}{padding}{text}{padding}{ticks}"


def _picture(picture: Picture, prefix: str) -> str:
    light, dark = (picture_name(prefix, picture, scheme) for scheme in ("light", "dark"))
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img alt="{_attribute(picture.title)}" src="{light}"></picture>'
    )


def _attribute(text: str) -> str:
    return html.escape(" ".join(_UNPRINTABLE.sub("?", text).split()), quote=True)


def _grid(grid: Grid, language: Language) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(escape_markdown(cell) for cell in cells) + " |"

    if not grid.rows:
        return []
    shown = grid.rows[: grid.most or None]
    lines = [f"**{escape_markdown(grid.title)}**", ""] if grid.title else []
    lines += [line([column.name for column in grid.columns])]
    lines += ["|" + "|".join("---:" if column.right else "---" for column in grid.columns) + "|"]
    lines += [*map(line, shown), ""]
    if len(shown) < len(grid.rows):
        lines += [say(language, "Rows more in the HTML report: {count}.", count=len(grid.rows) - len(shown)), ""]
    return lines


def _fenced(text: str, language: str) -> list[str]:
    clean = "\n".join(_UNPRINTABLE.sub("?", line) for line in text.splitlines())
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", clean)), default=0))
    return [fence + language, *clean.splitlines(), fence]
