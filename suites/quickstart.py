"""What `make demo` runs: the usual questions, one change at a time, in under three minutes on two cores."""

from harness.core import Grid, Sampling, Suite, Workload

_AXES = {
    "kv": ("cat", "prealloc"),
    "norm": ("native", "fused"),
    "sdpa": ("upstream", "fused"),
    "precision": ("fp32", "bf16"),
    "attn": ("gqa", "mqa"),
}


def _grids(deep: Workload, prompt: Workload) -> tuple[Grid, ...]:
    """Speed of the trained tiny model and of one with 26M random weights; quality of the trained one."""
    return (
        Grid(models=("tiny", "minimind2-small"), workloads=(deep, prompt), axes=_AXES),
        Grid(models=("tiny",), workloads=(Workload.of("perplexity"),), axes=_AXES),
    )


SUITE = Suite(
    name="quickstart",
    doc="KV cache, norm, attention code, precision and KV heads, one at a time: speed, memory and quality.",
    grids={
        "cpu": _grids(Workload.of("decode", context=1000, new_tokens=8), Workload.of("prefill", context=128)),
        "cuda": _grids(Workload.of("decode", context=1000, new_tokens=64), Workload.of("prefill", context=1024)),
    },
    metrics=(
        "tps",
        "tpot",
        "ttft",
        "prefill_tps",
        "mfu",
        "mbu",
        "peak_bytes",
        "kv_bytes",
        "ppl",
        "kl",
        "top1_agreement",
    ),
    sampling=Sampling(blocks=3, passes=2, slice_seconds=0.1, min_iterations=1, warmup_seconds=0.1),
)
