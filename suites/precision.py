"""Number formats: fp32, 16-bit weights, and autocast to 16 bits, in inference and in training."""

from harness.core import Grid, Sampling, Suite, Workload

_AXES = {"precision": ("fp32", "bf16", "amp-bf16", "fp16", "amp-fp16")}


def _grid(model: str, context: int) -> Grid:
    return Grid(
        models=(model,),
        workloads=(
            Workload.of("decode", context=128, new_tokens=16),
            Workload.of("prefill", context=context),
            Workload.of("train_step", batch=4, length=128),
        ),
        axes=_AXES,
    )


def _quality() -> Grid:
    return Grid(models=("tiny",), workloads=(Workload.of("perplexity", batch=16, length=256),), axes=_AXES)


SUITE = Suite(
    name="precision",
    doc="fp32, 16-bit weights and autocast: speed and memory on a big model, perplexity and KL on the trained one.",
    grids={"cpu": (_grid("minimind2-small", 512), _quality()), "cuda": (_grid("minimind-3", 2048), _quality())},
    metrics=(
        "tps", "tpot", "ttft", "prefill_tps", "train_tps", "step_time", "mfu", "mbu", "peak_bytes", "reserved_bytes",
        "kv_bytes", "ppl", "kl", "top1_agreement",
    ),
    sampling=Sampling(blocks=6, passes=2, min_iterations=1),
)  # fmt: skip
