"""The transformers engine: MiniMind's weights in Transformers' own model of the same architecture.

MiniMind2 is a Llama, MiniMind-3 a Qwen3 (dense or MoE); the keys are the same, so the weights load strictly.
MiniMind2's mixture of experts has no twin there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from harness.backends._sessions import TorchEngine
from harness.backends._torch import MiniMindEngine, weights_of
from harness.core import REFERENCE, ModelSource, Unsupported, Variant
from harness.registry import options_of
from harness.telemetry import usable_cpus
from minimind.config import MiniMindConfig


@dataclass(slots=True)
class Build:
    """What the options that this engine honours may set."""

    model: PreTrainedModel
    autocast: str | None = None
    threads: int | None = None
    inference_only: str | None = None

    def cast(self, dtype: str) -> None:
        """Convert the weights."""
        self.model.to(getattr(torch, dtype))


def twin(config: MiniMindConfig) -> PreTrainedModel:
    """Transformers' empty model for a config. Raises Unsupported where there is none."""
    if config.rope_scaling is not None:
        raise Unsupported("YaRN is measured with backend=torch only")
    common: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_bias": False,
    }
    if config.generation == 2:
        if config.use_moe:
            raise Unsupported("MiniMind2's mixture of experts has no model in Transformers")
        return LlamaForCausalLM(LlamaConfig(**common))
    if not config.use_moe:
        return Qwen3ForCausalLM(Qwen3Config(**common))
    experts: dict[str, Any] = {
        "num_experts": config.num_experts,
        "num_experts_per_tok": config.num_experts_per_tok,
        "moe_intermediate_size": config.moe_intermediate_size,
        "norm_topk_prob": config.norm_topk_prob,
        "router_aux_loss_coef": config.router_aux_loss_coef,
        "decoder_sparse_step": 1,
    }
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**common, **experts))


class TransformersEngine(TorchEngine):
    """A Transformers model driven by the same sessions as the reference."""

    def __init__(self, source: ModelSource, variant: Variant, device: str, seed: int) -> None:
        self.source, self.seed = source, seed
        self.device = torch.device(device)
        self.config, weights = weights_of(source, source.seed)
        model = twin(self.config)
        if self.config.tie_word_embeddings:  # a file may hold the shared matrix under either of its names
            names = ("lm_head.weight", "model.embed_tokens.weight")
            shared = next(weights[name] for name in names if name in weights)
            weights = {**weights, **dict.fromkeys(names, shared)}
        model.load_state_dict(weights, assign=True)
        model.tie_weights()
        model.train(False).to(self.device)
        build = Build(model)
        for declared, value in options_of(variant):
            declared.apply(build, value)
        torch.set_num_threads(build.threads or len(usable_cpus()))
        self.build, self.model, self.autocast = build, build.model, build.autocast
        self.inference_only = build.inference_only

    def new_state(self, batch: int, max_length: int) -> Any:
        return DynamicCache()

    def rewind(self, state: Any, length: int) -> None:
        if length == 0:
            state.layers.clear()
        elif (surplus := state.get_seq_length() - length) > 0:
            state.crop(-surplus)

    def kv_bytes(self, state: Any) -> int:
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in state.layers)

    def forward(self, ids_BT: torch.Tensor, state: Any) -> torch.Tensor:
        logits: torch.Tensor = self.model(ids_BT, past_key_values=state, use_cache=True).logits
        return logits

    def train_loss(self, ids_BT: torch.Tensor) -> torch.Tensor:
        self.model.train()
        loss: torch.Tensor = self.model(ids_BT, labels=ids_BT, use_cache=False).loss
        return loss

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        return self.model.parameters()

    def reference(self) -> TorchEngine:
        return MiniMindEngine(self.source, REFERENCE, str(self.device), self.seed)

    def facts(self) -> dict[str, Any]:
        return {
            **self.compute_facts(),
            "model_class": type(self.model).__name__,
            "attention": self.model.config._attn_implementation,
            "cache": "DynamicCache",
            "threads_asked": self.build.threads,
        }


def load(source: ModelSource, variant: Variant, device: str, seed: int) -> TransformersEngine:
    """Build Transformers' twin of `source` with the options of `variant` that it honours."""
    return TransformersEngine(source, variant, device, seed)
