"""Profiles beside a store: collapsed stacks and Chrome traces of single cases, read with limits and nothing else.

    path = artifact(Path("results"), run_id, case_id, "collapsed")      # None if there is none
    stacks = read_collapsed(path)                                       # {("main", "forward"): 120, ...}
    trace = read_trace(artifact(Path("results"), run_id, case_id, "trace"))

    STORE/artifacts/<run_id>/<case_id>.collapsed      one line per stack, outermost first: `main;forward;matmul 120`
    STORE/artifacts/<run_id>/<case_id>.trace.json     Chrome trace events, as torch.profiler writes them

It refuses (Unreadable, with the reason) files over 50 MB and what is not of these forms, and never follows a name or a
link out of the store's folder `artifacts`. Names in profiles are untrusted text.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

Kind = Literal["collapsed", "trace"]
SUFFIX: Mapping[Kind, str] = {"collapsed": ".collapsed", "trace": ".trace.json"}
MAX_BYTES = 50_000_000
MAX_SPANS = 2_000
_MAX_NAME = 200
_MAX_DEPTH = 128
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ON_DEVICE = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})


class Unreadable(Exception):
    """A profile that cannot be shown; the text is the reason, for people."""


@dataclass(frozen=True, slots=True)
class Stacks:
    """Samples by stack (outermost frame first), their total, and how many lines were of no use."""

    by_path: Mapping[tuple[str, ...], float]
    total: float
    num_passed_over: int


@dataclass(frozen=True, slots=True)
class Slot:
    """One stretch of time in one lane, in seconds from the start of the trace."""

    lane: str
    name: str
    start: float
    end: float
    on_device: bool


@dataclass(frozen=True, slots=True)
class Operation:
    """All calls of one name: a kernel where the trace has a device, else an operation of the CPU. Seconds."""

    name: str
    calls: int
    total: float


@dataclass(frozen=True, slots=True)
class Trace:
    """What a trace held: the longest slots in order of time, its operations by total time, how many slots in all."""

    slots: tuple[Slot, ...]
    operations: tuple[Operation, ...]
    num_slots: int
    seconds: float


def artifact(store: Path, run_id: str, case_id: str, kind: Kind) -> Path | None:
    """The file of a case, if it is there and lies within the store's `artifacts`."""
    if not (_ID.fullmatch(run_id) and _ID.fullmatch(case_id)):
        return None
    root = (store / "artifacts").resolve()
    path = (root / run_id / f"{case_id}{SUFFIX[kind]}").resolve()
    return path if path.is_relative_to(root) and path.is_file() else None


def profiled(store: Path) -> dict[str, set[str]]:
    """run_id -> case ids that have a profile of any kind; of a folder with anything else in it, only those."""
    found: dict[str, set[str]] = defaultdict(set)
    root = store / "artifacts"
    for suffix in SUFFIX.values():
        for path in root.glob(f"*/*{suffix}"):
            found[path.parent.name].add(path.name.removesuffix(suffix))
    return dict(found)


def read_collapsed(path: Path) -> Stacks:
    """The stacks of a file. Raises Unreadable."""
    return _collapsed(path, *_checked(path))


def read_trace(path: Path) -> Trace:
    """The slots and operations of a file. Raises Unreadable."""
    return _trace(path, *_checked(path))


def _checked(path: Path) -> tuple[int, int]:
    """(modified, size): what a cached reading is valid for."""
    try:
        found = path.stat()
    except OSError as error:
        raise Unreadable(f"{path.name} cannot be read: {error.strerror}") from error
    if found.st_size > MAX_BYTES:
        raise Unreadable(
            f"{path.name} has {found.st_size / 1e6:,.0f} MB; more than {MAX_BYTES / 1e6:.0f} are not shown"
        )
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=4)
def _collapsed(path: Path, modified: int, size: int) -> Stacks:
    by_path: dict[tuple[str, ...], float] = defaultdict(float)
    passed_over = 0
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                stack, _, count = line.strip().rpartition(" ")
                if not stack or not count.isdecimal() or len(count) > 15:
                    passed_over += bool(line.strip())
                    continue
                frames = (frame.strip()[:_MAX_NAME] for frame in stack.split(";", _MAX_DEPTH)[:_MAX_DEPTH])
                by_path[tuple(frame or "?" for frame in frames)] += int(count)
    except OSError as error:
        raise Unreadable(f"{path.name} cannot be read: {error.strerror}") from error
    total = sum(by_path.values())
    if total <= 0:
        raise Unreadable(f"{path.name} holds no stack of the form `outer;inner 12`")
    return Stacks(dict(by_path), total, passed_over)


