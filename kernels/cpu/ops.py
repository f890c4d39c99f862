"""The C++ operators as Python functions; every call runs `torch.ops.minimind_cpu.*`, or raises.

    y = rms_norm(x, (x.shape[-1],), weight, 1e-5)
    y_MN = int8_linear(x_MK, q_NK, scale_N)

Legend: M rows of activations, N outputs, K inputs; in attention B batch, S positions, H query heads, K key/value heads,
D head_dim.

The first call compiles the library (`kernels.cpu.build`, seconds). All work on CPU tensors in float32 or bfloat16 and
compute in fp32. Norms and SwiGLU have gradients, computed by plain torch from the saved inputs; products and embeddings
of quantised weights have none. Refused, with RuntimeError: other dtypes, shapes that do not fit, other devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.cpu.build import load
from kernels.reference import rms_norm as reference_rms_norm
from kernels.reference import rms_norm_cast_first

NAMESPACE = "minimind_cpu"


@cache
def operators() -> Any:
    """torch.ops.minimind_cpu, compiled, with the fake kernels and gradients registered."""
    load()
    _register_fakes()
    _register_gradients()
    return torch.ops.minimind_cpu


def rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor, eps: float, *, cast_first: bool = False
) -> Tensor:
    """As torch.nn.functional.rms_norm over the last dimension; `cast_first` is MiniMind2's order of casts."""
    _one_dimension(normalized_shape, weight)
    y: Tensor = operators().rms_norm(input.contiguous(), weight, eps, cast_first)
    return y


def add_rms_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor,
    eps: float,
    *,
    cast_first: bool = False,
) -> tuple[Tensor, Tensor]:
    """(norm of the sum, sum) of input + residual; the sum has input's dtype, and the norm sees the rounded sum."""
    _one_dimension(normalized_shape, weight)
    y, total = operators().add_rms_norm(input.contiguous(), residual.contiguous(), weight, eps, cast_first)
    return y, total


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, elementwise; one shape and dtype."""
    y: Tensor = operators().swiglu(gate.contiguous(), up.contiguous())
    return y


def decode_attention(q_B1HD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor) -> Tensor:
    """Attention of one new position per row over S positions, [B, 1, H, D]; K divides H, no head is copied.

    Keys and values may be views of a longer cache. Splits the context too where there are more threads than K * B.
    """
    o_B1HD: Tensor = operators().decode_attention(q_B1HD.contiguous(), k_BSKD, v_BSKD)
    return o_B1HD


def linear(x_MK: Tensor, w_NK: Tensor) -> Tensor:
    """x @ w.T, [..., N], for few rows: the weight is read once, whatever M. For bf16 weights x is rounded to bf16."""
    y_MN: Tensor = operators().linear(x_MK.contiguous(), w_NK)
    return y_MN


def int8_linear(x_MK: Tensor, q_NK: Tensor, scale_N: Tensor) -> Tensor:
    """(x @ q.T) * scale, [..., N], for few rows. x is quantised too: 8 bits, one scale per 64 values of a row."""
    y_MN: Tensor = operators().int8_linear(x_MK.contiguous(), q_NK, scale_N)
    return y_MN


def int4_linear(x_MK: Tensor, packed_NP: Tensor, scale_NG: Tensor) -> Tensor:
    """x @ dequantised.T, [..., N], for few rows. x is quantised too: 8 bits, one scale per 32 values of a row."""
    y_MN: Tensor = operators().int4_linear(x_MK.contiguous(), packed_NP, scale_NG)
    return y_MN


def int8_pack(q_NK: Tensor, num_rows: int) -> Tensor:
    """q in oneDNN's own order for `int8_matmul` of about `num_rows` rows: a copy, as large as q."""
    packed: Tensor = torch.ops.onednn.qlinear_prepack(q_NK, [num_rows, q_NK.shape[1]])
    return packed


@torch.compiler.assume_constant_result
def multiplies_bf16() -> bool:
    """Whether the processor multiplies bf16 itself (AMX or AVX-512 BF16)."""
    itself: bool = operators().multiplies_bf16()
    return itself


@torch.compiler.assume_constant_result
def multiplies_int8() -> bool:
    """Whether `int8_matmul` is exact here: oneDNN's sums of int8 products saturate on x86 without VNNI."""
    exact: bool = operators().multiplies_int8()
    return exact


def int8_matmul(x_MK: Tensor, packed: Tensor, scale_N: Tensor) -> Tensor:
    """(x @ q.T) * scale, [..., N], for many rows: oneDNN's int8 product of x in 8 bits, one scale per row of x.

    Only where `multiplies_int8`.
    """
    x_q_MK, x_scale_M = operators().quantize_rows(x_MK.reshape(-1, x_MK.shape[-1]).contiguous())
    # oneDNN takes one scale for all of x: it is given 1, and the rows' own scales are multiplied in afterwards.
    no_zero_N = torch.zeros(scale_N.shape, dtype=torch.long)
    y_MN: Tensor = torch.ops.onednn.qlinear_pointwise(
        x_q_MK, 1.0, 0, packed, scale_N, no_zero_N, None, 1.0, 0, torch.float32, "none", [], ""
    )
    y_MN.mul_(x_scale_M[:, None])
    return y_MN.to(x_MK.dtype).view(*x_MK.shape[:-1], -1)


