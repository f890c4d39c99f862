"""MiniMind's language model, both living generations, with upstream's state-dict keys.

    model = MiniMindForCausalLM(MiniMindConfig.from_dict(values))
    model.load_state_dict(weights)
    cache = model.new_cache(kind="prealloc", batch_size=1, max_length=64)
    logits_BTV = model(input_ids_BT, cache=cache).logits

Legend: B batch, T new positions, S all positions, E hidden_size, V vocab_size.
The default arithmetic is upstream's, operation for operation (jingyaogong/minimind at 83e52f6 for MiniMind2, d65ef2c
for MiniMind-3). Parts that the laboratory swaps: the norm modules, `set_attention`, the cache handed to `forward`, and
`fused_loss`, which takes the place of head and cross-entropy together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimind import costs
from minimind.attention import ATTENTION, Attention, AttentionStrategy
from minimind.cache import KeyValueCache, new_cache
from minimind.config import MiniMindConfig
from minimind.feedforward import FeedForward, MoEFeedForward, SharedMoEFeedForward
from minimind.norm import RMSNorm, RMSNormCastFirst, norm_class
from minimind.rope import RotaryTables

__all__ = ["CausalLMOutput", "MiniMindForCausalLM", "MiniMindModel", "RMSNorm", "RMSNormCastFirst"]

# (hidden states [N, E], the head's weight [V, E], target ids [N], -100 to ignore) -> mean cross-entropy, a scalar
FusedLoss = Callable[[Tensor, Tensor, Tensor], Tensor]

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


class CausalLMOutput(NamedTuple):
    """What a forward returns. `loss` is None without labels, `cache` is the one handed in, `aux_loss` a scalar.

    Where a `fused_loss` took the labels there are no logits: the tensor is [B, 0, V].
    """

    logits: Tensor
    loss: Tensor | None
    aux_loss: Tensor
    hidden_states: Tensor
    cache: KeyValueCache | None


class Block(nn.Module):
    """Attention and feed-forward, each behind a norm and added to the stream."""

    def __init__(self, config: MiniMindConfig, layer_index: int, strategy: AttentionStrategy) -> None:
        super().__init__()
        norm = norm_class(config)
        self.self_attn = Attention(config, layer_index, strategy.attend)
        self.input_layernorm = norm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = norm(config.hidden_size, config.rms_norm_eps)
        self.mlp = self.make_mlp(config)

    def make_mlp(self, config: MiniMindConfig) -> nn.Module:
        return FeedForward(config, config.intermediate_size)

    def attend(
        self, x_BTE: Tensor, rotation: tuple[Tensor, Tensor], visibility: Any, cache: KeyValueCache | None
    ) -> Tensor:
        """The stream after attention."""
        attended: Tensor = self.self_attn(self.input_layernorm(x_BTE), rotation, visibility, cache)
        # NOTE: in place, as upstream: under autocast the stream takes the dtype of the attention output.
        attended += x_BTE
        return attended

    def forward(
        self, x_BTE: Tensor, rotation: tuple[Tensor, Tensor], visibility: Any, cache: KeyValueCache | None
    ) -> tuple[Tensor, Tensor | None]:
        """The stream [B, T, E] after this block, and its auxiliary loss where it has one."""
        x_BTE = self.attend(x_BTE, rotation, visibility, cache)
        return x_BTE + self.mlp(self.post_attention_layernorm(x_BTE)), None


class MoEBlock(Block):
    """A block whose feed-forward is a mixture of experts."""

    def make_mlp(self, config: MiniMindConfig) -> nn.Module:
        return SharedMoEFeedForward(config) if config.generation == 2 else MoEFeedForward(config)

    def forward(
        self, x_BTE: Tensor, rotation: tuple[Tensor, Tensor], visibility: Any, cache: KeyValueCache | None
    ) -> tuple[Tensor, Tensor | None]:
        """See `Block.forward`."""
        x_BTE = self.attend(x_BTE, rotation, visibility, cache)
        mixed_BTE, aux_loss = self.mlp(self.post_attention_layernorm(x_BTE))
        return x_BTE + mixed_BTE, aux_loss


class MiniMindModel(nn.Module):
    """Embeddings, blocks, final norm: everything but the language-model head."""

    def __init__(self, config: MiniMindConfig) -> None:
        super().__init__()
        self.attention = ATTENTION["upstream" if config.flash_attn else "explicit"]
        block = MoEBlock if config.use_moe else Block
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.layers = nn.ModuleList(block(config, index, self.attention) for index in range(config.num_hidden_layers))
        self.norm = norm_class(config)(config.hidden_size, config.rms_norm_eps)
        self.rotary = RotaryTables(config)

    def forward(
        self, input_ids_BT: Tensor, attention_mask_BS: Tensor | None, cache: KeyValueCache | None
    ) -> tuple[Tensor, Tensor]:
        """Hidden states [B, T, E] after the final norm, and the layers' summed auxiliary loss (a scalar)."""
        num_new = input_ids_BT.shape[1]
        num_past = 0 if cache is None else cache.length
        x_BTE: Tensor = self.dropout(self.embed_tokens(input_ids_BT))
        rotation = self.rotary(num_past, num_new)
        padding = _padding_or_none(attention_mask_BS, input_ids_BT.shape[0], num_past + num_new)
        visibility = self.attention.prepare(num_new, num_past, padding, _score_dtype(x_BTE), x_BTE.device)
        total_aux = x_BTE.new_zeros(())
        for layer in self.layers:
            x_BTE, aux_loss = layer(x_BTE, rotation, visibility, cache)
            if aux_loss is not None:
                total_aux = total_aux + aux_loss
        return self.norm(x_BTE), total_aux


