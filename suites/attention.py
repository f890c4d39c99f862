"""Attention: the code that computes it, and the number of key/value heads."""

from harness.core import Grid, Sampling, Suite, Variant, Workload

_AXES = {"sdpa": ("upstream", "fused", "flex", "triton"), "attn": ("gqa", "mha", "mqa")}
_CPP = (Variant.parse("kv=prealloc sdpa=fused"), Variant.parse("kv=prealloc sdpa=cpp"))


def _grid(model: str, context: int) -> Grid:
    return Grid(
        models=(model,),
        workloads=(
            Workload.of("decode", context=context, new_tokens=16),
            Workload.of("prefill", context=context),
        ),
        axes=_AXES,
        extra=_CPP,
    )


def _quality() -> Grid:
    return Grid(models=("tiny",), workloads=(Workload.of("perplexity"),), axes=_AXES, extra=_CPP)


SUITE = Suite(
    name="attention",
    doc="The code that computes attention (upstream's, SDPA, FlexAttention, our kernels), and the number of KV heads.",
    grids={"cpu": (_grid("minimind2-small", 1000), _quality()), "cuda": (_grid("minimind-3", 4000), _quality())},
    metrics=(
        "tps", "tpot", "ttft", "prefill_tps", "mfu", "mbu", "peak_bytes", "reserved_bytes", "kv_bytes", "ppl", "kl",
        "top1_agreement",
    ),
    sampling=Sampling(blocks=6, passes=2, min_iterations=1),
)  # fmt: skip
