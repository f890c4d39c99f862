"""Axis `step`: what computes a decode step, the model's modules or one call of C++.

    harness run kv_cache --axis kv=prealloc --axis step=cpp

A prompt always runs through the modules, so the options that change those (`norm`, `mlp`, `sdpa`, `compile`) still
decide how a prompt is computed; a decode step of one token per row runs in C++ whatever they say. Refused: mixtures
of experts, autocast, float16, and weights in formats other than float32, bfloat16 and those of quant=int8 and
quant=int4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.registry import axis, close, option

if TYPE_CHECKING:
    from harness.backends._torch import Build

axis("step", reference="torch", doc="A decode step: the model's modules one by one, or all layers in one C++ call.")

# What the C++ step cannot read. Simulated quantisation keeps float weights, so it can.
_FOREIGN = ("dynamic-int8", "bnb-int8", "bnb-nf4", "bnb-fp4", "torchao-int8", "torchao-int4")
_FORMATS = ("fp16", "amp-bf16", "amp-fp16")
_EXCLUDES = (*(f"quant={name}" for name in _FOREIGN), *(f"precision={name}" for name in _FORMATS))


def _ran(facts: Mapping[str, Any]) -> bool:
    """Whether the operator took part in a step, and every one-token forward so far was one call of it.

    Workloads without decode steps are refused, so there always is a step.
    """
    every = facts.get("native_steps", -1) == facts.get("one_token_forwards")
    return every and "minimind_cpu::decode_step" in facts["operations"]


@option(
    "step",
    "cpp",
    stage="runtime",
    needs=("cpu", "cxx"),
    requires=("kv=prealloc",),
    excludes=_EXCLUDES,
    numerics=close(fp32=1e-3, bf16=0.25),
    evidence=_ran,
)
def cpp(build: Build, value: str) -> None:
    """Norms, products, rotation, cache, attention and head of all layers in one C++ call per decode step."""
    from harness.options._native import native_step

    native_step(build)
