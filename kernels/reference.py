"""Plain-torch twins of the kernels, the only copy: what a kernel must equal, and the baseline it is timed against.

    expected = rms_norm(x, (x.shape[-1],), weight, 1e-6)

They take what torch.nn.functional.rms_norm takes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def _normalized(x: Tensor, normalized_shape: Sequence[int], eps: float | None) -> Tensor:
    """x / sqrt(mean(x^2) + eps) in fp32; eps None is fp32's machine epsilon, as in torch."""
    dims = tuple(range(-len(normalized_shape), 0))
    wide = x.float()
    if eps is None:
        eps = torch.finfo(wide.dtype).eps
    return wide * torch.rsqrt(wide.pow(2).mean(dims, keepdim=True) + eps)


def rms_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """RMSNorm in MiniMind-3's order: multiplied by the weight in fp32, then cast to x's dtype."""
    normed = _normalized(x, normalized_shape, eps)
    return (normed if weight is None else weight * normed).type_as(x)


def rms_norm_cast_first(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """RMSNorm in MiniMind2's order: cast to x's dtype, then multiplied; an fp32 weight gives an fp32 result."""
    normed = _normalized(x, normalized_shape, eps).type_as(x)
    return normed if weight is None else weight * normed
