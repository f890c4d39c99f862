"""RMSNorm: the chain of elementwise operations against one fused operation, where it matters and where it does not."""

from harness.core import Grid, Sampling, Suite, Workload


def _grid(model: str, context: int, batch: int) -> Grid:
    return Grid(
        models=(model,),
        workloads=(
            Workload.of("decode", context=128, new_tokens=16),
            Workload.of("prefill", context=context),
            Workload.of("prefill", context=context // 4, batch=batch),
            Workload.of("perplexity"),
        ),
        axes={"norm": ("native", "fused")},
    )


SUITE = Suite(
    name="norm",
    doc="Native against fused RMSNorm in decode (dispatch-bound) and prefill (bandwidth-bound).",
    grids={"cpu": (_grid("minimind2-small", 512, 4),), "cuda": (_grid("minimind-3", 2048, 32),)},
    metrics=("tps", "tpot", "ttft", "prefill_tps", "mfu", "mbu", "peak_bytes", "ppl", "kl", "top1_agreement"),
    sampling=Sampling(blocks=8, passes=2, min_iterations=1),
)
