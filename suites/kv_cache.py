"""Concatenated against preallocated KV cache as the context grows."""

from harness.core import Grid, Sampling, Suite, Workload


def _grid(model: str, contexts: tuple[int, ...], new_tokens: int) -> Grid:
    return Grid(
        models=(model,),
        workloads=(
            *(Workload.of("decode", context=context, new_tokens=new_tokens) for context in contexts),
            Workload.of("perplexity"),
        ),
        axes={"kv": ("cat", "prealloc")},
    )


SUITE = Suite(
    name="kv_cache",
    doc="Decode speed and memory at several context depths: torch.cat at every step against one preallocated buffer.",
    grids={
        "cpu": (_grid("minimind2-small", (128, 512, 1000), 16),),
        "cuda": (_grid("minimind-3", (128, 1000, 4000), 64),),
    },
    metrics=("tps", "tpot", "mbu", "peak_bytes", "reserved_bytes", "kv_bytes", "ppl", "kl", "top1_agreement"),
    sampling=Sampling(blocks=8, passes=2, min_iterations=1),
)
