"""A key/value cache of int8 values with a float32 scale per layer, row, key/value head and position.

    cache = model.new_cache(kind="int8", batch_size=2, max_length=64)
    with torch.no_grad():
        model(prompt_ids, cache=cache)    # attention reads back what was stored, also of the new positions

Legend: B batch, T new positions, S all positions so far, M max_length, K key/value heads, D head_dim.
Symmetric, no zero point: scale = max|x| / 127 over the D values of one head at one position, q = round(x / scale). A
stored position never changes, so that any chunking of a text gives the same cache, and the error of a value is at most
scale / 2. One value takes 1 + 4 / D bytes.

Refused: what `PreallocCache` refuses, and gradients (`CacheError`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from minimind.cache import check_append, check_rewind, refuse_gradients

LARGEST = 127


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 values of x's shape [..., D] and float32 scales [..., 1]; |q * scale - x| <= scale / 2."""
    wide = x.float()
    scale = wide.abs().amax(dim=-1, keepdim=True) / LARGEST
    # A head of zeros has scale 0; dividing by the smallest number instead keeps its values 0.
    q = torch.round(wide / scale.clamp_min(torch.finfo(torch.float32).tiny))
    return q.to(torch.int8), scale


def dequantize(q: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """What `quantize` was given, within half a scale; the product is taken in float32."""
    return (q * scale).to(dtype)


class Int8Cache:
    """Fixed buffers for max_length positions in int8; what it returns are copies in the model's dtype."""

    kind = "int8"

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
        self._last = num_layers - 1
        self._batch_size = batch_size
        self._dtype = dtype
        shape = (batch_size, num_key_value_heads, max_length)
        with torch.inference_mode(False):  # as in PreallocCache: inference tensors could not be written outside
            # [layer][keys, values], [B, K, M, D] and [B, K, M, 1]
            self._stored = [
                [torch.zeros((*shape, head_dim), dtype=torch.int8, device=device) for _ in range(2)]
                for _ in range(num_layers)
            ]
            self._scales = [[torch.zeros((*shape, 1), device=device) for _ in range(2)] for _ in range(num_layers)]

    def update(self, layer_index: int, k_BTKD: Tensor, v_BTKD: Tensor) -> tuple[Tensor, Tensor]:
        """See `KeyValueCache.update`. Raises CacheError before anything is written if the positions do not fit."""
        start = self.length
        end = check_append(k_BTKD, start, max_length=self.max_length, batch_size=self._batch_size)
        refuse_gradients(k_BTKD, "an int8 cache")
        stored, scales = self._stored[layer_index], self._scales[layer_index]
        for new_BTKD, into_BKMD, scale_BKM1 in zip((k_BTKD, v_BTKD), stored, scales, strict=True):
            q_BKTD, scale_BKT1 = quantize(new_BTKD.transpose(1, 2))
            into_BKMD[:, :, start:end].copy_(q_BKTD)
            scale_BKM1[:, :, start:end].copy_(scale_BKT1)
        if layer_index == self._last:
            self.length = end
        return self._read(layer_index, end)

    def _read(self, layer_index: int, end: int) -> tuple[Tensor, Tensor]:
        k_BKSD, v_BKSD = (
            dequantize(q_BKMD[:, :, :end], scale_BKM1[:, :, :end], self._dtype)
            for q_BKMD, scale_BKM1 in zip(self._stored[layer_index], self._scales[layer_index], strict=True)
        )
        return k_BKSD.transpose(1, 2), v_BKSD.transpose(1, 2)

    def layer(self, layer_index: int) -> tuple[Tensor, Tensor]:
        """See `KeyValueCache.layer`."""
        return self._read(layer_index, self.length)

    def rewind(self, length: int = 0) -> None:
        """See `KeyValueCache.rewind`; the buffers stay allocated."""
        check_rewind(self.length, length)
        self.length = length

    @property
    def nbytes(self) -> int:
        """Bytes of values and scales, used or not; the copy that is being read is not counted."""
        return sum(tensor.nbytes for pair in (*self._stored, *self._scales) for tensor in pair)

    @property
    def used_bytes(self) -> int:
        """The share of `nbytes` that `length` of max_length positions take."""
        return self.nbytes // self.max_length * self.length
