"""MiniMind's configuration: one frozen, torch-free dataclass for both living generations.

    config = MiniMindConfig.from_dict(json.load(open("config.json")))     # upstream's own field names
    config = PRESETS["minimind-3"]

A dict is read as one generation's `config.json`; which one is told from its fields (`detect_generation`):

1. an explicit `generation` (2 or 3) wins;
2. a field that only one generation has decides (`n_routed_experts`, `aux_loss_alpha`, ... are MiniMind2;
   `num_experts`, `router_aux_loss_coef`, `moe_intermediate_size` are MiniMind-3);
3. `head_dim` or `tie_word_embeddings` mean MiniMind-3 (weak: Transformers writes the latter for everybody);
4. `intermediate_size: null` (MiniMind2's own default) or `rms_norm_eps` 1e-5 mean MiniMind2, 1e-6 MiniMind-3;
5. otherwise MiniMind-3, as upstream's HEAD would read it.

Refused with `ConfigError`: an unknown field (a typo must not become a default), fields of both generations at once,
values of the wrong type or range. Bookkeeping fields that Transformers writes are read over.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


class ConfigError(ValueError):
    """A configuration that names no MiniMind model; the message has the bad value and what is allowed."""


ACTIVATIONS = ("silu", "gelu", "relu", "gelu_pytorch_tanh")

# Fields of one generation only. The third column of upstream's tables: MiniMind2's name -> the name used here.
_RENAMED_IN_2 = MappingProxyType(
    {
        "n_routed_experts": "num_experts",
        "n_shared_experts": "num_shared_experts",
        "aux_loss_alpha": "router_aux_loss_coef",
        "seq_aux": "seq_aux",
    }
)
_ONLY_2 = frozenset({*_RENAMED_IN_2, "scoring_func"})
_ONLY_3 = frozenset({"num_experts", "router_aux_loss_coef", "moe_intermediate_size"})
_WEAK_3 = frozenset({"head_dim", "tie_word_embeddings"})
_COMMON = frozenset(
    {
        "generation",
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
        "hidden_act",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_theta",
        "rope_scaling",
        "inference_rope_scaling",
        "dropout",
        "flash_attn",
        "bos_token_id",
        "eos_token_id",
        "use_moe",
        "num_experts_per_tok",
        "norm_topk_prob",
    }
)
KNOWN_FIELDS = _COMMON | _ONLY_2 | _ONLY_3 | _WEAK_3

# What Transformers (4 and 5) and upstream's scripts write into the same file and no computation here reads.
# fmt: off
_BOOKKEEPING = frozenset({
    "_attn_implementation", "_name_or_path", "add_cross_attention", "architectures", "attn_implementation",
    "auto_map", "bad_words_ids", "begin_suppress_tokens", "chunk_size_feed_forward", "cross_attention_hidden_size",
    "decoder_start_token_id", "diversity_penalty", "do_sample", "dtype", "early_stopping",
    "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id",
    "forced_eos_token_id", "id2label", "initializer_range", "is_decoder", "is_encoder_decoder", "label2id",
    "length_penalty", "max_length", "max_seq_len", "min_length", "model_type", "no_repeat_ngram_size",
    "num_beam_groups", "num_beams", "num_return_sequences", "output_attentions", "output_hidden_states",
    "output_scores", "pad_token_id", "prefix", "problem_type", "pruned_heads", "remove_invalid_values",
    "repetition_penalty", "return_dict", "return_dict_in_generate", "sep_token_id", "suppress_tokens",
    "task_specific_params", "temperature", "tf_legacy_loss", "tie_encoder_decoder", "tokenizer_class", "top_k",
    "top_p", "torch_dtype", "torchscript", "transformers_version", "typical_p", "use_bfloat16", "use_cache",
})
# fmt: on


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """YaRN as MiniMind writes it; it acts only where max_position_embeddings > original_max_position_embeddings."""

    factor: float = 16.0
    original_max_position_embeddings: int = 2048
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RopeScaling | None:
        """Read upstream's `rope_scaling` dict; None for the type "default". Missing fields get upstream's defaults."""
        kind = values.get("rope_type", values.get("type", "yarn"))
        if kind == "default":
            return None
        if kind != "yarn":
            raise ConfigError(f"rope_scaling type {kind!r} is not known; allowed: 'yarn', 'default'")
        names = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(values) - {*names, "type", "rope_type", "rope_theta"})
        if unknown:
            raise ConfigError(f"rope_scaling has unknown fields {unknown}; allowed: type, {', '.join(names)}")
        scaling = cls(**{name: values[name] for name in names if values.get(name) is not None})
        for name in names:
            number = getattr(scaling, name)
            if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 < number < math.inf:
                raise ConfigError(f"rope_scaling.{name} must be a number above 0, not {number!r}")
        return scaling

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "type": "yarn"}


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniMindConfig:
    """Everything that decides a MiniMind's tensors and arithmetic. Make one with `from_dict` or `PRESETS`.

    Attributes carry MiniMind-3's names in both generations; MiniMind2's `n_routed_experts`, `n_shared_experts` and
    `aux_loss_alpha` are `num_experts`, `num_shared_experts` and `router_aux_loss_coef` here.
    """

    generation: int
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    hidden_act: str
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    inference_rope_scaling: bool
    tie_word_embeddings: bool
    dropout: float
    flash_attn: bool
    bos_token_id: int
    eos_token_id: int
    use_moe: bool
    num_experts: int
    num_shared_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    norm_topk_prob: bool
    router_aux_loss_coef: float
    seq_aux: bool

    def __post_init__(self) -> None:
        _validate(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MiniMindConfig:
        """Read upstream's `config.json` of either generation; absent fields get that generation's defaults."""
        _refuse_unknown(values)
        values = _unfold_rope_parameters(values)
        generation = detect_generation(values)
        given = {_RENAMED_IN_2.get(name, name): value for name, value in values.items() if name in KNOWN_FIELDS}
        given.pop("generation", None)
        if given.pop("scoring_func", "softmax") != "softmax":
            raise ConfigError(f"scoring_func {values['scoring_func']!r} is not known; allowed: 'softmax'")
        scaling = given.pop("rope_scaling", None)
        merged = _defaults(generation) | given | {"generation": generation}
        for name in _FLOATS:
            if isinstance(merged[name], int) and not isinstance(merged[name], bool):
                merged[name] = float(merged[name])
        _fill_derived(merged)
        if isinstance(scaling, Mapping):
            merged["rope_scaling"] = RopeScaling.from_dict(scaling)
        elif scaling is not None:
            raise ConfigError(f"rope_scaling must be a dict or null, not {scaling!r}")
        else:
            merged["rope_scaling"] = RopeScaling() if merged["inference_rope_scaling"] is True else None
        return cls(**merged)

    def to_dict(self) -> dict[str, Any]:
        """Upstream's field names of this generation, JSON-able; `from_dict` of it gives an equal config."""
        values = dataclasses.asdict(self)
        values["rope_scaling"] = self.rope_scaling.to_dict() if self.rope_scaling else None
        if self.generation == 2:
            for upstream_name, name in _RENAMED_IN_2.items():
                values[upstream_name] = values.pop(name)
            for name in (*_WEAK_3, "moe_intermediate_size"):
                del values[name]
            values["scoring_func"] = "softmax"
        else:
            del values["num_shared_experts"], values["seq_aux"]
        return {"model_type": "minimind", **values}


