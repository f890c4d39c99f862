"""Axis `attn`: how many key/value heads the model keeps.

    harness run attention --axis attn=gqa,mqa

The fact `attn_weights` says what the heads hold: checkpoint | repeated (exact) | converted by mean | random.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.registry import axis, close, lossy, option

if TYPE_CHECKING:
    from harness.backends._torch import Build

axis("attn", reference="gqa", doc="Key/value heads: the checkpoint's own groups, one per query head, or one in all.")


def _convert(build: Build, num_heads: int) -> None:
    """Convert the heads and note where their weights come from, for whoever reads a quality figure."""
    from minimind.assets import embedded_checkpoint

    before = build.config.num_key_value_heads
    build.convert_heads(num_heads)
    after = build.config.num_key_value_heads
    if build.source.weights is None and embedded_checkpoint(build.source.name) is None:
        build.facts["attn_weights"] = "random"
    elif after == before:
        build.facts["attn_weights"] = "checkpoint"
    else:
        build.facts["attn_weights"] = "repeated (exact)" if after > before else "converted by mean"


@option(
    "attn",
    "mha",
    stage="config",
    numerics=close(fp32=1e-4, bf16=0.25),
    evidence=lambda facts: facts["num_key_value_heads"] == facts["num_attention_heads"],
)
def mha(build: Build, value: str) -> None:
    """Every query head gets its own copy of its group's keys and values: the same function, more memory."""
    _convert(build, build.config.num_attention_heads)


@option(
    "attn",
    "mqa",
    stage="config",
    numerics=lossy(max_kl=None),
    evidence=lambda facts: facts["num_key_value_heads"] == 1,
)
def mqa(build: Build, value: str) -> None:
    """All query heads share one key/value head, the mean of the checkpoint's: least memory, another function."""
    _convert(build, 1)
