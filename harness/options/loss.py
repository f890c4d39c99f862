"""Axis `loss`: how training computes the language-model head and the cross-entropy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.registry import axis, close, option

if TYPE_CHECKING:
    from harness.backends._torch import Build

axis(
    "loss",
    reference="native",
    doc="Training loss: all logits, then cross-entropy, as upstream does; or both in chunks, never all logits at once.",
)


def _ran(facts: Mapping[str, Any], implementation: str) -> bool:
    """Whether this loss stands in the model, and did its work wherever a gradient was computed."""
    operations = facts["operations"]
    trained = any("backward" in name.lower() for name in operations)
    ours = f"minimind_bench::linear_cross_entropy_{implementation}" in operations
    return facts.get("loss") == implementation and (ours or not trained) and "aten::nll_loss_forward" not in operations


@option(
    "loss",
    "fused",
    stage="module",
    claims=("training loss",),
    numerics=close(fp32=1e-5, bf16=1e-2),
    evidence=lambda facts: _ran(facts, "chunked"),
)
def fused(build: Build, value: str) -> None:
    """Head and cross-entropy over chunks of tokens by torch's operations, gradients made on the way; any device."""
    _set_loss(build, "chunked")


@option(
    "loss",
    "triton",
    stage="module",
    needs=("triton",),
    claims=("training loss",),
    numerics=close(fp32=1e-5, bf16=1e-2),
    evidence=lambda facts: _ran(facts, "triton"),
)
def triton(build: Build, value: str) -> None:
    """As `fused`, with one Triton kernel that turns a chunk's logits into loss and gradient; training on CUDA."""
    _set_loss(build, "triton")


def _set_loss(build: Build, implementation: str) -> None:
    from functools import partial

    from kernels.linear_cross_entropy import linear_cross_entropy

    model = build.built()
    model.fused_loss = partial(linear_cross_entropy, implementation=implementation)
    build.observe(lambda: {"loss": getattr(model.fused_loss, "keywords", {}).get("implementation", "native")})
