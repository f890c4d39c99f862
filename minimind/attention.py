"""Attention: the projections around it, and the exchangeable function in the middle.

    model.set_attention("fused")                 # a name in ATTENTION, or a strategy of your own

Legend: B batch, T new positions, S all positions (S - T are cached), H query heads, K key/value heads (K divides H),
D head_dim, E hidden_size.

An `AttentionStrategy` is two plain functions. `prepare(num_new, num_past, padding_mask_BS, dtype, device)` runs once
per forward and returns whatever its other half wants to know about who may see whom; `attend(q_BTHD, k_BSKD, v_BSKD,
visibility, dropout_p)` runs once per layer and returns [B, T, H, D]. Query i stands at position S - T + i and sees
positions up to its own whose padding mask is not 0. `padding_mask_BS` is None where nothing is padded: the model finds
that out once per forward, because asking the mask is a device synchronisation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimind.cache import KeyValueCache
from minimind.config import MiniMindConfig
from minimind.norm import norm_class
from minimind.rope import rotate, rotate_and_cast

Prepare = Callable[[int, int, Tensor | None, torch.dtype, torch.device], Any]
Attend = Callable[[Tensor, Tensor, Tensor, Any, float], Tensor]


@dataclass(frozen=True, slots=True)
class AttentionStrategy:
    """One way to compute attention: `prepare` once per forward, `attend` once per layer (see the module docstring)."""

    name: str
    prepare: Prepare
    attend: Attend


def padding_bias(padding_mask_BS: Tensor, dtype: torch.dtype) -> Tensor:
    """What to add to scores so that padded positions lose: 0 or about -1e9, [B, 1, 1, S].

    Upstream's -1e9 is finite on purpose: the row of a padded query, which sees nothing but padding, must stay finite.
    In float16 it would overflow, so there it is half the lowest number.
    """
    lowest = max(-1e9, torch.finfo(dtype).min / 2)
    return ((1.0 - padding_mask_BS) * lowest)[:, None, None, :].to(dtype)


def causal_bias(num_new: int, num_past: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """0 where query i may see position j, i.e. j <= num_past + i; -inf elsewhere, [T, S]."""
    bias_TS = torch.full((num_new, num_past + num_new), -math.inf, dtype=dtype, device=device)
    return bias_TS.triu(num_past + 1)


def repeat_heads(x_BSKD: Tensor, repeats: int) -> Tensor:
    """Each key/value head `repeats` times in a row, copied: [B, S, K * repeats, D]."""
    if repeats == 1:
        return x_BSKD
    batch, length, heads, head_dim = x_BSKD.shape
    spread = x_BSKD.unsqueeze(3).expand(batch, length, heads, repeats, head_dim)
    return spread.reshape(batch, length, heads * repeats, head_dim)


class ExplicitVisibility(NamedTuple):
    """Biases of the explicit softmax path; None where there is nothing to hide."""

    causal_TT: Tensor | None
    padding_B11S: Tensor | None


def prepare_explicit(
    num_new: int, num_past: int, padding_mask_BS: Tensor | None, dtype: torch.dtype, device: torch.device
) -> ExplicitVisibility:
    """For `attend_upstream` without the fused shortcut (upstream's flash_attn=False)."""
    return ExplicitVisibility(
        causal_TT=causal_bias(num_new, 0, dtype, device) if num_new > 1 else None,
        padding_B11S=None if padding_mask_BS is None else padding_bias(padding_mask_BS, dtype),
    )


def prepare_upstream(
    num_new: int, num_past: int, padding_mask_BS: Tensor | None, dtype: torch.dtype, device: torch.device
) -> ExplicitVisibility | None:
    """None where upstream takes torch's fused attention: several new positions, no cache before them, no padding."""
    if num_new > 1 and num_past == 0 and padding_mask_BS is None:
        return None
    return prepare_explicit(num_new, num_past, padding_mask_BS, dtype, device)


def attend_upstream(
    q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, visibility: ExplicitVisibility | None, dropout_p: float
) -> Tensor:
    """What upstream does: copies of the key/value heads, and an explicit softmax for every decode step and padding."""
    repeats = q_BTHD.shape[2] // k_BSKD.shape[2]
    q_BHTD = q_BTHD.transpose(1, 2)
    k_BHSD = repeat_heads(k_BSKD, repeats).transpose(1, 2)
    v_BHSD = repeat_heads(v_BSKD, repeats).transpose(1, 2)
    if visibility is None:
        o_BHTD = F.scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, dropout_p=dropout_p, is_causal=True)
        return o_BHTD.transpose(1, 2)
    scores_BHTS = (q_BHTD @ k_BHSD.transpose(-2, -1)) / math.sqrt(q_BHTD.shape[-1])
    if visibility.causal_TT is not None:
        scores_BHTS[:, :, :, -visibility.causal_TT.shape[0] :] += visibility.causal_TT
    if visibility.padding_B11S is not None:
        scores_BHTS += visibility.padding_B11S
    weights_BHTS = F.softmax(scores_BHTS.float(), dim=-1).type_as(q_BHTD)
    if dropout_p > 0.0:
        weights_BHTS = F.dropout(weights_BHTS, dropout_p)
    return (weights_BHTS @ v_BHSD).transpose(1, 2)


class FusedVisibility(NamedTuple):
    """Arguments of torch's scaled_dot_product_attention."""

    is_causal: bool
    bias: Tensor | None


