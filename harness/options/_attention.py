"""What the options of axis `sdpa` put into the model where it needs more than minimind has: private, imports torch.

    build.built().set_attention(TRITON)

`TRITON` attends from one new position with `kernels.decode_attention` and from several with torch's SDPA; which of the
two follows from the number of new positions alone, never from whether the kernel could run. Refused: padding masks with
one new position, and whatever the kernel refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kernels.decode_attention import decode_attention
from minimind.attention import AttentionStrategy, FusedVisibility, attend_fused, prepare_fused


def prepare_triton(
    num_new: int, num_past: int, padding_mask_BS: Tensor | None, dtype: torch.dtype, device: torch.device
) -> FusedVisibility:
    """As for torch's SDPA. Raises ValueError for padding before a single new position."""
    if num_new == 1 and padding_mask_BS is not None:
        raise ValueError("attention 'triton' takes no padding mask in a decode step; use 'fused'")
    return prepare_fused(num_new, num_past, padding_mask_BS, dtype, device)


def attend_triton(
    q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, visibility: FusedVisibility, dropout_p: float
) -> Tensor:
    """One new position: the kernel, over the cache's own buffers. Several: SDPA."""
    if q_BTHD.shape[1] > 1:
        return attend_fused(q_BTHD, k_BSKD, v_BSKD, visibility, dropout_p)
    return decode_attention(q_BTHD.transpose(1, 2), k_BSKD.transpose(1, 2), v_BSKD.transpose(1, 2)).transpose(1, 2)


TRITON = AttentionStrategy("triton", prepare_triton, attend_triton)


def compiled_regions() -> Callable[[], dict[str, Any]]:
    """An observer of how many graphs this process has compiled since now: a session then profiles its operations,
    which a dispatch mode could not see, and under which FlexAttention would not be compiled."""
    from torch._dynamo.utils import counters

    before = int(counters["stats"]["unique_graphs"])
    return lambda: {"compiled_graphs": int(counters["stats"]["unique_graphs"]) - before}
