"""Profiles beside a store: collapsed stacks and Chrome traces of single cases, read with limits and nothing else.

    path = artifact(Path("results"), run_id, case_id, "collapsed")      # None if there is none
    stacks = read_collapsed(path)                                       # {("main", "forward"): 120, ...}
    trace = read_trace(artifact(Path("results"), run_id, case_id, "trace"))

    STORE/artifacts/<run_id>/<case_id>.collapsed      one line per stack, outermost first: `main;forward;matmul 120`
    STORE/artifacts/<run_id>/<case_id>.trace.json     Chrome trace events, as torch.profiler writes them

`harness profile` writes both (harness.profiling); so may other programs. It refuses (Unreadable, with the reason) files
over 50 MB and what is not of these forms, and never follows a name or a link out of the store's folder `artifacts`.
Names in profiles are untrusted text. Torch-free.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

ARTIFACTS = "artifacts"  # the folder beside the tables of a store
Kind = Literal["collapsed", "trace"]
SUFFIX: Mapping[Kind, str] = {"collapsed": ".collapsed", "trace": ".trace.json"}
SUITE_PREFIX = "profile-"  # of a suite whose run is `harness profile`: it times nothing
ITERATION = "iteration"  # what `harness profile` calls each one in a trace: its own time lies between operations
MAX_BYTES = 50_000_000
MAX_SLOTS = 50_000
_MAX_NAME = 200
_MAX_DEPTH = 128
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ON_DEVICE = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
_NO_WORK = frozenset({"Trace", "gpu_user_annotation"})  # the recording itself, and the host's names drawn once more
_MEMORY = "[memory]"  # the name of an event of the allocator, with profile_memory=True
_HOLDERS = 20


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
    """A stretch of time in one lane, in seconds from the start of the trace. `marked`: the name of a phase, no work."""

    lane: str
    name: str
    start: float
    end: float
    on_device: bool
    marked: bool = False


@dataclass(frozen=True, slots=True)
class Operation:
    """All calls of one name: a kernel where the trace has a device, else an operation of the CPU.

    `total`: seconds in the operation itself, without those that it called.
    """

    name: str
    calls: int
    total: float


@dataclass(frozen=True, slots=True)
class Holder:
    """Memory that was held when most was: bytes in so many blocks, allocated beneath these operations."""

    path: tuple[str, ...]
    bytes: float
    blocks: int


@dataclass(frozen=True, slots=True)
class Allocations:
    """What an allocator handed out over time, one entry per event; seconds from the start of the trace, bytes.

    On a CPU `allocated` counts from the start of the trace; on CUDA it is all that the process holds, and `reserved`
    what the allocator has of the device. `holders`: of the blocks allocated in the trace, those alive at the peak,
    largest first.
    """

    device: str
    seconds: tuple[float, ...]
    allocated: tuple[float, ...]
    reserved: tuple[float, ...]
    holders: tuple[Holder, ...]


@dataclass(frozen=True, slots=True)
class Trace:
    """What a trace held: the longest slots in order of time, its operations by total time, how many slots in all.

    `allocations`: one for each device whose allocator was recorded.
    """

    slots: tuple[Slot, ...]
    operations: tuple[Operation, ...]
    num_slots: int
    seconds: float
    allocations: tuple[Allocations, ...] = ()


def artifact(store: Path, run_id: str, case_id: str, kind: Kind) -> Path | None:
    """The file of a case, if it is there and lies within the store's `artifacts`."""
    if not (_ID.fullmatch(run_id) and _ID.fullmatch(case_id)):
        return None
    root = (store / ARTIFACTS).resolve()
    path = (root / run_id / f"{case_id}{SUFFIX[kind]}").resolve()
    return path if path.is_relative_to(root) and path.is_file() else None


def profiled(store: Path) -> dict[str, set[str]]:
    """run_id -> case ids that have a profile of any kind; of a folder with anything else in it, only those."""
    found: dict[str, set[str]] = defaultdict(set)
    root = store / ARTIFACTS
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
    known = [event for event in events if isinstance(event, dict)]
    names = _thread_names(known)
    slots = _slots(known, names)
    if not slots:
        raise Unreadable(f"{path.name} has no complete event (ph X with ts and dur)")
    origin = min(slot.start for slot in slots)
    seconds = max(slot.end for slot in slots) - origin
    outermost = _outermost(slots)
    longest = sorted(outermost, key=lambda slot: (not slot.on_device, slot.start - slot.end))[:MAX_SLOTS]
    shown = sorted(longest, key=lambda slot: (slot.start, slot.lane))
    moved = tuple(Slot(s.lane, s.name, s.start - origin, s.end - origin, s.on_device) for s in shown)
    return Trace(moved, _operations(slots), len(outermost), seconds, _allocations(known, slots, names, origin))


def _thread(event: Mapping[str, Any]) -> tuple[str, str]:
    return str(event.get("pid")), str(event.get("tid"))


def _thread_names(events: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], str]:
    return {
        _thread(event): str(event["args"].get("name", ""))[:_MAX_NAME]
        for event in events
        if event.get("ph") == "M" and event.get("name") == "thread_name" and isinstance(event.get("args"), dict)
    }


def _host_lane(event: Mapping[str, Any], names: Mapping[tuple[str, str], str]) -> str:
    key = _thread(event)
    return f"CPU {names.get(key) or f'thread {key[1]}'}"[:_MAX_NAME]


