"""The feed-forward half of a block: SwiGLU, and mixtures of such experts in MiniMind's two forms.

Legend: B batch, T positions, N = B * T tokens, E hidden_size, X experts, k experts per token.
A dense network maps [B, T, E] to [B, T, E]; a mixture returns that and its auxiliary loss, a scalar tensor (0 unless
training).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimind.config import MiniMindConfig

_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"silu": F.silu, "gelu": F.gelu, "relu": F.relu, "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh")}
)


class FeedForward(nn.Module):
    """down(act(gate(x)) * up(x)), without biases (SwiGLU, arXiv 2002.05202)."""

    def __init__(self, config: MiniMindConfig, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, config.hidden_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, intermediate_size, bias=False)
        self.act = _ACTIVATIONS[config.hidden_act]
        # MiniMind2 drops out here as well; MiniMind-3 does not.
        drops = config.generation == 2 and config.dropout > 0
        self.dropout = nn.Dropout(config.dropout) if drops else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.dropout(self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x)))
        return output


def choose_experts(scores_NX: Tensor, num_slots: int, normalize: bool) -> tuple[Tensor, Tensor]:
    """Each token's experts and their weights, [N, k] both; the weights sum to 1 if `normalize`."""
    weight_Nk, index_Nk = torch.topk(scores_NX, k=num_slots, dim=-1, sorted=False)
    if normalize:
        weight_Nk = weight_Nk / (weight_Nk.sum(dim=-1, keepdim=True) + 1e-20)
    return index_Nk, weight_Nk


def dispatch(x_NE: Tensor, index_Nk: Tensor, weight_Nk: Tensor, experts: nn.ModuleList, skip_idle: bool) -> Tensor:
    """Sum over each token's experts of weight * expert(token), experts taken in order, [N, E].

    With `skip_idle` an expert without tokens is not called; in training it must be, on an empty batch, so that its
    gradients are zero and not None.
    """
    y_NE = torch.zeros_like(x_NE)
    for number, expert in enumerate(experts):
        token, slot = torch.where(index_Nk == number)
        if skip_idle and token.numel() == 0:
            continue
        share = weight_Nk[token, slot].unsqueeze(-1)
        y_NE = y_NE.index_add(0, token, (expert(x_NE[token]) * share).to(y_NE.dtype))
    return y_NE


class MoEFeedForward(nn.Module):
    """MiniMind-3's mixture: softmax router, top k, no shared expert (the scheme of Qwen3-MoE)."""

    def __init__(self, config: MiniMindConfig) -> None:
        super().__init__()
        self.num_experts = config.num_experts
        self.num_experts_per_tok = config.num_experts_per_tok
        self.norm_topk_prob = config.norm_topk_prob
        self.aux_loss_coef = config.router_aux_loss_coef
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = nn.ModuleList(FeedForward(config, config.moe_intermediate_size) for _ in range(self.num_experts))

    def forward(self, x_BTE: Tensor) -> tuple[Tensor, Tensor]:
        x_NE = x_BTE.reshape(-1, x_BTE.shape[-1])
        scores_NX = F.softmax(self.gate(x_NE), dim=-1)
        index_Nk, weight_Nk = choose_experts(scores_NX, self.num_experts_per_tok, self.norm_topk_prob)
        y_NE = dispatch(x_NE, index_Nk, weight_Nk, self.experts, skip_idle=not self.training)
        return y_NE.view_as(x_BTE), self.aux_loss(scores_NX, index_Nk)

    def aux_loss(self, scores_NX: Tensor, index_Nk: Tensor) -> Tensor:
        """Load balancing summed over the k slots: k times the usual mean (jingyaogong/minimind issue 797)."""
        if not self.training or self.aux_loss_coef == 0:
            return scores_NX.new_zeros(())
        load_kX = F.one_hot(index_Nk, self.num_experts).float().mean(0)
        return (load_kX * scores_NX.mean(0)).sum() * self.num_experts * self.aux_loss_coef


