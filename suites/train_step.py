"""One optimisation step: the norm and the number format in training."""

from harness.core import Grid, Sampling, Suite, Workload


def _grid(model: str, batch: int, length: int) -> Grid:
    return Grid(
        models=(model,),
        workloads=(Workload.of("train_step", batch=batch, length=length),),
        axes={"precision": ("fp32", "amp-bf16"), "norm": ("native", "fused")},
    )


SUITE = Suite(
    name="train_step",
    doc="Training tokens per second, step time, MFU and peak memory of whole AdamW steps.",
    grids={
        "cpu": (_grid("tiny", 8, 256), _grid("minimind2-small", 4, 256)),
        "cuda": (_grid("minimind2-small", 32, 512), _grid("minimind-3", 32, 512)),
    },
    metrics=("train_tps", "step_time", "mfu", "peak_bytes", "reserved_bytes"),
    sampling=Sampling(blocks=5, slice_seconds=0.5, min_iterations=2, warmup_seconds=0.5),
)
