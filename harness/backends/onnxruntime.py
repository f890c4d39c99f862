"""Backend `onnxruntime`: the same weights as an ONNX file in ONNX Runtime, on a CPU, in fp32 or int8."""

from __future__ import annotations

from harness.control import make_control
from harness.core import ModelSource, Variant
from harness.registry import Backend, Engine, backend


def _load(source: ModelSource, variant: Variant, device: str, seed: int) -> Engine:
    from harness.backends._onnxruntime import load

    return load(source, variant, device, seed)


backend(
    Backend(
        name="onnxruntime",
        load=_load,
        control=make_control,
        doc="ONNX Runtime on the CPU, from our own ONNX export (opset 23), the KV cache as inputs and outputs.",
        axes=frozenset({"quant", "threads", "control"}),
        packages=("onnxruntime", "onnx", "onnxscript"),
        preload=("harness.backends._onnxruntime", "torch._dynamo"),
    )
)
