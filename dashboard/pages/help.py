"""Help: the words of the pages, and why to believe a verdict; the project's own glossary and method, nothing else.

    /help?term=noise floor          /help?part=method

Both texts are read from the folder `docs` of a checkout. An installed package has no such folder: the page then says so
and what to open instead. Markdown is shown without HTML, without mathematics, and without the pictures.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dash import dcc, html
from dash.development.base_component import Component

from dashboard import choices
from dashboard.components import Column, controls, data_table, empty, notice, page, section
from dashboard.context import Context
from dashboard.inputs import segmented, text_box
from reports.language import Language

PATH = "/help"
TITLE = "Help"
ORDER = 12
DOCS = Path(__file__).resolve().parents[2] / "docs"
MAX_BYTES = 400_000
_PICTURE = re.compile(r"^!\[(?P<text>[^\]]*)\]\((?P<file>[^)]*)\)\s*$", re.MULTILINE)
_LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?!https?://)(?P<file>[^)]*)\)")


@dataclass(frozen=True, slots=True)
class State:
    """`part`: which text; `term`: words to look for in the glossary."""

    part: Literal["glossary", "method"] = "glossary"
    term: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """One table of the glossary: its heading, its columns' names, its rows."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def layout(context: Context, state: State) -> Component:
    """The page."""
    title = context.say("Help")
    parts = [("glossary", context.say("Glossary")), ("method", context.say("Method"))]
    bar = controls(
        segmented(context, "part", context.say("Text"), parts, state.part),
        text_box(context, "term", context.say("Find a word"), state.term) if state.part == "glossary" else None,
    )
    text, language = read_document(state.part, context.language)
    if text is None:
        what = context.say("This installation has no folder docs: the glossary and the method come with a checkout.")
        return page(context, title, what, bar, empty(context, what, "python -m harness --help"))
    other = (
        None
        if language == context.language
        else notice(context, "info", context.say("This text is there in English only."))
    )
    if state.part == "method":
        words = context.say("How a verdict is reached, how often it is wrong, and what it cannot do.")
        return page(context, title, words, bar, other, _markdown(text))
    groups = glossary(text)
    found = [matching(group, state.term) for group in groups]
    count = sum(len(group.rows) for group in found)
    return page(
        context,
        title,
        _sentence(context, state.term, count, sum(len(group.rows) for group in groups)),
        bar,
        other,
        *(_group(context, group) for group in found if group.rows),
    )


def _sentence(context: Context, term: str, count: int, total: int) -> str:
    if not term.strip():
        return context.say("{total} words that the pages, reports and messages use, each in one sense.", total=total)
    if not count:
        return context.say("No word of the glossary has '{term}' in it.", term=term.strip()[:60])
    return context.say(
        "{count} of {total} words have '{term}' in them.", count=count, total=total, term=term.strip()[:60]
    )


def read_document(name: str, language: Language) -> tuple[str | None, Language]:
    """(the text, its language): `docs/<name>.zh-CN.md` for Chinese where there is one, else the English one."""
    candidates: list[tuple[Path, Language]] = [(DOCS / f"{name}.md", "en")]
    if language == "zh":
        candidates = [(DOCS / f"{name}.zh-CN.md", "zh"), *candidates]
    for path, written in candidates:
        try:
            if path.stat().st_size <= MAX_BYTES:
                return path.read_text(encoding="utf-8", errors="replace"), written
        except OSError:
            continue
    return None, language


def glossary(text: str) -> list[Group]:
    """The tables of the glossary under their headings."""
    groups: list[Group] = []
    title, lines = "", list[list[str]]()
    for line in [*text.splitlines(), "## "]:
        if line.startswith("#"):
            if len(lines) > 2:
                rows = tuple(tuple(row) for row in lines[2:] if len(row) == len(lines[0]))
                groups.append(Group(title, tuple(lines[0]), rows))
            title, lines = line.lstrip("# ").strip(), []
        elif line.startswith("|"):
            lines.append([cell.strip() for cell in line.strip().strip("|").split("|")])
    return groups


def matching(group: Group, term: str) -> Group:
    """The rows that have the words in them; those whose word it is come first."""
    wanted = term.strip().casefold()
    rows = [row for row in group.rows if wanted in " ".join(row).replace("`", "").casefold()]
    rows.sort(key=lambda row: bool(wanted) and wanted not in row[0].casefold())
    return Group(group.title, group.columns, tuple(rows))


def _group(context: Context, group: Group) -> Component:
    columns = [Column(name) for name in group.columns]
    rows = [[choices.marked(cell) for cell in row] for row in group.rows]
    return section(group.title, data_table(context, columns, rows))


def _markdown(text: str) -> Component:
    """Markdown without HTML and mathematics; pictures and links into the checkout become the names of their files."""
    body = _PICTURE.sub(lambda match: f"*{match['text']}: docs/{match['file']}*\n", text)
    body = _LINK.sub(lambda match: f"{match['text']} (`{match['file']}`)", body)
    body = re.sub(r"^# .*$", "", body, count=1, flags=re.MULTILINE)
    return html.Div(
        dcc.Markdown(body, dangerously_allow_html=False, mathjax=False, link_target="_blank"), className="prose"
    )
