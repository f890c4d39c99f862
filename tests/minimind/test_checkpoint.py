"""Loading weights: every format, with and without a config beside it, and damaged files named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from minimind import MiniMindConfig, MiniMindForCausalLM, load_weights, save_weights
from minimind.checkpoint import CheckpointError, infer_config
from minimind.files import replacing

SMALL = {
    "vocab_size": 40,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
}
CASES = {
    "two": {"generation": 2},
    "three": {"generation": 3},
    "three-wide-heads": {"generation": 3, "head_dim": 16, "num_attention_heads": 6},
    "three-untied": {"generation": 3, "tie_word_embeddings": False},
    "two-moe": {"generation": 2, "use_moe": True, "n_routed_experts": 5, "n_shared_experts": 2},
    "three-moe": {"generation": 3, "use_moe": True, "num_experts": 3, "moe_intermediate_size": 48},
}


def build(name: str) -> MiniMindForCausalLM:
    torch.manual_seed(0)
    return MiniMindForCausalLM(MiniMindConfig.from_dict(SMALL | CASES[name]))


@pytest.mark.parametrize("name", CASES)
def test_config_is_inferred_from_shapes(name: str) -> None:
    model = build(name)
    assert infer_config(model.state_dict()) == model.config
    once = model.state_dict()
    if model.config.tie_word_embeddings:
        del once["lm_head.weight"]
        assert infer_config(once) == model.config


@pytest.mark.parametrize("name", CASES)
def test_safetensors_round_trip(name: str, tmp_path: Path) -> None:
    model, path = build(name), tmp_path / "weights.safetensors"
    save_weights(path, model.config, model.state_dict(), {"seed": 7, "note": "x"})
    config, weights = load_weights(path)
    assert config == model.config
    assert ("lm_head.weight" in weights) != config.tie_word_embeddings
    loaded = MiniMindForCausalLM(config)
    loaded.load_state_dict(weights)
    for key, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], weight)
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["seed"] == "7" and file.metadata()["note"] == "x"
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights.safetensors"]


def test_minimind_pth(tmp_path: Path) -> None:
    model, path = build("two"), tmp_path / "full_sft_64.pth"
    half = {name: weight.half() for name, weight in model.state_dict().items()}
    torch.save(half, path)
    config, weights = load_weights(path)
    assert config == model.config and weights["lm_head.weight"].dtype == torch.float16
    torch.save({"model": half, "epoch": 1, "optimizer": {"state": {}}}, path)
    assert load_weights(path)[1].keys() == half.keys()
    path.with_suffix(".json").write_text(json.dumps(model.config.to_dict() | {"max_position_embeddings": 99}))
    assert load_weights(path)[0].max_position_embeddings == 99


def test_minimind_folder(tmp_path: Path) -> None:
    model = build("three-moe")
    values = model.config.to_dict() | {"architectures": ["MiniMindForCausalLM"], "rope_theta": 1e4}
    (tmp_path / "config.json").write_text(json.dumps(values))
    save_file({name: weight.clone() for name, weight in model.state_dict().items()}, tmp_path / "model.safetensors")
    assert load_weights(tmp_path)[0].rope_theta == 1e4


def test_sharded_folder(tmp_path: Path) -> None:
    model = build("three-untied")
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict()))
    state = model.state_dict()
    names = sorted(state)
    shards = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for shard, keys in shards.items():
        save_file({key: state[key] for key in keys}, tmp_path / shard)
    index = {"weight_map": {key: shard for shard, keys in shards.items() for key in keys}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert load_weights(tmp_path)[1].keys() == state.keys()
    index["weight_map"]["missing.weight"] = "a.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"missing\.weight"):
        load_weights(tmp_path)
    index["weight_map"] = {"x": "../a.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="not a file of this folder"):
        load_weights(tmp_path)


LLAMA = {
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "tie_word_embeddings": True,
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "gpt2"}, "gpt2.*llama, qwen3"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "yarn"),
        ({"tie_word_embeddings": False}, "ties"),
        ({"hidden_act": "tanh"}, "tanh"),
        ({"hidden_size": None}, "hidden_size"),
        ({"layer_types": ["sliding_attention"]}, "sliding_attention"),
    ],
)
def test_what_minimind_cannot_compute_is_refused(change: dict[str, object], words: str, tmp_path: Path) -> None:
    save_file({"model.norm.weight": torch.ones(64)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert load_weights(tmp_path)[0].generation == 2
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | change))
    with pytest.raises(CheckpointError, match=words):
        load_weights(tmp_path)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    model = build("two")
    good = tmp_path / "good.safetensors"
    save_weights(good, model.config, model.state_dict())
    pth = tmp_path / "good.pth"
    torch.save(model.state_dict(), pth)
    for source in (good, pth):
        for content in (b"", b"garbage", source.read_bytes()[: source.stat().st_size // 2]):
            damaged = tmp_path / f"damaged{source.suffix}"
            damaged.write_bytes(content)
            with pytest.raises(CheckpointError, match="damaged"):
                load_weights(damaged)
    for name, words in (("absent.pth", "no such file"), ("notes.txt", "unknown kind")):
        if name == "notes.txt":
            (tmp_path / name).write_text("hello")
        with pytest.raises(CheckpointError, match=words):
            load_weights(tmp_path / name)


def test_a_pickle_with_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"x": Path("/")}, path)
    with pytest.raises(CheckpointError, match="more than tensors"):
        load_weights(path)
    torch.save([torch.ones(1)], path)
    with pytest.raises(CheckpointError, match="not a state dict"):
        load_weights(path)
    torch.save({"lora.A": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match="no MiniMind weights"):
        load_weights(path)


def test_saving_refuses(tmp_path: Path) -> None:
    model = build("two")
    with pytest.raises(CheckpointError, match="config"):
        save_weights(tmp_path / "x.safetensors", model.config, model.state_dict(), {"config": "{}"})
    state = model.state_dict()
    state["lm_head.weight"] = state["lm_head.weight"] + 1
    with pytest.raises(CheckpointError, match="differ"):
        save_weights(tmp_path / "x.safetensors", model.config, state)
    assert list(tmp_path.iterdir()) == []


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_text("old")

    def half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert path.read_text() == "old" and [found.name for found in tmp_path.iterdir()] == [path.name]
    with replacing(path) as temporary:
        temporary.write_text("new")
    (tmp_path / "plain").touch()
    assert path.read_text() == "new" and path.stat().st_mode == (tmp_path / "plain").stat().st_mode
