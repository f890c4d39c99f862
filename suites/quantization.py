"""Weights in fewer bits: what each scheme costs in quality and saves in bytes, and what it does to speed."""

from harness.core import Grid, Sampling, Suite, Variant, Workload

_QUANT = (
    "none", "fake-int8", "fake-int4", "dynamic-int8", "int8", "int4", "gptq-int4", "hqq-int4", "bnb-int8", "bnb-nf4",
    "bnb-fp4", "torchao-int8", "torchao-int4",
)  # fmt: skip
_NATIVE_BF16 = Variant.parse("kv=prealloc step=cpp precision=bf16")
_GRANULARITIES = ("fake-int8-tensor", "fake-int4-tensor", "fake-int4-channel", "fake-int4-group64")
_NATIVE = {"kv": ("prealloc",), "step": ("cpp",), "quant": ("none", "int8", "int4", "gptq-int4")}
_TEXT = (Workload.of("perplexity", batch=16, length=256, prefill=224),)
_BF16 = (Variant.parse("precision=bf16"),)


def _speed(model: str, new_tokens: int, prompt: int) -> Grid:
    workloads = (Workload.of("decode", context=128, new_tokens=new_tokens), Workload.of("prefill", context=prompt))
    return Grid(models=(model,), workloads=workloads, axes={"quant": _QUANT}, extra=_BF16)


def _native(model: str, new_tokens: int) -> Grid:
    """Where the step is one call of C++, what is left is reading weights: fewer bits are less time."""
    decode = Workload.of("decode", context=128, new_tokens=new_tokens)
    return Grid(models=(model,), workloads=(decode,), axes=_NATIVE, extra=(_NATIVE_BF16,))


def _quality() -> Grid:
    return Grid(models=("tiny",), workloads=_TEXT, axes={"quant": (*_QUANT, *_GRANULARITIES)}, extra=_BF16)


def _native_quality() -> Grid:
    return Grid(models=("tiny",), workloads=_TEXT, axes=_NATIVE, extra=(_NATIVE_BF16,))


SUITE = Suite(
    name="quantization",
    doc="Every quantisation: PPL, KL, top-1 and a sample on the trained model; speed, memory and size on a big one. "
    "Peak memory includes the float weights, since all of them are quantised while loading.",
    grids={
        "cpu": (
            _speed("minimind2-small", 16, 256),
            _native("minimind2-small", 32),
            _quality(),
            _native_quality(),
        ),
        "cuda": (_speed("minimind-3", 64, 1024), _quality()),
    },
    metrics=(
        "tps", "tpot", "ttft", "prefill_tps", "mbu", "peak_bytes", "reserved_bytes", "disk_bytes", "load_time", "ppl",
        "kl", "top1_agreement",
    ),
    sampling=Sampling(blocks=3, min_iterations=1, slice_seconds=0.2, warmup_seconds=0.2, timeout_seconds=300.0),
)  # fmt: skip