class MiniMindForCausalLM(nn.Module):
    """MiniMind with its language-model head; see the module docstring."""

    def __init__(self, config: MiniMindConfig) -> None:
        super().__init__()
        self.config = config
        self.model = MiniMindModel(config)
        self.fused_loss: FusedLoss | None = None
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._tie_weights()
        if config.generation == 3:
            self._initialize_normal()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
    ) -> CausalLMOutput:
        """One pass over [B, T] new token ids.

        attention_mask [B, S] has 0 at padding, for cached and new positions together; positions are not shifted by
        padding. labels [B, T] are the input ids with -100 where no loss is wanted; the shift by one happens here.
        logits_to_keep > 0 computes the logits of that many last positions only. With labels and `fused_loss` no logits
        are computed. Raises ValueError for shapes that do not fit and for more positions than max_position_embeddings.
        """
        if input_ids.ndim != 2:
            raise ValueError(f"input_ids must be [batch, length], not {tuple(input_ids.shape)}")
        if labels is not None and logits_to_keep:
            raise ValueError("labels need the logits of every position; leave logits_to_keep at 0")
        hidden_BTE, aux_loss = self.model(input_ids, attention_mask, cache)
        if labels is not None and self.fused_loss is not None:
            predicting_NE = hidden_BTE[:, :-1].reshape(-1, hidden_BTE.shape[-1])
            loss = self.fused_loss(predicting_NE, self.lm_head.weight, labels[:, 1:].reshape(-1))
            no_logits = hidden_BTE.new_empty((hidden_BTE.shape[0], 0, self.config.vocab_size))
            return CausalLMOutput(no_logits, loss, aux_loss, hidden_BTE, cache)
        logits_BTV: Tensor = self.lm_head(hidden_BTE[:, -logits_to_keep:] if logits_to_keep else hidden_BTE)
        loss = None
        if labels is not None:
            predicted = logits_BTV[:, :-1].contiguous().view(-1, logits_BTV.shape[-1])
            loss = F.cross_entropy(predicted, labels[:, 1:].contiguous().view(-1), ignore_index=-100)
        return CausalLMOutput(logits_BTV, loss, aux_loss, hidden_BTE, cache)

    def new_cache(
        self,
        kind: str = "cat",
        batch_size: int = 1,
        max_length: int | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> KeyValueCache:
        """An empty cache for this model. `dtype` defaults to what the keys will have: the autocast dtype where
        autocast is on, the weights' otherwise. Raises CacheError (a ValueError) for an unknown kind."""
        weight = self.lm_head.weight
        place = torch.device(device) if device is not None else weight.device
        if dtype is None:
            autocast = torch.is_autocast_enabled(place.type)
            dtype = torch.get_autocast_dtype(place.type) if autocast else weight.dtype
        return new_cache(
            self.config, kind=kind, batch_size=batch_size, max_length=max_length, dtype=dtype, device=place
        )

    def set_attention(self, strategy: str | AttentionStrategy) -> None:
        """Use another attention in every layer: a name in `ATTENTION` or a strategy."""
        if isinstance(strategy, str):
            if strategy not in ATTENTION:
                raise ValueError(f"unknown attention {strategy!r}; known: {', '.join(ATTENTION)}")
            strategy = ATTENTION[strategy]
        self.model.attention = strategy
        for module in self.modules():
            if isinstance(module, Attention):
                module.attend = strategy.attend

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """torch's, except that tied embeddings may come under either of their two names or, equal, under both."""
        if not self.config.tie_word_embeddings:
            return super().load_state_dict(state_dict, strict, assign)
        weights = dict(state_dict)
        present = [name for name in (_EMBEDDING, _HEAD) if name in weights]
        if len(present) == 2 and not torch.equal(weights[_EMBEDDING], weights[_HEAD]):
            raise ValueError(
                f"{_EMBEDDING} and {_HEAD} differ, but the config ties them; "
                "set tie_word_embeddings to false (MiniMind-3) or give one of them"
            )
        if present:
            weights[_EMBEDDING] = weights[_HEAD] = weights[present[0]]
        result = super().load_state_dict(weights, strict, assign)
        self._tie_weights()
        return result

    def _tie_weights(self) -> None:
        if self.config.tie_word_embeddings:
            self.model.embed_tokens.weight = self.lm_head.weight

    def _initialize_normal(self) -> None:
        """MiniMind-3's start: N(0, 0.02) for every matrix. MiniMind2 keeps torch's Linear initialisation."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, mean=0.0, std=0.02)

    def num_parameters(self) -> int:
        """See `costs.num_parameters`."""
        return costs.num_parameters(self.config)

    def num_active_parameters(self) -> int:
        """See `costs.num_active_parameters`."""
        return costs.num_active_parameters(self.config)

    def prefill_flops(self, batch_size: int, length: int, past: int = 0, logits_to_keep: int = 0) -> int:
        """See `costs.prefill_flops`."""
        return costs.prefill_flops(self.config, batch_size, length, past, logits_to_keep)

    def decode_flops(self, batch_size: int, context: int) -> int:
        """See `costs.decode_flops`."""
        return costs.decode_flops(self.config, batch_size, context)

    def train_flops(self, batch_size: int, length: int) -> int:
        """See `costs.train_flops`."""
        return costs.train_flops(self.config, batch_size, length)

    def decode_bytes(self, batch_size: int, context: int, weight_bytes: float = 4, kv_bytes: float = 4) -> float:
        """See `costs.decode_bytes`."""
        return costs.decode_bytes(self.config, batch_size, context, weight_bytes, kv_bytes)

    def kv_bytes_per_token(self, bytes_per_value: float = 4) -> float:
        """See `costs.kv_bytes_per_token`."""
        return costs.kv_bytes_per_token(self.config, bytes_per_value)

    def weight_bytes(self, bytes_per_value: float = 4) -> float:
        """See `costs.weight_bytes`."""
        return costs.weight_bytes(self.config, bytes_per_value)


def _padding_or_none(attention_mask_BS: Tensor | None, batch_size: int, num_positions: int) -> Tensor | None:
    """The mask if anything is padded. The one device synchronisation of a forward; skipped while compiling."""
    if attention_mask_BS is None:
        return None
    if attention_mask_BS.shape != (batch_size, num_positions):
        raise ValueError(
            f"attention_mask must be [batch, cached + new] = [{batch_size}, {num_positions}], "
            f"not {list(attention_mask_BS.shape)}"
        )
    if not torch.compiler.is_compiling() and bool(torch.all(attention_mask_BS == 1)):
        return None
    return attention_mask_BS


def _score_dtype(x_BTE: Tensor) -> torch.dtype:
    """The dtype in which attention will see its queries."""
    kind = x_BTE.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x_BTE.dtype
