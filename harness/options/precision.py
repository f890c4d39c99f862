"""Axis `precision`: the number format of weights and arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.registry import axis, lossy, option

if TYPE_CHECKING:
    from harness.backends._torch import Build

axis("precision", reference="fp32", doc="Number format of weights and arithmetic.")


@option(
    "precision",
    "bf16",
    stage="cast",
    backends=("torch", "transformers"),
    numerics=lossy(max_kl=0.01),
    evidence=lambda facts: facts["weight_dtype"] == "bfloat16",
)
def bf16(build: Build, value: str) -> None:
    """Weights, activations and cache in bfloat16: half the bytes of fp32."""
    build.cast("bfloat16")


@option(
    "precision",
    "amp-bf16",
    stage="runtime",
    backends=("torch", "transformers"),
    numerics=lossy(max_kl=0.01),
    evidence=lambda facts: facts["autocast"] == "bfloat16" and facts["weight_dtype"] == "float32",
)
def amp_bf16(build: Build, value: str) -> None:
    """Weights stay fp32; torch.autocast runs matrix products in bfloat16."""
    build.autocast = "bfloat16"
