"""Plain-torch twins of the kernels, the only copy: what a kernel must equal, and the baseline it is timed against.

    expected = rms_norm(x, (x.shape[-1],), weight, 1e-6)

The norms take what torch.nn.functional.rms_norm takes. In float64 every twin computes in float64.

Legend: B batch, T positions, H query heads, K key/value heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def _normalized(x: Tensor, normalized_shape: Sequence[int], eps: float | None) -> Tensor:
    """x / sqrt(mean(x^2) + eps) in fp32, or float64 for such an x; eps None is fp32's machine epsilon, as in torch."""
    dims = tuple(range(-len(normalized_shape), 0))
    wide = x if x.dtype == torch.float64 else x.float()
    if eps is None:
        eps = torch.finfo(torch.float32).eps
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


def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    cast_first: bool = False,
) -> tuple[Tensor, Tensor]:
    """(norm of the sum, sum) of x + residual; the sum has x's dtype, and the norm sees it rounded to that."""
    total = (x + residual).to(x.dtype)
    norm = rms_norm_cast_first if cast_first else rms_norm
    return norm(total, normalized_shape, weight, eps), total


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (arXiv 2002.05202), elementwise; silu's result is rounded to gate's dtype."""
    return F.silu(gate) * up


def _rotated(x_BTHD: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
    first, second = x_BTHD.chunk(2, dim=-1)
    return x_BTHD * cos_T1D + torch.cat((-second, first), dim=-1) * sin_T1D


def qk_rope(q_BTHD: Tensor, k_BTKD: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys rotated, half-split layout, in the promoted dtype (MiniMind2)."""
    return _rotated(q_BTHD, cos_T1D, sin_T1D), _rotated(k_BTKD, cos_T1D, sin_T1D)


def qk_norm_rope(
    q_BTHD: Tensor,
    k_BTKD: Tensor,
    q_weight_D: Tensor,
    k_weight_D: Tensor,
    cos_T1D: Tensor,
    sin_T1D: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Queries and keys normalised per head, rotated, and cast to their own dtype (MiniMind-3)."""
    q, k = (rms_norm(x, weight.shape, weight, eps) for x, weight in ((q_BTHD, q_weight_D), (k_BTKD, k_weight_D)))
    return _rotated(q, cos_T1D, sin_T1D).to(q.dtype), _rotated(k, cos_T1D, sin_T1D).to(k.dtype)
