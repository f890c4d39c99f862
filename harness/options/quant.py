"""Axis `quant`: how the weights of the linear layers are stored and multiplied.

    harness run quantization                            # every option: perplexity, KL, sample, size, speed, memory
    harness run quantization --axis quant=none,fake-int4,fake-int4-group128

Every linear layer but a mixture's router is quantised, the head too; the embedding stays float (see `_quantize`).
Refused: shapes that a scheme's groups do not divide, and training (both are skips with their reason).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from harness.registry import axis, lossy, option

if TYPE_CHECKING:
    from harness.backends._llama_cpp import Build as LlamaCppBuild
    from harness.backends._torch import Build

axis("quant", reference="none", doc="Weights of the linear layers: as they are, simulated, or stored in fewer bits.")


def _simulated(facts: Mapping[str, Any]) -> bool:
    """Whether every quantised layer holds no more different weights in a group than its bits allow."""
    layers = facts["modules"].get("SimulatedLinear", 0)
    if layers == 0 or layers != facts["quantized_layers"]:
        return False
    return int(facts["weight_levels"]) <= 1 << int(facts["quant_bits"])


def _modules(facts: Mapping[str, Any], kind: str) -> bool:
    """Whether all quantised layers are of this class."""
    return int(facts["modules"].get(kind, 0)) == int(facts.get("quantized_layers", -1))


def _weights(facts: Mapping[str, Any], kind: str) -> bool:
    """Whether all quantised layers' weights are of this class."""
    return int(facts.get("weight_classes", {}).get(kind, 0)) == int(facts.get("quantized_layers", -1))


def _bnb_4bit(facts: Mapping[str, Any]) -> bool:
    """Whether bitsandbytes' own 4-bit operation multiplied."""
    ran = any(name.startswith("bitsandbytes::") and "4bit" in name for name in facts["operations"])
    return ran and _modules(facts, "Linear4bit") and _weights(facts, "Params4bit")


@option("quant", "fake-int8", stage="quantize", numerics=lossy(max_kl=0.0005), evidence=_simulated)
def fake_int8(build: Build, value: str) -> None:
    """Simulated int8: weights rounded to 8 bits, a scale per output channel; stored and multiplied as floats."""
    from harness.options._quantize import simulate

    simulate(build, bits=8, granularity="channel")


@option("quant", "fake-int4", stage="quantize", numerics=lossy(max_kl=0.02), evidence=_simulated)
def fake_int4(build: Build, value: str) -> None:
    """Simulated int4: weights rounded to 4 bits, a scale per 32 input channels; stored and multiplied as floats."""
    from harness.options._quantize import simulate

    simulate(build, bits=4, granularity=32)


@option(
    "quant",
    "fake-int4-group64",
    stage="quantize",
    pattern=r"fake-int[48]-(tensor|channel|group[1-9][0-9]{0,4})",
    numerics=lossy(max_kl=None),
    evidence=_simulated,
)
def fake(build: Build, value: str) -> None:
    """Simulated int8 or int4 with a scale per tensor, channel or group: fake-int8-tensor, fake-int4-group128."""
    from harness.options._quantize import simulate

    _, bits, unit = value.split("-")
    granularity: Literal["tensor", "channel"] | int
    granularity = "tensor" if unit == "tensor" else "channel" if unit == "channel" else int(unit.removeprefix("group"))
    simulate(build, bits=int(bits.removeprefix("int")), granularity=granularity)


@option(
    "quant",
    "dynamic-int8",
    stage="quantize",
    needs=("cpu",),
    numerics=lossy(max_kl=0.005),  # 8e-4 with VNNI; without it the sums saturate: 3e-3
    evidence=lambda facts: _modules(facts, "DynamicInt8Linear") and "quantized::linear_dynamic" in facts["operations"],
)
def dynamic_int8(build: Build, value: str) -> None:
    """int8 weights and inputs, multiplied as integers: torch's dynamic quantisation, one scale per layer and call."""
    from harness.options._quantize import dynamic_int8

    dynamic_int8(build)


@option(
    "quant",
    "bnb-int8",
    stage="quantize",
    needs=("pkg:bitsandbytes",),
    numerics=lossy(max_kl=0.0005),
    evidence=lambda facts: _modules(facts, "Linear8bitLt") and _weights(facts, "Int8Params"),
)
def bnb_int8(build: Build, value: str) -> None:
    """bitsandbytes' LLM.int8(): int8 weights, on a CPU dequantised for every product: saves memory, not time."""
    from harness.options._quantize import bitsandbytes

    bitsandbytes(build, "int8")


@option(
    "quant",
    "bnb-nf4",
    stage="quantize",
    needs=("pkg:bitsandbytes",),
    numerics=lossy(max_kl=0.03),
    evidence=_bnb_4bit,
)
def bnb_nf4(build: Build, value: str) -> None:
    """bitsandbytes' NF4 (QLoRA): 16 levels spaced for normally distributed weights, a scale per 64 weights."""
    from harness.options._quantize import bitsandbytes

    bitsandbytes(build, "nf4")


