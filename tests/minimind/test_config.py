"""Configuration: generations told apart, defaults, round trips, clear refusals; and that none of it needs torch."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimind import PRESETS, ConfigError, MiniMindConfig, costs
from minimind.config import RopeScaling

# As counted on upstream's models.
PARAMETERS = {
    "minimind2-small": 25_829_888,
    "minimind2": 104_030_976,
    "minimind2-moe": 145_029_760,
    "minimind-3": 63_912_192,
    "minimind-3-moe": 198_416_640,
}


def test_presets_have_upstreams_sizes() -> None:
    assert {name: costs.num_parameters(PRESETS[name]) for name in PARAMETERS} == PARAMETERS
    assert costs.num_active_parameters(PRESETS["minimind-3-moe"]) == 63_936_768
    assert costs.weight_bytes(PRESETS["tiny"], 2) < 5.1e6
    shapes = {
        (512, 4, 1664): 30_025_216,
        (512, 2, 1664): 28_976_640,
        (512, 2, 1408): 25_830_912,
    }
    for (hidden, kv, ffn), count in shapes.items():
        config = MiniMindConfig.from_dict(
            {"head_dim": 64, "hidden_size": hidden, "num_key_value_heads": kv, "intermediate_size": ffn}
        )
        assert costs.num_parameters(config) == count


@pytest.mark.parametrize("name", PRESETS)
def test_round_trip(name: str) -> None:
    values = json.loads(json.dumps(PRESETS[name].to_dict()))
    assert MiniMindConfig.from_dict(values) == PRESETS[name]
    values.pop("generation")
    assert MiniMindConfig.from_dict(values) == PRESETS[name], "the fields alone tell the generation"


@pytest.mark.parametrize(
    ("values", "generation"),
    [
        ({}, 3),
        ({"hidden_size": 512}, 3),
        ({"rms_norm_eps": 1e-5}, 2),
        ({"rms_norm_eps": 1e-6}, 3),
        ({"intermediate_size": None}, 2),
        ({"n_routed_experts": 4}, 2),
        ({"aux_loss_alpha": 0.1, "tie_word_embeddings": True}, 2),
        ({"num_experts": 8, "use_moe": True}, 3),
        ({"head_dim": 96}, 3),
        ({"head_dim": 64, "rms_norm_eps": 1e-5}, 3),
        ({"generation": 2, "rms_norm_eps": 1e-6}, 2),
        ({"generation": 3, "rms_norm_eps": 1e-5}, 3),
    ],
)
def test_generation_is_told_from_the_fields(values: dict[str, Any], generation: int) -> None:
    assert MiniMindConfig.from_dict(values).generation == generation


def test_defaults_follow_the_generation() -> None:
    two, three = MiniMindConfig.from_dict({"generation": 2}), MiniMindConfig.from_dict({})
    assert (two.hidden_size, two.num_key_value_heads, two.intermediate_size, two.rms_norm_eps) == (512, 2, 1408, 1e-5)
    assert (two.num_experts_per_tok, two.num_shared_experts, two.router_aux_loss_coef) == (2, 1, 0.01)
    assert (three.hidden_size, three.num_key_value_heads, three.intermediate_size) == (768, 4, 2432)
    assert (three.num_experts_per_tok, three.num_shared_experts, three.router_aux_loss_coef) == (1, 0, 5e-4)
    assert MiniMindConfig.from_dict({"hidden_size": 512}).intermediate_size == 1664


def test_rope_scaling() -> None:
    assert MiniMindConfig.from_dict({}).rope_scaling is None
    assert MiniMindConfig.from_dict({"inference_rope_scaling": True}).rope_scaling == RopeScaling()
    explicit = {"inference_rope_scaling": False, "rope_scaling": {"type": "yarn", "factor": 4}}
    assert MiniMindConfig.from_dict(explicit).rope_scaling == RopeScaling(factor=4)
    five = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    assert MiniMindConfig.from_dict(five).rope_theta == 5e5 and MiniMindConfig.from_dict(five).rope_scaling is None


def test_what_transformers_writes_beside_is_read_over() -> None:
    extra = {
        "architectures": ["MiniMindForCausalLM"],
        "auto_map": {},
        "torch_dtype": "float16",
        "dtype": "float16",
        "transformers_version": "4.57.6",
        "model_type": "minimind",
        "max_seq_len": 512,
        "use_cache": True,
    }
    assert MiniMindConfig.from_dict(extra) == MiniMindConfig.from_dict({})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"hiden_size": 512}, ["hiden_size", "did you mean 'hidden_size'", "num_hidden_layers"]),
        ({"n_routed_experts": 4, "num_experts": 4}, ["n_routed_experts", "num_experts", "one generation"]),
        ({"generation": 3, "seq_aux": True}, ["seq_aux", "generation is 3"]),
        ({"generation": 2, "num_experts": 4}, ["num_experts", "generation is 2"]),
        ({"generation": 1}, ["generation", "1"]),
        ({"num_attention_heads": 8, "num_key_value_heads": 3}, ["num_key_value_heads 3", "8"]),
        ({"hidden_size": "512"}, ["hidden_size", "'512'"]),
        ({"hidden_size": True}, ["hidden_size"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers", "0"]),
        ({"use_moe": 1}, ["use_moe"]),
        ({"dropout": 1.0}, ["dropout"]),
        ({"rope_theta": float("nan")}, ["rope_theta"]),
        ({"hidden_act": "tanh"}, ["tanh", "silu"]),
        ({"head_dim": 15}, ["head_dim", "15"]),
        ({"generation": 2, "head_dim": 32}, ["head_dim 32"]),
        ({"generation": 2, "tie_word_embeddings": False}, ["tie_word_embeddings"]),
        ({"scoring_func": "sigmoid"}, ["sigmoid", "softmax"]),
        ({"num_experts": 2, "num_experts_per_tok": 3}, ["num_experts_per_tok 3"]),
        ({"rope_scaling": {"type": "linear"}}, ["linear", "yarn"]),
        ({"rope_scaling": {"type": "yarn", "factr": 2}}, ["factr", "factor"]),
        ({"rope_scaling": {"factor": "4"}}, ["factor", "'4'"]),
        ({"rope_scaling": 4}, ["rope_scaling", "4"]),
    ],
)
def test_refusals_name_the_value_and_what_is_allowed(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        MiniMindConfig.from_dict(values)
    for word in words:
        assert word in str(caught.value)


@given(
    generation=st.sampled_from([2, 3]),
    heads=st.sampled_from([2, 4, 8]),
    width=st.integers(1, 64),
    moe=st.booleans(),
    yarn=st.booleans(),
)
def test_any_valid_config_round_trips(generation: int, heads: int, width: int, moe: bool, yarn: bool) -> None:
    values = {
        "generation": generation,
        "hidden_size": heads * width * 2,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "use_moe": moe,
        "inference_rope_scaling": yarn,
    }
    config = MiniMindConfig.from_dict(values)
    assert MiniMindConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_importing_the_package_needs_no_torch() -> None:
    code = (
        "import sys, minimind\n"
        "from minimind.config import MiniMindConfig\n"
        "from minimind import PRESETS, costs\n"
        "costs.train_flops(PRESETS['tiny'], 1, 8)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_generate_stays_a_function() -> None:
    from importlib import import_module

    import minimind

    module = import_module("minimind.generate")
    assert minimind.generate is module.generate
    with pytest.raises(AttributeError, match="generat2"):
        _ = minimind.generat2  # type: ignore[attr-defined]
