"""Queries and keys normalised per head and rotated by their positions, both in one Triton kernel each way.

    q, k = triton_qk_norm_rope(q, k, q_weight, k_weight, cos, sin, eps=1e-6)    # MiniMind-3; the results have q's dtype
    q, k = triton_qk_rope(q, k, cos, sin)                                       # MiniMind2: no norm, promoted dtype

Legend: B batch, T positions, H query heads, K key heads, D head_dim, X = H + K, b bytes per value.

Layout and angles are those of `minimind.rope`: half-split, (i, i + D/2) is a pair (RoFormer, arXiv 2104.09864); the
tables [T, 1, D] hold the positions at hand, and both halves of a row are read. Bytes that must move: forward
2 * B * T * X * D * b against 4 for a fused norm and then a fused rotation; backward 3 * B * T * X * D * b (2 without
the norm); the tables are 2 * T * D values. At the 3.35 TB/s of an H100's datasheet, B = 8, T = 1024, X = 12, D = 96 in
bf16 is 38 MB or 11 us forward, 57 MB or 17 us backward.

The weights' gradients are summed without atomics: program p of P takes tokens p, p + P, p + 2 * P, ... in that order,
its sums go to row p of a [P, 2, D] table, and torch adds up the table. P follows from B * T alone, and the backward
kernel is not autotuned, so equal inputs give equal bits on equal hardware.

Refuses: an odd D, tables that do not fit, dtypes other than fp32, bf16 and fp16, more heads and columns than registers
hold (MAX_TILE), and tensors that are not on the GPU. The tables get no gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels._triton import NAMESPACE, AheadOfTime, autotune, jit, power_of_2, require_launchable, tl

MAX_TILE = 4096
MAX_PROGRAMS = 512


@autotune(
    [{"num_warps": warps} for warps in (4, 2, 1, 8, 16)], key=("H", "K", "HALF"), tile=("BLOCK_X", "BLOCK_D"), values=16
)
@jit
def qk_norm_rope_forward_kernel(
    q_ptr,
    k_ptr,
    q_weight_ptr,
    k_weight_ptr,
    cos_ptr,
    sin_ptr,
    q_out_ptr,
    k_out_ptr,
    q_stride,
    q_head_stride,
    k_stride,
    k_head_stride,
    cos_stride,
    sin_stride,
    num_positions,
    eps,
    H: tl.constexpr,
    K: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    """One program: all heads of one token, query heads first, each as its two halves."""
    token = tl.program_id(0).to(tl.int64)
    position = token % num_positions
    head_X1 = tl.arange(0, BLOCK_X)[:, None]
    col_1D = tl.arange(0, BLOCK_D)[None, :]
    is_q = (head_X1 < H) & (col_1D < HALF)
    is_k = (head_X1 >= H) & (head_X1 < H + K) & (col_1D < HALF)
    q_ptr += token * q_stride + head_X1 * q_head_stride + col_1D
    k_ptr += token * k_stride + (head_X1 - H) * k_head_stride + col_1D
    q1_XD, q2_XD = tl.load(q_ptr, mask=is_q, other=0.0), tl.load(q_ptr + HALF, mask=is_q, other=0.0)
    k1_XD, k2_XD = tl.load(k_ptr, mask=is_k, other=0.0), tl.load(k_ptr + HALF, mask=is_k, other=0.0)
    x1_XD, x2_XD = (q1_XD + k1_XD).to(tl.float32), (q2_XD + k2_XD).to(tl.float32)
    if HAS_NORM:
        scale_X = tl.rsqrt((tl.sum(x1_XD * x1_XD, 1) + tl.sum(x2_XD * x2_XD, 1)) / (2 * HALF) + eps)
        weight1_XD = tl.load(q_weight_ptr + col_1D, mask=is_q, other=0.0).to(tl.float32)
        weight1_XD += tl.load(k_weight_ptr + col_1D, mask=is_k, other=0.0).to(tl.float32)
        weight2_XD = tl.load(q_weight_ptr + HALF + col_1D, mask=is_q, other=0.0).to(tl.float32)
        weight2_XD += tl.load(k_weight_ptr + HALF + col_1D, mask=is_k, other=0.0).to(tl.float32)
        x1_XD = (x1_XD * scale_X[:, None] * weight1_XD).to(q1_XD.dtype).to(tl.float32)
        x2_XD = (x2_XD * scale_X[:, None] * weight2_XD).to(q1_XD.dtype).to(tl.float32)
    cos_ptr += position * cos_stride + col_1D
    sin_ptr += position * sin_stride + col_1D
    cos1_1D = tl.load(cos_ptr, mask=col_1D < HALF, other=0.0).to(tl.float32)
    sin1_1D = tl.load(sin_ptr, mask=col_1D < HALF, other=0.0).to(tl.float32)
    cos2_1D = tl.load(cos_ptr + HALF, mask=col_1D < HALF, other=0.0).to(tl.float32)
    sin2_1D = tl.load(sin_ptr + HALF, mask=col_1D < HALF, other=0.0).to(tl.float32)
    out1_XD = x1_XD * cos1_1D - x2_XD * sin1_1D
    out2_XD = x2_XD * cos2_1D + x1_XD * sin2_1D
    q_out_ptr += token * (H * 2 * HALF) + head_X1 * (2 * HALF) + col_1D
    k_out_ptr += token * (K * 2 * HALF) + (head_X1 - H) * (2 * HALF) + col_1D
    tl.store(q_out_ptr, out1_XD, mask=is_q)
    tl.store(q_out_ptr + HALF, out2_XD, mask=is_q)
    tl.store(k_out_ptr, out1_XD, mask=is_k)
    tl.store(k_out_ptr + HALF, out2_XD, mask=is_k)


@jit
def qk_norm_rope_backward_kernel(
    q_grad_ptr,
    k_grad_ptr,
    q_ptr,
    k_ptr,
    q_weight_ptr,
    k_weight_ptr,
    cos_ptr,
    sin_ptr,
    q_out_ptr,
    k_out_ptr,
    partial_ptr,
    q_grad_stride,
    q_grad_head_stride,
    k_grad_stride,
    k_grad_head_stride,
    q_stride,
    q_head_stride,
    k_stride,
    k_head_stride,
    cos_stride,
    sin_stride,
    num_tokens,
    num_positions,
    eps,
    H: tl.constexpr,
    K: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    """One program: every P-th token. `out` are the gradients of q and k, `partial` [P, 2, D] those of the weights."""
    head_X1 = tl.arange(0, BLOCK_X)[:, None]
    col_1D = tl.arange(0, BLOCK_D)[None, :]
    is_q = (head_X1 < H) & (col_1D < HALF)
    is_k = (head_X1 >= H) & (head_X1 < H + K) & (col_1D < HALF)
    if HAS_NORM:
        weight1_XD = tl.load(q_weight_ptr + col_1D, mask=is_q, other=0.0).to(tl.float32)
        weight1_XD += tl.load(k_weight_ptr + col_1D, mask=is_k, other=0.0).to(tl.float32)
        weight2_XD = tl.load(q_weight_ptr + HALF + col_1D, mask=is_q, other=0.0).to(tl.float32)
        weight2_XD += tl.load(k_weight_ptr + HALF + col_1D, mask=is_k, other=0.0).to(tl.float32)
        sums1_XD = tl.zeros((BLOCK_X, BLOCK_D), tl.float32)
        sums2_XD = tl.zeros((BLOCK_X, BLOCK_D), tl.float32)
    token = tl.program_id(0).to(tl.int64)
    while token < num_tokens:
        q_place = q_grad_ptr + token * q_grad_stride + head_X1 * q_grad_head_stride + col_1D
        k_place = k_grad_ptr + token * k_grad_stride + (head_X1 - H) * k_grad_head_stride + col_1D
        g1_XD = tl.load(q_place, mask=is_q, other=0.0).to(tl.float32)
        g1_XD += tl.load(k_place, mask=is_k, other=0.0).to(tl.float32)
        g2_XD = tl.load(q_place + HALF, mask=is_q, other=0.0).to(tl.float32)
        g2_XD += tl.load(k_place + HALF, mask=is_k, other=0.0).to(tl.float32)
        cos_place = cos_ptr + (token % num_positions) * cos_stride + col_1D
        sin_place = sin_ptr + (token % num_positions) * sin_stride + col_1D
        cos1_1D = tl.load(cos_place, mask=col_1D < HALF, other=0.0).to(tl.float32)
        sin1_1D = tl.load(sin_place, mask=col_1D < HALF, other=0.0).to(tl.float32)
        cos2_1D = tl.load(cos_place + HALF, mask=col_1D < HALF, other=0.0).to(tl.float32)
        sin2_1D = tl.load(sin_place + HALF, mask=col_1D < HALF, other=0.0).to(tl.float32)
        d1_XD = g1_XD * cos1_1D + g2_XD * sin2_1D
        d2_XD = g2_XD * cos2_1D - g1_XD * sin1_1D
        if HAS_NORM:
            q_place = q_ptr + token * q_stride + head_X1 * q_head_stride + col_1D
            k_place = k_ptr + token * k_stride + (head_X1 - H) * k_head_stride + col_1D
            x1_XD = tl.load(q_place, mask=is_q, other=0.0).to(tl.float32)
            x1_XD += tl.load(k_place, mask=is_k, other=0.0).to(tl.float32)
            x2_XD = tl.load(q_place + HALF, mask=is_q, other=0.0).to(tl.float32)
            x2_XD += tl.load(k_place + HALF, mask=is_k, other=0.0).to(tl.float32)
            scale_X1 = tl.rsqrt((tl.sum(x1_XD * x1_XD, 1) + tl.sum(x2_XD * x2_XD, 1)) / (2 * HALF) + eps)[:, None]
            x1_XD *= scale_X1
            x2_XD *= scale_X1
            sums1_XD += d1_XD * x1_XD
            sums2_XD += d2_XD * x2_XD
            d1_XD *= weight1_XD
            d2_XD *= weight2_XD
            along_X1 = ((tl.sum(d1_XD * x1_XD, 1) + tl.sum(d2_XD * x2_XD, 1)) / (2 * HALF))[:, None]
            d1_XD = scale_X1 * (d1_XD - x1_XD * along_X1)
            d2_XD = scale_X1 * (d2_XD - x2_XD * along_X1)
        q_place = q_out_ptr + token * (H * 2 * HALF) + head_X1 * (2 * HALF) + col_1D
        k_place = k_out_ptr + token * (K * 2 * HALF) + (head_X1 - H) * (2 * HALF) + col_1D
        tl.store(q_place, d1_XD, mask=is_q)
        tl.store(q_place + HALF, d2_XD, mask=is_q)
        tl.store(k_place, d1_XD, mask=is_k)
        tl.store(k_place + HALF, d2_XD, mask=is_k)
        token += tl.num_programs(0)
    if HAS_NORM:
        place = partial_ptr + tl.program_id(0) * (4 * HALF) + tl.arange(0, BLOCK_D)
        inside = tl.arange(0, BLOCK_D) < HALF
        tl.store(place, tl.sum(tl.where(is_q, sums1_XD, 0.0), 0), mask=inside)
        tl.store(place + HALF, tl.sum(tl.where(is_q, sums2_XD, 0.0), 0), mask=inside)
        tl.store(place + 2 * HALF, tl.sum(tl.where(is_k, sums1_XD, 0.0), 0), mask=inside)
        tl.store(place + 3 * HALF, tl.sum(tl.where(is_k, sums2_XD, 0.0), 0), mask=inside)


def _heads(x_BTXD: Tensor) -> Tensor:
    """[B * T, X, D] with a last stride of 1: a view where possible."""
    batch, length, heads, head_dim = x_BTXD.shape
    flat = x_BTXD.reshape(batch * length, heads, head_dim)
    return flat if flat.stride(2) == 1 else flat.contiguous()


def _table(x_T1D: Tensor) -> Tensor:
    """[T, D] with a last stride of 1."""
    flat = x_T1D.squeeze(1)
    return flat if flat.stride(1) == 1 else flat.contiguous()


def _constexprs(num_q: int, num_k: int, head_dim: int, has_norm: bool) -> dict[str, Any]:
    blocks = {"BLOCK_X": power_of_2(num_q + num_k), "BLOCK_D": power_of_2(head_dim // 2)}
    return {"H": num_q, "K": num_k, "HALF": head_dim // 2, **blocks, "HAS_NORM": has_norm}


def _num_warps(constexprs: dict[str, Any]) -> int:
    """8 values of a tile per thread."""
    return min(max(constexprs["BLOCK_X"] * constexprs["BLOCK_D"] // 256, 1), 16)


def _result_dtype(x: Tensor, cos: Tensor, has_norm: bool) -> torch.dtype:
    return x.dtype if has_norm else torch.promote_types(x.dtype, cos.dtype)


@torch.library.custom_op(f"{NAMESPACE}::qk_norm_rope", mutates_args=())
def qk_norm_rope_operator(
    q: Tensor, k: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The registered operator; without weights there is no norm. Results [B, T, H, D] and [B, T, K, D], contiguous."""
    has_norm = q_weight is not None and k_weight is not None
    weights = (q_weight.contiguous(), k_weight.contiguous()) if has_norm else (q, k)
    require_launchable("triton_qk_norm_rope", q, k, *weights, cos, sin)
    q_out, k_out = (torch.empty(x.shape, dtype=_result_dtype(x, cos, has_norm), device=x.device) for x in (q, k))
    if q.shape[0] * q.shape[1]:
        q_NHD, k_NKD, cos_TD, sin_TD = _heads(q), _heads(k), _table(cos), _table(sin)
        constexprs = _constexprs(q.shape[2], k.shape[2], q.shape[3], has_norm)
        qk_norm_rope_forward_kernel[(q_NHD.shape[0],)](
            q_NHD, k_NKD, *weights, cos_TD, sin_TD, q_out, k_out,
            *q_NHD.stride()[:2], *k_NKD.stride()[:2], cos_TD.stride(0), sin_TD.stride(0), q.shape[1], eps,
            **constexprs,
        )  # fmt: skip
    return q_out, k_out