@option(
    "quant",
    "bnb-fp4",
    stage="quantize",
    needs=("pkg:bitsandbytes",),
    numerics=lossy(max_kl=0.05),
    evidence=_bnb_4bit,
)
def bnb_fp4(build: Build, value: str) -> None:
    """bitsandbytes' FP4: 4-bit floats, a scale per 64 weights."""
    from harness.options._quantize import bitsandbytes

    bitsandbytes(build, "fp4")


@option(
    "quant",
    "torchao-int8",
    stage="quantize",
    needs=("pkg:torchao",),
    numerics=lossy(max_kl=0.0005),
    evidence=lambda facts: _weights(facts, "Int8Tensor"),
)
def torchao_int8(build: Build, value: str) -> None:
    """torchao's int8 weight-only: a scale per output channel, weights cast to the input's format in each product."""
    from harness.options._quantize import torchao

    torchao(build, 8)


@option(
    "quant",
    "torchao-int4",
    stage="quantize",
    needs=("pkg:torchao",),
    numerics=lossy(max_kl=0.02),
    evidence=lambda facts: _weights(facts, "IntxUnpackedToInt8Tensor"),
)
def torchao_int4(build: Build, value: str) -> None:
    """torchao's int4 weight-only, a scale per 32 weights, each of which takes a byte: its packed forms need a GPU."""
    from harness.options._quantize import torchao

    torchao(build, 4)


@option(
    "quant",
    "gptq-int4",
    stage="quantize",
    needs=("cxx",),
    excludes=("precision=fp16", "precision=amp-fp16"),  # the C++ kernels know fp32 and bf16
    numerics=lossy(max_kl=0.005),
    evidence=lambda facts: _native(facts, "Int4"),
)
def gptq_int4(build: Build, value: str) -> None:
    """GPTQ: the format of int4, rounding errors made up for on training text; quantised while loading."""
    from harness.options._quantize import gptq_int4

    gptq_int4(build)


@option(
    "quant",
    "hqq-int4",
    stage="quantize",
    needs=("cxx",),
    excludes=("precision=fp16", "precision=amp-fp16"),  # the C++ kernels know fp32 and bf16
    numerics=lossy(max_kl=0.02),
    evidence=lambda facts: _native(facts, "Int4"),
)
def hqq_int4(build: Build, value: str) -> None:
    """HQQ: the format of int4, with scales that fit most weights well and ignore outliers; no data needed."""
    from harness.options._quantize import hqq_int4

    hqq_int4(build)


@option(
    "quant",
    "q8_0",
    stage="quantize",
    backends=("llama_cpp",),
    excludes=("precision=bf16", "precision=fp16"),
    numerics=lossy(max_kl=0.001),
    evidence=lambda facts: facts["weight_dtype"] == "q8_0" and "MUL_MAT" in facts["graph_operations"],
)
def q8_0(build: LlamaCppBuild, value: str) -> None:
    """GGUF's Q8_0: 8 bits and a scale per 32 weights; llama.cpp multiplies them with 8-bit activations."""
    build.file_type = "q8_0"


@option(
    "quant",
    "q4_0",
    stage="quantize",
    backends=("llama_cpp",),
    excludes=("precision=bf16", "precision=fp16"),
    numerics=lossy(max_kl=0.02),
    evidence=lambda facts: facts["weight_dtype"] == "q4_0" and "MUL_MAT" in facts["graph_operations"],
)
def q4_0(build: LlamaCppBuild, value: str) -> None:
    """GGUF's Q4_0: 4 bits and a scale per 32 weights, the embedding in Q8_0; 8-bit activations in llama.cpp."""
    build.file_type = "q4_0"


def _native(facts: Mapping[str, Any], kind: str) -> bool:
    """Whether all quantised layers are ours; their forwards have no way of multiplying but our kernels."""
    return _modules(facts, f"{kind}Linear")


@option(
    "quant",
    "int8",
    stage="quantize",
    needs=("cxx",),
    excludes=("precision=fp16", "precision=amp-fp16"),  # the C++ kernels know fp32 and bf16
    numerics=lossy(max_kl=0.001),
    evidence=lambda facts: _native(facts, "Int8"),
)
def int8(build: Build, value: str) -> None:
    """Our own int8 weights, a scale per output channel, head and embedding too; on a CPU inputs are in 8 bits too."""
    from harness.options._native import native_quantize

    native_quantize(build, "int8")


@option(
    "quant",
    "int4",
    stage="quantize",
    needs=("cxx",),
    excludes=("precision=fp16", "precision=amp-fp16"),  # the C++ kernels know fp32 and bf16
    numerics=lossy(max_kl=0.02),
    evidence=lambda facts: _native(facts, "Int4"),
)
def int4(build: Build, value: str) -> None:
    """Our own int4 weights, a scale per 32 inputs, head and embedding too; on a CPU inputs are in 8 bits."""
    from harness.options._native import native_quantize

    native_quantize(build, "int4")
