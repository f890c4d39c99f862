"""Attention by torch's FlexAttention: one compiled kernel in which causality is a function, not a mask in memory.

    model.set_attention(FLEX)

Compiled by torch.compile on first use (tens of seconds), and anew for other dtypes and head counts; once two lengths
were seen, all lengths share one kernel (Dong et al., arXiv 2412.05496). Grouped heads are not repeated in memory.

Refused: padding masks, dropout, and on a CPU gradients, which torch does not offer there.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minimind.attention import AttentionStrategy


class FlexVisibility(NamedTuple):
    """Torch's BlockMask; None for one new position, which sees everything."""

    block_mask: Any


@cache
def compiled_flex_attention() -> Any:
    """FlexAttention through torch.compile; `fullgraph`, because torch would otherwise fall back to materialising all
    scores once too many shapes have been compiled, with no more than a warning."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, fullgraph=True)


def prepare_flex(
    num_new: int, num_past: int, padding_mask_BS: Tensor | None, dtype: torch.dtype, device: torch.device
) -> FlexVisibility:
    """The blocks [T, S] that some query sees. Raises ValueError for a padding mask."""
    from torch.nn.attention.flex_attention import create_block_mask

    if padding_mask_BS is not None:
        raise ValueError("attention 'flex' takes no padding mask; use 'fused', or prompts of one length")
    if num_new == 1:
        return FlexVisibility(None)
    # A tensor, so that prompts after caches of different lengths share one kernel.
    offset = torch.tensor(num_past, device=device)

    def causal(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return key <= query + offset

    return FlexVisibility(create_block_mask(causal, None, None, num_new, num_past + num_new, device=device))


def attend_flex(q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, visibility: FlexVisibility, dropout_p: float) -> Tensor:
    """FlexAttention with grouped heads. Raises ValueError for dropout and for gradients on a CPU."""
    if dropout_p > 0.0:
        raise ValueError("attention 'flex' has no dropout; train with dropout 0, or use 'fused'")
    if q_BTHD.device.type == "cpu" and torch.is_grad_enabled() and q_BTHD.requires_grad:
        raise ValueError("attention 'flex' has no gradients on a CPU; use 'fused'")
    o_BHTD: Tensor = compiled_flex_attention()(
        q_BTHD.transpose(1, 2),
        k_BSKD.transpose(1, 2),
        v_BSKD.transpose(1, 2),
        block_mask=visibility.block_mask,
        enable_gqa=q_BTHD.shape[2] != k_BSKD.shape[2],
    )
    return o_BHTD.transpose(1, 2)


FLEX = AttentionStrategy("flex", prepare_flex, attend_flex)
