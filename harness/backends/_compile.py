"""torch.compile with a record of what it did, one per engine, so that engines in one process do not count each other's.

    record = CompileRecord("default")
    call = record.compiled(model)
    call(...)
    record.facts()         # graphs, graph_breaks, recompiles, fused_kernels, kernels, seconds

The record is the compiler backend itself: dynamo hands it every graph together with the compile's number and the reason
why the graph ended, and inductor hands back the code that it generated. Nothing is called per step.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch._guards import CompileContext

from minimind.cache import PreallocCache

# What inductor calls its kernels: fused loops in C++ or Triton, and its own matrix products (templates).
_KERNEL = re.compile(r"\b(?:cpp_fused_\w+|cpp_[A-Z]\w+_\d+|triton_[a-z]+_fused_\w+)\b")
_CPP_WRAPPER: Mapping[str, Any] = MappingProxyType({"cpp_wrapper": True})


def inductor_options(mode: str) -> dict[str, Any]:
    """Inductor's configuration for one of torch.compile's modes, or for `cpp-wrapper`."""
    from torch._inductor import list_mode_options

    return dict(_CPP_WRAPPER if mode == "cpp-wrapper" else list_mode_options(mode))


@contextlib.contextmanager
def cold_caches() -> Iterator[None]:
    """An empty cache of compiled code on disk, so that a compile inside takes its full time.

    What was compiled joins the ordinary cache at the end: the timed workers need not compile it again. What the
    processor can do is found out before, by compiling for each of its vector units: that is a matter of the machine.
    """
    from torch._inductor.cpu_vec_isa import pick_vec_isa
    from torch._inductor.runtime.cache_dir_utils import cache_dir
    from torch._inductor.utils import fresh_cache

    pick_vec_isa()
    with tempfile.TemporaryDirectory() as folder:
        with fresh_cache(dir=folder, delete=False):
            yield
        for cold in Path(folder).iterdir():
            shutil.copytree(cold, cache_dir(), copy_function=_copy_whole, dirs_exist_ok=True)


def _copy_whole(source: str, target: str) -> None:
    """Copy a file that appears under its name all at once, unless it is there already: others use the cache too."""
    if not os.path.exists(target):
        part = f"{target}.{os.getpid()}"
        shutil.copy2(source, part)
        os.replace(part, target)


class CompileRecord:
    """Compiles modules in one mode and remembers each graph. See the module docstring."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.options = inductor_options(mode)
        self.graphs = 0
        self._generated = 0
        self.seconds = 0.0
        self._breaks = 0
        self._compiles: set[tuple[int, int]] = set()
        self._kernels: set[str] = set()
        self._no_cudagraph: set[str] = set()

    def compiled(self, module: Callable[..., Any]) -> Callable[..., Any]:
        """The module through torch.compile; shapes and cache lengths become symbols when they first change."""
        call: Callable[..., Any] = torch.compile(module, backend=self._compile, dynamic=None)
        return call

    def keep_in_place(self, state: Any) -> None:
        """Tell the compiler that a cache's buffers never move; a CUDA graph would otherwise refuse to write them."""
        if self.options.get("triton.cudagraphs") and isinstance(state, PreallocCache):
            for layer_index in range(state.num_layers):
                for buffer in state.buffers(layer_index):
                    torch._dynamo.mark_static_address(buffer)

    def _compile(self, graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        from torch._inductor.compile_fx import compile_fx

        self.graphs += 1
        number = CompileContext.current_compile_id()
        if number is not None and number.frame_id is not None and number.frame_compile_id is not None:
            self._compiles.add((number.frame_id, number.frame_compile_id))
        reason = getattr(graph, "compile_subgraph_reason", None)
        self._breaks += bool(reason is not None and reason.graph_break)
        started = time.perf_counter()
        compiled: Any = compile_fx(graph, inputs, self._generate, config_patches=self.options)
        self.seconds += time.perf_counter() - started
        call: Callable[..., Any] = compiled
        return call

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        from torch._inductor.compile_fx import compile_fx_inner

        output: Any = compile_fx_inner(*args, **kwargs)
        self._generated += 1
        self._kernels |= set(_KERNEL.findall(getattr(output, "source_code", None) or ""))
        reason = getattr(output, "disabled_cudagraphs_reason", None)
        self._no_cudagraph |= {reason} if reason else set()
        return output

    def facts(self) -> dict[str, Any]:
        """What was compiled so far. A break before anything was traced leaves no graph and is not counted.

        NOTE: a graph that comes whole from the cache on disk brings no code to read; then the kernels are left out.
        """
        known = self._generated >= self.graphs > 0
        return {
            "compile_mode": self.mode,
            "compiled_graphs": self.graphs,
            "graph_breaks": self._breaks,
            "recompiles": len(self._compiles) - len({frame for frame, _ in self._compiles}),
            "fused_kernels": len(self._kernels) if known else None,
            "kernels": sorted(self._kernels) if known else None,
            "compile_seconds": round(self.seconds, 3),
            **({"no_cudagraph": sorted(self._no_cudagraph)} if self._no_cudagraph else {}),
        }
