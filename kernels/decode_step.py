"""A whole decode step of a dense MiniMind in one call of C++ (`kernels/cpu/csrc/step.h`).

    step = DecodeStep(model)              # any object shaped like minimind.MiniMindForCausalLM, on the CPU
    logits_B1V = step(ids_B1, cache)      # cache: kind "prealloc"; it grows by one position

Legend: B batch, K key/value heads, M positions reserved, D head_dim, V vocab_size.

Bytes that must move per step: every weight once and the cache once; the 26M model in fp32 reads 103 MB, which at 20
GB/s is 5.2 ms. What the call saves over the modules is dispatch (some 300 operations) and matrix-vector products that
wait for memory. Weights are used where they lie, in fp32, bf16, or as `Int8Linear` and `Int4Linear`; only the norms'
weights are copied, as fp32 (kilobytes). In bf16 the stream between the layers stays fp32, which is nearer to fp32
than the modules are.

NOTE: the addresses of the weights are taken once. Training them in place is seen; replacing a parameter or moving the
model is not: make a new DecodeStep.

Refused: mixtures of experts, other kinds of linear modules, other dtypes (ValueError); other caches, a full cache,
token ids outside the vocabulary, a missing compiler (RuntimeError). Nothing else is ever run instead.
"""

from __future__ import annotations

import struct
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kernels.cpu.ops import operators
from kernels.quantized_linear import Int4Embedding, Int4Linear, Int8Embedding, Int8Linear

_FLOAT_KINDS = {torch.float32: 0, torch.bfloat16: 1}
_INT8, _INT4 = 2, 3
_ACTIVATIONS = {"silu": 0, "gelu": 1, "relu": 2, "gelu_pytorch_tanh": 3}


class PreallocatedCache(Protocol):
    """What the step needs of a cache: its kind, its length in use, and buffers that it may write itself."""

    kind: str
    length: int
    max_length: int
    num_layers: int

    def buffers(self, layer_index: int) -> tuple[Tensor, Tensor]:
        """One layer's whole key and value buffers, [B, K, M, D] each."""

    def advance(self, num_new: int) -> None:
        """Count positions that were written into the buffers."""


class DecodeStep:
    """See the module docstring. `num_steps` counts the steps that ran."""

    def __init__(self, model: Any, *, plain: tuple[type[nn.Module], ...] = ()) -> None:
        """`plain`: further classes of linear layers that are nothing but their float `weight`."""
        self._plain = (nn.Linear, nn.Embedding, *plain)
        config = model.config
        if config.use_moe:
            raise ValueError("the C++ decode step knows no mixture of experts")
        self._operators = operators()
        self._kept: list[Tensor] = []
        self._vocab_size = config.vocab_size
        self._dtype = model.model.rotary.cos_RD.dtype
        self._max_positions = model.model.rotary.cos_RD.shape[0]
        if self._dtype not in _FLOAT_KINDS:
            raise ValueError(f"the C++ decode step computes in float32 or bfloat16, not {self._dtype}")
        self._plan = torch.tensor(self._header(model) + [n for x in model.model.layers for n in self._layer(x)])
        self.num_steps = 0

    def __call__(self, ids_B1: Tensor, cache: PreallocatedCache) -> Tensor:
        """Logits [B, 1, V] of one new token per row, in the model's dtype; appends to the cache."""
        if cache.kind != "prealloc":
            raise RuntimeError(f"the C++ decode step needs a prealloc cache, not {cache.kind}")
        start = cache.length
        if start >= min(cache.max_length, self._max_positions):
            raise RuntimeError(f"{start} cached and 1 new position exceed the cache or max_position_embeddings")
        buffers = [cache.buffers(index) for index in range(cache.num_layers)]
        keys, values = [key for key, _ in buffers], [value for _, value in buffers]
        logits: Tensor = self._operators.decode_step(
            self._plan, ids_B1.contiguous(), keys, values, start, self._vocab_size
        )
        cache.advance(1)
        self.num_steps += 1
        return logits

    def _header(self, model: Any) -> list[int]:
        config, body = model.config, model.model
        (eps_bits,) = struct.unpack("<I", struct.pack("<f", config.rms_norm_eps))
        return [
            len(body.layers),
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.intermediate_size,
            config.vocab_size,
            _ACTIVATIONS[config.hidden_act],
            eps_bits,
            int(self._dtype == torch.bfloat16),
            self._address(body.rotary.cos_RD),
            self._address(body.rotary.sin_RD),
            *self._matrix(body.embed_tokens),
            *self._matrix(model.lm_head),
            self._norm(body.norm),
        ]

    def _layer(self, layer: Any) -> list[int]:
        attention, mlp = layer.self_attn, layer.mlp
        groups = ((attention.q_proj, attention.k_proj, attention.v_proj), (mlp.gate_proj, mlp.up_proj))
        matrices = [self._matrix(linear) for group in groups for linear in group]
        if len({matrix[0] for matrix in matrices[:3]}) > 1 or len({matrix[0] for matrix in matrices[3:]}) > 1:
            raise ValueError("q, k and v, and gate and up, must be stored in the same way")
        query, key, value, gate, up = matrices
        norms = (layer.input_layernorm, layer.post_attention_layernorm, attention.q_norm, attention.k_norm)
        return [
            *map(self._norm, norms),
            *query,
            *key,
            *value,
            *self._matrix(attention.o_proj),
            *gate,
            *up,
            *self._matrix(mlp.down_proj),
        ]

    def _address(self, tensor: Tensor) -> int:
        if tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise ValueError(f"the C++ decode step needs contiguous CPU tensors, not {tensor.device}")
        self._kept.append(tensor)
        return tensor.data_ptr()

    def _norm(self, norm: nn.Module) -> int:
        """The address of an fp32 copy of the weight; 0 where there is no norm (MiniMind2's queries and keys)."""
        if isinstance(norm, nn.Identity):
            return 0
        weight: Any = norm.weight
        return self._address(weight.detach().float().contiguous())

    def _matrix(self, module: nn.Module) -> list[int]:
        """kind, address of the weight, address of the scales, rows, columns."""
        if isinstance(module, (Int8Linear, Int8Embedding)):
            return [_INT8, self._address(module.q_NK), self._address(module.scale_N), *module.q_NK.shape]
        if isinstance(module, (Int4Linear, Int4Embedding)):
            rows, half = module.q_NP.shape
            return [_INT4, self._address(module.q_NP), self._address(module.scale_NG), rows, 2 * half]
        # NOTE: subclasses of Linear store and multiply their weights in their own ways; they are not ours to read.
        if type(module) not in self._plain or getattr(module, "bias", None) is not None:
            raise ValueError(f"the C++ decode step cannot multiply with a {type(module).__name__}")
        weight: Any = module.weight
        if weight.dtype != self._dtype:
            raise ValueError(f"weights of {weight.dtype} beside tables of {self._dtype}")
        return [_FLOAT_KINDS[weight.dtype], self._address(weight.detach()), 0, *weight.shape]
