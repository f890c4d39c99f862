"""Backend `llama_cpp`: the same weights as a GGUF file in llama.cpp, on a CPU, one sequence at a time."""

from __future__ import annotations

from harness.control import make_control
from harness.core import ModelSource, Variant
from harness.registry import Backend, Engine, backend


def _load(source: ModelSource, variant: Variant, device: str, seed: int) -> Engine:
    from harness.backends._llama_cpp import load

    return load(source, variant, device, seed)


backend(
    Backend(
        name="llama_cpp",
        load=_load,
        control=make_control,
        doc="llama.cpp on the CPU, from a GGUF file of our own exporter; batch 1; timed work gives last logits only.",
        axes=frozenset({"precision", "quant", "threads", "control"}),
        packages=("llama_cpp", "gguf"),
        preload=("harness.backends._llama_cpp", "torch._dynamo", "gguf"),  # the exporter writes with the last
    )
)