def prepare_fused(
    num_new: int, num_past: int, padding_mask_BS: Tensor | None, dtype: torch.dtype, device: torch.device
) -> FusedVisibility:
    """The cheapest description that is right: a flag, nothing, or a bias [T, S] or [B, 1, T, S] in `dtype`."""
    if padding_mask_BS is None:
        if num_new == 1:
            return FusedVisibility(False, None)
        if num_past == 0:
            return FusedVisibility(True, None)
        return FusedVisibility(False, causal_bias(num_new, num_past, dtype, device))
    bias = padding_bias(padding_mask_BS, dtype)
    if num_new > 1:
        bias = bias + causal_bias(num_new, num_past, dtype, device)
    return FusedVisibility(False, bias)


def attend_fused(
    q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, visibility: FusedVisibility, dropout_p: float
) -> Tensor:
    """torch's fused attention for every step; the key/value heads are never copied per query head."""
    return F.scaled_dot_product_attention(
        q_BTHD.transpose(1, 2),
        k_BSKD.transpose(1, 2),
        v_BSKD.transpose(1, 2),
        attn_mask=visibility.bias,
        dropout_p=dropout_p,
        is_causal=visibility.is_causal,
        enable_gqa=q_BTHD.shape[2] != k_BSKD.shape[2],
    ).transpose(1, 2)


ATTENTION: Mapping[str, AttentionStrategy] = MappingProxyType(
    {
        "upstream": AttentionStrategy("upstream", prepare_upstream, attend_upstream),
        "explicit": AttentionStrategy("explicit", prepare_explicit, attend_upstream),
        "fused": AttentionStrategy("fused", prepare_fused, attend_fused),
    }
)


class Attention(nn.Module):
    """Projections, query/key norm (MiniMind-3), rotation, cache, and the strategy's `attend`."""

    def __init__(self, config: MiniMindConfig, layer_index: int, attend: Attend) -> None:
        super().__init__()
        hidden, head_dim = config.hidden_size, config.head_dim
        self.layer_index = layer_index
        self.head_dim = head_dim
        self.dropout_p = config.dropout
        self.attend = attend
        self.rotate = rotate if config.generation == 2 else rotate_and_cast
        self.q_proj = nn.Linear(hidden, config.num_attention_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(hidden, config.num_key_value_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(hidden, config.num_key_value_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * head_dim, hidden, bias=False)
        normed = config.generation == 3
        self.q_norm = norm_class(config)(head_dim, config.rms_norm_eps) if normed else nn.Identity()
        self.k_norm = norm_class(config)(head_dim, config.rms_norm_eps) if normed else nn.Identity()
        self.resid_dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()

    def forward(
        self, x_BTE: Tensor, rotation: tuple[Tensor, Tensor], visibility: Any, cache: KeyValueCache | None
    ) -> Tensor:
        """[B, T, E] to [B, T, E]; `rotation` is (cos, sin) [T, 1, D] of these T positions."""
        batch, num_new, _ = x_BTE.shape
        heads = (batch, num_new, -1, self.head_dim)
        q_BTHD = self.q_norm(self.q_proj(x_BTE).view(heads))
        k_BTKD = self.k_norm(self.k_proj(x_BTE).view(heads))
        v_BTKD = self.v_proj(x_BTE).view(heads)
        cos_T1D, sin_T1D = rotation
        q_BTHD = self.rotate(q_BTHD, cos_T1D, sin_T1D)
        k_BTKD = self.rotate(k_BTKD, cos_T1D, sin_T1D)
        if cache is not None:
            k_BTKD, v_BTKD = cache.update(self.layer_index, k_BTKD, v_BTKD)
        o_BTHD = self.attend(q_BTHD, k_BTKD, v_BTKD, visibility, self.dropout_p if self.training else 0.0)
        output: Tensor = self.resid_dropout(self.o_proj(o_BTHD.reshape(batch, num_new, -1)))
        return output


def convert_heads(
    config: MiniMindConfig, state_dict: Mapping[str, Tensor], num_key_value_heads: int
) -> tuple[MiniMindConfig, dict[str, Tensor]]:
    """The same model with another number of key/value heads (1 is MQA, num_attention_heads is MHA).

    More heads repeat existing ones: exactly the same function. Fewer heads are the means of adjacent groups
    (Ainslie et al., arXiv 2305.13245): another function, which wants training. Raises ValueError where neither
    number divides the other.
    """
    old, new = config.num_key_value_heads, num_key_value_heads
    if new < 1 or (old % new and new % old):
        raise ValueError(f"cannot convert {old} key/value heads to {new}: one number must divide the other")
    converted = dataclasses.replace(config, num_key_value_heads=new)
    weights = dict(state_dict)
    for name, weight in state_dict.items():
        if name.endswith((".self_attn.k_proj.weight", ".self_attn.v_proj.weight")):
            weight_KDE = weight.view(old, config.head_dim, -1)
            if new >= old:
                weight_KDE = weight_KDE.repeat_interleave(new // old, dim=0)
            else:
                grouped = weight_KDE.view(new, old // new, config.head_dim, -1)
                weight_KDE = grouped.float().mean(dim=1).to(weight.dtype)
            weights[name] = weight_KDE.reshape(new * config.head_dim, -1)
    return converted, weights
