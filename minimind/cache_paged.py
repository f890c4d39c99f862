"""A key/value cache in pages of a common pool, found through block tables (arXiv 2309.06180).

    pool = PagePool(num_layers, num_pages=64, num_key_value_heads=2, head_dim=64, dtype=torch.float32, device="cpu")
    first, second = (PagedCache(pool, batch_size=1, max_length=512) for _ in range(2))   # two sequences, one pool
    model(prompt_ids, cache=first)
    first.rewind(0)                       # its pages are free for the second

Legend: B batch, T new positions, S all positions so far, N pages of a row, P positions of a page, K key/value heads,
D head_dim. A page number stands for the same page in every layer. Pages are taken when a forward needs them and given
back by `rewind`, so a short sequence holds little whatever its max_length; nothing that is stored ever moves. Reading
gathers a row's pages into one tensor.

Refused: what `PreallocCache` refuses, more pages than the pool has free, and gradients (`CacheError`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from minimind.cache import CacheError, check_append, check_rewind, refuse_gradients

PAGE_SIZE = 16


def pages_for(length: int, page_size: int = PAGE_SIZE) -> int:
    """How many pages hold `length` positions of one row."""
    return -(-length // page_size)


class PagePool:
    """Storage of `num_pages` pages in every layer, and the list of those that nobody holds."""

    def __init__(
        self,
        num_layers: int,
        *,
        num_pages: int,
        num_key_value_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str,
        page_size: int = PAGE_SIZE,
    ) -> None:
        if num_pages < 1 or page_size < 1:
            raise CacheError(f"a pool needs at least one page of one position, not {num_pages} of {page_size}")
        self.num_layers, self.num_pages, self.page_size = num_layers, num_pages, page_size
        self.device = torch.device(device)
        # The lowest numbers are taken first, and the page freed last is taken first: it is the one still in a cache.
        self._free = list(reversed(range(num_pages)))
        shape = (num_pages, page_size, num_key_value_heads, head_dim)
        with torch.inference_mode(False):  # as in PreallocCache: inference tensors could not be written outside
            self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
            self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]

    @property
    def num_free(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers, keys and values."""
        return self.nbytes // self.num_pages

    @property
    def nbytes(self) -> int:
        """Bytes reserved, held or free."""
        return sum(buffer.nbytes for buffer in (*self.keys, *self.values))

    def take(self, count: int) -> list[int]:
        """Numbers of `count` free pages, which are no longer free. Raises CacheError if there are fewer."""
        if count > len(self._free):
            raise CacheError(
                f"{count} more pages of {self.page_size} positions are needed, but {len(self._free)} of the pool's "
                f"{self.num_pages} are free; rewind() a finished sequence, or make a larger pool"
            )
        return [self._free.pop() for _ in range(count)]

    def give_back(self, pages: list[int]) -> None:
        """Make pages free again; what they hold is forgotten."""
        self._free.extend(reversed(pages))


class PagedCache:
    """`batch_size` rows of equal length whose keys and values lie in pages of a pool."""

    kind = "paged"

    def __init__(self, pool: PagePool, *, batch_size: int, max_length: int) -> None:
        self.length = 0
        self.max_length = max_length
        self.pool = pool
        self._batch_size = batch_size
        self._rows: list[list[int]] = [[] for _ in range(batch_size)]
        self._table_BN = self._slots_BT = torch.empty(0, dtype=torch.int64)

    def update(self, layer_index: int, k_BTKD: Tensor, v_BTKD: Tensor) -> tuple[Tensor, Tensor]:
        """See `KeyValueCache.update`. Raises CacheError before anything is written if the positions do not fit."""
        end = check_append(k_BTKD, self.length, max_length=self.max_length, batch_size=self._batch_size)
        refuse_gradients(k_BTKD, "a paged cache")
        if layer_index == 0:
            self._reach(end)
        pool = self.pool
        for new_BTKD, pages in ((k_BTKD, pool.keys[layer_index]), (v_BTKD, pool.values[layer_index])):
            pages.flatten(0, 1).index_copy_(0, self._slots_BT.flatten(), new_BTKD.flatten(0, 1).to(pages.dtype))
        if layer_index == pool.num_layers - 1:
            self.length = end
        return self._gather(layer_index, end)

    def _reach(self, end: int) -> None:
        """Hold the pages of `end` positions, and find the places of those from `length` on, [B, T]."""
        size = self.pool.page_size
        missing = pages_for(end, size) - len(self._rows[0])
        if missing > 0:
            taken = self.pool.take(missing * self._batch_size)
            for number, row in enumerate(self._rows):
                row += taken[number * missing : (number + 1) * missing]
            self._table_BN = torch.tensor(self._rows, device=self.pool.device)
        positions_T = torch.arange(self.length, end, device=self.pool.device)
        self._slots_BT = self._table_BN[:, positions_T // size] * size + positions_T % size

    def _gather(self, layer_index: int, end: int) -> tuple[Tensor, Tensor]:
        pages_BN = self._table_BN.flatten()
        k_BSKD, v_BSKD = (
            pages.index_select(0, pages_BN).view(self._batch_size, -1, *pages.shape[2:])[:, :end]
            for pages in (self.pool.keys[layer_index], self.pool.values[layer_index])
        )
        return k_BSKD, v_BSKD

    def layer(self, layer_index: int) -> tuple[Tensor, Tensor]:
        """See `KeyValueCache.layer`."""
        if not self.length:
            raise CacheError(f"the cache is empty; layer {layer_index} has no keys yet")
        return self._gather(layer_index, self.length)

    def rewind(self, length: int = 0) -> None:
        """See `KeyValueCache.rewind`; pages beyond `length` go back to the pool."""
        check_rewind(self.length, length)
        self.length = length
        keep = pages_for(length, self.pool.page_size)
        if keep < len(self._rows[0]):
            for row in self._rows:
                self.pool.give_back(row[keep:])
                del row[keep:]
            self._table_BN = self._table_BN[:, :keep].contiguous()

    @property
    def num_pages(self) -> int:
        """Pages that this cache holds."""
        return sum(map(len, self._rows))

    @property
    def nbytes(self) -> int:
        """Bytes of the pages held. NOTE: the pool reserves more, `pool.nbytes`, for all caches that share it."""
        return self.num_pages * self.pool.page_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes that the `length` positions take; less than `nbytes` by what the last pages have free."""
        return self.pool.page_bytes // self.pool.page_size * self.length * self._batch_size
