"""Axis `compile`: torch.compile, in its modes.

    harness run compile

`compile_time` is always that of a cold start: the solo pass of a timed workload compiles into an empty cache on disk.
Timed workers find it there, and so does the quality pass; slices never hold a compile either way. What is found out
about the processor once a machine (tens of seconds on a CPU) does not count. Facts: `compiled_graphs`,
`graph_breaks`, `recompiles`, `kernels` (names of generated kernels), `compile_seconds`. A prompt and a decode step are
one graph each, so that a decode session recompiles once; that does not grow with the context.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.registry import axis, close, option

if TYPE_CHECKING:
    from harness.backends._torch import Build

axis("compile", reference="off", doc="Whether the forward runs through torch.compile, and in which mode.")


@option(
    "compile",
    "default",
    stage="compile",
    needs=("compile",),
    numerics=close(fp32=1e-3, bf16=0.25),
    evidence=lambda facts: facts["compiled_graphs"] > 0 and facts["compile_mode"] == "default",
)
def default(build: Build, value: str) -> None:
    """torch.compile in its default mode; the time to compile is its own metric and never in a timed slice."""
    build.compile_mode = "default"


@option(
    "compile",
    "reduce-overhead",
    stage="compile",
    needs=("compile", "cuda"),
    requires=("kv=prealloc",),
    numerics=close(fp32=1e-3, bf16=0.25),
    evidence=lambda facts: facts["compiled_graphs"] > 0 and facts["operations"].get("cudaGraphLaunch", 0) > 0,
)
def reduce_overhead(build: Build, value: str) -> None:
    """As default, with CUDA graphs around the generated kernels; on a CPU it would be the default mode again."""
    build.compile_mode = "reduce-overhead"


@option(
    "compile",
    "max-autotune",
    stage="compile",
    needs=("compile",),
    requires=("kv=prealloc",),
    numerics=close(fp32=1e-3, bf16=0.25),
    evidence=lambda facts: facts["compiled_graphs"] > 0 and facts["compile_mode"] == "max-autotune",
)
def max_autotune(build: Build, value: str) -> None:
    """Matrix products are tuned on this machine among generated templates and the library; on CUDA with CUDA graphs."""
    build.compile_mode = "max-autotune"


@option(
    "compile",
    "cpp-wrapper",
    stage="compile",
    needs=("compile", "cxx"),
    numerics=close(fp32=1e-3, bf16=0.25),
    evidence=lambda facts: facts["compiled_graphs"] > 0 and facts["compile_mode"] == "cpp-wrapper",
)
def cpp_wrapper(build: Build, value: str) -> None:
    """As default, the code that calls the generated kernels being C++ too: less Python at every step."""
    build.compile_mode = "cpp-wrapper"
