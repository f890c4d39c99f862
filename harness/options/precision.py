"""Axis `precision`: the number format of weights and arithmetic.

    harness run precision --axis precision=fp32,bf16

What ran is proved by the dtypes of the matrix products (`matmul_dtypes`: counted at the dispatcher, after autocast's
casts). Where code is compiled the products are not seen one by one, and the dtype of the weights has to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.registry import axis, lossy, option

if TYPE_CHECKING:
    from harness.backends._torch import Build

axis("precision", reference="fp32", doc="Number format of weights and arithmetic.")


def _multiplies_in(facts: Mapping[str, Any], dtype: str) -> bool:
    """Whether most matrix products were taken in `dtype`; true where none was seen (compiled, or a norm alone)."""
    products: dict[str, int] = facts.get("matmul_dtypes") or {}
    return not products or max(products, key=products.__getitem__) == dtype


@option(
    "precision",
    "bf16",
    stage="cast",
    backends=("torch", "transformers", "llama_cpp", "vllm"),
    numerics=lossy(max_kl=0.01),
    evidence=lambda facts: facts["weight_dtype"] == "bfloat16" and _multiplies_in(facts, "bfloat16"),
)
def bf16(build: Build, value: str) -> None:
    """Weights, activations and cache in bfloat16: half the bytes of fp32."""
    build.cast("bfloat16")


@option(
    "precision",
    "fp16",
    stage="cast",
    backends=("torch", "transformers", "llama_cpp", "vllm"),
    numerics=lossy(max_kl=0.001),
    evidence=lambda facts: facts["weight_dtype"] == "float16" and _multiplies_in(facts, "float16"),
)
def fp16(build: Build, value: str) -> None:
    """Weights, activations and cache in float16: half the bytes of fp32, finer than bfloat16, but 65504 at most.

    Not trained: AdamW's epsilon of 1e-8 is zero in float16, and the second step divides by it. precision=amp-fp16 is
    how float16 is trained.
    """
    build.inference_only = "precision=fp16 cannot be trained: AdamW's epsilon is zero in float16; use amp-fp16"
    build.cast("float16")


@option(
    "precision",
    "amp-bf16",
    stage="runtime",
    backends=("torch", "transformers"),
    numerics=lossy(max_kl=0.01),
    evidence=lambda facts: (
        facts["autocast"] == "bfloat16" and facts["weight_dtype"] == "float32" and _multiplies_in(facts, "bfloat16")
    ),
)
def amp_bf16(build: Build, value: str) -> None:
    """Weights stay fp32; torch.autocast runs matrix products in bfloat16."""
    build.autocast = "bfloat16"


@option(
    "precision",
    "amp-fp16",
    stage="runtime",
    backends=("torch", "transformers"),
    numerics=lossy(max_kl=0.01),
    evidence=lambda facts: (
        facts["autocast"] == "float16" and facts["weight_dtype"] == "float32" and _multiplies_in(facts, "float16")
    ),
)
def amp_fp16(build: Build, value: str) -> None:
    """Weights stay fp32; torch.autocast runs matrix products in float16, and training scales the loss."""
    build.autocast = "float16"
