"""Each improvement added to the last, from upstream's reference to the fastest that keeps quality."""

from harness.core import Grid, Sampling, Suite, Workload

Axes = dict[str, tuple[str, ...]]

# A prompt and a decode step want different things: each climbs its own ladder.
_CPU_DECODE: Axes = {
    "kv": ("cat", "prealloc"),
    "sdpa": ("upstream", "fused"),
    "norm": ("native", "fused"),
    "step": ("torch", "cpp"),
    "quant": ("none", "int8"),
}
_CPU_PROMPT: Axes = {
    "kv": ("cat", "prealloc"),
    "sdpa": ("upstream", "fused"),
    "norm": ("native", "fused"),
    "logits": ("all", "last"),
    "quant": ("none", "int8"),
}
_CUDA: Axes = {
    "kv": ("cat", "prealloc"),
    "sdpa": ("upstream", "fused"),
    "logits": ("all", "last"),
    "precision": ("fp32", "bf16"),
    "norm": ("native", "triton"),
}
_CUDA_DECODE: Axes = {**_CUDA, "cudagraph": ("off", "on")}


def _grids(model: str, *ladders: tuple[Axes, Workload]) -> tuple[Grid, ...]:
    """Speed on a model with random weights, and the quality of the same rungs of the trained one."""
    quality = Workload.of("perplexity", batch=4, length=160)
    return (
        *(Grid(models=(model,), workloads=(work,), axes=axes, design="ladder") for axes, work in ladders),
        *(Grid(models=("tiny",), workloads=(quality,), axes=axes, design="ladder") for axes, _ in ladders),
    )


SUITE = Suite(
    name="ladder",
    doc="Each improvement added to the last, from upstream's reference to the fastest that keeps quality.",
    grids={
        "cpu": _grids(
            "minimind2-small",
            (_CPU_DECODE, Workload.of("decode", context=512, new_tokens=16)),
            (_CPU_PROMPT, Workload.of("prefill", context=512)),
        ),
        "cuda": _grids(
            "minimind-3",
            (_CUDA_DECODE, Workload.of("decode", context=1024, new_tokens=64)),
            (_CUDA, Workload.of("prefill", context=2048)),
        ),
    },
    metrics=(
        "tps", "tpot", "ttft", "prefill_tps", "mfu", "mbu", "peak_bytes", "reserved_bytes", "kv_bytes", "disk_bytes",
        "launches_per_step", "ppl", "kl", "top1_agreement",
    ),
    sampling=Sampling(blocks=5, passes=2, slice_seconds=0.2, min_iterations=1, warmup_seconds=0.2),
)  # fmt: skip
