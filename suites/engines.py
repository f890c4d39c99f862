"""Every backend on the same weights and prompts, at each number format that it offers."""

from collections.abc import Sequence

from harness.core import Grid, Sampling, Suite, Variant, Workload

_OURS = "kv=prealloc sdpa=fused logits=last"
_OTHERS = (
    "backend=transformers",
    "backend=transformers precision=bf16",
    "backend=onnxruntime",
    "backend=onnxruntime quant=ort-int8",
    "backend=onnxruntime_genai",
    "backend=onnxruntime_genai quant=genai-int4",
    "backend=llama_cpp",
    "backend=llama_cpp precision=bf16",
    "backend=llama_cpp quant=q8_0",
    "backend=llama_cpp quant=q4_0",
    "backend=vllm",
    "backend=vllm precision=bf16",
)
_CPU_DECODE = (
    f"{_OURS} step=cpp",
    f"{_OURS} step=cpp precision=bf16",
    f"{_OURS} step=cpp quant=int8",
    f"{_OURS} step=cpp quant=int4",
    *_OTHERS,
)
_CPU_PROMPT = (_OURS, f"{_OURS} precision=bf16", f"{_OURS} quant=int8", f"{_OURS} quant=int4", *_OTHERS)
_CUDA = (
    f"{_OURS} precision=bf16",
    f"{_OURS} precision=bf16 compile=reduce-overhead",
    "backend=transformers precision=bf16",
)
_CUDA_DECODE = (*_CUDA, f"{_OURS} precision=bf16 cudagraph=on")


def _grids(model: str, *parts: tuple[Sequence[str], Workload]) -> tuple[Grid, ...]:
    """Speed on a model with random weights, and the quality of the same arms of the trained one.

    One sequence of text: not every engine takes several.
    """
    torch = {"backend": ("torch",)}
    quality = Workload.of("perplexity", batch=1, length=512, prefill=480)
    arms = [tuple(map(Variant.parse, texts)) for texts, _ in parts]
    every = tuple(dict.fromkeys(variant for variants in arms for variant in variants))
    return (
        *(
            Grid(models=(model,), workloads=(work,), axes=torch, extra=extra)
            for extra, (_, work) in zip(arms, parts, strict=True)
        ),
        Grid(models=("tiny",), workloads=(quality,), axes=torch, extra=every),
    )


SUITE = Suite(
    name="engines",
    doc="Every backend on the same weights and prompts, at each number format that it offers.",
    grids={
        "cpu": _grids(
            "minimind2-small",
            (_CPU_DECODE, Workload.of("decode", context=128, new_tokens=32)),
            (_CPU_PROMPT, Workload.of("prefill", context=512)),
        ),
        "cuda": _grids(
            "minimind-3",
            (_CUDA_DECODE, Workload.of("decode", context=1024, new_tokens=64)),
            (_CUDA, Workload.of("prefill", context=2048)),
        ),
    },
    metrics=(
        "tps", "tpot", "ttft", "prefill_tps", "mfu", "mbu", "peak_bytes", "reserved_bytes", "disk_bytes", "load_time",
        "ppl", "kl", "top1_agreement",
    ),
    sampling=Sampling(blocks=3, passes=2, slice_seconds=0.15, min_iterations=1, warmup_seconds=0.15),
)  # fmt: skip
