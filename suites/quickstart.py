"""What `make demo` runs: the usual questions, one change at a time, in about three minutes on two cores."""

from harness.core import Grid, Sampling, Suite, Workload

_AXES = {
    "kv": ("cat", "prealloc"),
    "norm": ("native", "fused"),
    "sdpa": ("upstream", "fused"),
    "precision": ("fp32", "bf16"),
    "attn": ("gqa", "mqa"),
}


def _grid(new_tokens: int, context: int) -> Grid:
    return Grid(
        models=("tiny", "minimind2-small"),
        workloads=(
            Workload.of("decode", context=context, new_tokens=new_tokens),
            Workload.of("prefill", context=context),
            Workload.of("perplexity"),
        ),
        axes=_AXES,
    )


SUITE = Suite(
    name="quickstart",
    doc="KV cache, norm, attention code, precision and KV heads, one at a time: speed, memory and quality.",
    grids={"cpu": (_grid(12, 256),), "cuda": (_grid(64, 1024),)},
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
    sampling=Sampling(blocks=4, slice_seconds=0.2, min_iterations=2, warmup_seconds=0.2),
)