def detect_generation(values: Mapping[str, Any]) -> int:
    """2 (MiniMind2) or 3 (MiniMind-3) for a config dict, by the rule in this module's docstring."""
    told = values.get("generation")
    if told is not None and (isinstance(told, bool) or told not in (2, 3)):
        raise ConfigError(f"generation must be 2 (MiniMind2) or 3 (MiniMind-3), not {told!r}")
    only_2, only_3 = sorted(_ONLY_2 & set(values)), sorted(_ONLY_3 & set(values))
    if only_2 and (only_3 or told == 3):
        other = f"beside MiniMind-3's {only_3}" if only_3 else "but generation is 3"
        raise ConfigError(f"MiniMind2's fields {only_2} {other}: remove one generation's fields")
    if only_3 and told == 2:
        raise ConfigError(f"MiniMind-3's fields {only_3} but generation is 2: remove them or set generation to 3")
    if told is not None:
        return int(told)
    if only_2:
        return 2
    if only_3 or _WEAK_3 & set(values):
        return 3
    if "intermediate_size" in values and values["intermediate_size"] is None:
        return 2
    return 2 if values.get("rms_norm_eps") == 1e-5 else 3


def _defaults(generation: int) -> dict[str, Any]:
    """Upstream's constructor defaults; None marks what `_fill_derived` computes from other fields."""
    shared: dict[str, Any] = {
        "vocab_size": 6400,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "head_dim": None,
        "intermediate_size": None,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rope_theta": 1e6,
        "inference_rope_scaling": False,
        "tie_word_embeddings": True,
        "dropout": 0.0,
        "flash_attn": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "use_moe": False,
        "num_experts": 4,
        "moe_intermediate_size": None,
        "norm_topk_prob": True,
    }
    if generation == 2:
        return shared | {
            "hidden_size": 512,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-5,
            "num_shared_experts": 1,
            "num_experts_per_tok": 2,
            "router_aux_loss_coef": 0.01,
            "seq_aux": True,
        }
    return shared | {
        "hidden_size": 768,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "num_shared_experts": 0,
        "num_experts_per_tok": 1,
        "router_aux_loss_coef": 5e-4,
        "seq_aux": False,
    }


def _fill_derived(merged: dict[str, Any]) -> None:
    for name in ("hidden_size", "num_attention_heads"):
        _check_int(name, merged[name], 1)
    hidden = merged["hidden_size"]
    if merged["num_key_value_heads"] is None:
        merged["num_key_value_heads"] = merged["num_attention_heads"]
    if merged["head_dim"] is None:
        merged["head_dim"] = hidden // merged["num_attention_heads"]
    if merged["intermediate_size"] is None:
        wanted = int(hidden * 8 / 3) if merged["generation"] == 2 else hidden * math.pi
        merged["intermediate_size"] = 64 * math.ceil(wanted / 64)
    if merged["moe_intermediate_size"] is None:
        merged["moe_intermediate_size"] = merged["intermediate_size"]


