"""Axis `sdpa`: which attention code runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.registry import axis, close, option

if TYPE_CHECKING:
    from harness.backends._torch import Build

axis(
    "sdpa",
    reference="upstream",
    doc="Attention: upstream's mix (fused for a whole prompt, explicit softmax elsewhere), or always torch's SDPA.",
)


@option(
    "sdpa",
    "fused",
    stage="module",
    claims=("attention function",),
    numerics=close(fp32=1e-4, bf16=0.25),
    evidence=lambda facts: (
        facts["attention"] == "fused" and {"aten::softmax", "aten::_softmax"}.isdisjoint(facts["operations"])
    ),
)
def fused(build: Build, value: str) -> None:
    """Torch's scaled_dot_product_attention everywhere, with grouped heads: no repeated keys and values in memory."""
    build.set_attention("fused")
