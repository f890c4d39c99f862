"""Axis `attn`: how many key/value heads the model keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.registry import axis, close, lossy, option

if TYPE_CHECKING:
    from harness.backends._torch import Build

axis("attn", reference="gqa", doc="Key/value heads: the checkpoint's own groups, one per query head, or one in all.")


@option(
    "attn",
    "mha",
    stage="config",
    numerics=close(fp32=1e-4, bf16=0.25),
    evidence=lambda facts: facts["num_key_value_heads"] == facts["num_attention_heads"],
)
def mha(build: Build, value: str) -> None:
    """Every query head gets its own copy of its group's keys and values: the same function, more memory."""
    build.convert_heads(build.config.num_attention_heads)


@option(
    "attn",
    "mqa",
    stage="config",
    numerics=lossy(max_kl=None),
    evidence=lambda facts: facts["num_key_value_heads"] == 1,
)
def mqa(build: Build, value: str) -> None:
    """All query heads share one key/value head, the mean of the checkpoint's: least memory, another function."""
    build.convert_heads(1)
