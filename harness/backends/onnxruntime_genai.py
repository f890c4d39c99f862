"""Backend `onnxruntime_genai`: the same weights in ONNX Runtime GenAI's own graph, on a CPU, one sequence at a time."""

from __future__ import annotations

from harness.control import make_control
from harness.core import ModelSource, Variant
from harness.registry import Backend, Engine, backend


def _load(source: ModelSource, variant: Variant, device: str, seed: int) -> Engine:
    from harness.backends._onnxruntime_genai import load

    return load(source, variant, device, seed)


backend(
    Backend(
        name="onnxruntime_genai",
        load=_load,
        control=make_control,
        doc="ONNX Runtime GenAI on the CPU, built by its own model builder, with its own greedy search; batch 1.",
        axes=frozenset({"quant", "threads", "control"}),
        packages=("onnxruntime_genai", "onnx_ir", "transformers"),
        preload=("harness.backends._onnxruntime_genai", "torch._dynamo"),
    )
)
