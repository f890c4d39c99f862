"""Attention: the code that computes it, and the number of key/value heads."""

from harness.core import Grid, Sampling, Suite, Workload

_AXES = {"sdpa": ("upstream", "fused"), "attn": ("gqa", "mha", "mqa")}


def _grid(model: str, context: int) -> Grid:
    return Grid(
        models=(model,),
        workloads=(
            Workload.of("decode", context=context, new_tokens=16),
            Workload.of("prefill", context=context),
        ),
        axes=_AXES,
    )


def _quality() -> Grid:
    return Grid(models=("tiny",), workloads=(Workload.of("perplexity", batch=16, length=256),), axes=_AXES)


SUITE = Suite(
    name="attention",
    doc="Upstream's attention against torch's SDPA everywhere, and grouped against one-per-head and single KV heads.",
    grids={"cpu": (_grid("minimind2-small", 1000), _quality()), "cuda": (_grid("minimind-3", 4000), _quality())},
    metrics=(
        "tps", "tpot", "ttft", "prefill_tps", "mfu", "mbu", "peak_bytes", "reserved_bytes", "kv_bytes", "ppl", "kl",
        "top1_agreement",
    ),
    sampling=Sampling(blocks=6, passes=2, min_iterations=1),
)  # fmt: skip
