"""Axis `logits`: for which positions of a prompt the language-model head runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.registry import axis, close, option

if TYPE_CHECKING:
    from harness.backends._torch import Build

axis("logits", reference="all", doc="Prompt positions that get logits: all, as upstream does, or the last one only.")


@option(
    "logits",
    "last",
    stage="runtime",
    numerics=close(fp32=1e-4, bf16=0.25),
    evidence=lambda facts: facts["logits_to_keep"] == 1,
)
def last(build: Build, value: str) -> None:
    """The head multiplies the last position only, all that the next token needs; quality still scores every one."""
    build.logits_to_keep = 1
