"""The residual addition and the RMSNorm that follows it as one Triton kernel forward and one backward.

    y, stream = triton_add_rms_norm(attended, stream, (stream.shape[-1],), weight, eps=1e-6)

Legend: N rows, E columns (the normalised size), R rows of one program, b bytes per value.

Bytes that must move: forward 4 * N * E * b (two terms in; sum and norm out) against 5 for an addition and a fused norm
one after the other; backward 4 * N * E * b (two gradients and the sum in, one gradient out: both terms have the same).
At the 3.35 TB/s of an H100's datasheet, N = 8192, E = 4096 in bf16 is 268 MB or 80 us either way. The backward kernel
and the order in which it sums the weight's gradient are those of `kernels.triton_rms_norm`, as is what is refused.
The norm is taken of the sum as stored, rounded to `input`'s dtype, so that it equals the two steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kernels._triton import (
    NAMESPACE,
    AheadOfTime,
    autotune,
    jit,
    magnitude,
    power_of_2,
    require_launchable,
    rows_of,
    tl,
)
from kernels.triton_rms_norm import MAX_COLS, launch_backward, prepare, result_dtype


@autotune(
    [{"R": rows, "num_warps": warps} for rows, warps in ((1, 4), (1, 2), (1, 8), (1, 16), (4, 4), (8, 4))],
    key=("E", "size"),
    tile=("R", "BLOCK"),
)
@jit(do_not_specialize=("size",))
def add_rms_norm_forward_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    y_ptr,
    sum_ptr,
    x_stride,
    residual_stride,
    num_rows,
    size,
    eps,
    E: tl.constexpr,
    BLOCK: tl.constexpr,
    CAST_FIRST: tl.constexpr,
    R: tl.constexpr,
):
    """One program: R rows. `size` only tells the autotuner how many rows there are."""
    first = tl.program_id(0).to(tl.int64) * R
    row_R1 = tl.arange(0, R)[:, None]
    col_1E = tl.arange(0, BLOCK)[None, :]
    inside = (row_R1 < num_rows - first) & (col_1E < E)
    x_RE = tl.load(x_ptr + first * x_stride + row_R1 * x_stride + col_1E, mask=inside, other=0.0)
    residual_ptr += first * residual_stride
    residual_RE = tl.load(residual_ptr + row_R1 * residual_stride + col_1E, mask=inside, other=0.0)
    sum_RE = (x_RE.to(tl.float32) + residual_RE.to(tl.float32)).to(x_RE.dtype)
    tl.store(sum_ptr + first * E + row_R1 * E + col_1E, sum_RE, mask=inside)
    weight_1E = tl.load(weight_ptr + col_1E, mask=col_1E < E, other=0.0).to(tl.float32)
    wide_RE = sum_RE.to(tl.float32)
    normed_RE = wide_RE * tl.rsqrt(tl.sum(wide_RE * wide_RE, 1) / E + eps)[:, None]
    if CAST_FIRST:
        normed_RE = normed_RE.to(x_RE.dtype).to(tl.float32)
    tl.store(y_ptr + first * E + row_R1 * E + col_1E, normed_RE * weight_1E, mask=inside)


@torch.library.custom_op(f"{NAMESPACE}::add_rms_norm", mutates_args=())
def add_rms_norm_operator(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, cast_first: bool
) -> tuple[Tensor, Tensor]:
    """The registered operator: x and residual [..., E], weight [E] -> (norm, sum), contiguous."""
    require_launchable("triton_add_rms_norm", x, residual, weight)
    num_cols = weight.numel()
    y = torch.empty(x.shape, dtype=result_dtype(x, weight, cast_first), device=x.device)
    total = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows, residual_rows = rows_of(x, num_cols), rows_of(residual, num_cols)
    if num_rows := rows.shape[0]:
        add_rms_norm_forward_kernel[lambda meta: (-(-num_rows // meta["R"]),)](
            rows, residual_rows, weight.contiguous(), y, total, rows.stride(0), residual_rows.stride(0), num_rows,
            magnitude(num_rows), eps, E=num_cols, BLOCK=power_of_2(num_cols), CAST_FIRST=cast_first,
        )  # fmt: skip
    return y, total


@add_rms_norm_operator.register_fake
def _(x: Tensor, residual: Tensor, weight: Tensor, eps: float, cast_first: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=result_dtype(x, weight, cast_first)), x.new_empty(x.shape)


@torch.library.custom_op(f"{NAMESPACE}::add_rms_norm_backward", mutates_args=())
def add_rms_norm_backward_operator(
    grad: Tensor, sum_grad: Tensor, total: Tensor, weight: Tensor, eps: float, cast_first: bool
) -> tuple[Tensor, Tensor]:
    """The registered operator behind the gradient: (either term's, the weight's)."""
    require_launchable("triton_add_rms_norm", grad, sum_grad, total, weight)
    return launch_backward(grad, sum_grad, total, weight, eps, cast_first)


@add_rms_norm_backward_operator.register_fake
def _(
    grad: Tensor, sum_grad: Tensor, total: Tensor, weight: Tensor, eps: float, cast_first: bool
) -> tuple[Tensor, Tensor]:
    return total.new_empty(total.shape), weight.new_empty(weight.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, residual, weight, ctx.eps, ctx.cast_first = inputs
    ctx.residual_dtype = residual.dtype
    ctx.save_for_backward(output[1], weight)


def _backward(ctx: Any, grad: Tensor, sum_grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
    term, weight = add_rms_norm_backward_operator(grad, sum_grad, *ctx.saved_tensors, ctx.eps, ctx.cast_first)
    return term, term.to(ctx.residual_dtype), weight, None, None


add_rms_norm_operator.register_autograd(_backward, setup_context=_save)


def triton_add_rms_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    cast_first: bool = False,
) -> tuple[Tensor, Tensor]:
    """(norm of the sum, sum) of input + residual, equal in shape; the sum has input's dtype, the norm that which
    `triton_rms_norm` gives. Contiguous. Raises ValueError for shapes and dtypes that do not fit, RuntimeError where
    Triton cannot run."""
    if input.shape != residual.shape:
        raise ValueError(f"triton_add_rms_norm: {tuple(input.shape)} and {tuple(residual.shape)} must be equal shapes")
    shape, flat, eps = prepare("triton_add_rms_norm", input, normalized_shape, weight, eps)
    y, total = add_rms_norm_operator(input.reshape(shape), residual.reshape(shape), flat, eps, cast_first)
    return y.view(input.shape), total.view(input.shape)


def _ahead(dtype: str, num_cols: int, rows: int, num_warps: int) -> AheadOfTime:
    mixed = dtype == "fp16"
    weight = "*fp32" if mixed else f"*{dtype}"
    pointers = dict.fromkeys(("x_ptr", "residual_ptr", "sum_ptr"), f"*{dtype}")
    integers = dict.fromkeys(("x_stride", "residual_stride", "num_rows", "size"), "i32")
    return AheadOfTime(
        add_rms_norm_forward_kernel,
        f"E={num_cols} R={rows} {dtype}",
        {**pointers, "weight_ptr": weight, "y_ptr": weight if mixed else f"*{dtype}", **integers, "eps": "fp32"},
        {"E": num_cols, "BLOCK": power_of_2(num_cols), "CAST_FIRST": mixed, "R": rows},
        divisible=("x_stride", "residual_stride"),
        num_warps=num_warps,
    )


AHEAD_OF_TIME = (_ahead("bf16", 768, 1, 4), _ahead("fp32", MAX_COLS, 1, 8), _ahead("fp16", 64, 8, 4))