@lru_cache(maxsize=2)
def _trace(path: Path, modified: int, size: int) -> Trace:
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise Unreadable(f"{path.name} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"{path.name} is not JSON: {error}") from error
    events = found.get("traceEvents") if isinstance(found, dict) else found
    if not isinstance(events, list):
        raise Unreadable(f"{path.name} has no list of traceEvents")
    slots = _slots(event for event in events if isinstance(event, dict))
    if not slots:
        raise Unreadable(f"{path.name} has no complete event (ph X with ts and dur)")
    origin = min(slot.start for slot in slots)
    seconds = max(slot.end for slot in slots) - origin
    outermost = _outermost(slots)
    longest = sorted(outermost, key=lambda slot: (not slot.on_device, slot.start - slot.end))[:MAX_SPANS]
    shown = sorted(longest, key=lambda slot: (slot.start, slot.lane))
    moved = tuple(Slot(s.lane, s.name, s.start - origin, s.end - origin, s.on_device) for s in shown)
    return Trace(moved, _operations(slots), len(outermost), seconds)


def _slots(events: Iterable[Mapping[str, Any]]) -> list[Slot]:
    """The complete events, with a lane for each stream of the device and each thread of the host."""
    names: dict[tuple[Any, Any], str] = {}
    complete = []
    for event in events:
        key = (str(event.get("pid")), str(event.get("tid")))
        arguments = event.get("args")
        if event.get("ph") == "M" and event.get("name") == "thread_name" and isinstance(arguments, dict):
            names[key] = str(arguments.get("name", ""))[:_MAX_NAME]
        elif event.get("ph") == "X" and _is_number(event.get("ts")) and _is_number(event.get("dur")):
            complete.append((key, event))
    slots = []
    for key, event in complete:
        on_device = event.get("cat") in _ON_DEVICE
        lane = f"GPU stream {key[1]}" if on_device else f"CPU {names.get(key) or f'thread {key[1]}'}"
        start, duration = float(event["ts"]) * 1e-6, max(float(event["dur"]), 0.0) * 1e-6
        slots.append(
            Slot(lane[:_MAX_NAME], str(event.get("name", "?"))[:_MAX_NAME], start, start + duration, on_device)
        )
    return slots


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e18


def _outermost(slots: Iterable[Slot]) -> list[Slot]:
    """Those that lie in no other slot of their lane: a call, not what it called."""
    kept: list[Slot] = []
    ends: dict[str, float] = {}
    for slot in sorted(slots, key=lambda slot: (slot.lane, slot.start, -slot.end)):
        if slot.end > ends.get(slot.lane, float("-inf")):
            kept.append(slot)
            ends[slot.lane] = slot.end
    return kept


def _operations(slots: Iterable[Slot]) -> tuple[Operation, ...]:
    """By name, the longest total first; kernels where there are any."""
    every = list(slots)
    device = [slot for slot in every if slot.on_device]
    totals: dict[str, tuple[int, float]] = {}
    for slot in device or every:
        calls, total = totals.get(slot.name, (0, 0.0))
        totals[slot.name] = (calls + 1, total + slot.end - slot.start)
    found = [Operation(name, calls, total) for name, (calls, total) in totals.items()]
    return tuple(sorted(found, key=lambda operation: (-operation.total, operation.name)))