class SharedMoEFeedForward(nn.Module):
    """MiniMind2's mixture: routed experts plus shared ones that see every token (the scheme of DeepSeekMoE)."""

    def __init__(self, config: MiniMindConfig) -> None:
        super().__init__()
        self.num_experts = config.num_experts
        self.num_experts_per_tok = config.num_experts_per_tok
        self.norm_topk_prob = config.norm_topk_prob and config.num_experts_per_tok > 1
        self.aux_loss_coef = config.router_aux_loss_coef
        self.aux_loss = self.sequence_aux_loss if config.seq_aux else self.batch_aux_loss
        self.experts = nn.ModuleList(FeedForward(config, config.intermediate_size) for _ in range(self.num_experts))
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.shared_experts = nn.ModuleList(
            FeedForward(config, config.intermediate_size) for _ in range(config.num_shared_experts)
        )

    def forward(self, x_BTE: Tensor) -> tuple[Tensor, Tensor]:
        x_NE = x_BTE.reshape(-1, x_BTE.shape[-1])
        scores_NX = F.softmax(self.gate(x_NE), dim=-1)
        index_Nk, weight_Nk = choose_experts(scores_NX, self.num_experts_per_tok, self.norm_topk_prob)
        if self.training:
            y_NE = self._dispatch_training(x_NE, index_Nk, weight_Nk)
        else:
            y_NE = dispatch(x_NE, index_Nk, weight_Nk, self.experts, skip_idle=True)
        y_BTE = y_NE.view_as(x_BTE)
        for expert in self.shared_experts:
            y_BTE = y_BTE + expert(x_BTE)
        if not self.training or self.aux_loss_coef == 0:
            return y_BTE, scores_NX.new_zeros(())
        return y_BTE, self.aux_loss(scores_NX, index_Nk, x_BTE.shape[0])

    def _dispatch_training(self, x_NE: Tensor, index_Nk: Tensor, weight_Nk: Tensor) -> Tensor:
        """Every token copied once per slot; each slot's result kept apart until the weighted sum."""
        num_slots = self.num_experts_per_tok
        copies_ME = x_NE.repeat_interleave(num_slots, dim=0)
        flat_M = index_Nk.view(-1)
        y_ME = torch.empty_like(copies_ME)
        for number, expert in enumerate(self.experts):
            mine_M = flat_M == number
            # An expert without tokens still runs, on an empty batch: zero gradients instead of None.
            y_ME[mine_M] = expert(copies_ME[mine_M]).to(y_ME.dtype)
        return (y_ME.view(-1, num_slots, x_NE.shape[-1]) * weight_Nk.unsqueeze(-1)).sum(dim=1)

    def sequence_aux_loss(self, scores_NX: Tensor, index_Nk: Tensor, batch_size: int) -> Tensor:
        """Load balancing within each sequence, averaged over the batch (upstream's seq_aux)."""
        chosen_BM = index_Nk.view(batch_size, -1)
        counts_BX = torch.zeros(batch_size, self.num_experts, device=scores_NX.device)
        counts_BX.scatter_add_(1, chosen_BM, torch.ones(chosen_BM.shape, device=scores_NX.device))
        load_BX = counts_BX.div_(chosen_BM.shape[1] / self.num_experts)
        scores_BX = scores_NX.view(batch_size, -1, self.num_experts).mean(dim=1)
        return (load_BX * scores_BX).sum(dim=1).mean() * self.aux_loss_coef

    def batch_aux_loss(self, scores_NX: Tensor, index_Nk: Tensor, batch_size: int) -> Tensor:
        """Load balancing over all tokens at once; `batch_size` plays no part."""
        load_X = F.one_hot(index_Nk.view(-1), self.num_experts).float().mean(0) * self.num_experts
        return (scores_NX.mean(0) * load_X).sum() * self.aux_loss_coef
