"""Rotary position embeddings, half-split layout, with MiniMind's YaRN.

    tables = RotaryTables(config)
    cos_T1D, sin_T1D = tables(start=0, length=16)
    q_BTHD = rotate(q_BTHD, cos_T1D, sin_T1D)

Legend: B batch, T new positions, H heads, D head_dim, R table rows.
Sources: RoFormer (arXiv 2104.09864); YaRN (arXiv 2309.00071). Refuses positions beyond the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from minimind.config import MiniMindConfig, RopeScaling


def inverse_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None, max_positions: int) -> Tensor:
    """Angle per position of each of the head_dim / 2 rotation planes [D/2], fp32 on the CPU.

    YaRN changes them only when `max_positions` exceeds the original training length; the length of the sequence
    at hand plays no part.
    """
    exponents = torch.arange(0, head_dim, 2, device="cpu").float() / head_dim
    frequencies = 1.0 / theta**exponents
    if scaling is None or max_positions <= scaling.original_max_position_embeddings:
        return frequencies

    def plane(rotations: float) -> float:
        """Index of the plane that turns `rotations` times within the original length."""
        wavelength = scaling.original_max_position_embeddings / (rotations * 2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(theta))

    half = head_dim // 2
    low = max(math.floor(plane(scaling.beta_fast)), 0)
    high = min(math.ceil(plane(scaling.beta_slow)), half - 1)
    ramp = ((torch.arange(half, device="cpu").float() - low) / max(high - low, 0.001)).clamp(0, 1)
    return frequencies * (1 - ramp + ramp / scaling.factor)


def rope_tables(
    head_dim: int, rows: int, theta: float, scaling: RopeScaling | None, max_positions: int
) -> tuple[Tensor, Tensor]:
    """cos and sin [R, D], fp32 on the CPU, the two halves of a row equal; attention_factor is multiplied in."""
    frequencies = inverse_frequencies(head_dim, theta, scaling, max_positions)
    angles = torch.outer(torch.arange(rows, device="cpu").float(), frequencies)
    # NOTE: upstream multiplies by attention_factor even where YaRN is inactive.
    factor = 1.0 if scaling is None else scaling.attention_factor
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1) * factor, torch.cat((sin, sin), dim=-1) * factor


def rotate(x_BTHD: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
    """Turn every (i, i + D/2) pair of x by its position's angle; the dtype follows type promotion (MiniMind2)."""
    first, second = x_BTHD.chunk(2, dim=-1)
    return x_BTHD * cos_T1D + torch.cat((-second, first), dim=-1) * sin_T1D


def rotate_and_cast(x_BTHD: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
    """`rotate`, returned in x's own dtype (MiniMind-3)."""
    return rotate(x_BTHD, cos_T1D, sin_T1D).to(x_BTHD.dtype)


class RotaryTables(nn.Module):
    """The cos/sin tables of one model, built once for max_position_embeddings rows and never saved.

    The tables are values, not state: on every move (`.to`, `.half`, `to_empty` after a meta-device construction)
    only the new device and dtype are taken and the numbers are computed afresh, so that no forward pass has to
    test whether they are intact.
    """

    cos_RD: Tensor
    sin_RD: Tensor

    def __init__(self, config: MiniMindConfig) -> None:
        super().__init__()
        self._config = config
        self.max_positions = config.max_position_embeddings
        device = torch.get_default_device()
        cos_RD, sin_RD = self._compute(torch.device("cpu") if device.type == "meta" else device, torch.float32)
        self.register_buffer("cos_RD", cos_RD, persistent=False)
        self.register_buffer("sin_RD", sin_RD, persistent=False)

    def forward(self, start: int, length: int) -> tuple[Tensor, Tensor]:
        """Rows start .. start + length as (cos, sin) [T, 1, D], ready to broadcast over [B, T, H, D]."""
        end = start + length
        if end > self.max_positions:
            raise ValueError(
                f"positions up to {end} were asked for, but max_position_embeddings is {self.max_positions}; "
                "shorten the input or build the model with a larger max_position_embeddings"
            )
        return self.cos_RD[start:end].unsqueeze(1), self.sin_RD[start:end].unsqueeze(1)

    def _compute(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        config = self._config
        cos, sin = rope_tables(
            config.head_dim, self.max_positions, config.rope_theta, config.rope_scaling, self.max_positions
        )
        return cos.to(device, dtype), sin.to(device, dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = self.cos_RD
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        after = self.cos_RD
        if after is not before and after.device.type != "meta":
            self.cos_RD, self.sin_RD = self._compute(after.device, after.dtype)
        return self
