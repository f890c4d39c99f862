"""Key/value caches: what one forward leaves behind so that the next need not recompute it.

    cache = model.new_cache(kind="prealloc", batch_size=2, max_length=64)
    model(prompt_ids, cache=cache)
    model(next_ids, cache=cache)          # starts at position cache.length

Legend: B batch, T new positions, S all positions so far, M max_length, K key/value heads, D head_dim.
`CatCache` is what upstream does (torch.cat at every step, O(S) copied per step); `PreallocCache` writes in place and
returns views; `minimind.cache_int8` stores eight bits a value, `minimind.cache_paged` takes pages from a pool as the
context grows. All hold keys after rotation and before they are repeated for the query heads.

Refused: more than max_length positions, another batch size or dtype-incompatible device (`CacheError`).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from minimind.config import MiniMindConfig


class CacheError(ValueError):
    """A cache that cannot take what it was given; the message says what it can take."""


class KeyValueCache(Protocol):
    """What the model asks of a cache. `length` counts whole forwards: it grows when the last layer has been updated."""

    kind: str
    length: int

    def update(self, layer_index: int, k_BTKD: Tensor, v_BTKD: Tensor) -> tuple[Tensor, Tensor]:
        """Append one layer's new keys and values; returns all of them, [B, S, K, D] each."""

    def layer(self, layer_index: int) -> tuple[Tensor, Tensor]:
        """One layer's keys and values so far, [B, S, K, D] each."""

    def rewind(self, length: int = 0) -> None:
        """Forget all but the first `length` positions. Raises CacheError if there are fewer."""

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""

    @property
    def used_bytes(self) -> int:
        """Bytes that hold the `length` positions seen so far."""


def check_rewind(held: int, length: int) -> None:
    """Raise CacheError unless the first `length` of `held` positions can be kept."""
    if not 0 <= length <= held:
        raise CacheError(f"cannot rewind to {length} positions: the cache holds {held}")


def check_room(start: int, num_new: int, max_length: int) -> None:
    """Raise CacheError unless `num_new` positions fit behind `start`."""
    if start + num_new > max_length:
        raise CacheError(
            f"{start} cached and {num_new} new positions exceed the cache's max_length {max_length}; "
            "make it with a larger max_length, or rewind() it"
        )


def check_append(k_BTKD: Tensor, start: int, *, max_length: int, batch_size: int) -> int:
    """The position after the new ones. Raises CacheError if they do not fit into a cache made for these sizes."""
    given, num_new = k_BTKD.shape[:2]
    check_room(start, num_new, max_length)
    if given != batch_size:
        raise CacheError(f"the cache was made for batch_size {batch_size}, not {given}")
    return start + num_new


def refuse_gradients(k_BTKD: Tensor, kind: str) -> None:
    """Raise CacheError where gradients would be lost without a word: what such a cache returns has none."""
    if torch.is_grad_enabled() and k_BTKD.requires_grad:
        raise CacheError(f"no gradients flow through {kind}; use torch.no_grad(), or a cat or prealloc cache")


class CatCache:
    """Grows by concatenation, as upstream does; allocates nothing in advance, so it takes any batch size."""

    kind = "cat"

    def __init__(self, num_layers: int) -> None:
        self.length = 0
        self._last = num_layers - 1
        self._layers: list[tuple[Tensor, Tensor] | None] = [None] * num_layers

    def update(self, layer_index: int, k_BTKD: Tensor, v_BTKD: Tensor) -> tuple[Tensor, Tensor]:
        """See `KeyValueCache.update`."""
        past = self._layers[layer_index]
        if past is not None:
            k_BTKD = torch.cat((past[0], k_BTKD), dim=1)
            v_BTKD = torch.cat((past[1], v_BTKD), dim=1)
        self._layers[layer_index] = (k_BTKD, v_BTKD)
        if layer_index == self._last:
            self.length = k_BTKD.shape[1]
        return k_BTKD, v_BTKD

    def layer(self, layer_index: int) -> tuple[Tensor, Tensor]:
        """See `KeyValueCache.layer`."""
        entry = self._layers[layer_index]
        if entry is None:
            raise CacheError(f"the cache is empty; layer {layer_index} has no keys yet")
        return entry

    def rewind(self, length: int = 0) -> None:
        """See `KeyValueCache.rewind`; what is kept is a view of the longer tensors."""
        check_rewind(self.length, length)
        for index, entry in enumerate(self._layers):
            if entry is not None:
                self._layers[index] = (entry[0][:, :length], entry[1][:, :length]) if length else None
        self.length = length

    @property
    def nbytes(self) -> int:
        """Bytes of the concatenated tensors; the copies made on the way are not counted."""
        return sum(tensor.nbytes for entry in self._layers if entry is not None for tensor in entry)

    @property
    def used_bytes(self) -> int:
        """The same as `nbytes`: nothing is held in reserve."""
        return self.nbytes


