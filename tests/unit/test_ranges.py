"""Ranges reach nvtx where it is installed, nest and close on errors, and are nothing where it is not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness import ranges

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def fresh_choice() -> Iterator[None]:
    ranges.forget()
    yield
    ranges.forget()


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    entries: list[str] = []
    fake = SimpleNamespace(push_range=lambda name: entries.append(f"+{name}"), pop_range=lambda: entries.append("-"))
    monkeypatch.setitem(sys.modules, "nvtx", fake)
    return entries


def test_ranges_are_pushed_nested_and_popped(log: list[str]) -> None:
    with ranges.nvtx_range("suite"), ranges.nvtx_range("case"):
        log.append("work")
    assert log == ["+suite", "+case", "work", "-", "-"]


def test_a_range_closes_when_its_body_raises(log: list[str]) -> None:
    with pytest.raises(ValueError, match="inside"), ranges.nvtx_range("case"):
        raise ValueError("inside")
    assert log == ["+case", "-"]


def test_push_and_pop_by_hand(log: list[str]) -> None:
    ranges.push("phase")
    ranges.pop()
    assert log == ["+phase", "-"]


def test_the_real_package_is_called_under_its_own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    nvtx = pytest.importorskip("nvtx")
    seen: list[str] = []
    monkeypatch.setattr(nvtx, "push_range", seen.append)
    monkeypatch.setattr(nvtx, "pop_range", lambda: seen.append("pop"))
    with ranges.nvtx_range("decode"):
        pass
    assert seen == ["decode", "pop"]
    monkeypatch.undo()
    ranges.forget()
    with ranges.nvtx_range("decode"):  # and the real functions accept what we pass
        pass


def test_without_nvtx_and_torch_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvtx", None)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    first, second = ranges.nvtx_range("a"), ranges.nvtx_range("b")
    assert first is second, "the no-op allocates nothing"
    with first, second:
        ranges.push("c")
        ranges.pop()


def test_without_nvtx_torch_serves_once_it_is_imported_and_sees_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    entries: list[str] = []
    monkeypatch.setitem(sys.modules, "nvtx", None)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    with ranges.nvtx_range("early"):
        pass
    cuda = SimpleNamespace(
        is_available=lambda: True,
        nvtx=SimpleNamespace(range_push=entries.append, range_pop=lambda: entries.append("pop")),
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    with ranges.nvtx_range("late"):
        pass
    assert entries == ["late", "pop"]


def test_without_nvtx_a_torch_without_a_gpu_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvtx", None)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: False)))
    with ranges.nvtx_range("cpu"):  # torch.cuda.nvtx raises on a CPU build
        pass


def test_importing_ranges_imports_neither_nvtx_nor_torch() -> None:
    code = "import sys, harness.ranges; print([name for name in ('nvtx', 'torch') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
