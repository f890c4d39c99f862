"""The forward as it is written against torch.compile in its modes: speed, what was generated, and the price in time.

compile_time is that of a cold start (see harness/options/compile.py). What a mode needs and the machine lacks is a
skipped row. Tuning takes minutes and is asked for on CUDA only; elsewhere: `--axis compile=off,max-autotune`.
"""

from harness.core import Grid, Sampling, Suite, Workload


def _grids(model: str, modes: tuple[str, ...], context: int, new_tokens: int) -> tuple[Grid, ...]:
    """Speed on a big model, both sides with one preallocated cache; quality of the trained one."""
    workloads = (
        Workload.of("decode", context=context, new_tokens=new_tokens),
        Workload.of("prefill", context=context),
    )
    axes = {"kv": ("prealloc",), "compile": ("off", *modes)}
    return (
        Grid(models=(model,), workloads=workloads, axes=axes),
        Grid(models=("tiny",), workloads=(_TEXT,), axes=axes),
    )


_MODES = ("default", "reduce-overhead", "cpp-wrapper")
_TEXT = Workload.of("perplexity", batch=4, length=160)

SUITE = Suite(
    name="compile",
    doc="Eager against torch.compile: decode, prefill, compile time, graph breaks, recompiles, generated kernels.",
    grids={
        "cpu": _grids("minimind2-small", _MODES, 128, 16),
        "cuda": _grids("minimind-3", (*_MODES, "max-autotune"), 1000, 64),
    },
    metrics=(
        "tps", "tpot", "ttft", "prefill_tps", "compile_time", "graph_breaks", "recompiles", "fused_kernels",
        "launches_per_step", "syncs_per_step", "peak_bytes", "reserved_bytes", "kv_bytes", "ppl", "kl",
        "top1_agreement",
    ),
    sampling=Sampling(blocks=3, passes=2, min_iterations=1, timeout_seconds=600.0),
)  # fmt: skip