class PreallocCache:
    """Fixed buffers for max_length positions, written in place; what it returns are views, valid until `rewind`.

    NOTE: gradients flow to the positions of the current forward only; what the buffers hold is detached.
    """

    kind = "prealloc"

    def __init__(
        self,
        num_layers: int,
        *,
        batch_size: int,
        max_length: int,
        num_key_value_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self.length = 0
        self.max_length = max_length
        self.num_layers = num_layers
        self._last = num_layers - 1
        self._batch_size = batch_size
        shape = (batch_size, num_key_value_heads, max_length, head_dim)
        # Inference tensors could not be written outside inference mode; a cache may outlive the block it was made in.
        with torch.inference_mode(False):
            self._keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
            self._values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]

    def update(self, layer_index: int, k_BTKD: Tensor, v_BTKD: Tensor) -> tuple[Tensor, Tensor]:
        """See `KeyValueCache.update`. Raises CacheError before anything is written if the positions do not fit."""
        start = self.length
        end = check_append(k_BTKD, start, max_length=self.max_length, batch_size=self._batch_size)
        keys, values = self._keys[layer_index], self._values[layer_index]
        if torch.is_grad_enabled() and k_BTKD.requires_grad:
            k_BSKD, v_BSKD = self._append_differentiably(keys, values, k_BTKD, v_BTKD)
        else:
            keys[:, :, start:end].copy_(k_BTKD.transpose(1, 2))
            values[:, :, start:end].copy_(v_BTKD.transpose(1, 2))
            k_BSKD, v_BSKD = keys[:, :, :end].transpose(1, 2), values[:, :, :end].transpose(1, 2)
        if layer_index == self._last:
            self.length = end
        return k_BSKD, v_BSKD

    def _append_differentiably(
        self, keys: Tensor, values: Tensor, k_BTKD: Tensor, v_BTKD: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Store detached copies but hand back tensors through which the new positions still get gradients."""
        start, end = self.length, self.length + k_BTKD.shape[1]
        k_BKTD, v_BKTD = k_BTKD.transpose(1, 2).to(keys.dtype), v_BTKD.transpose(1, 2).to(values.dtype)
        k_all = torch.cat((keys[:, :, :start].clone(), k_BKTD), dim=2)
        v_all = torch.cat((values[:, :, :start].clone(), v_BKTD), dim=2)
        keys[:, :, start:end].copy_(k_BKTD.detach())
        values[:, :, start:end].copy_(v_BKTD.detach())
        return k_all.transpose(1, 2), v_all.transpose(1, 2)

    def layer(self, layer_index: int) -> tuple[Tensor, Tensor]:
        """See `KeyValueCache.layer`."""
        keys, values = self._keys[layer_index], self._values[layer_index]
        return keys[:, :, : self.length].transpose(1, 2), values[:, :, : self.length].transpose(1, 2)

    def buffers(self, layer_index: int) -> tuple[Tensor, Tensor]:
        """One layer's whole buffers [B, K, M, D], for code that writes positions itself and then calls `advance`."""
        return self._keys[layer_index], self._values[layer_index]

    def advance(self, num_new: int) -> None:
        """Count `num_new` positions that were written into `buffers`. Raises CacheError if they cannot fit."""
        check_room(self.length, num_new, self.max_length)
        self.length += num_new

    def rewind(self, length: int = 0) -> None:
        """See `KeyValueCache.rewind`; the buffers stay allocated."""
        check_rewind(self.length, length)
        self.length = length

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers, used or not."""
        return sum(buffer.nbytes for buffer in (*self._keys, *self._values))

    @property
    def used_bytes(self) -> int:
        """The share of `nbytes` that `length` of max_length positions take."""
        return self.nbytes // self.max_length * self.length


CACHE_KINDS: Mapping[str, str] = MappingProxyType(
    {
        "cat": "torch.cat at every step, as upstream",
        "prealloc": "fixed buffers, written in place",
        "int8": "fixed buffers of int8 with a scale per head and position",
        "paged": "pages of 16 positions, taken from a pool as the context grows",
    }
)


def new_cache(
    config: MiniMindConfig,
    *,
    kind: str,
    batch_size: int,
    max_length: int | None,
    dtype: torch.dtype,
    device: torch.device | str,
) -> KeyValueCache:
    """An empty cache of one of `CACHE_KINDS` for `config`. Raises CacheError for an unknown kind or missing size."""
    from minimind.cache_int8 import Int8Cache
    from minimind.cache_paged import PagedCache, PagePool, pages_for

    if kind == "cat":
        return CatCache(config.num_hidden_layers)
    if kind not in CACHE_KINDS:
        raise CacheError(f"unknown cache kind {kind!r}; known: {', '.join(CACHE_KINDS)}")
    if max_length is None or max_length < 1 or batch_size < 1:
        an = "an" if kind == "int8" else "a"
        raise CacheError(
            f"{an} {kind} cache needs batch_size and max_length of at least 1, not {batch_size} and {max_length}"
        )
    layers, heads, head_dim = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
    if kind == "paged":
        num_pages = batch_size * pages_for(max_length)
        pool = PagePool(
            layers, num_pages=num_pages, num_key_value_heads=heads, head_dim=head_dim, dtype=dtype, device=device
        )
        return PagedCache(pool, batch_size=batch_size, max_length=max_length)
    buffered = Int8Cache if kind == "int8" else PreallocCache
    return buffered(
        layers,
        batch_size=batch_size,
        max_length=max_length,
        num_key_value_heads=heads,
        head_dim=head_dim,
        dtype=dtype,
        device=device,
    )
