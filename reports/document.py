"""A report as a value: sections of sentences, tables and figures, which Markdown, HTML and JSON render alike.

    section = Section("Speed", (Paragraph("Decode is ..."), Grid(columns, rows), Picture("forest", forest(effects))))
    document = Document("run", "quickstart", "2 of 14 cases improved ...", "en", (section,), runs=(run,))
    to_data(document)["verdict"]              # the JSON twin

Text is plain everywhere: whoever renders it escapes it. A section of place `detail` stands in HTML and JSON only, so
that Markdown stays short enough for a comment. Refuses nothing; a value that is missing is a `Missing` with the command
that would fill it. Torch-free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.core import VerdictName
from harness.schema import RunRow
from harness.tables import Column
from reports.figures.base import Figure
from reports.language import Language

Place = Literal["summary", "detail"]
Tone = Literal["note", "warning"]


@dataclass(frozen=True, slots=True)
class Paragraph:
    """One or more sentences."""

    text: str


@dataclass(frozen=True, slots=True)
class Listing:
    """Short statements of equal weight."""

    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Note:
    """What a reader must not overlook."""

    text: str
    tone: Tone = "warning"


@dataclass(frozen=True, slots=True)
class Missing:
    """What is not in the store, and the command that would put it there (empty: nothing can, yet)."""

    what: str
    command: str = ""


@dataclass(frozen=True, slots=True)
class Command:
    """A line to type, and what it is for."""

    text: str
    purpose: str = ""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A drawing made of characters, set in a fixed width; its words are our own."""

    text: str


@dataclass(frozen=True, slots=True)
class Grid:
    """A table. `verdicts`: one per row, or none at all; `records`: the same rows as data, for JSON.

    `most`: how many rows Markdown shows (0: all); how many it leaves out is said there.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    verdicts: tuple[VerdictName | None, ...] = ()
    records: tuple[Mapping[str, Any], ...] = ()
    most: int = 0

    def verdict(self, row: int) -> VerdictName | None:
        """The verdict that colours a row."""
        return self.verdicts[row] if self.verdicts else None


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure; `name` is part of the file's name, so it is a word of ours."""

    name: str
    figure: Figure

    @property
    def title(self) -> str:
        """What it shows, in words."""
        return str(self.figure["layout"]["meta"]["title"])

    @property
    def caption(self) -> str:
        """What is to be seen: range and largest change."""
        return str(self.figure["layout"]["meta"]["summary"])

    @property
    def table(self) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        """The figure's numbers: columns and rows."""
        meta = self.figure["layout"]["meta"]
        return meta["columns"], meta["rows"]


Block = Paragraph | Listing | Note | Missing | Command | Drawing | Grid | Picture


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: tuple[Block, ...]
    place: Place = "summary"


@dataclass(frozen=True, slots=True)
class Document:
    """A whole report. `query`: the dashboard's address of the same thing, without host; `command` makes it again.

    `runs`: every run that a number in it comes from. `synthetic`: those were made up by `harness sample-store`.
    """

    kind: str
    title: str
    sentence: str
    language: Language
    sections: tuple[Section, ...]
    runs: tuple[RunRow, ...] = ()
    query: str = ""
    command: str = ""
    problems: tuple[str, ...] = field(default=())

    @property
    def synthetic(self) -> bool:
        """Whether any of it was never measured."""
        return any(is_synthetic(run) for run in self.runs)

    @property
    def pictures(self) -> list[Picture]:
        """All figures in their order."""
        return [block for section in self.sections for block in section.blocks if isinstance(block, Picture)]

    @property
    def missing(self) -> list[Missing]:
        """Everything that the store does not hold."""
        return [block for section in self.sections for block in section.blocks if isinstance(block, Missing)]


def is_synthetic(run: RunRow) -> bool:
    """Whether `harness sample-store` made the run up."""
    return run.host == "synthetic"


def to_data(document: Document) -> dict[str, Any]:
    """The JSON twin: the same words, tables with their records, figures as Plotly dicts."""
    return {
        "kind": document.kind,
        "title": document.title,
        "verdict": document.sentence,
        "language": document.language,
        "synthetic": document.synthetic,
        "query": document.query,
        "command": document.command,
        "problems": list(document.problems),
        "runs": [run_data(run) for run in document.runs],
        "sections": [
            {"title": section.title, "place": section.place, "blocks": [_block_data(block) for block in section.blocks]}
            for section in document.sections
        ],
    }


def run_data(run: RunRow) -> dict[str, Any]:
    """What identifies a run and repeats it."""
    names = ("run_id", "suite", "status", "git_sha", "git_dirty", "machine_id", "fingerprint", "device", "device_name",
             "cpu_model", "cores", "threads", "ram_bytes", "os", "python", "torch", "command", "session",
             "side")  # fmt: skip
    times = {name: str(getattr(run, name)) for name in ("started_at", "finished_at") if getattr(run, name) is not None}
    return {**{name: getattr(run, name) for name in names}, **times}


def _block_data(block: Block) -> dict[str, Any]:
    match block:
        case Paragraph(text):
            return {"type": "paragraph", "text": text}
        case Listing(items):
            return {"type": "listing", "items": list(items)}
        case Note(text, tone):
            return {"type": "note", "tone": tone, "text": text}
        case Missing(what, command):
            return {"type": "missing", "what": what, "command": command}
        case Command(text, purpose):
            return {"type": "command", "command": text, "purpose": purpose}
        case Drawing(text):
            return {"type": "drawing", "text": text}
        case Picture(name, figure):
            return {"type": "figure", "name": name, "figure": figure}
        case Grid():
            return {
                "type": "table",
                "title": block.title,
                "columns": [column.name for column in block.columns],
                "rows": [list(row) for row in block.rows],
                "verdicts": list(block.verdicts),
                "records": [dict(record) for record in block.records],
            }
