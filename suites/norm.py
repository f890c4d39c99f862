"""RMSNorm, where it matters and where it does not: in the model, and alone from a few rows to more than the cache."""

from harness.core import Grid, Sampling, Suite, Variant, Workload

_IN_MODEL = ("native", "fused", "cpp", "cpp-add", "triton", "triton-add")
_ALONE = ("native", "fused", "cpp", "triton")
_COMPILED = (Variant.parse("compile=default"),)


def _grids(model: str, context: int, batch: int, rows: tuple[tuple[int, int], ...]) -> tuple[Grid, ...]:
    """Decode (dispatch-bound), prefill (bandwidth-bound), the module alone by size, and quality."""
    in_model = (
        Workload.of("decode", context=128, new_tokens=16),
        Workload.of("prefill", context=context),
        Workload.of("prefill", context=context // 4, batch=batch),
    )
    alone = tuple(Workload.of("rms_norm", rows=number, calls=calls) for number, calls in rows)
    return (
        Grid(models=(model,), workloads=in_model, axes={"norm": _IN_MODEL}),
        Grid(models=(model,), workloads=alone, axes={"norm": _ALONE}, extra=_COMPILED),
        Grid(models=("tiny",), workloads=(Workload.of("perplexity"),), axes={"norm": _IN_MODEL}, extra=_COMPILED),
    )


SUITE = Suite(
    name="norm",
    doc="RMSNorm native, fused, in C++, in Triton and compiled: in decode and prefill, and alone from 1 row upwards.",
    grids={
        "cpu": _grids("minimind2-small", 512, 4, ((1, 256), (256, 64), (4096, 4), (65536, 1))),
        "cuda": _grids("minimind-3", 2048, 32, ((1, 256), (4096, 64), (65536, 16), (524288, 4))),
    },
    metrics=(
        "tps", "tpot", "ttft", "prefill_tps", "bandwidth", "mfu", "mbu", "peak_bytes", "ppl", "kl", "top1_agreement",
    ),
    sampling=Sampling(blocks=6, passes=2, slice_seconds=0.15, min_iterations=1, warmup_seconds=0.15),
)  # fmt: skip
