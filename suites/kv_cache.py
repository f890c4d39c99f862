"""The KV cache as the context grows: concatenated, preallocated, in 8 bits, in pages; with each attention code."""

from harness.core import Grid, Sampling, Suite, Workload

_KINDS = ("cat", "prealloc", "int8", "paged")


def _grids(model: str, contexts: tuple[int, ...], new_tokens: int) -> tuple[Grid, ...]:
    """Upstream's attention copies the cached heads at every step and hides what the cache costs: torch's does not."""
    depths = tuple(Workload.of("decode", context=context, new_tokens=new_tokens) for context in contexts)
    return (
        Grid(models=(model,), workloads=depths, axes={"kv": _KINDS}),
        Grid(models=(model,), workloads=depths[-1:], axes={"sdpa": ("fused",), "kv": _KINDS}),
        Grid(models=("tiny",), workloads=(Workload.of("perplexity"),), axes={"kv": _KINDS}),
        Grid(models=("tiny",), workloads=(Workload.of("perplexity"),), axes={"sdpa": ("fused",), "kv": _KINDS}),
    )


SUITE = Suite(
    name="kv_cache",
    doc="Decode speed and memory as the context grows: cache by torch.cat, preallocated, in int8, in pages.",
    grids={
        "cpu": _grids("minimind2-small", (128, 512, 1000), 16),
        "cuda": _grids("minimind-3", (128, 1000, 4000), 64),
    },
    metrics=("tps", "tpot", "mbu", "peak_bytes", "reserved_bytes", "kv_bytes", "ppl", "kl", "top1_agreement"),
    sampling=Sampling(blocks=8, passes=2, min_iterations=1),
)
