"""Reads a user's own data: MiniMind's jsonl (`{"text": ...}` or `{"conversations": [...]}`) and plain text. No torch.

    from minimind.data.records import open_jsonl
    records = open_jsonl(Path("pretrain_t2t_mini.jsonl"))
    records.kind, len(records), records[0]["text"]

Every line is checked when the file is opened, so that a bad one ends a run before it starts and not hours later; only
the line offsets stay in memory. Refuses (DataError, naming file, line and what was expected): a missing or empty file,
a line that is not JSON, lines of different kinds, a conversation without known roles.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

RecordKind = Literal["text", "conversations"]
ROLES = ("system", "user", "assistant", "tool")
_EXPECTED = 'expected {"text": "..."} or {"conversations": [{"role": ..., "content": ...}, ...]}'


class DataError(ValueError):
    """A data file that cannot be used; the message names the file, the line and what was expected."""


@dataclass(frozen=True, slots=True)
class JsonlRecords:
    """A checked jsonl file, read record by record."""

    path: Path
    kind: RecordKind
    offsets: array[int]

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: int) -> dict[str, Any]:
        with self.path.open("rb") as stream:
            stream.seek(self.offsets[index])
            record: dict[str, Any] = json.loads(stream.readline())
        return record


def open_jsonl(path: Path) -> JsonlRecords:
    """Check every line of a jsonl file and return its records. Blank lines are passed over."""
    offsets: array[int] = array("Q")
    kind: RecordKind | None = None
    position = 0
    with _opened(path) as stream:
        for number, line in enumerate(stream, start=1):
            start, position = position, position + len(line)
            if not line.strip():
                continue
            found = _kind_of_line(line, f"{path}, line {number}")
            if kind is not None and found != kind:
                raise DataError(f"{path}, line {number}: a '{found}' record, but the lines before are '{kind}' records")
            kind = found
            offsets.append(start)
    if kind is None:
        raise DataError(f"{path}: no records; {_EXPECTED} on every line")
    return JsonlRecords(path, kind, offsets)


def read_text(path: Path) -> str:
    """The content of a UTF-8 text file, newlines as `\\n`. Refuses an empty file and other encodings."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}): {error.reason}") from error
    if not text.strip():
        raise DataError(f"{path}: the file holds no text")
    return text.replace("\r\n", "\n")


def is_jsonl(path: Path) -> bool:
    """Whether a data file is read as jsonl (by its name: .jsonl or .json) or as plain text."""
    return path.suffix.lower() in (".jsonl", ".json")


def chat_messages(record: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[Any] | None]:
    """The messages of a `conversations` record and its tools, with the JSON that MiniMind keeps in strings read.

    Tools stand on the system turn (`tools`), calls on assistant turns (`tool_calls`), as JSON or a string of it.
    """
    messages: list[dict[str, Any]] = []
    tools: list[Any] | None = None
    for turn in record["conversations"]:
        message = dict(turn)
        if message.get("role") == "system" and message.get("tools"):
            tools = _from_string(message["tools"])
        if message.get("tool_calls"):
            message["tool_calls"] = _from_string(message["tool_calls"])
        messages.append(message)
    return messages, tools


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror}") from error


def _kind_of_line(line: bytes, where: str) -> RecordKind:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}); {_EXPECTED}") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: a JSON {type(record).__name__}; {_EXPECTED}")
    if "conversations" in record:
        _check_conversation(record["conversations"], where)
        return "conversations"
    if not isinstance(record.get("text"), str):
        raise DataError(f"{where}: fields {sorted(record)}; {_EXPECTED}")
    return "text"


def _check_conversation(turns: Any, where: str) -> None:
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{where}: 'conversations' must be a list of turns that is not empty")
    for number, turn in enumerate(turns, start=1):
        spot = f"{where}, turn {number}"
        if not isinstance(turn, dict) or turn.get("role") not in ROLES:
            role = turn.get("role") if isinstance(turn, dict) else turn
            raise DataError(f"{spot}: role {role!r} is not known; allowed: {', '.join(ROLES)}")
        if not isinstance(turn.get("content"), str | None):
            raise DataError(f"{spot}: 'content' must be a text, not {type(turn['content']).__name__}")
        for field in ("tools", "tool_calls"):
            try:
                value = _from_string(turn.get(field) or [])
            except ValueError as error:
                raise DataError(f"{spot}: '{field}' is not JSON: {error}") from error
            if not isinstance(value, list):
                raise DataError(f"{spot}: '{field}' must be a list, not {type(value).__name__}")


def _from_string(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value
