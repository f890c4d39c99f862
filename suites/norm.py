"""RMSNorm, where it matters and where it does not: in the model, and alone from a few rows to more than the cache."""

from harness.core import Grid, Sampling, Suite, Variant, Workload

_IN_MODEL = ("native", "fused", "cpp", "cpp-add", "triton", "triton-add")
_ALONE = ("native", "fused", "cpp", "triton")
_COMPILED = (Variant.parse("compile=default"),)
_TEXT = Workload.of("perplexity", batch=4, length=160)


def _grids(model: str, context: int, batches: tuple[int, ...], rows: tuple[tuple[int, int], ...]) -> tuple[Grid, ...]:
    """Decode (dispatch-bound), prefill (bandwidth-bound), the module alone by size, and quality."""
    prompts = (Workload.of("prefill", context=context, batch=batch) for batch in batches)
    in_model = (Workload.of("decode", context=128, new_tokens=16), *prompts)
    alone = tuple(Workload.of("rms_norm", rows=number, calls=calls) for number, calls in rows)
    return (
        Grid(models=(model,), workloads=in_model, axes={"norm": _IN_MODEL}),
        Grid(models=(model,), workloads=alone, axes={"norm": _ALONE}, extra=_COMPILED),
        Grid(models=("tiny",), workloads=(_TEXT,), axes={"norm": _IN_MODEL}, extra=_COMPILED),
    )


SUITE = Suite(
    name="norm",
    doc="RMSNorm native, fused, in C++, in Triton and compiled: in decode and prefill, and alone from 1 row upwards.",
    grids={
        "cpu": _grids("minimind2-small", 512, (1,), ((1, 256), (256, 64), (4096, 4), (65536, 1))),
        "cuda": _grids("minimind-3", 1024, (1, 16), ((1, 256), (4096, 64), (65536, 16), (524288, 4))),
    },
    metrics=(
        "tps", "tpot", "ttft", "prefill_tps", "bandwidth", "mfu", "mbu", "peak_bytes", "ppl", "kl", "top1_agreement",
    ),
    sampling=Sampling(
        blocks=4, passes=2, slice_seconds=0.15, min_iterations=1, warmup_seconds=0.15, timeout_seconds=300.0
    ),
)  # fmt: skip
