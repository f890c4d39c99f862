"""What one pass through a MiniMind costs: parameters, floating point operations, bytes. No torch needed.

    flops = prefill_flops(config, batch_size=1, length=512)

A multiply-add is two FLOPs, and only matrix products count, as in torch.utils.flop_counter, with which these numbers
agree exactly. Three conventions: causal attention counts every score, also the hidden half (torch does, and upstream's
kernels compute them); training is three forwards' matrix products, without what a fused attention kernel recomputes in
its backward (torch's counter adds that for the flash and efficient kernels); a mixture sends each token to
num_experts_per_tok experts.
"""

from __future__ import annotations

from minimind.config import MiniMindConfig


def attention_parameters(config: MiniMindConfig) -> int:
    """Weights of one layer's four projections, without the query and key norms."""
    width = config.num_attention_heads + config.num_key_value_heads
    return 2 * config.hidden_size * width * config.head_dim


def expert_parameters(config: MiniMindConfig) -> int:
    """Weights of one feed-forward network: the dense one, or one expert."""
    size = config.moe_intermediate_size if config.use_moe else config.intermediate_size
    return 3 * config.hidden_size * size


def norm_parameters(config: MiniMindConfig) -> int:
    """Weights of all norms of the model."""
    per_layer = 2 * config.hidden_size + (2 * config.head_dim if config.generation == 3 else 0)
    return config.num_hidden_layers * per_layer + config.hidden_size


def embedding_parameters(config: MiniMindConfig) -> int:
    """Weights of one vocabulary matrix, the embedding or the head."""
    return config.vocab_size * config.hidden_size


def _parameters_with(config: MiniMindConfig, num_routed: int) -> int:
    """All weights if each layer had `num_routed` routed experts, behind its full router."""
    feed_forward = expert_parameters(config)
    if config.use_moe:
        feed_forward *= num_routed + config.num_shared_experts
        feed_forward += config.num_experts * config.hidden_size
    layers = config.num_hidden_layers * (attention_parameters(config) + feed_forward)
    matrices = 1 if config.tie_word_embeddings else 2
    return layers + norm_parameters(config) + matrices * embedding_parameters(config)


def num_parameters(config: MiniMindConfig) -> int:
    """All weights; tied embeddings count once."""
    return _parameters_with(config, config.num_experts)


def num_active_parameters(config: MiniMindConfig) -> int:
    """The weights that work on one token: of a mixture, the router, the shared and num_experts_per_tok experts."""
    return _parameters_with(config, config.num_experts_per_tok)


def matmul_parameters_per_token(config: MiniMindConfig) -> int:
    """Weights of the blocks that one token is multiplied with; neither norms nor embedding nor head."""
    feed_forward = expert_parameters(config)
    if config.use_moe:
        feed_forward *= config.num_experts_per_tok + config.num_shared_experts
        feed_forward += config.num_experts * config.hidden_size
    return config.num_hidden_layers * (attention_parameters(config) + feed_forward)


def attention_flops(config: MiniMindConfig, batch_size: int, num_new: int, num_positions: int) -> int:
    """Scores and weighted sums of all layers for `num_new` queries over `num_positions` keys."""
    per_score = 4 * config.head_dim
    scores = batch_size * config.num_attention_heads * num_new * num_positions
    return config.num_hidden_layers * scores * per_score


def prefill_flops(config: MiniMindConfig, batch_size: int, length: int, past: int = 0, logits_to_keep: int = 0) -> int:
    """One forward over `length` new tokens per row after `past` cached ones; logits of all or the last few."""
    tokens = batch_size * length
    heads = batch_size * (min(logits_to_keep, length) if logits_to_keep else length)
    return (
        2 * tokens * matmul_parameters_per_token(config)
        + 2 * heads * embedding_parameters(config)
        + attention_flops(config, batch_size, length, past + length)
    )


def decode_flops(config: MiniMindConfig, batch_size: int, context: int) -> int:
    """One new token per row when `context` positions are cached; it sees them and itself."""
    return prefill_flops(config, batch_size, 1, past=context)


def train_flops(config: MiniMindConfig, batch_size: int, length: int) -> int:
    """Forward and backward of one step; the optimizer multiplies no matrices."""
    return 3 * prefill_flops(config, batch_size, length)


def kv_bytes_per_token(config: MiniMindConfig, bytes_per_value: float = 4) -> float:
    """Cache bytes of one position of one row, over all layers."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * bytes_per_value


def weight_bytes(config: MiniMindConfig, bytes_per_value: float = 4) -> float:
    """Bytes of all weights; tied embeddings count once."""
    return num_parameters(config) * bytes_per_value


def decode_bytes(
    config: MiniMindConfig, batch_size: int, context: int, weight_bytes: float = 4, kv_bytes: float = 4
) -> float:
    """The least memory traffic of one decode step, in bytes; `weight_bytes` and `kv_bytes` are per value.

    Each weight that takes part is read once (of a mixture, as many experts as the batch can reach at most), each row's
    embedding once, keys and values of `context` cached positions and the new one are read, the new one written.
    """
    reached = min(config.num_experts, batch_size * config.num_experts_per_tok)
    weights = _parameters_with(config, reached) + batch_size * config.hidden_size
    if not config.tie_word_embeddings:
        weights -= embedding_parameters(config)
    per_position = kv_bytes_per_token(config, kv_bytes)
    return weights * weight_bytes + batch_size * (context + 2) * per_position
