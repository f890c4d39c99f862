"""A folder that Hugging Face Transformers opens: MiniMind2 as a Llama, MiniMind-3 as a Qwen3 or Qwen3Moe.

    export_transformers("out/hf", config, model.state_dict(), tokenizer=load_tokenizer())
    AutoModelForCausalLM.from_pretrained("out/hf")          # in a program of its own; not needed here

The inverse of `minimind.transformers_format`, which reads such folders. Refuses (ValueError) MiniMind2's mixture of
experts, which has no model in Transformers, and YaRN, whose tables differ there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from minimind.checkpoint import save_weights
from minimind.config import MiniMindConfig

if TYPE_CHECKING:
    from minimind.tokenizer import MiniMindTokenizer

_CLASSES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM"}


def config_to_transformers(config: MiniMindConfig, *, dtype: str = "float32") -> dict[str, Any]:
    """The content of `config.json` for the model of Transformers that computes what `config` says."""
    if config.rope_scaling is not None:
        raise ValueError("MiniMind's YaRN is not that of Transformers; export with rope_scaling null")
    if config.use_moe and config.generation == 2:
        raise ValueError("MiniMind2's mixture of experts has no model in Transformers; dense models have")
    dense = "llama" if config.generation == 2 else "qwen3"
    kind = "qwen3_moe" if config.use_moe else dense
    values: dict[str, Any] = {
        "architectures": [_CLASSES[kind]],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": config.hidden_act,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_bias": False,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "dtype": dtype,
    }
    if config.use_moe:
        values |= {
            "num_experts": config.num_experts,
            "num_experts_per_tok": config.num_experts_per_tok,
            "moe_intermediate_size": config.moe_intermediate_size,
            "norm_topk_prob": config.norm_topk_prob,
            "router_aux_loss_coef": config.router_aux_loss_coef,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    return values


def export_transformers(
    folder: str | os.PathLike[str],
    config: MiniMindConfig,
    state_dict: Mapping[str, Tensor],
    *,
    tokenizer: MiniMindTokenizer | None = None,
) -> None:
    """Write config.json, model.safetensors and, where given, the tokenizer's two files; makes the folder if needed."""
    folder = Path(folder)
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in state_dict.values()}
    values = config_to_transformers(config, dtype=dtypes.pop() if len(dtypes) == 1 else "float32")
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder / "model.safetensors", config, state_dict)
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save(folder)
