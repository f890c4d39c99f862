"""Axis `kv`: how the KV cache grows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.registry import EXACT, axis, option

if TYPE_CHECKING:
    from harness.backends._torch import Build

axis("kv", reference="cat", doc="KV cache: concatenated at every step as upstream does, or written into one buffer.")


@option("kv", "prealloc", stage="runtime", numerics=EXACT, evidence=lambda facts: facts["cache"] == "prealloc")
def prealloc(build: Build, value: str) -> None:
    """Keys and values are written into a buffer of the final length; nothing is copied as the context grows."""
    build.cache_kind = "prealloc"
