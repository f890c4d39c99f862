"""Axis `compile`: torch.compile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.registry import axis, close, option

if TYPE_CHECKING:
    from harness.backends._torch import Build

axis("compile", reference="off", doc="Whether the forward runs through torch.compile.")


@option(
    "compile",
    "default",
    stage="compile",
    needs=("compile",),
    numerics=close(fp32=1e-3, bf16=0.25),
    evidence=lambda facts: facts["compiled_graphs"] > 0,
)
def default(build: Build, value: str) -> None:
    """torch.compile in its default mode; the time to compile is its own metric and never in a timed slice."""
    build.compile_mode = "default"
