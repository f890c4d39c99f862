"""Axis `mlp`: how the feed-forward's activation is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.registry import axis, close, option

if TYPE_CHECKING:
    from harness.backends._torch import Build

axis("mlp", reference="native", doc="silu(gate) * up: two elementwise operations, or one fused kernel.")


@option(
    "mlp",
    "triton",
    stage="module",
    needs=("triton",),
    claims=("SwiGLU",),
    numerics=close(fp32=1e-4, bf16=0.25),
    evidence=lambda facts: (
        # In a replayed CUDA graph only the kernel on the device has a name.
        ("minimind_bench::swiglu" in facts["operations"] or "swiglu_forward_kernel" in facts.get("device_kernels", ()))
        and facts["modules"].keys().isdisjoint({"FeedForward"})
    ),
)
def triton(build: Build, value: str) -> None:
    """silu(gate) * up as one Triton kernel: the activated half never goes to memory."""
    from harness.options._fused_block import fuse_swiglu, needs_triton
    from kernels.swiglu import triton_swiglu

    needs_triton()
    fuse_swiglu(build, triton_swiglu)


@option(
    "mlp",
    "fused",
    stage="module",
    needs=("cpu", "cxx"),
    claims=("SwiGLU",),
    excludes=("precision=fp16", "precision=amp-fp16"),  # the C++ kernels know fp32 and bf16
    numerics=close(fp32=1e-4, bf16=0.25),
    evidence=lambda facts: (
        # A decode step that is C++ as a whole (step=cpp) computes it inside.
        not {"minimind_cpu::swiglu", "minimind_cpu::decode_step"}.isdisjoint(facts["operations"])
        and facts["modules"].keys().isdisjoint({"FeedForward"})
    ),
)
def fused(build: Build, value: str) -> None:
    """silu(gate) * up as one C++ loop of our own, compiled on first use: read twice, written once."""
    from harness.options._fused_block import fuse_swiglu
    from kernels.cpu.ops import swiglu

    fuse_swiglu(build, swiglu)
