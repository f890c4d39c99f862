"""RMSNorm as one fused op.

    y = rms_norm(x, (x.shape[-1],), weight, eps=1e-6)
    model.norm = FusedRMSNorm.from_norm(model.norm)

For now both are torch's fused `rms_norm`. Its result has x's dtype; in fp32 it equals both cast orders of
`kernels.reference` to rounding. Refuses, like torch, a `normalized_shape` that is not the end of x's shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self, cast

import torch.nn.functional as F
from torch import Tensor, nn


class Norm(Protocol):
    """What `FusedRMSNorm.from_norm` takes over: any norm with a weight and an eps."""

    weight: nn.Parameter
    eps: float


def rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """torch.nn.functional.rms_norm, same signature: normalises over the last len(normalized_shape) dimensions."""
    return F.rms_norm(input, list(normalized_shape), weight, eps)


class FusedRMSNorm(nn.Module):
    """A norm module whose forward is one op; same state-dict key (`weight`) as the norm that it replaces."""

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight = weight
        self.eps = eps
        self._shape = list(weight.shape)

    @classmethod
    def from_norm(cls, norm: nn.Module) -> Self:
        """Take over an existing norm's own Parameter (not a copy), eps and mode."""
        source = cast(Norm, norm)
        fused = cls(source.weight, source.eps)
        return fused.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension; the weight is cast to x's dtype, which is what torch's fused op wants."""
        weight = self.weight if self.weight.dtype == x.dtype else self.weight.to(x.dtype)
        return rms_norm(x, self._shape, weight, self.eps)
