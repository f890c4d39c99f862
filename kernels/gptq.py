"""GPTQ: rounds a weight column by column and lets the columns still to come make up for the error on real inputs.

    second_moments_KK = inputs_MK.T @ inputs_MK             # over calibration data
    grid = gptq(weight_NK, second_moments_KK, group_size=32)

After Frantar, Ashkboos, Hoefler and Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers" (arXiv 2210.17323): the inverse by Cholesky, lazy updates of one group of columns at a time, the columns
in their own order. Four bits, symmetric, a float16 scale per group, as `weight_grids`.

Legend: N output channels, K input channels, M calibration tokens, S columns of a group.
Cost: K^3 for the inverse and N * K^2 for the updates. Refused with ValueError: moments of another shape, groups that do
not divide K.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.weight_grids import WeightGrid, in_groups, peak_scale, to_integers

BITS = 4


def gptq(weight_NK: Tensor, second_moments_KK: Tensor, *, group_size: int, damping: float = 0.01) -> WeightGrid:
    """The grid whose layer output is closest on inputs with these second moments (sum of x x^T over tokens).

    `damping` is added to the diagonal as a share of its mean. A layer that no token reached (all moments 0) is rounded
    to nearest.
    """
    num_out, num_in = weight_NK.shape
    if second_moments_KK.shape != (num_in, num_in):
        raise ValueError(f"second moments must be [{num_in}, {num_in}], not {list(second_moments_KK.shape)}")
    work_NK = weight_NK.detach().float().clone()
    in_groups(work_NK, group_size)  # refuses a group that does not fit
    factor_KK = inverse_factor(second_moments_KK, damping)
    q_NK = torch.empty_like(work_NK, dtype=torch.int8)
    scales = []
    for start in range(0, num_in, group_size):
        stop = start + group_size
        group_NS, factor_SS = work_NK[:, start:stop], factor_KK[start:stop, start:stop]
        scale_N1 = peak_scale(group_NS.unsqueeze(1), BITS).squeeze(1)
        error_NS = torch.empty_like(group_NS)
        for column in range(group_size):
            weight_N1 = group_NS[:, column : column + 1]
            integer_N1 = to_integers(weight_N1, scale_N1, BITS)
            q_NK[:, start + column : start + column + 1] = integer_N1
            error_N1 = (weight_N1 - integer_N1 * scale_N1) / factor_SS[column, column]
            group_NS[:, column:] -= error_N1 * factor_SS[column, column:]
            error_NS[:, column : column + 1] = error_N1
        work_NK[:, stop:] -= error_NS @ factor_KK[start:stop, stop:]
        scales.append(scale_N1)
    return WeightGrid(q_NK.view(num_out, -1, group_size), torch.stack(scales, dim=1), weight_NK.shape)


def inverse_factor(second_moments_KK: Tensor, damping: float) -> Tensor:
    """Upper Cholesky factor [K, K] of the inverse of the damped moments, float32, computed in float64."""
    moments_KK = second_moments_KK.double().clone()
    diagonal_K = moments_KK.diagonal()
    diagonal_K += damping * diagonal_K.mean()
    # An input that was always 0 says nothing: alone, and with nothing to pass on.
    diagonal_K[diagonal_K == 0] = 1.0
    inverse_KK = torch.cholesky_inverse(torch.linalg.cholesky(moments_KK))
    return torch.linalg.cholesky(inverse_KK, upper=True).float()
