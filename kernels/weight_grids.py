"""Weights on a symmetric integer grid: one scale per tensor, per output channel, or per group of input channels.

    grid = round_to_nearest(weight_NK, bits=4, granularity=32)     # a scale for every 32 weights of a row
    grid.dequantized()                                             # [N, K] float32
    grid.packed()                                                  # what `kernels.quantized_linear.Int4Linear` holds

Legend: N output channels, K input channels, G groups, S weights in a group.
A weight is q * scale with an integer q and no zero point. 8 bits: q in [-127, 127], scale = max|w| / 127 in float32.
4 bits: q in [-8, 7], scale = the group's weight of largest magnitude, with its sign, over -8, in float16: that weight
is exact and all 16 integers are used. With granularity 32 this is the format of `kernels.quantized_linear`.
Plain operations on tensors of any device, for quantising once, not for computing with.

Refused with ValueError: other numbers of bits, and groups that do not divide K.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

Granularity = Literal["tensor", "channel"] | int

_SMALLEST = MappingProxyType({8: -127, 4: -8})
_LARGEST = MappingProxyType({8: 127, 4: 7})


@dataclass(frozen=True, slots=True)
class WeightGrid:
    """Integers `q_NGS` (int8) and their scales `scale_NG1` (float32); `shape` is the weight's own [N, K].

    Per tensor N and G are 1, per channel G is 1.
    """

    q_NGS: Tensor
    scale_NG1: Tensor
    shape: torch.Size

    def dequantized(self) -> Tensor:
        """The weights [N, K] that the grid stands for, float32."""
        return (self.q_NGS * self.scale_NG1).view(self.shape)

    def packed(self) -> tuple[Tensor, Tensor]:
        """(q_NP uint8 [N, K / 2], scale_NG float16) of a 4-bit grid: two integers, 8 added to each, per byte."""
        half = self.q_NGS.shape[-1] // 2
        levels_NGS = (self.q_NGS + 8).to(torch.uint8)
        packed_NGH = levels_NGS[..., :half] | (levels_NGS[..., half:] << 4)
        return packed_NGH.reshape(self.shape[0], -1), self.scale_NG1.squeeze(-1).half()


def in_groups(weight_NK: Tensor, granularity: Granularity) -> Tensor:
    """The weight as [N, G, S] where each group of S shares a scale; per tensor [1, 1, N * K]."""
    num_out, num_in = weight_NK.shape
    if granularity == "tensor":
        return weight_NK.reshape(1, 1, -1)
    size = num_in if granularity == "channel" else granularity
    if size < 1 or num_in % size:
        raise ValueError(f"groups of {size} do not divide the {num_in} input channels")
    return weight_NK.reshape(num_out, -1, size)


def peak_scale(weight_NGS: Tensor, bits: int) -> Tensor:
    """The scale that just reaches every group's largest weight, [N, G, 1] float32, rounded as it will be stored."""
    if bits not in _LARGEST:
        raise ValueError(f"weights can have {' or '.join(map(str, sorted(_LARGEST)))} bits, not {bits}")
    if bits == 8:
        return weight_NGS.abs().amax(dim=-1, keepdim=True) / _LARGEST[bits]
    peak_NG1 = weight_NGS.gather(-1, weight_NGS.abs().argmax(dim=-1, keepdim=True))
    return as_stored(peak_NG1 / _SMALLEST[bits], bits)


def as_stored(scale: Tensor, bits: int) -> Tensor:
    """Scales with the precision in which they are kept: float16 for 4 bits."""
    return scale.half().float() if bits == 4 else scale


def to_integers(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The integers nearest to weight / scale, as floats, within the range of `bits`; 0 where the scale is 0."""
    return torch.round(weight / torch.where(scale != 0, scale, 1.0)).clamp(_SMALLEST[bits], _LARGEST[bits])


def round_to_nearest(weight_NK: Tensor, *, bits: int, granularity: Granularity) -> WeightGrid:
    """Each weight becomes the nearest point of its group's grid.

    The error is at most |scale| / 2; of 4 bits at most |scale| for weights that lie opposite the group's largest and
    are nearly as large, since the grid has no +8.
    """
    weight_NGS = in_groups(weight_NK.detach().float(), granularity)
    scale_NG1 = peak_scale(weight_NGS, bits)
    return WeightGrid(to_integers(weight_NGS, scale_NG1, bits).to(torch.int8), scale_NG1, weight_NK.shape)
