"""GGUF, the file format of llama.cpp: a MiniMind with its tokenizer in one file.

    export_gguf("tiny.gguf", config, model.state_dict(), tokenizer=load_tokenizer(), dtype="q8_0")

MiniMind2 becomes the architecture `llama`, MiniMind-3 `qwen3`, its mixture of experts `qwen3moe`. Norms and routers
stay float32 in every file. `q4_0` keeps the embedding, which is the head as well where they are tied, in Q8_0: 4 bits
there cost far more quality than they save. Without a tokenizer the file takes and gives token ids only.

Refuses (ValueError) what these architectures do not compute: MiniMind2's mixture of experts, YaRN, activations other
than SiLU, a mixture whose weights are not normalised; widths that are no multiple of 32 where blocks of 32 are
quantised; tensors that are missing, superfluous, of another shape or not finite; tokenizers other than byte-level BPE.
Needs the package `gguf`. Source of the layout: the GGUF specification (ggml, docs/gguf.md).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from minimind.config import MiniMindConfig
from minimind.files import replacing

if TYPE_CHECKING:
    from gguf import GGUFWriter

    from minimind.tokenizer import MiniMindTokenizer

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"

# name -> (tensor type of matrices, of the embedding, llama.cpp's number of the file type)
DTYPES: Mapping[str, tuple[str, str, int]] = MappingProxyType(
    {
        "f32": ("F32", "F32", 0),
        "f16": ("F16", "F16", 1),
        "bf16": ("BF16", "BF16", 32),
        "q8_0": ("Q8_0", "Q8_0", 7),
        "q4_0": ("Q4_0", "Q8_0", 2),
    }
)
BLOCK = 32  # values that share a scale in Q8_0 and Q4_0


def architecture(config: MiniMindConfig) -> str:
    """llama.cpp's name for this arithmetic. Raises ValueError where it has none."""
    if config.rope_scaling is not None:
        raise ValueError("GGUF: MiniMind's YaRN is not llama.cpp's; export with rope_scaling null")
    if config.hidden_act != "silu":
        raise ValueError(f"GGUF: llama.cpp's architectures need hidden_act 'silu', not {config.hidden_act!r}")
    if not config.use_moe:
        return "llama" if config.generation == 2 else "qwen3"
    if config.generation == 2:
        raise ValueError("GGUF: MiniMind2's mixture of experts has no architecture in llama.cpp; dense models have")
    if not config.norm_topk_prob:
        raise ValueError("GGUF: llama.cpp's qwen3moe normalises the experts' weights; norm_topk_prob must be true")
    return "qwen3moe"


def export_gguf(
    path: str | os.PathLike[str],
    config: MiniMindConfig,
    state_dict: Mapping[str, Tensor],
    *,
    tokenizer: MiniMindTokenizer | None = None,
    dtype: str = "f32",
    name: str = "MiniMind",
) -> None:
    """Write one GGUF file; it appears whole or not at all.

    dtype: f32, f16, bf16, q8_0 or q4_0 for the matrices. Raises ValueError (see the module docstring), RuntimeError
    where the package `gguf` is missing.
    """
    if dtype not in DTYPES:
        raise ValueError(f"unknown GGUF dtype {dtype!r}; known: {', '.join(DTYPES)}")
    kind = architecture(config)
    try:
        from gguf import GGUFWriter
    except ImportError as error:
        raise RuntimeError("writing GGUF needs the package gguf: pip install 'minimind-bench[engines]'") from error

    with replacing(path) as temporary, contextlib.closing(GGUFWriter(temporary, kind)) as writer:
        _add_config(writer, config, name, dtype)
        _add_tokenizer(writer, config, tokenizer)
        for tensor_name, array in _tensors(config, kind, state_dict):
            _add_tensor(writer, tensor_name, array, dtype)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


def _add_config(writer: GGUFWriter, config: MiniMindConfig, name: str, dtype: str) -> None:
    writer.add_name(name)
    writer.add_file_type(DTYPES[dtype][2])
    if dtype.startswith("q"):
        writer.add_quantization_version(2)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    if config.use_moe:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def _add_tokenizer(writer: GGUFWriter, config: MiniMindConfig, tokenizer: MiniMindTokenizer | None) -> None:
    """Pieces, their kinds, merges, special ids and the chat template; or the statement that there are none."""
    from gguf import TokenType

    if tokenizer is None:
        writer.add_tokenizer_model("no_vocab")
        return
    description = json.loads(tokenizer.backend.to_str())
    merges = _check_byte_level(description)
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(f"GGUF: the tokenizer has {tokenizer.vocab_size} ids, the model only {config.vocab_size}")
    added = tokenizer.backend.get_added_tokens_decoder()
    pieces, kinds = [], []
    for token_id in range(config.vocab_size):
        piece = tokenizer.backend.id_to_token(token_id)
        kind = TokenType.UNUSED if piece is None else TokenType.NORMAL
        if token_id in added:
            kind = TokenType.CONTROL if added[token_id].special else TokenType.USER_DEFINED
        pieces.append(f"[UNUSED{token_id}]" if piece is None else piece)
        kinds.append(kind)
    writer.add_tokenizer_model("gpt2")
    # The name that llama.cpp gives to GPT-2's splitting rule, which is the `use_regex` of byte-level BPE.
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(pieces)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_pad_token_id(tokenizer.pad_id)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    template = tokenizer.settings.get("chat_template")
    if isinstance(template, str):
        writer.add_chat_template(template)


