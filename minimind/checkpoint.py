"""Weights from files that people have: MiniMind's `.pth`, safetensors, a Transformers folder.

    config, weights = load_weights("out/full_sft_512.pth")
    model = MiniMindForCausalLM(config)
    model.load_state_dict(weights)

The configuration comes from the file's own metadata, else from `NAME.json` or `config.json` beside it, else from the
tensors' shapes (`infer_config`). A folder's `config.json` may say minimind, llama (MiniMind2's arithmetic), qwen3 or
qwen3_moe (MiniMind-3's). Refused with `CheckpointError`, naming the file: damaged files, pickles that hold more than
tensors, model types and settings that MiniMind's arithmetic does not have.
"""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minimind.config import ConfigError, MiniMindConfig
from minimind.files import replacing
from minimind.transformers_format import (
    MODEL_TYPES,
    UnsupportedModel,
    config_from_transformers,
    weights_from_transformers,
)

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


class CheckpointError(ValueError):
    """Weights that cannot be read or used; the message names the file, what is wrong and what would be right."""


def load_weights(path: str | os.PathLike[str]) -> tuple[MiniMindConfig, dict[str, Tensor]]:
    """The configuration and the state dict (as stored: dtype unchanged, on the CPU) of a file or folder."""
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder; give a .pth, a .safetensors or a Transformers folder")
    try:
        if path.is_dir():
            return _load_folder(path)
        if path.suffix == ".safetensors":
            weights, metadata = _read_safetensors(path)
        elif path.suffix in (".pth", ".pt", ".bin"):
            weights, metadata = _read_pickle(path), {}
        else:
            raise CheckpointError(
                f"{path}: unknown kind of file {path.suffix!r}; allowed: .pth, .pt, .bin, .safetensors"
            )
        return _config_beside(path, metadata) or infer_config(weights), weights
    except (ConfigError, UnsupportedModel) as error:
        raise CheckpointError(f"{path}: {error}") from error


def save_weights(
    path: str | os.PathLike[str],
    config: MiniMindConfig,
    state_dict: Mapping[str, Tensor],
    metadata: Mapping[str, object] | None = None,
) -> None:
    """Write safetensors with the config inside, tied embeddings once; the file appears whole or not at all.

    Metadata values that are not text are stored as JSON. The key "config" is taken.
    """
    path = Path(path)
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in (metadata or {}).items()}
    if "config" in texts:
        raise CheckpointError(f"{path}: the metadata key 'config' is taken by the model's configuration")
    texts |= {"config": json.dumps(config.to_dict()), "format": "pt"}
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    if config.tie_word_embeddings and _EMBEDDING in weights and _HEAD in weights:
        if not torch.equal(weights[_EMBEDDING], weights[_HEAD]):
            raise CheckpointError(f"{path}: the config ties the embeddings, but {_EMBEDDING} and {_HEAD} differ")
        del weights[_HEAD]
    with replacing(path) as temporary:
        save_file(weights, temporary, metadata=texts)


