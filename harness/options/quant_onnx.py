"""Axis `quant` in the ONNX engines: what their own tools make of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.registry import lossy, option

if TYPE_CHECKING:
    from harness.backends._onnxruntime import Build
    from harness.backends._onnxruntime_genai import Build as GenAIBuild

_INTEGER_PRODUCTS = {"DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulInteger"}


@option(
    "quant",
    "ort-int8",
    stage="quantize",
    backends=("onnxruntime",),
    numerics=lossy(max_kl=0.05),
    evidence=lambda facts: (
        not _INTEGER_PRODUCTS.isdisjoint(facts.get("graph_operations", ()))
        and "MatMul" not in facts["graph_operations"]
    ),
)
def ort_int8(build: Build, value: str) -> None:
    """ONNX Runtime's dynamic quantisation: int8 weights per channel, activations quantised at run time."""
    build.int8 = True


@option(
    "quant",
    "genai-int8",
    stage="quantize",
    backends=("onnxruntime_genai",),
    numerics=lossy(max_kl=0.05),
    evidence=lambda facts: _only_bits(facts, 8),
)
def genai_int8(build: GenAIBuild, value: str) -> None:
    """ONNX Runtime GenAI's int8: weights in groups of 32, round to nearest; activations int8 at run time."""
    build.precision = "int8"


@option(
    "quant",
    "genai-int4",
    stage="quantize",
    backends=("onnxruntime_genai",),
    numerics=lossy(max_kl=None),
    evidence=lambda facts: _only_bits(facts, 4),
)
def genai_int4(build: GenAIBuild, value: str) -> None:
    """ONNX Runtime GenAI's int4: weights in groups of 32, round to nearest; activations int8 at run time."""
    build.precision = "int4"


def _only_bits(facts: Mapping[str, Any], bits: int) -> bool:
    operations = facts.get("graph_operations", {})
    return facts.get("weight_bits") == [bits] and "MatMulNBits" in operations and "MatMul" not in operations
