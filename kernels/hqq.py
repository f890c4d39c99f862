"""Half-quadratic quantisation: scales that fit most weights well, at the cost of the few outliers. No data needed.

    grid = hqq(weight_NK, bits=4, group_size=32)

Minimises the sum of |w - q * scale|^p, p = 1/2, over integers and scales, by splitting off the outliers' error e and
alternating between e (a generalised soft threshold), the scale (least squares) and the integers (rounding). After
Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models" (2023). They move a zero point and keep
the scale; the grid here has no zero point, so the scale moves. They take p = 0.7; 1/2 needs square roots only.

Legend: N output channels, K input channels, G groups, S weights in a group. Refuses what `weight_grids` refuses.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.weight_grids import WeightGrid, as_stored, in_groups, peak_scale, to_integers

NUM_STEPS = 10
_ROWS_AT_A_TIME = 128  # so that a step's tensors stay in the cache: several times faster than all rows at once


def hqq(weight_NK: Tensor, *, bits: int, group_size: int) -> WeightGrid:
    """The best grid met in `NUM_STEPS` steps, group by group; the first candidate is rounding to nearest."""
    weight_NGS = in_groups(weight_NK.detach().float(), group_size)
    grids = [_fit(rows_nGS, bits) for rows_nGS in weight_NGS.split(_ROWS_AT_A_TIME)]
    q_NGS, scale_NG1 = (torch.cat(parts) for parts in zip(*grids, strict=True))
    return WeightGrid(q_NGS, scale_NG1, weight_NK.shape)


def objective(error_NGS: Tensor) -> Tensor:
    """What HQQ minimises, per group: the sum of |error|^(1/2), [N, G, 1]."""
    return error_NGS.abs().sqrt().sum(-1, keepdim=True)


def _fit(weight_NGS: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Integers (int8) and scales of these groups."""
    scale_NG1 = peak_scale(weight_NGS, bits)
    unit_NG1 = torch.where(scale_NG1 != 0, scale_NG1.abs(), 1.0)
    best_q_NGS, best_scale_NG1 = torch.zeros_like(weight_NGS, dtype=torch.int8), scale_NG1
    lowest_NG1 = torch.full_like(scale_NG1, torch.inf)
    beta = 10.0  # the weight of the split, in units of the first scale; it grows by 1% a step, as in the paper
    for _ in range(NUM_STEPS):
        q_NGS = to_integers(weight_NGS, scale_NG1, bits)
        error_NGS = weight_NGS - q_NGS * scale_NG1
        value_NG1 = objective(error_NGS)
        better_NG1 = value_NG1 < lowest_NG1
        best_q_NGS = torch.where(better_NG1, q_NGS.to(torch.int8), best_q_NGS)
        best_scale_NG1 = torch.where(better_NG1, scale_NG1, best_scale_NG1)
        lowest_NG1 = torch.minimum(value_NG1, lowest_NG1)
        outlier_NGS = _shrink(error_NGS / unit_NG1, beta) * unit_NG1
        squares_NG1 = q_NGS.square().sum(-1, keepdim=True).clamp_min(1.0)
        scale_NG1 = (q_NGS * (weight_NGS - outlier_NGS)).sum(-1, keepdim=True) / squares_NG1
        scale_NG1 = as_stored(scale_NG1, bits)
        beta *= 1.01
    return best_q_NGS, best_scale_NG1


def _shrink(error: Tensor, beta: float) -> Tensor:
    """The generalised soft threshold: sign(x) * max(0, |x| - |x|^(p-1) / beta)."""
    size = error.abs()
    return error.sign() * torch.relu(size - size.clamp_min(1e-12).rsqrt() / beta)