def _unfold_rope_parameters(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Transformers 5 writes rope_theta and rope_scaling as one dict `rope_parameters`; give them their old names."""
    if "rope_parameters" not in values:
        return values
    values = dict(values)
    parameters = values.pop("rope_parameters")
    if parameters is None:
        return values
    if not isinstance(parameters, Mapping):
        raise ConfigError(f"rope_parameters must be a dict or null, not {parameters!r}")
    values.setdefault("rope_theta", parameters.get("rope_theta", 1e6))
    if values.get("rope_scaling") is None and parameters.get("rope_type", "default") != "default":
        values["rope_scaling"] = parameters
    return values


def _refuse_unknown(values: Mapping[str, Any]) -> None:
    for name in values:
        if name not in KNOWN_FIELDS and name not in _BOOKKEEPING and name != "rope_parameters":
            close = difflib.get_close_matches(str(name), KNOWN_FIELDS, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ConfigError(f"unknown config field {name!r}{hint}; known: {', '.join(sorted(KNOWN_FIELDS))}")


_POSITIVE_INTS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "max_position_embeddings",
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
)
_FLOATS = ("rms_norm_eps", "rope_theta", "dropout", "router_aux_loss_coef")
_BOOLS = ("inference_rope_scaling", "tie_word_embeddings", "flash_attn", "use_moe", "norm_topk_prob", "seq_aux")


def _check_int(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} must be an integer of at least {least}, not {value!r}")


def _validate(config: MiniMindConfig) -> None:
    """Types first, then the relations between fields."""
    for name in _POSITIVE_INTS:
        _check_int(name, getattr(config, name), 1)
    for name in ("bos_token_id", "eos_token_id", "num_shared_experts"):
        _check_int(name, getattr(config, name), 0)
    for name in _BOOLS:
        if not isinstance(getattr(config, name), bool):
            raise ConfigError(f"{name} must be true or false, not {getattr(config, name)!r}")
    for name in _FLOATS:
        number = getattr(config, name)
        if not isinstance(number, float) or not 0 <= number < math.inf:
            raise ConfigError(f"{name} must be a number of at least 0, not {number!r}")
    if config.generation not in (2, 3):
        raise ConfigError(f"generation must be 2 or 3, not {config.generation!r}")
    if config.hidden_act not in ACTIVATIONS:
        raise ConfigError(f"hidden_act {config.hidden_act!r} is not known; allowed: {', '.join(ACTIVATIONS)}")
    if config.dropout >= 1:
        raise ConfigError(f"dropout must be below 1, not {config.dropout}")
    if config.num_attention_heads % config.num_key_value_heads:
        raise ConfigError(
            f"num_key_value_heads {config.num_key_value_heads} must divide "
            f"num_attention_heads {config.num_attention_heads}"
        )
    if config.head_dim % 2:
        raise ConfigError(f"head_dim must be even for rotary embeddings, not {config.head_dim}")
    if config.num_experts_per_tok > config.num_experts:
        raise ConfigError(
            f"num_experts_per_tok {config.num_experts_per_tok} is more than the {config.num_experts} experts"
        )
    if config.generation == 2:
        _validate_generation_2(config)
    elif config.num_shared_experts or config.seq_aux:
        raise ConfigError("MiniMind-3 has no shared experts and no sequence-wise auxiliary loss")


def _validate_generation_2(config: MiniMindConfig) -> None:
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        raise ConfigError(
            f"MiniMind2 fixes head_dim to hidden_size / num_attention_heads: {config.hidden_size} / "
            f"{config.num_attention_heads} does not give head_dim {config.head_dim}"
        )
    if not config.tie_word_embeddings:
        raise ConfigError("MiniMind2 always ties its embeddings; tie_word_embeddings must be true or absent")
    if config.moe_intermediate_size != config.intermediate_size:
        raise ConfigError("MiniMind2's experts have the size intermediate_size; moe_intermediate_size must equal it")


PRESETS: Mapping[str, MiniMindConfig] = MappingProxyType(
    {
        "minimind2-small": MiniMindConfig.from_dict({"generation": 2}),
        "minimind2": MiniMindConfig.from_dict({"generation": 2, "hidden_size": 768, "num_hidden_layers": 16}),
        "minimind2-moe": MiniMindConfig.from_dict({"generation": 2, "hidden_size": 640, "use_moe": True}),
        "minimind-3": MiniMindConfig.from_dict({"generation": 3}),
        "minimind-3-moe": MiniMindConfig.from_dict({"generation": 3, "use_moe": True}),
        "tiny": MiniMindConfig.from_dict(
            {
                "generation": 3,
                "hidden_size": 192,
                "num_hidden_layers": 4,
                "num_attention_heads": 6,
                "num_key_value_heads": 2,
                "intermediate_size": 384,
            }
        ),
    }
)
