"""Transformers' twins of MiniMind: Llama is MiniMind2's arithmetic, Qwen3 and Qwen3-MoE are MiniMind-3's.

    config = config_from_transformers(json.load(open("config.json")))
    weights = weights_from_transformers(state_dict)

Refuses with `UnsupportedModel` every setting that changes the computation and that MiniMind does not have: biases,
sliding windows, scaled rotary embeddings, layers that are not alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor

from minimind.config import MiniMindConfig


class UnsupportedModel(ValueError):
    """A Transformers model that is not MiniMind's arithmetic; the message names the field and the value it needs."""


# What Transformers assumes for a field that the file leaves out.
MODEL_TYPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "llama": {"generation": 2, "max_position_embeddings": 2048},
        "qwen3": {"generation": 3, "max_position_embeddings": 32768, "head_dim": 128},
        "qwen3_moe": {
            "generation": 3,
            "max_position_embeddings": 32768,
            "use_moe": True,
            "norm_topk_prob": False,
            "num_experts_per_tok": 8,
            "router_aux_loss_coef": 0.001,
        },
    }
)
_ASSUMED = MappingProxyType({"rms_norm_eps": 1e-6, "rope_theta": 1e4, "tie_word_embeddings": False})
_REQUIRED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
_CARRIED = (
    *_REQUIRED,
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "tie_word_embeddings",
    "moe_intermediate_size",
    "num_experts_per_tok",
    "norm_topk_prob",
    "router_aux_loss_coef",
)
# Fields that must have these values (or be absent) for the arithmetic to be MiniMind's.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "attention_bias": (False, None),
        "mlp_bias": (False, None),
        "attention_dropout": (0, None),
        "use_sliding_window": (False, None),
        "rope_scaling": (None,),
        "decoder_sparse_step": (1, None),
        "mlp_only_layers": ([], None),
        "pretraining_tp": (1, None),
    }
)


def config_from_transformers(values: Mapping[str, Any]) -> MiniMindConfig:
    """The MiniMind configuration that computes what this Transformers configuration computes."""
    assumed = MODEL_TYPES[values["model_type"]]
    missing = [name for name in _REQUIRED if values.get(name) is None]
    if missing:
        raise UnsupportedModel(f"the fields {missing} are missing")
    for name, allowed in _NEUTRAL.items():
        if name in values and values[name] not in allowed:
            raise UnsupportedModel(f"{name} is {values[name]!r}; MiniMind can only honour {allowed[0]!r}")
    layer_types = set(values.get("layer_types") or ["full_attention"])
    if layer_types != {"full_attention"}:
        raise UnsupportedModel(f"layer_types has {sorted(layer_types)}; MiniMind can only honour 'full_attention'")
    rope = dict(values.get("rope_parameters") or {})
    if rope.get("rope_type", "default") != "default":
        raise UnsupportedModel(f"rope_parameters has rope_type {rope['rope_type']!r}; only 'default' can be honoured")
    carried = {name: values[name] for name in _CARRIED if values.get(name) is not None}
    if "rope_theta" in rope:
        carried["rope_theta"] = rope["rope_theta"]
    if assumed.get("use_moe"):
        carried["num_experts"] = values.get("num_local_experts", values.get("num_experts", 128))
    carried = {**_ASSUMED, **assumed, **carried}
    carried.setdefault("num_key_value_heads", carried["num_attention_heads"])
    for name in ("bos_token_id", "eos_token_id"):
        token = values.get(name)
        token = token[0] if isinstance(token, list) and token else token
        if isinstance(token, int):
            carried[name] = token
    return MiniMindConfig.from_dict(carried)


def weights_from_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Upstream's keys: experts one by one (Transformers 5 stacks them in memory), no stored rotary frequencies."""
    converted: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name.endswith(".rotary_emb.inv_freq"):
            continue
        stem, _, kind = name.rpartition(".mlp.experts.")
        if kind == "gate_up_proj":
            for number, stacked in enumerate(tensor):
                gate, up = stacked.chunk(2, dim=0)
                converted[f"{stem}.mlp.experts.{number}.gate_proj.weight"] = gate
                converted[f"{stem}.mlp.experts.{number}.up_proj.weight"] = up
        elif kind == "down_proj":
            for number, down in enumerate(tensor):
                converted[f"{stem}.mlp.experts.{number}.down_proj.weight"] = down
        else:
            converted[name] = tensor
    return converted
