"""What people wrote about a history: STORE/annotations.jsonl, one JSON object per line, only ever read here.

    {"time": "2026-11-22T10:00:00Z", "author": "ada", "text": "new driver", "case": "*decode*", "status": "explained"}

    notes, problems = read_annotations(Path("results"))
    [note for note in notes if note.concerns(("23edf06fe5ed", "minimind2-small decode(...) reference"))]

`case` is a pattern as file names have them (default: every case), compared with the case's id and with its text;
`status` is empty, `acknowledged` or `explained`. Lines that are not of this form are passed over and named. It refuses
files over a megabyte. Text is untrusted: whoever shows it escapes it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

FILE_NAME = "annotations.jsonl"
MAX_BYTES = 1_000_000
_MAX_TEXT = 500
_STATUSES = ("", "acknowledged", "explained")


@dataclass(frozen=True, slots=True)
class Annotation:
    """One remark: when it holds from, who wrote it, what, on which cases, and whether it settles a change."""

    time: datetime
    text: str
    author: str = ""
    case: str = "*"
    status: str = ""

    def concerns(self, names: Sequence[str]) -> bool:
        """Whether one of a case's names (its id, its text) is meant."""
        return any(fnmatchcase(name, self.case) for name in names)


def read_annotations(store: Path) -> tuple[tuple[Annotation, ...], tuple[str, ...]]:
    """(the remarks, oldest first; what could not be used, in words). No file: neither."""
    path = store / FILE_NAME
    try:
        if path.stat().st_size > MAX_BYTES:
            return (), (f"{FILE_NAME} is larger than {MAX_BYTES:,} bytes and was not read",)
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return (), ()
    except OSError as error:
        return (), (f"{FILE_NAME} cannot be read: {error.strerror}",)
    found, problems = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append(_annotation(json.loads(line)))
        except (ValueError, RecursionError) as error:
            problems.append(f"{FILE_NAME} line {number}: {error}")
    return tuple(sorted(found, key=lambda note: note.time)), tuple(problems)


def _annotation(row: Any) -> Annotation:
    """Raises ValueError with what is wrong."""
    if not isinstance(row, dict):
        raise ValueError("is not an object")
    texts = {name: row.get(name, default) for name, default in (("author", ""), ("case", "*"), ("status", ""))}
    if not all(isinstance(value, str) for value in (*texts.values(), row.get("time"), row.get("text"))):
        raise ValueError("needs time and text; author, case and status are texts too")
    if texts["status"] not in _STATUSES:
        raise ValueError("status is acknowledged, explained or left out")
    time = datetime.fromisoformat(row["time"])
    time = time if time.tzinfo else time.replace(tzinfo=UTC)
    return Annotation(time, row["text"][:_MAX_TEXT], texts["author"][:80], texts["case"][:200] or "*", texts["status"])