def _slots(events: Iterable[Mapping[str, Any]], names: Mapping[tuple[str, str], str]) -> list[Slot]:
    """The complete events by lane, start and end, callers first; a lane is a device's stream or a host's thread."""
    slots = []
    for event in events:
        complete = event.get("ph") == "X" and _is_number(event.get("ts")) and _is_number(event.get("dur"))
        if not complete or event.get("cat") in _NO_WORK:
            continue
        on_device = event.get("cat") in _ON_DEVICE
        lane = f"GPU stream {_thread(event)[1]}"[:_MAX_NAME] if on_device else _host_lane(event, names)
        start, duration = float(event["ts"]) * 1e-6, max(float(event["dur"]), 0.0) * 1e-6
        name, marked = str(event.get("name", "?"))[:_MAX_NAME], event.get("cat") == "user_annotation"
        slots.append(Slot(lane, name, start, start + duration, on_device, marked))
    return sorted(slots, key=lambda slot: (slot.lane, slot.start, -slot.end))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e18


def _outermost(slots: Iterable[Slot]) -> list[Slot]:
    """Those that lie in no other slot of their lane: a call, not what it called, nor the phase in which it was."""
    kept: list[Slot] = []
    ends: dict[str, float] = {}
    for slot in slots:
        if not slot.marked and slot.end > ends.get(slot.lane, float("-inf")):
            kept.append(slot)
            ends[slot.lane] = slot.end
    return kept


def _operations(slots: Sequence[Slot]) -> tuple[Operation, ...]:
    """By name, the longest total first; kernels where there are any."""
    device = [slot for slot in slots if slot.on_device]
    totals: dict[str, tuple[int, float]] = {}
    for slot, own in [(slot, slot.end - slot.start) for slot in device] or _own_seconds(slots):
        calls, total = totals.get(slot.name, (0, 0.0))
        totals[slot.name] = (calls + 1, total + own)
    found = [Operation(name, calls, max(total, 0.0)) for name, (calls, total) in totals.items()]
    return tuple(sorted(found, key=lambda operation: (-operation.total, operation.name)))


def _own_seconds(slots: Sequence[Slot]) -> list[tuple[Slot, float]]:
    """Each slot with its seconds less those of the slots right beneath it in its lane."""
    own = [slot.end - slot.start for slot in slots]
    above: list[int] = []
    for place, slot in enumerate(slots):
        while above and (slots[above[-1]].lane != slot.lane or slots[above[-1]].end <= slot.start):
            above.pop()
        if above:
            own[above[-1]] -= slot.end - slot.start
        above.append(place)
    return list(zip(slots, own, strict=True))


def _allocations(
    events: Iterable[Mapping[str, Any]],
    slots: Iterable[Slot],
    names: Mapping[tuple[str, str], str],
    origin: float,
) -> tuple[Allocations, ...]:
    """The allocator's events by device: totals as it counted them, and who held what when it held most."""
    by_device: dict[str, list[tuple[float, dict[str, Any], str]]] = defaultdict(list)
    for event in events:
        counts = event.get("args")
        if event.get("name") != _MEMORY or not isinstance(counts, dict) or not _is_number(event.get("ts")):
            continue
        if all(_is_number(counts.get(name)) for name in ("Bytes", "Total Allocated", "Total Reserved")):
            device = "CPU" if counts.get("Device Type") == 0 else f"device {str(counts.get('Device Id'))[:20]}"
            by_device[device].append((float(event["ts"]) * 1e-6, counts, _host_lane(event, names)))
    lanes: dict[str, list[Slot]] = defaultdict(list)
    for slot in slots:
        if not slot.on_device:
            lanes[slot.lane].append(slot)
    found = []
    for device, happened in sorted(by_device.items()):
        happened.sort(key=lambda entry: entry[0])
        totals = tuple(float(counts["Total Allocated"]) for _, counts, _ in happened)
        until = max(range(len(totals)), key=totals.__getitem__) + 1
        found.append(
            Allocations(
                device,
                tuple(when - origin for when, _, _ in happened),
                totals,
                tuple(float(counts["Total Reserved"]) for _, counts, _ in happened),
                _holders(happened[:until], lanes),
            )
        )
    return tuple(found)


def _holders(
    happened: Sequence[tuple[float, Mapping[str, Any], str]], lanes: Mapping[str, Sequence[Slot]]
) -> tuple[Holder, ...]:
    """What is still held after these events, by the operations in which it was allocated."""
    paths = {lane: _Paths(slots) for lane, slots in lanes.items()}
    alive: dict[Any, tuple[float, tuple[str, ...]]] = {}
    for when, counts, lane in happened:
        address, size = str(counts.get("Addr")), float(counts["Bytes"])
        if size > 0:
            alive[address] = size, paths[lane].at(when) if lane in paths else ()
        else:
            alive.pop(address, None)
    totals: dict[tuple[str, ...], tuple[float, int]] = {}
    for size, path in alive.values():
        held, blocks = totals.get(path, (0.0, 0))
        totals[path] = held + size, blocks + 1
    found = [Holder(path, held, blocks) for path, (held, blocks) in totals.items()]
    return tuple(sorted(found, key=lambda holder: (-holder.bytes, holder.path))[:_HOLDERS])


class _Paths:
    """Which slots of a lane, in their order, enclose a moment; moments are asked for in theirs."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self._coming = list(reversed(slots))
        self._open: list[Slot] = []

    def at(self, when: float) -> tuple[str, ...]:
        """Their names, outermost first."""
        while self._coming and self._coming[-1].start <= when:
            slot = self._coming.pop()
            while self._open and self._open[-1].end <= slot.start:
                self._open.pop()
            self._open.append(slot)
        while self._open and self._open[-1].end < when:
            self._open.pop()
        return tuple(slot.name for slot in self._open[:_MAX_DEPTH])
