"""GGUF files read back with the `gguf` package: what is in them, what the exporter refuses. No llama.cpp here."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from minimind.config import PRESETS, MiniMindConfig, RopeScaling
from minimind.export.gguf import DTYPES, architecture, export_gguf, interleave_halves
from minimind.model import MiniMindForCausalLM
from minimind.rope import rope_tables, rotate
from minimind.tokenizer import RESERVED_TOKENS, SPECIAL_TOKENS, load_tokenizer

gguf = pytest.importorskip("gguf", reason="the exporter writes through the package gguf")

SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
CONFIGS = {
    "minimind2": MiniMindConfig.from_dict({"generation": 2, **SHAPE}),
    "minimind3": MiniMindConfig.from_dict({"generation": 3, **SHAPE, "head_dim": 32}),
    "untied": MiniMindConfig.from_dict({"generation": 3, **SHAPE, "tie_word_embeddings": False}),
    "moe": MiniMindConfig.from_dict({"generation": 3, **SHAPE, "use_moe": True}),
}
ARCHITECTURES = {"minimind2": "llama", "minimind3": "qwen3", "untied": "qwen3", "moe": "qwen3moe"}


def model_of(config: MiniMindConfig) -> MiniMindForCausalLM:
    torch.manual_seed(0)
    model = MiniMindForCausalLM(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval()


def written(folder: Path, config: MiniMindConfig, **options: Any) -> Any:
    """A reader of the file that the exporter makes of a model with this config."""
    path = folder / "model.gguf"
    export_gguf(path, config, model_of(config).state_dict(), **options)
    return gguf.GGUFReader(path)


def value(reader: Any, key: str) -> Any:
    return reader.fields[key].contents()


def restored(reader: Any, config: MiniMindConfig) -> dict[str, torch.Tensor]:
    """Upstream's state dict out of the file, written against llama.cpp's documentation and not the exporter."""
    names = {
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        "output": "lm_head",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_output": "self_attn.o_proj",
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "ffn_gate_inp": "mlp.gate",
        **{f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"},
        **{f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
    }
    weights = {}
    for tensor in reader.tensors:
        kind = gguf.GGMLQuantizationType(tensor.tensor_type)
        array = torch.from_numpy(np.array(gguf.quants.dequantize(tensor.data, kind), dtype=np.float32))
        array = array.reshape([int(size) for size in reversed(tensor.shape)])
        stem = tensor.name.removesuffix(".weight")
        block, _, name = stem.rpartition(".")
        prefix = f"model.layers.{block.removeprefix('blk.')}." if block else ""
        if config.generation == 2 and name in ("attn_q", "attn_k"):
            heads = array.view(-1, config.head_dim // 2, 2, array.shape[1])
            array = torch.cat((heads[:, :, 0], heads[:, :, 1]), dim=1).reshape(array.shape)
        if name.endswith("_exps"):
            part = name.removeprefix("ffn_").removesuffix("_exps")
            for number, expert in enumerate(array):
                weights[f"{prefix}mlp.experts.{number}.{part}_proj.weight"] = expert
        else:
            weights[f"{prefix}{names[name]}.weight"] = array
    return weights


@pytest.mark.parametrize("name", CONFIGS)
def test_the_file_holds_the_model(tmp_path: Path, name: str) -> None:
    config = CONFIGS[name]
    model = model_of(config)
    reader = written(tmp_path, config)
    weights = restored(reader, config)
    assert ("lm_head.weight" in weights) == (name == "untied")
    again = MiniMindForCausalLM(config)
    again.load_state_dict(weights)
    ids = torch.randint(0, config.vocab_size, (1, 12), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(again.eval()(ids).logits, model(ids).logits)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_metadata_say_the_shape(tmp_path: Path, name: str) -> None:
    config = CONFIGS[name]
    kind = ARCHITECTURES[name]
    reader = written(tmp_path, config)
    expected = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": 64,
        "block_count": 2,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": 1e6,
    }
    if config.use_moe:
        expected |= {"expert_count": 4, "expert_used_count": 1, "expert_feed_forward_length": config.intermediate_size}
    assert value(reader, "general.architecture") == kind == architecture(config)
    assert {key: value(reader, f"{kind}.{key}") for key in expected} == expected
    assert value(reader, f"{kind}.attention.layer_norm_rms_epsilon") == pytest.approx(config.rms_norm_eps)
    assert value(reader, "tokenizer.ggml.model") == "no_vocab"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["minimind2", "moe"])
def test_every_dtype_is_stored_as_named(tmp_path: Path, name: str, dtype: str) -> None:
    reader = written(tmp_path, CONFIGS[name], dtype=dtype)
    kinds = {tensor.name: gguf.GGMLQuantizationType(tensor.tensor_type).name for tensor in reader.tensors}
    small = {name for name in kinds if "norm" in name or "ffn_gate_inp" in name}
    assert {kinds.pop(name) for name in small} == {"F32"}
    assert kinds.pop("token_embd.weight") == ("Q8_0" if dtype == "q4_0" else dtype.upper())
    assert set(kinds.values()) == {dtype.upper()}
    assert gguf.LlamaFileType(value(reader, "general.file_type")).name.endswith(dtype.upper())


@pytest.mark.parametrize(("dtype", "steps"), [("q8_0", 127), ("q4_0", 8)])
def test_quantised_weights_stay_within_a_step(tmp_path: Path, dtype: str, steps: int) -> None:
    config = CONFIGS["minimind2"]
    weights = restored(written(tmp_path, config, dtype=dtype), config)
    original = model_of(config).state_dict()
    name = "model.layers.1.mlp.down_proj.weight"
    blocks, stored = (found[name].reshape(-1, 32) for found in (original, weights))
    largest = blocks.abs().amax(dim=1, keepdim=True)
    # Half a step by rounding; in 4 bits the end opposite to the largest value lacks a level. fp16 scales add a little.
    allowed = largest / steps * (0.5 if dtype == "q8_0" else 1.0) + largest * 2**-10
    error = (blocks - stored).abs()
    assert bool((error <= allowed).all())
    assert float(error.max()) > float(largest.max()) / steps / 8  # really quantised


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_half_precision_rounds_to_nearest(tmp_path: Path, dtype: str) -> None:
    config = CONFIGS["minimind3"]
    weights = restored(written(tmp_path, config, dtype=dtype), config)
    name = "model.layers.0.self_attn.q_proj.weight"
    kind = torch.float16 if dtype == "f16" else torch.bfloat16
    assert torch.equal(weights[name], model_of(config).state_dict()[name].to(kind).float())


def test_interleaved_rows_give_the_same_scores_under_interleaved_rotation() -> None:
    """What llama.cpp's `llama` does: pairs (2i, 2i + 1), against our pairs (i, i + D/2)."""
    head_dim, length = 16, 5
    torch.manual_seed(3)
    x_TE, q_RE, k_RE = torch.randn(length, 32), torch.randn(head_dim, 32), torch.randn(head_dim, 32)
    cos_TD, sin_TD = rope_tables(head_dim, length, 1e4, None, length)

    def ours(weight: torch.Tensor) -> torch.Tensor:
        return rotate(x_TE @ weight.T, cos_TD, sin_TD)

    def theirs(weight: torch.Tensor) -> torch.Tensor:
        y_TD = x_TE @ torch.from_numpy(interleave_halves(weight.numpy(), head_dim)).T
        even, odd = y_TD[:, 0::2], y_TD[:, 1::2]
        cos, sin = cos_TD[:, : head_dim // 2], sin_TD[:, : head_dim // 2]
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(1)

    torch.testing.assert_close(theirs(q_RE) @ theirs(k_RE).T, ours(q_RE) @ ours(k_RE).T)
    plain = x_TE @ q_RE.T
    assert not torch.allclose(theirs(q_RE)[1:], plain[1:], atol=1e-2)  # the rotation does something


def test_the_tokenizer_is_inside(tmp_path: Path) -> None:
    tokenizer = load_tokenizer()
    config = MiniMindConfig.from_dict({"generation": 3, **SHAPE, "vocab_size": 6402})
    reader = written(tmp_path, config, tokenizer=tokenizer)
    pieces, kinds = value(reader, "tokenizer.ggml.tokens"), value(reader, "tokenizer.ggml.token_type")
    assert pieces[:6400] == [tokenizer.backend.id_to_token(token_id) for token_id in range(6400)]
    assert len(pieces) == len(set(pieces)) == len(kinds) == 6402
    control = [piece for piece, kind in zip(pieces, kinds, strict=True) if kind == gguf.TokenType.CONTROL]
    user = [piece for piece, kind in zip(pieces, kinds, strict=True) if kind == gguf.TokenType.USER_DEFINED]
    assert control == list(SPECIAL_TOKENS)
    assert user == [token for token in RESERVED_TOKENS if token not in SPECIAL_TOKENS]
    assert kinds[6400:] == [gguf.TokenType.UNUSED] * 2
    assert (value(reader, "tokenizer.ggml.model"), value(reader, "tokenizer.ggml.pre")) == ("gpt2", "gpt-2")
    ids = {key: value(reader, f"tokenizer.ggml.{key}_token_id") for key in ("bos", "eos", "padding")}
    assert ids == {"bos": 1, "eos": 2, "padding": 0}
    assert not value(reader, "tokenizer.ggml.add_bos_token")
    merges = value(reader, "tokenizer.ggml.merges")
    assert len(merges) == 6400 - 256 - len(RESERVED_TOKENS)
    assert all(merge.count(" ") == 1 and merge.replace(" ", "") in pieces for merge in merges)
    assert value(reader, "tokenizer.chat_template") == tokenizer.settings["chat_template"]


def test_tied_embeddings_may_come_under_either_name(tmp_path: Path) -> None:
    config = CONFIGS["minimind2"]
    weights = dict(model_of(config).state_dict())
    export_gguf(tmp_path / "both.gguf", config, weights)
    del weights["model.embed_tokens.weight"]
    export_gguf(tmp_path / "head.gguf", config, weights)
    assert (tmp_path / "both.gguf").read_bytes() == (tmp_path / "head.gguf").read_bytes()


def changed(config: MiniMindConfig, **fields: Any) -> MiniMindConfig:
    return dataclasses.replace(config, **fields)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (PRESETS["minimind2-moe"], "MiniMind2's mixture of experts has no architecture"),
        (changed(CONFIGS["moe"], norm_topk_prob=False), "norm_topk_prob must be true"),
        (changed(CONFIGS["minimind3"], rope_scaling=RopeScaling()), "YaRN"),
        (changed(CONFIGS["minimind3"], hidden_act="gelu"), "hidden_act 'silu', not 'gelu'"),
    ],
)
def test_other_arithmetic_is_refused(tmp_path: Path, config: MiniMindConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        export_gguf(tmp_path / "model.gguf", config, {})
    assert not list(tmp_path.iterdir())


def test_weights_that_do_not_fit_are_refused_and_leave_no_file(tmp_path: Path) -> None:
    config = CONFIGS["minimind3"]
    good = dict(model_of(config).state_dict())
    key = "model.layers.0.mlp.up_proj.weight"
    cases: list[tuple[dict[str, torch.Tensor], dict[str, Any], str]] = [
        ({name: tensor for name, tensor in good.items() if name != key}, {}, f"have no {key}"),
        ({**good, key: good[key].T.contiguous()}, {}, "the config says"),
        ({**good, "extra.weight": torch.ones(1)}, {}, "first extra.weight"),
        ({**good, key: good[key] * float("nan")}, {}, "not finite"),
        ({**good, key: good[key] + 1e6}, {"dtype": "f16"}, "beyond float16"),
        (good, {"dtype": "q5_k"}, "unknown GGUF dtype 'q5_k'; known: f32, f16, bf16, q8_0, q4_0"),
    ]
    for weights, options, message in cases:
        with pytest.raises(ValueError, match=message):
            export_gguf(tmp_path / "model.gguf", config, weights, **options)
        assert not list(tmp_path.iterdir())


def test_widths_without_whole_blocks_are_refused(tmp_path: Path) -> None:
    config = MiniMindConfig.from_dict({"generation": 3, **SHAPE, "hidden_size": 48, "vocab_size": 300})
    with pytest.raises(ValueError, match=r"rows of 48, q8_0 needs a multiple of 32"):
        written(tmp_path, config, dtype="q8_0")
    assert written(tmp_path, config, dtype="bf16").tensors  # no blocks there


def test_other_tokenizers_are_refused(tmp_path: Path) -> None:
    tokenizer = load_tokenizer()
    small = MiniMindConfig.from_dict({"generation": 3, **SHAPE, "vocab_size": 6000})
    with pytest.raises(ValueError, match="6400 ids, the model only 6000"):
        written(tmp_path, small, tokenizer=tokenizer)
    from tokenizers import pre_tokenizers

    tokenizer.backend.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ValueError, match="must be byte-level BPE"):
        written(tmp_path, CONFIGS["minimind3"], tokenizer=tokenizer)
