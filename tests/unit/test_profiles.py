"""What is read from a trace: an operation's own time, calls without their phases, and the allocator's events."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.profiles import Allocations, Holder, Trace, read_trace


def call(name: str, start: float, duration: float, **more: Any) -> dict[str, Any]:
    return {"ph": "X", "name": name, "ts": start, "dur": duration, "pid": 1, "tid": 7, "cat": "cpu_op", **more}


def memory(at: float, size: int, address: int, total: int, *, reserved: int = 0, device: int = 0) -> dict[str, Any]:
    counts = {"Bytes": size, "Addr": address, "Total Allocated": total, "Total Reserved": reserved,
              "Device Type": device, "Device Id": device - 1}  # fmt: skip
    return {"ph": "i", "cat": "cpu_instant_event", "name": "[memory]", "ts": at, "pid": 1, "tid": 7, "args": counts}


def read(path: Path, events: Sequence[Any]) -> Trace:
    file = path / "x.trace.json"
    file.write_text(json.dumps({"traceEvents": events}))
    return read_trace(file)


STEP = call("iteration", 0, 1000, cat="user_annotation")
LINEAR = [call("linear", 100, 400), call("mm", 150, 200), call("copy", 360, 40)]


def test_the_time_of_an_operation_is_its_own(tmp_path: Path) -> None:
    trace = read(tmp_path, [STEP, *LINEAR, call("linear", 600, 100), call("Profiler", 0, 5000, cat="Trace")])
    found = {operation.name: (operation.calls, round(operation.total * 1e6)) for operation in trace.operations}
    assert found == {"iteration": (1, 500), "linear": (2, 260), "mm": (1, 200), "copy": (1, 40)}
    assert trace.seconds == pytest.approx(1e-3)


def test_the_timeline_has_calls_and_not_the_phase_around_them(tmp_path: Path) -> None:
    trace = read(tmp_path, [STEP, *LINEAR])
    assert [(slot.name, round(slot.start * 1e6)) for slot in trace.slots] == [("linear", 100)]


def test_threads_of_one_time_do_not_lie_in_each_other(tmp_path: Path) -> None:
    trace = read(tmp_path, [call("a", 0, 100), call("b", 10, 50, tid=8)])
    assert {operation.name: round(operation.total * 1e6) for operation in trace.operations} == {"a": 100, "b": 50}


def test_the_allocator_says_how_much_was_held_and_in_what(tmp_path: Path) -> None:
    events = [STEP, *LINEAR, memory(160, 512, 1, 512), memory(170, 64, 2, 576), memory(365, 256, 3, 832),
              memory(390, -64, 2, 768), memory(450, 32, 4, 800), memory(900, -512, 1, 288)]  # fmt: skip
    (found,) = read(tmp_path, events).allocations
    inner = ("iteration", "linear", "mm")
    assert found == Allocations(
        "CPU",
        tuple(pytest.approx(at * 1e-6) for at in (160, 170, 365, 390, 450, 900)),
        (512.0, 576.0, 832.0, 768.0, 800.0, 288.0),
        (0.0,) * 6,
        (Holder(inner, 576.0, 2), Holder(("iteration", "linear", "copy"), 256.0, 1)),
    )


def test_every_device_has_its_own_allocator(tmp_path: Path) -> None:
    events = [STEP, memory(10, 8, 1, 8), memory(20, 512, 1, 4096, reserved=8192, device=1)]
    cpu, gpu = read(tmp_path, events).allocations
    assert (cpu.device, gpu.device) == ("CPU", "device 0")
    assert gpu.reserved == (8192.0,)


@pytest.mark.parametrize("counts", [None, {}, {"Bytes": "many", "Total Allocated": 1, "Total Reserved": 1}])
def test_an_allocation_without_numbers_is_none(tmp_path: Path, counts: Any) -> None:
    events = [STEP, {"ph": "i", "name": "[memory]", "ts": 1, "pid": 1, "tid": 7, "args": counts}]
    assert read(tmp_path, events).allocations == ()
