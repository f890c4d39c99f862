"""RMSNorm (arXiv 1910.07467) in the cast orders of the two generations; they differ below fp32 only.

norm = norm_class(config)(config.hidden_size, config.rms_norm_eps)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minimind.config import MiniMindConfig


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, all in fp32, then cast to x's dtype (MiniMind-3)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (self.weight * normed).type_as(x)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


class RMSNormCastFirst(RMSNorm):
    """Casts before it multiplies (MiniMind2): an fp32 weight makes the result of a bf16 input fp32."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.type_as(x)


def norm_class(config: MiniMindConfig) -> type[RMSNorm]:
    """The norm of the config's generation."""
    return RMSNormCastFirst if config.generation == 2 else RMSNorm