def infer_config(weights: Mapping[str, Tensor]) -> MiniMindConfig:
    """The configuration that the shapes tell, with upstream's defaults for what shapes cannot tell.

    Query norms mean MiniMind-3 and give head_dim. MiniMind2's shapes do not show the number of heads: upstream's 8 is
    assumed. Experts per token, rope_theta, eps and max_position_embeddings are the generation's defaults.
    """
    needed = (_EMBEDDING, "model.norm.weight", "model.layers.0.self_attn.k_proj.weight")
    embedding = weights.get(_EMBEDDING, weights.get(_HEAD))
    missing = [name for name in needed if name not in weights and name != _EMBEDDING]
    if embedding is None or missing:
        raise CheckpointError(
            f"no MiniMind weights: {', '.join(missing or [_EMBEDDING])} missing; "
            "keys must be upstream's (model.layers.N.self_attn.q_proj.weight, ...)"
        )
    attention = "model.layers.0.self_attn."
    q_rows, k_rows = (weights[f"{attention}{name}_proj.weight"].shape[0] for name in ("q", "k"))
    values: dict[str, Any] = {
        "vocab_size": embedding.shape[0],
        "hidden_size": embedding.shape[1],
        "num_hidden_layers": _count(weights, r"model\.layers\.(\d+)\."),
    }
    if f"{attention}q_norm.weight" in weights:
        head_dim = weights[f"{attention}q_norm.weight"].shape[0]
        tied = _HEAD not in weights or _EMBEDDING not in weights or torch.equal(weights[_HEAD], weights[_EMBEDDING])
        values |= {"generation": 3, "head_dim": head_dim, "tie_word_embeddings": tied}
    else:
        head_dim = q_rows // 8
        values["generation"] = 2
    if head_dim == 0 or q_rows % head_dim or k_rows % head_dim:
        raise CheckpointError(
            f"cannot tell the number of heads from {q_rows} query and {k_rows} key rows (8 heads assumed for "
            "MiniMind2); put upstream's config.json beside the weights"
        )
    values |= {"num_attention_heads": q_rows // head_dim, "num_key_value_heads": k_rows // head_dim}
    return MiniMindConfig.from_dict(values | _infer_feed_forward(weights, values["generation"]))


def _infer_feed_forward(weights: Mapping[str, Tensor], generation: int) -> dict[str, Any]:
    mlp = "model.layers.0.mlp."
    if f"{mlp}gate_proj.weight" in weights:
        return {"intermediate_size": weights[f"{mlp}gate_proj.weight"].shape[0]}
    if f"{mlp}experts.0.gate_proj.weight" not in weights:
        raise CheckpointError(f"no MiniMind weights: neither {mlp}gate_proj.weight nor {mlp}experts.0.* is there")
    size = weights[f"{mlp}experts.0.gate_proj.weight"].shape[0]
    num_experts = _count(weights, re.escape(mlp) + r"experts\.(\d+)\.")
    if generation == 3:
        return {"use_moe": True, "num_experts": num_experts, "moe_intermediate_size": size, "intermediate_size": size}
    shared = _count(weights, re.escape(mlp) + r"shared_experts\.(\d+)\.")
    return {"use_moe": True, "n_routed_experts": num_experts, "n_shared_experts": shared, "intermediate_size": size}


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the highest number that `pattern` finds at the start of a key; 0 if none."""
    return max((int(found[1]) + 1 for name in weights if (found := re.match(pattern, name))), default=0)


def _load_folder(folder: Path) -> tuple[MiniMindConfig, dict[str, Tensor]]:
    config_path = folder / "config.json"
    if not config_path.exists():
        raise CheckpointError(f"{folder}: no config.json; a Transformers folder has one")
    values = _read_json(config_path)
    model_type = values.get("model_type", "minimind")
    if model_type != "minimind" and model_type not in MODEL_TYPES:
        known = ", ".join(["minimind", *MODEL_TYPES])
        raise CheckpointError(f"{config_path}: model_type {model_type!r} is not MiniMind's arithmetic; known: {known}")
    weights = _read_folder_weights(folder)
    if model_type == "minimind":
        return MiniMindConfig.from_dict(values), weights
    return config_from_transformers(values), weights_from_transformers(weights)


def _read_folder_weights(folder: Path) -> dict[str, Tensor]:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).exists():
            return _read_any(folder / name)
        index_path = folder / f"{name}.index.json"
        if index_path.exists():
            shards = _read_json(index_path).get("weight_map")
            if not isinstance(shards, dict):
                raise CheckpointError(f"{index_path}: no weight_map in it")
            weights: dict[str, Tensor] = {}
            for shard in sorted(set(shards.values())):
                if not isinstance(shard, str) or Path(shard).name != shard or not (folder / shard).exists():
                    raise CheckpointError(f"{index_path}: shard {shard!r} is not a file of this folder")
                weights |= _read_any(folder / shard)
            absent = sorted(set(shards) - set(weights))
            if absent:
                raise CheckpointError(f"{index_path}: {len(absent)} tensors are in no shard, first {absent[0]}")
            return weights
    raise CheckpointError(f"{folder}: neither model.safetensors nor pytorch_model.bin nor an index of shards")


def _read_any(path: Path) -> dict[str, Tensor]:
    return _read_safetensors(path)[0] if path.suffix == ".safetensors" else _read_pickle(path)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged or not safetensors ({error})") from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    """A torch.save state dict; of upstream's resume files, the `model` part."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: damaged, or holds more than tensors ({reason})") from error
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: not a state dict of tensors; save it with torch.save(model.state_dict(), ...)")
    return dict(content)


def _config_beside(path: Path, metadata: Mapping[str, str]) -> MiniMindConfig | None:
    if "config" in metadata:
        try:
            values = json.loads(metadata["config"])
        except json.JSONDecodeError as error:
            raise CheckpointError(f"{path}: its metadata 'config' is not JSON ({error})") from error
        return MiniMindConfig.from_dict(values)
    for candidate in (path.with_suffix(".json"), path.parent / "config.json"):
        if candidate.exists():
            values = _read_json(candidate)
            values = values.get("config", values)
            # Any JSON may lie beside weights; one without a hidden_size is not a model's configuration.
            if isinstance(values, dict) and "hidden_size" in values:
                if values.get("model_type") in MODEL_TYPES:
                    raise CheckpointError(f"{candidate}: for a Transformers model, give the folder {path.parent}")
                return MiniMindConfig.from_dict(values)
    return None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: damaged or not JSON ({error})") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return values
