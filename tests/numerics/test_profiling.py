"""`harness profile` on a real session: what torch.profiler and py-spy say of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import profiling, registry
from harness.backends._torch import load
from harness.core import ModelSource, Variant, Workload
from harness.profiles import read_collapsed, read_trace
from harness.registry import Session

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def session() -> Session:
    registry.load_all()
    source = ModelSource("tiny", preset="tiny")
    return load(source, Variant.parse("kv=prealloc"), "cpu", 0).session(
        Workload.of("decode", batch=1, context=16, new_tokens=2)
    )


def test_the_trace_has_the_operations_and_the_memory_of_the_iterations(session: Session, tmp_path: Path) -> None:
    said = profiling._trace(session, tmp_path / "case", "cpu")
    trace = read_trace(tmp_path / "case.trace.json")
    calls = {operation.name: operation.calls for operation in trace.operations}
    assert said == f"{calls['iteration']} iterations" and 1 <= calls["iteration"] <= profiling.ITERATIONS
    assert calls["aten::mm"] % calls["iteration"] == 0
    (found,) = trace.allocations
    assert found.device == "CPU" and max(found.allocated) > 0
    assert found.holders[0].path[0] == "iteration"
    assert list(tmp_path.iterdir()) == [tmp_path / "case.trace.json"]


def test_the_stacks_begin_at_the_session(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "STACK_SECONDS", 1)
    said = profiling._stacks(session, tmp_path / "case")
    assert said.endswith("samples"), said
    stacks = read_collapsed(tmp_path / "case.collapsed")
    assert stacks.num_passed_over == 0 and stacks.total > 20
    inside = sum(count for path, count in stacks.by_path.items() if any("iterate" in frame for frame in path[:3]))
    assert inside > 0.9 * stacks.total
    assert any("minimind/model.py" in frame for path in stacks.by_path for frame in path)


def test_without_py_spy_it_is_said(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert profiling._stacks(session, tmp_path / "case") == "py-spy is not installed (pip install py-spy)"
    assert list(tmp_path.iterdir()) == []


def test_a_sampler_that_may_not_look_is_named_with_what_it_says(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "py-spy"
    program.write_text("#!/bin/sh\necho 'Error: Permission denied' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(profiling.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert profiling._stacks(session, tmp_path / "case") == "py-spy failed: Error: Permission denied"


def test_only_the_frames_beneath_the_sampling_count() -> None:
    line = "main (a.py);_sampled (harness/profiling.py);iterate (b.py);matmul (c.py) 12"
    assert profiling._beneath(line) == "iterate (b.py);matmul (c.py) 12"
    assert profiling._beneath("main (a.py);other (b.py) 3") == ""
    assert profiling._beneath("") == ""
