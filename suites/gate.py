"""What `harness gate` measures by default: small cases whose change a noisy machine can still tell, and quality."""

from harness.core import Gate, Grid, Sampling, Suite, Variant, Workload

_FUSED = Variant.of({"kv": "prealloc", "sdpa": "fused"})


def _grids(deep: Workload, prompt: Workload) -> tuple[Grid, ...]:
    """Upstream's way and the one people use, of a tiny model and of one with 26M parameters; quality of the first."""
    return (
        Grid(models=("tiny", "minimind2-small"), workloads=(deep, prompt), extra=(_FUSED,)),
        Grid(models=("tiny",), workloads=(Workload.of("perplexity"),), extra=(_FUSED,)),
    )


SUITE = Suite(
    name="gate",
    doc="Decode and prefill of two sizes, upstream's way and fused, with quality: about ten minutes for two commits.",
    grids={
        "cpu": _grids(Workload.of("decode", context=128, new_tokens=2), Workload.of("prefill", context=32)),
        "cuda": _grids(Workload.of("decode", context=512, new_tokens=8), Workload.of("prefill", context=512)),
    },
    metrics=(
        "tps",
        "ttft",
        "kv_bytes",
        "graph_breaks",
        "launches_per_step",
        "syncs_per_step",
        "ppl",
        "kl",
        "top1_agreement",
    ),
    margin=0.005,
    sampling=Sampling(
        blocks=16, passes=25, slice_seconds=0.03, min_iterations=1, warmup_seconds=0.25, looks=(4, 8, 16)
    ),
    gates=(
        Gate("tps", workload="decode*"),
        Gate("ttft", workload="prefill*"),
        Gate("kv_bytes", kind="exact"),
        Gate("graph_breaks", kind="exact"),
        Gate("launches_per_step", kind="exact"),
        Gate("syncs_per_step", kind="exact"),
        Gate("ppl", kind="bound", margin=0.005),
        Gate("kl", kind="bound", limit=1e-3),
    ),
)
