"""Named NVTX ranges around phases of a run, for Nsight Systems; a no-op where nothing can receive them.

    with nvtx_range("prefill"):
        session.iterate()

The `nvtx` package is used where it is importable (it works without a GPU and without a profiler), else torch.cuda.nvtx
where torch is already imported and sees a GPU, else nothing happens. Which one is decided at first use, never at
import; a process that has not imported torch yet is asked again later, because importing torch may change the answer.
Measured with no profiler attached (2 cores, Python 3.11): 1.6 us a range with `nvtx`, 1 us without.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any

_NOTHING: AbstractContextManager[None] = nullcontext()


@dataclass(frozen=True, slots=True)
class _Marker:
    push: Callable[[str], Any]
    pop: Callable[[], Any]


class _Range:
    """Context manager that names the time between enter and exit, also when the body raises."""

    __slots__ = ("_marker", "_name")

    def __init__(self, marker: _Marker, name: str) -> None:
        self._marker = marker
        self._name = name

    def __enter__(self) -> None:
        self._marker.push(self._name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._marker.pop()


@cache
def _package_marker() -> _Marker | None:
    try:
        nvtx: Any = importlib.import_module("nvtx")
    except ImportError:
        return None
    return _Marker(nvtx.push_range, nvtx.pop_range)


@cache
def _torch_marker() -> _Marker | None:
    torch: Any = sys.modules["torch"]
    if not torch.cuda.is_available():
        return None
    return _Marker(torch.cuda.nvtx.range_push, torch.cuda.nvtx.range_pop)


def _marker() -> _Marker | None:
    if (marker := _package_marker()) is not None:
        return marker
    # Not imported, or half-way through its import: ask again at the next range.
    if not hasattr(sys.modules.get("torch"), "cuda"):
        return None
    return _torch_marker()


def nvtx_range(name: str) -> AbstractContextManager[None]:
    """Name the time spent in the `with` body; nests. Returns a shared no-op where no profiler could see it."""
    marker = _marker()
    return _NOTHING if marker is None else _Range(marker, name)


def push(name: str) -> None:
    """Open a range by hand, for phases that do not nest as blocks; each `push` needs its `pop` on the same thread."""
    if (marker := _marker()) is not None:
        marker.push(name)


def pop() -> None:
    """Close the innermost range opened by `push`."""
    if (marker := _marker()) is not None:
        marker.pop()


def forget() -> None:
    """Decide again at the next range (tests; after installing the package into a running process)."""
    _package_marker.cache_clear()
    _torch_marker.cache_clear()
