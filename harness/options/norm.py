"""Axis `norm`: how RMSNorm is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

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


def _ran(facts: Mapping[str, Any], operation: str, kernel: str = "") -> bool:
    """Whether this operator took part, and no norm of the model's own is left. In a replayed CUDA graph only the kernel
    on the device has a name."""
    seen = operation in facts["operations"] or kernel in facts.get("device_kernels", ())
    return seen and facts["modules"].keys().isdisjoint(_NATIVE)


@option(
    "norm",
    "triton",
    stage="module",
    needs=("triton",),
    claims=("RMSNorm",),
    numerics=close(fp32=1e-4, bf16=0.25),
    evidence=lambda facts: _ran(facts, "minimind_bench::rms_norm", "rms_norm_forward_kernel"),
)
def triton(build: Build, value: str) -> None:
    """RMSNorm as one Triton kernel of our own."""
    from harness.options._fused_block import fuse_norms, needs_triton
    from kernels.triton_rms_norm import triton_rms_norm

    needs_triton()
    fuse_norms(build, triton_rms_norm)


@option(
    "norm",
    "triton-add",
    stage="module",
    needs=("triton",),
    claims=("RMSNorm", "residual addition"),
    numerics=close(fp32=1e-4, bf16=0.25),
    evidence=lambda facts: (
        _ran(facts, "minimind_bench::add_rms_norm", "add_rms_norm_forward_kernel") and "FusedBlock" in facts["modules"]
    ),
)
def triton_add(build: Build, value: str) -> None:
    """As `triton`, and every addition to the stream happens inside the norm that follows it."""
    from harness.options._fused_block import fuse_residuals, needs_triton
    from kernels.add_rms_norm import triton_add_rms_norm
    from kernels.triton_rms_norm import triton_rms_norm

    needs_triton()
    fuse_residuals(build, triton_rms_norm, triton_add_rms_norm)


@option(
    "norm",
    "cpp",
    stage="module",
    needs=("cpu", "cxx"),
    claims=("RMSNorm",),
    excludes=("precision=fp16", "precision=amp-fp16"),  # the C++ kernels know fp32 and bf16
    numerics=close(fp32=1e-4, bf16=0.25),
    evidence=lambda facts: _ran_in_cpp(facts, "minimind_cpu::rms_norm"),
)
def cpp(build: Build, value: str) -> None:
    """RMSNorm as one C++ loop of our own, compiled on first use."""
    from harness.options._fused_block import fuse_norms
    from kernels.cpu.ops import rms_norm

    fuse_norms(build, rms_norm)


@option(
    "norm",
    "cpp-add",
    stage="module",
    needs=("cpu", "cxx"),
    claims=("RMSNorm", "residual addition"),
    excludes=("precision=fp16", "precision=amp-fp16"),  # the C++ kernels know fp32 and bf16
    numerics=close(fp32=1e-4, bf16=0.25),
    evidence=lambda facts: _ran_in_cpp(facts, "minimind_cpu::add_rms_norm") and "FusedBlock" in facts["modules"],
)
def cpp_add(build: Build, value: str) -> None:
    """As `cpp`, and every addition to the stream happens inside the norm that follows it."""
    from harness.options._fused_block import fuse_residuals
    from kernels.cpu.ops import add_rms_norm, rms_norm

    fuse_residuals(build, rms_norm, add_rms_norm)


def _ran_in_cpp(facts: Mapping[str, Any], operation: str) -> bool:
    """As `_ran`; a decode step that is C++ as a whole (step=cpp) computes its norms itself."""
    return _ran(facts, operation) or _ran(facts, "minimind_cpu::decode_step")