@qk_norm_rope_operator.register_fake
def _(
    q: Tensor, k: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    has_norm = q_weight is not None
    return tuple(x.new_empty(x.shape, dtype=_result_dtype(x, cos, has_norm)) for x in (q, k))


@torch.library.custom_op(f"{NAMESPACE}::qk_norm_rope_backward", mutates_args=())
def qk_norm_rope_backward_operator(
    q_grad: Tensor, k_grad: Tensor, q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The registered operator behind the gradient with a norm: those of q, k and both weights."""
    normed = (q, k, q_weight.contiguous(), k_weight.contiguous())
    q_out, k_out, partial_P2D = _launch_backward(q_grad, k_grad, normed, cos, sin, eps)
    # NOTE: two sums, not two rows of one: an operator's results must not share memory.
    return q_out, k_out, partial_P2D[:, 0].sum(0).to(q_weight.dtype), partial_P2D[:, 1].sum(0).to(k_weight.dtype)


@qk_norm_rope_backward_operator.register_fake
def _(
    q_grad: Tensor, k_grad: Tensor, q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return tuple(x.new_empty(x.shape) for x in (q, k, q_weight, k_weight))


@torch.library.custom_op(f"{NAMESPACE}::qk_rope_backward", mutates_args=())
def qk_rope_backward_operator(q_grad: Tensor, k_grad: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The registered operator behind the gradient without a norm: those of q and k, in the given gradients' dtypes."""
    return _launch_backward(q_grad, k_grad, None, cos, sin, 0.0)[:2]


@qk_rope_backward_operator.register_fake
def _(q_grad: Tensor, k_grad: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return q_grad.new_empty(q_grad.shape), k_grad.new_empty(k_grad.shape)


def _launch_backward(
    q_grad: Tensor,
    k_grad: Tensor,
    normed: tuple[Tensor, Tensor, Tensor, Tensor] | None,
    cos: Tensor,
    sin: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(q's, k's, partial sums of the weights' [P, 2, D]); `normed` is (q, k, q_weight, k_weight)."""
    q, k, q_weight, k_weight = normed or (q_grad, k_grad, q_grad, k_grad)
    require_launchable("triton_qk_norm_rope", q_grad, k_grad, q, k, q_weight, k_weight, cos, sin)
    q_out, k_out = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k))
    num_tokens = q.shape[0] * q.shape[1]
    num_programs = min(num_tokens, MAX_PROGRAMS)
    partial_P2D = torch.empty(num_programs, 2, q.shape[3], dtype=torch.float32, device=q.device)
    if num_tokens:
        grads, places, tables = (_heads(q_grad), _heads(k_grad)), (_heads(q), _heads(k)), (_table(cos), _table(sin))
        constexprs = _constexprs(q.shape[2], k.shape[2], q.shape[3], normed is not None)
        qk_norm_rope_backward_kernel[(num_programs,)](
            *grads, *places, q_weight, k_weight, *tables, q_out, k_out, partial_P2D,
            *(stride for x in (*grads, *places) for stride in x.stride()[:2]), *(x.stride(0) for x in tables),
            num_tokens, q.shape[1], eps, **constexprs, num_warps=_num_warps(constexprs),
        )  # fmt: skip
    return q_out, k_out, partial_P2D


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, q_weight, k_weight, cos, sin, ctx.eps = inputs
    ctx.dtypes = q.dtype, k.dtype
    ctx.has_norm = q_weight is not None
    ctx.save_for_backward(*((q, k, q_weight, k_weight) if ctx.has_norm else ()), cos, sin)


def _backward(ctx: Any, q_grad: Tensor, k_grad: Tensor) -> tuple[Tensor | None, ...]:
    if ctx.has_norm:
        return *qk_norm_rope_backward_operator(q_grad, k_grad, *ctx.saved_tensors, ctx.eps), None, None, None
    grads = qk_rope_backward_operator(q_grad, k_grad, *ctx.saved_tensors)
    return *(grad.to(dtype) for grad, dtype in zip(grads, ctx.dtypes, strict=True)), None, None, None, None, None


qk_norm_rope_operator.register_autograd(_backward, setup_context=_save)


def triton_qk_norm_rope(
    q_BTHD: Tensor,
    k_BTKD: Tensor,
    q_weight_D: Tensor,
    k_weight_D: Tensor,
    cos_T1D: Tensor,
    sin_T1D: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """MiniMind-3: each head's RMSNorm, then the rotation, in q's dtype. Differentiable but for the tables. Raises
    ValueError for shapes and dtypes that do not fit, RuntimeError where Triton cannot run."""
    _check(q_BTHD, k_BTKD, cos_T1D, sin_T1D)
    for weight in (q_weight_D, k_weight_D):
        if weight.shape != q_BTHD.shape[3:]:
            raise ValueError(f"triton_qk_norm_rope: weight {tuple(weight.shape)} for head_dim {q_BTHD.shape[3]}")
    q, k = qk_norm_rope_operator(q_BTHD, k_BTKD, q_weight_D, k_weight_D, cos_T1D, sin_T1D, eps)
    return q, k


def triton_qk_rope(q_BTHD: Tensor, k_BTKD: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> tuple[Tensor, Tensor]:
    """MiniMind2, which has no such norm: the rotation alone, in the dtype of q * cos. Otherwise as above."""
    _check(q_BTHD, k_BTKD, cos_T1D, sin_T1D)
    q, k = qk_norm_rope_operator(q_BTHD, k_BTKD, None, None, cos_T1D, sin_T1D, 0.0)
    return q, k


def _check(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Raise ValueError where the shapes and dtypes do not fit each other or the registers."""
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, tables {tuple(cos.shape)} and {tuple(sin.shape)}"
    if q.ndim != 4 or k.ndim != 4 or q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3] or q.dtype != k.dtype:
        raise ValueError(f"triton_qk_norm_rope wants q [B, T, H, D] and k [B, T, K, D] of one dtype, not {shapes}")
    length, head_dim = q.shape[1], q.shape[3]
    if cos.shape != (length, 1, head_dim) or sin.shape != cos.shape or head_dim % 2 or not head_dim:
        raise ValueError(f"triton_qk_norm_rope wants tables [T, 1, D] with an even D, not {shapes}")
    if power_of_2(q.shape[2] + k.shape[2]) * power_of_2(head_dim // 2) > MAX_TILE:
        raise ValueError(f"triton_qk_norm_rope: {shapes} are more heads and columns than registers hold")


def _ahead(dtype: str, num_q: int, num_k: int, head_dim: int, has_norm: bool) -> tuple[AheadOfTime, AheadOfTime]:
    constexprs = _constexprs(num_q, num_k, head_dim, has_norm)
    case = f"{num_q}+{num_k} heads of {head_dim} {dtype}"
    table = "*bf16" if dtype == "bf16" else "*fp32"
    out = f"*{dtype}" if has_norm else "*fp32"
    names = ("q_ptr", "k_ptr", "q_weight_ptr", "k_weight_ptr")
    shared = dict.fromkeys(names, f"*{dtype}") | {"cos_ptr": table, "sin_ptr": table}
    strides = ("q_stride", "q_head_stride", "k_stride", "k_head_stride", "cos_stride", "sin_stride")
    more = ("q_grad_stride", "q_grad_head_stride", "k_grad_stride", "k_grad_head_stride")
    numbers = {"num_positions": "i32", "eps": "fp32", **dict.fromkeys(strides, "i32")}
    forward = {**shared, "q_out_ptr": out, "k_out_ptr": out, **numbers}
    backward = {
        **shared, **dict.fromkeys(("q_grad_ptr", "k_grad_ptr"), out), **numbers, **dict.fromkeys(more, "i32"),
        **dict.fromkeys(("q_out_ptr", "k_out_ptr"), f"*{dtype}"), "partial_ptr": "*fp32", "num_tokens": "i32",
    }  # fmt: skip
    num_warps = _num_warps(constexprs)
    return (
        AheadOfTime(qk_norm_rope_forward_kernel, case, forward, constexprs, strides, num_warps),
        AheadOfTime(qk_norm_rope_backward_kernel, case, backward, constexprs, (*strides, *more), num_warps),
    )


AHEAD_OF_TIME = (
    *_ahead("bf16", 8, 4, 96, True),
    *_ahead("fp16", 8, 2, 64, False),
    *_ahead("fp32", 48, 16, 128, True),
)
