"""Axis `kv`: how the KV cache grows, and how its values are stored.

    harness run kv_cache

What ran is told by the cache object that the session's forwards were handed (`cache`, `cache_class`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.registry import EXACT, axis, lossy, option

if TYPE_CHECKING:
    from harness.backends._torch import Build

axis("kv", reference="cat", doc="KV cache: concatenated at every step as upstream does, in one buffer, in int8, paged.")


def _was(facts: Mapping[str, Any], kind: str, class_name: str) -> bool:
    """Whether the cache was of this kind; training makes none, and then the variant's own kind counts."""
    return facts["cache"] == kind and facts.get("cache_class") in (None, class_name)


@option(
    "kv", "prealloc", stage="runtime", numerics=EXACT, evidence=lambda facts: _was(facts, "prealloc", "PreallocCache")
)
def prealloc(build: Build, value: str) -> None:
    """Keys and values are written into a buffer of the final length; nothing is copied as the context grows."""
    build.cache_kind = "prealloc"


@option(
    "kv", "int8", stage="runtime", numerics=lossy(max_kl=0.001), evidence=lambda facts: _was(facts, "int8", "Int8Cache")
)
def int8(build: Build, value: str) -> None:
    """As prealloc, stored in 8 bits with a float32 scale per layer, head and position, dequantised to be read."""
    build.cache_kind = "int8"
    build.kv_bytes = 1 + 4 / build.config.head_dim


@option("kv", "paged", stage="runtime", numerics=EXACT, evidence=lambda facts: _was(facts, "paged", "PagedCache"))
def paged(build: Build, value: str) -> None:
    """Pages of 16 positions from a pool, taken as the context grows, gathered to be read; kv_bytes counts those held.

    The pool itself is reserved whole, as in a server that many sequences share.
    """
    build.cache_kind = "paged"
