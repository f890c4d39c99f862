"""What really ran in one step: operations by name, matrix products by dtype, calls into the CUDA runtime.

facts |= counted_operations(session.step)       # the dispatcher's view: exact and cheap; compiled code is one call
facts |= profiled_operations(session.step)      # the profiler's view: compiled code and CUDA calls too
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# What multiplies matrices, as the dispatcher names it: in inference mode the composite, elsewhere its parts.
_PRODUCTS = frozenset(f"aten::{name}" for name in ("linear", "matmul", "mm", "addmm", "bmm", "baddbmm"))
# The driver and runtime calls that submit work, counted on the side of the host: a replayed CUDA graph is one call.
_LAUNCHES = re.compile(r"cu(da)?(LaunchKernel|LaunchCooperativeKernel|GraphLaunch|Memcpy|Memset)")
# NOTE: cudaDeviceSynchronize is left out: it is what the session itself calls around an iteration.
_SYNCS = re.compile(r"cu(da)?(StreamSynchronize|EventSynchronize)|cudaMemcpy$")


class OperationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what reaches the dispatcher, by operator name: exact, and cheap where nothing is compiled.

    `products` counts the matrix products by the dtype in which they are taken, autocast's casts included.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: dict[str, int] = {}
        self.products: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        self.counts[name] = self.counts.get(name, 0) + 1
        if name in _PRODUCTS or "scaled_dot_product" in name:
            dtype = str(args[0].dtype).removeprefix("torch.")
            self.products[dtype] = self.products.get(dtype, 0) + 1
        return func(*args, **(kwargs or {}))


def counted_operations(step: Callable[[], None]) -> dict[str, Any]:
    """Operations by name and matrix products by dtype, as the dispatcher sees them."""
    with OperationCounter() as counter:
        step()
    return {"operations": dict(sorted(counter.counts.items())), "matmul_dtypes": dict(sorted(counter.products.items()))}


def profiled_operations(step: Callable[[], None]) -> dict[str, Any]:
    """Operations by name through torch's profiler, which sees compiled code too; on CUDA also `launches_per_step` and
    `syncs_per_step`, counted by the calls into the CUDA runtime or driver."""
    from torch.autograd import DeviceType  # type: ignore[attr-defined]
    from torch.profiler import ProfilerActivity, profile

    cuda = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiler:
        step()
        if cuda:
            torch.cuda.synchronize()
    counts: dict[str, int] = {}
    kernels: set[str] = set()
    for event in profiler.events() or ():
        # A kernel's own event on the device is not counted: inside a replayed graph there are hundreds for one call.
        if event.device_type == DeviceType.CUDA:
            kernels.add(event.name)
        else:
            counts[event.name] = counts.get(event.name, 0) + 1
    seen = {"operations": dict(sorted(counts.items()))}
    return {**seen, **cuda_calls(counts), "device_kernels": sorted(kernels)} if cuda else seen


def cuda_calls(counts: Mapping[str, int]) -> dict[str, int]:
    """`launches_per_step` and `syncs_per_step` from the profiler's host events by name."""

    def matching(pattern: re.Pattern[str]) -> int:
        return sum(count for name, count in counts.items() if pattern.match(name))

    return {"launches_per_step": matching(_LAUNCHES), "syncs_per_step": matching(_SYNCS)}