def _check_byte_level(description: Mapping[str, Any]) -> list[str]:
    """The merges as "a b" texts of a tokenizer.json. Raises ValueError unless it is GPT-2's byte-level BPE."""
    model, splitter = description["model"], description.get("pre_tokenizer") or {}
    as_gpt2 = splitter.get("type") == "ByteLevel" and splitter.get("use_regex", True)
    if model.get("type") != "BPE" or not as_gpt2 or splitter.get("add_prefix_space") or description.get("normalizer"):
        raise ValueError(
            "GGUF: the tokenizer must be byte-level BPE as MiniMind's (pre-tokenizer ByteLevel with its own splitting "
            "rule, no prefix space, no normalizer); leave it out to export for token ids only"
        )
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]


def _tensors(
    config: MiniMindConfig, kind: str, state_dict: Mapping[str, Tensor]
) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """GGUF's names and float32 arrays; every tensor of the state dict is used, or it is an error."""
    weights = dict(state_dict)
    hidden, rows = config.hidden_size, config.num_attention_heads * config.head_dim
    kv_rows = config.num_key_value_heads * config.head_dim

    def take(name: str, *shape: int) -> np.ndarray[Any, Any]:
        if name not in weights:
            raise ValueError(f"GGUF: the weights have no {name}")
        tensor = weights.pop(name)
        if tuple(tensor.shape) != shape:
            raise ValueError(f"GGUF: {name} is {list(tensor.shape)}, the config says {list(shape)}")
        array: np.ndarray[Any, Any] = tensor.detach().float().cpu().numpy()
        if not np.isfinite(array).all():
            raise ValueError(f"GGUF: {name} has values that are not finite")
        return array

    def rotated(name: str, num_rows: int) -> np.ndarray[Any, Any]:
        array = take(name, num_rows, hidden)
        return interleave_halves(array, config.head_dim) if kind == "llama" else array

    if config.tie_word_embeddings:
        present = [name for name in (_EMBEDDING, _HEAD) if name in weights] or [_EMBEDDING]
        yield "token_embd.weight", take(present[0], config.vocab_size, hidden)
        weights.pop(_HEAD, None)
    else:
        yield "token_embd.weight", take(_EMBEDDING, config.vocab_size, hidden)
        yield "output.weight", take(_HEAD, config.vocab_size, hidden)
    yield "output_norm.weight", take("model.norm.weight", hidden)
    for layer in range(config.num_hidden_layers):
        source, block = f"model.layers.{layer}", f"blk.{layer}"
        yield f"{block}.attn_norm.weight", take(f"{source}.input_layernorm.weight", hidden)
        yield f"{block}.attn_q.weight", rotated(f"{source}.self_attn.q_proj.weight", rows)
        yield f"{block}.attn_k.weight", rotated(f"{source}.self_attn.k_proj.weight", kv_rows)
        yield f"{block}.attn_v.weight", take(f"{source}.self_attn.v_proj.weight", kv_rows, hidden)
        yield f"{block}.attn_output.weight", take(f"{source}.self_attn.o_proj.weight", hidden, rows)
        if config.generation == 3:
            yield f"{block}.attn_q_norm.weight", take(f"{source}.self_attn.q_norm.weight", config.head_dim)
            yield f"{block}.attn_k_norm.weight", take(f"{source}.self_attn.k_norm.weight", config.head_dim)
        yield f"{block}.ffn_norm.weight", take(f"{source}.post_attention_layernorm.weight", hidden)
        if config.use_moe:
            yield f"{block}.ffn_gate_inp.weight", take(f"{source}.mlp.gate.weight", config.num_experts, hidden)
        for part in ("gate", "up", "down"):
            size = config.moe_intermediate_size if config.use_moe else config.intermediate_size
            shape = (hidden, size) if part == "down" else (size, hidden)
            if config.use_moe:
                experts = [f"{source}.mlp.experts.{number}" for number in range(config.num_experts)]
                stacked = np.stack([take(f"{expert}.{part}_proj.weight", *shape) for expert in experts])
                yield f"{block}.ffn_{part}_exps.weight", stacked
            else:
                yield f"{block}.ffn_{part}.weight", take(f"{source}.mlp.{part}_proj.weight", *shape)
    if weights:
        raise ValueError(f"GGUF: {len(weights)} tensors do not belong to the config, first {sorted(weights)[0]}")


def interleave_halves(weight_RE: np.ndarray[Any, Any], head_dim: int) -> np.ndarray[Any, Any]:
    """Rows of every head reordered from (0 .. D/2-1, D/2 .. D-1) to (0, D/2, 1, D/2+1, ...), shape unchanged.

    MiniMind rotates the pair (i, i + D/2), llama.cpp's architecture `llama` the pair (2i, 2i + 1). Queries and keys
    move together, so that their products stay what they were.
    """
    pairs = weight_RE.reshape(-1, 2, head_dim // 2, weight_RE.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(weight_RE.shape)


def _add_tensor(writer: GGUFWriter, name: str, array: np.ndarray[Any, Any], dtype: str) -> None:
    """Convert and hand over one tensor; vectors and routers stay float32."""
    from gguf import GGMLQuantizationType, quants

    matrix, embedding, _ = DTYPES[dtype]
    wanted = embedding if name in ("token_embd.weight", "output.weight") else matrix
    if array.ndim == 1 or name.endswith("ffn_gate_inp.weight"):
        wanted = "F32"
    if wanted.startswith("Q") and array.shape[-1] % BLOCK:
        raise ValueError(f"GGUF: {name} has rows of {array.shape[-1]}, {dtype} needs a multiple of {BLOCK}")
    if wanted == "F16" and np.abs(array).max() > np.finfo(np.float16).max:
        raise ValueError(f"GGUF: {name} has values beyond float16's range; use bf16 or f32")
    kind = GGMLQuantizationType[wanted]
    writer.add_tensor(name, quants.quantize(np.ascontiguousarray(array), kind), raw_dtype=kind)
