"""ONNX: a MiniMind as one file, for any batch, any length and any number of cached positions.

    export_onnx(model, "tiny.onnx")

Inputs: `input_ids` int64 [B, T]; `past.N.key` and `past.N.value` [B, K, P, D] of every layer N; P may be 0.
Outputs: `logits` [B, T, V]; `present.N.key` and `present.N.value` [B, K, P + T, D]. Keys are stored after rotation.
Legend: B batch, T new positions, P cached positions, K key/value heads, D head_dim, V vocab_size, E hidden_size.

The graph uses the operators that opset 23 brought for transformers (Attention, RMSNormalization, RotaryEmbedding), a
third of the nodes that opset 18 needs. The rotary tables are part of the file, the config is in its metadata.

Refuses (ValueError) mixtures of experts, whose tensors depend on the data, and weights other than float32. Needs the
packages `onnx` and `onnxscript`.
"""

from __future__ import annotations

import json
import os
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimind.attention import Attention
from minimind.config import MiniMindConfig
from minimind.files import replacing
from minimind.model import MiniMindForCausalLM
from minimind.norm import RMSNorm

OPSET = 23


def past_names(config: MiniMindConfig) -> list[str]:
    """The names of the cache's inputs in their order: all keys, then all values. Outputs say `present` for `past`."""
    return [f"past.{layer}.{part}" for part in ("key", "value") for layer in range(config.num_hidden_layers)]


def export_onnx(model: MiniMindForCausalLM, path: str | os.PathLike[str]) -> None:
    """Write `model` to `path`, checked by the ONNX checker; the file appears whole or not at all.

    Takes about 10 seconds for 8 layers, most of it torch's own tracing. Raises ValueError (see the module docstring),
    RuntimeError where a package is missing.
    """
    config = model.config
    if config.use_moe:
        raise ValueError(
            "ONNX: a mixture of experts has shapes that depend on the data; only dense models are exported"
        )
    if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
        raise ValueError("ONNX: the weights must be float32")
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ImportError as error:
        raise RuntimeError("writing ONNX needs the packages onnx and onnxscript") from error

    program = _trace(model)
    program.model.metadata_props["config"] = json.dumps(config.to_dict())
    with replacing(path) as temporary:
        program.save(temporary, external_data=False)
        onnx.checker.check_model(temporary, full_check=True)


def _trace(model: MiniMindForCausalLM) -> Any:
    config = model.config
    names = past_names(config)
    shape = (2, config.num_key_value_heads, 5, config.head_dim)
    # NOTE: tensors of their own: inputs that are one object become one input of the graph.
    past = [torch.zeros(shape) for _ in names]
    batch, length, cached = (torch.export.Dim(name) for name in ("batch", "length", "past"))
    was_training = model.training
    model.eval()
    try:
        with warnings.catch_warnings():  # torch's tracer warns about its own deprecations
            warnings.simplefilter("ignore")
            return torch.onnx.export(
                _Exported(model),
                (torch.zeros(2, 3, dtype=torch.long), past),
                dynamo=True,
                opset_version=OPSET,
                input_names=["input_ids", *names],
                output_names=["logits", *(name.replace("past", "present") for name in names)],
                dynamic_shapes=({0: batch, 1: length}, [{0: batch, 2: cached}] * len(names)),
                verbose=False,
            )
    finally:
        model.train(was_training)


class _Exported(nn.Module):
    """MiniMind's inference written with the operators of opset 23: the cache comes in and goes out as tensors."""

    def __init__(self, model: MiniMindForCausalLM) -> None:
        super().__init__()
        self.inner = model
        rotary = model.model.rotary
        half = rotary.cos_RD.shape[1] // 2  # the two halves of a row are equal
        self.register_buffer("cos", rotary.cos_RD[:, :half].contiguous(), persistent=False)
        self.register_buffer("sin", rotary.sin_RD[:, :half].contiguous(), persistent=False)

    def forward(self, input_ids: Tensor, past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Logits and the cache of all positions, in the order of `past_names`."""
        inner = self.inner.model
        num_past, num_layers = past[0].shape[2], len(inner.layers)
        positions_BT = (torch.arange(input_ids.shape[1]) + num_past).unsqueeze(0).expand(input_ids.shape)
        x_BTE = inner.embed_tokens(input_ids)
        keys, values = [], []
        for layer, past_k, past_v in zip(inner.layers, past[:num_layers], past[num_layers:], strict=True):
            normed = _norm(layer.input_layernorm, x_BTE)
            attended, k_BKSD, v_BKSD = self._attend(layer.self_attn, normed, positions_BT, past_k, past_v)
            x_BTE = x_BTE + attended
            x_BTE = x_BTE + layer.mlp(_norm(layer.post_attention_layernorm, x_BTE))
            keys.append(k_BKSD)
            values.append(v_BKSD)
        return self.inner.lm_head(_norm(inner.norm, x_BTE)), [*keys, *values]

    def _attend(
        self, attention: Attention, x_BTE: Tensor, positions_BT: Tensor, past_k: Tensor, past_v: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        config = self.inner.config
        num_q, num_kv = config.num_attention_heads, config.num_key_value_heads
        q, k, v = attention.q_proj(x_BTE), attention.k_proj(x_BTE), attention.v_proj(x_BTE)
        if config.generation == 3:
            q = _norm(attention.q_norm, q.unflatten(2, (num_q, -1))).flatten(2)
            k = _norm(attention.k_norm, k.unflatten(2, (num_kv, -1))).flatten(2)
        q = torch.onnx.ops.rotary_embedding(q, self.cos, self.sin, positions_BT, num_heads=num_q)
        k = torch.onnx.ops.rotary_embedding(k, self.cos, self.sin, positions_BT, num_heads=num_kv)
        o, k_BKSD, v_BKSD, _ = torch.onnx.ops.attention(
            q, k, v, past_key=past_k, past_value=past_v, is_causal=True, q_num_heads=num_q, kv_num_heads=num_kv
        )
        return attention.o_proj(o), k_BKSD, v_BKSD


def _norm(norm: RMSNorm, x: Tensor) -> Tensor:
    """The norm as one operator; in float32 the cast orders of the two generations are the same."""
    return F.rms_norm(x, (norm.weight.shape[0],), norm.weight, norm.eps)
