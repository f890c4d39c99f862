"""Axis `control`: the reference measured against itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.registry import EXACT, axis, option

if TYPE_CHECKING:
    from harness.backends._torch import Build

axis("control", reference="none", doc="A second, identical arm: whatever a comparison says about it is a false alarm.")


@option(
    "control",
    "aa",
    stage="runtime",
    backends=("torch", "transformers", "onnxruntime", "onnxruntime_genai"),
    numerics=EXACT,
)
def aa(build: Build, value: str) -> None:
    """Changes nothing: the reference again, in processes of its own."""


axis("loop", reference="harness", doc="What drives the timed steps: the harness's session, or a bare loop beside it.")


@option("loop", "bare", stage="runtime", numerics=EXACT, evidence=lambda facts: facts["loop"] == "bare")
def bare(build: Build, value: str) -> None:
    """The same steps written as a plain loop, with no range, event or session code: what the harness itself costs."""
    build.bare_loop = True
