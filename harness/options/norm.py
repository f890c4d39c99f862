"""Axis `norm`: how RMSNorm is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.registry import axis, close, option

if TYPE_CHECKING:
    from harness.backends._torch import Build

_NATIVE = {"RMSNorm", "RMSNormCastFirst"}

axis("norm", reference="native", doc="RMSNorm: upstream's chain of elementwise operations, or one fused operation.")


@option(
    "norm",
    "fused",
    stage="module",
    claims=("RMSNorm",),
    numerics=close(fp32=1e-4, bf16=0.25),
    evidence=lambda facts: "FusedRMSNorm" in facts["modules"] and facts["modules"].keys().isdisjoint(_NATIVE),
)
def fused(build: Build, value: str) -> None:
    """RMSNorm by torch.nn.functional.rms_norm, one call instead of six."""
    from kernels.rms_norm import FusedRMSNorm
    from minimind.norm import RMSNorm

    build.replace_modules(RMSNorm, FusedRMSNorm.from_norm)