def int4_matmul(x_MK: Tensor, packed_NP: Tensor, scale_NG: Tensor) -> Tensor:
    """x @ dequantised.T, [..., N], for many rows: torch's product with the weights expanded for this call.

    In bf16 where `multiplies_bf16`: x is rounded to bf16. Otherwise in fp32.
    """
    w_NK: Tensor = operators().expand_int4(packed_NP, scale_NG, multiplies_bf16())
    return F.linear(x_MK.to(w_NK.dtype), w_NK).to(x_MK.dtype)


def int8_embedding(ids: Tensor, q_NK: Tensor, scale_N: Tensor) -> Tensor:
    """Rows of an int8 matrix in fp32, [..., K]."""
    rows: Tensor = operators().int8_embedding(ids.contiguous(), q_NK, scale_N)
    return rows


def int4_embedding(ids: Tensor, packed_NP: Tensor, scale_NG: Tensor) -> Tensor:
    """Rows of an int4 matrix in fp32, [..., K]."""
    rows: Tensor = operators().int4_embedding(ids.contiguous(), packed_NP, scale_NG)
    return rows


def _one_dimension(normalized_shape: Sequence[int], weight: Tensor) -> None:
    if list(normalized_shape) != list(weight.shape) or weight.ndim != 1:
        raise ValueError(f"only the last dimension can be normalised, not {list(normalized_shape)}")


@cache
def _register_fakes() -> None:
    register = torch.library.register_fake

    def norm(input: Tensor, weight: Tensor, eps: float, cast_first: bool) -> Tensor:
        widens = cast_first and weight.dtype == torch.float32
        return input.new_empty(input.shape, dtype=torch.float32 if widens else input.dtype)

    def adding(input: Tensor, residual: Tensor, weight: Tensor, eps: float, cast_first: bool) -> tuple[Tensor, Tensor]:
        return norm(input, weight, eps, cast_first), torch.empty_like(input)

    def product(input: Tensor, weight: Tensor, scale: Tensor | None = None) -> Tensor:
        return input.new_empty((*input.shape[:-1], weight.shape[0]))

    def rows(ids: Tensor, weight: Tensor, scale: Tensor, halves: int) -> Tensor:
        return scale.new_empty((*ids.shape, weight.shape[1] * halves), dtype=torch.float32)

    register(f"{NAMESPACE}::rms_norm", norm)
    register(f"{NAMESPACE}::add_rms_norm", adding)
    register(f"{NAMESPACE}::swiglu", lambda gate, up: torch.empty_like(gate))
    for name in ("linear", "int8_linear", "int4_linear"):
        register(f"{NAMESPACE}::{name}", product)
    register(
        f"{NAMESPACE}::quantize_rows",
        lambda x: (x.new_empty(x.shape, dtype=torch.int8), x.new_empty(x.shape[:1], dtype=torch.float32)),
    )
    register(f"{NAMESPACE}::decode_attention", lambda q, k, v: torch.empty_like(q))
    register(
        f"{NAMESPACE}::expand_int4",
        lambda packed, scale, half: packed.new_empty(
            (packed.shape[0], 2 * packed.shape[1]), dtype=torch.bfloat16 if half else torch.float32
        ),
    )
    register(f"{NAMESPACE}::int8_embedding", lambda ids, q, scale: rows(ids, q, scale, 1))
    register(f"{NAMESPACE}::int4_embedding", lambda ids, packed, scale: rows(ids, packed, scale, 2))
    register(
        f"{NAMESPACE}::decode_step",
        lambda plan, ids, keys, values, start, vocab_size: keys[0].new_empty((ids.shape[0], 1, vocab_size)),
    )


def _norm_gradients(ctx: Any, x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the plain twin with respect to x and weight."""
    with torch.enable_grad():
        x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
        twin = rms_norm_cast_first if ctx.cast_first else reference_rms_norm
        y = twin(x, weight.shape, weight, ctx.eps)
    x_grad, weight_grad = torch.autograd.grad(y, (x, weight), grad)
    return x_grad, weight_grad


@cache
def _register_gradients() -> None:
    def save_norm(ctx: Any, inputs: Any, output: Tensor) -> None:
        x, weight, ctx.eps, ctx.cast_first = inputs
        ctx.save_for_backward(x, weight)

    def norm_backward(ctx: Any, grad: Tensor) -> Any:
        return *_norm_gradients(ctx, *ctx.saved_tensors, grad), None, None

    def save_adding(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        _, residual, weight, ctx.eps, ctx.cast_first = inputs
        ctx.residual_dtype = residual.dtype
        ctx.save_for_backward(output[1], weight)

    def adding_backward(ctx: Any, grad: Tensor, total_grad: Tensor) -> Any:
        x_grad, weight_grad = _norm_gradients(ctx, *ctx.saved_tensors, grad)
        x_grad = x_grad + total_grad
        return x_grad, x_grad.to(ctx.residual_dtype), weight_grad, None, None

    def save_swiglu(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    def swiglu_backward(ctx: Any, grad: Tensor) -> Any:
        gate, up = ctx.saved_tensors
        sigmoid = torch.sigmoid(gate)
        silu = gate * sigmoid
        return grad * up * (sigmoid + silu * (1 - sigmoid)), grad * silu

    register = torch.library.register_autograd
    register(f"{NAMESPACE}::rms_norm", norm_backward, setup_context=save_norm)
    register(f"{NAMESPACE}::add_rms_norm", adding_backward, setup_context=save_adding)
    register(f"{NAMESPACE}::swiglu", swiglu_backward, setup_context=save_swiglu)
