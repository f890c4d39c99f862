"""RMSNorm (arXiv 1910.07467) as one Triton kernel forward and one backward.

    y = triton_rms_norm(x, (x.shape[-1],), weight, eps=1e-6)                     # MiniMind-3: scaled in fp32, then cast
    y = triton_rms_norm(x, (x.shape[-1],), weight, eps=1e-5, cast_first=True)    # MiniMind2: cast, then scaled

Legend: N rows, E columns (the normalised size), R rows of one program, b bytes per value.

Bytes that must move: forward 2 * N * E * b (x in, y out), backward 3 * N * E * b (gradient and x in, x's gradient out);
the weight is E values, and the row's scale is computed again because that costs no bytes. At the 3.35 TB/s of an H100's
datasheet: N = 8192, E = 4096 in bf16 is 134 MB or 40 us forward, 201 MB or 60 us backward; N = 512, E = 768 is 1.6 MB,
0.5 us, which the launch outlasts many times over.

The weight's gradient is summed without atomics: program p of P takes the groups p, p + P, p + 2 * P, ... of R rows in
that order, its sums go to row p of a [P, E] table, and torch adds up the table. P and R follow from N and E alone (the
backward pass is not autotuned), so equal inputs give equal bits on equal hardware.

Refuses: dtypes other than fp32, bf16 and fp16; more than MAX_COLS columns, which registers could not hold; tensors that
are not on the GPU. A module of its own, and not part of `kernels.rms_norm`, because that one must stay free of triton.
"""

from __future__ import annotations

import math
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

MAX_COLS = 8192
MAX_PROGRAMS = 512


@autotune(
    [{"R": rows, "num_warps": warps} for rows, warps in ((1, 4), (1, 2), (1, 8), (1, 16), (4, 4), (8, 4), (16, 4))],
    key=("E", "size"),
    tile=("R", "BLOCK"),
)
@jit(do_not_specialize=("size",))
def rms_norm_forward_kernel(
    x_ptr,
    weight_ptr,
    y_ptr,
    x_stride,
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
    weight_1E = tl.load(weight_ptr + col_1E, mask=col_1E < E, other=0.0).to(tl.float32)
    wide_RE = x_RE.to(tl.float32)
    normed_RE = wide_RE * tl.rsqrt(tl.sum(wide_RE * wide_RE, 1) / E + eps)[:, None]
    if CAST_FIRST:
        normed_RE = normed_RE.to(x_RE.dtype).to(tl.float32)
    tl.store(y_ptr + first * E + row_R1 * E + col_1E, normed_RE * weight_1E, mask=inside)


@jit
def rms_norm_backward_kernel(
    grad_ptr,
    extra_ptr,
    x_ptr,
    weight_ptr,
    x_grad_ptr,
    partial_ptr,
    grad_stride,
    extra_stride,
    x_stride,
    num_rows,
    eps,
    E: tl.constexpr,
    BLOCK: tl.constexpr,
    CAST_FIRST: tl.constexpr,
    HAS_EXTRA: tl.constexpr,
    R: tl.constexpr,
):
    """One program: every P-th group of R rows. `extra` is a gradient that reaches x past the norm, added to x's."""
    row_R1 = tl.arange(0, R)[:, None]
    col_1E = tl.arange(0, BLOCK)[None, :]
    weight_1E = tl.load(weight_ptr + col_1E, mask=col_1E < E, other=0.0).to(tl.float32)
    sums_RE = tl.zeros((R, BLOCK), tl.float32)
    first = tl.program_id(0).to(tl.int64) * R
    while first < num_rows:
        inside = (row_R1 < num_rows - first) & (col_1E < E)
        x_RE = tl.load(x_ptr + first * x_stride + row_R1 * x_stride + col_1E, mask=inside, other=0.0)
        grad_RE = tl.load(grad_ptr + first * grad_stride + row_R1 * grad_stride + col_1E, mask=inside, other=0.0)
        grad_RE = grad_RE.to(tl.float32)
        wide_RE = x_RE.to(tl.float32)
        scale_R1 = tl.rsqrt(tl.sum(wide_RE * wide_RE, 1) / E + eps)[:, None]
        normed_RE = wide_RE * scale_R1
        inner_RE = grad_RE * weight_1E
        x_grad_RE = scale_R1 * (inner_RE - normed_RE * (tl.sum(inner_RE * normed_RE, 1) / E)[:, None])
        if HAS_EXTRA:
            extra_RE = tl.load(
                extra_ptr + first * extra_stride + row_R1 * extra_stride + col_1E, mask=inside, other=0.0
            )
            x_grad_RE += extra_RE.to(tl.float32)
        tl.store(x_grad_ptr + first * E + row_R1 * E + col_1E, x_grad_RE, mask=inside)
        if CAST_FIRST:
            normed_RE = normed_RE.to(x_RE.dtype).to(tl.float32)
        sums_RE += grad_RE * normed_RE
        first += tl.num_programs(0) * R
    tl.store(partial_ptr + tl.program_id(0) * E + col_1E, tl.sum(sums_RE, 0)[None, :], mask=col_1E < E)


def result_dtype(x: Tensor, weight: Tensor, cast_first: bool) -> torch.dtype:
    """The dtype of a norm's result: x's own, or, cast first, whatever a product with the weight has."""
    return torch.promote_types(x.dtype, weight.dtype) if cast_first else x.dtype


def check_size(operator: str, num_cols: int) -> None:
    """Raise ValueError unless a row fits into registers."""
    if not 0 < num_cols <= MAX_COLS:
        raise ValueError(f"{operator} normalises 1 to {MAX_COLS} values at a time, not {num_cols}")


def split_rows(num_cols: int) -> tuple[int, int]:
    """(R, num_warps) of the backward kernel: tiles of about 2048 values, and 16 values per thread from there on."""
    block = power_of_2(num_cols)
    rows = min(max(2048 // block, 1), 32)
    return rows, min(max(rows * block // 512, 4), 16)


@torch.library.custom_op(f"{NAMESPACE}::rms_norm", mutates_args=())
def rms_norm_operator(x: Tensor, weight: Tensor, eps: float, cast_first: bool) -> Tensor:
    """The registered operator: x [..., E], weight [E] -> [..., E], contiguous."""
    num_cols = weight.numel()
    y = torch.empty(x.shape, dtype=result_dtype(x, weight, cast_first), device=x.device)
    require_launchable("triton_rms_norm", x, weight)
    rows = rows_of(x, num_cols)
    if num_rows := rows.shape[0]:
        rms_norm_forward_kernel[lambda meta: (-(-num_rows // meta["R"]),)](
            rows, weight.contiguous(), y, rows.stride(0), num_rows, magnitude(num_rows), eps,
            E=num_cols, BLOCK=power_of_2(num_cols), CAST_FIRST=cast_first,
        )  # fmt: skip
    return y


@rms_norm_operator.register_fake
def _(x: Tensor, weight: Tensor, eps: float, cast_first: bool) -> Tensor:
    return x.new_empty(x.shape, dtype=result_dtype(x, weight, cast_first))


def launch_backward(
    grad: Tensor, extra: Tensor | None, x: Tensor, weight: Tensor, eps: float, cast_first: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x (plus `extra`, where there is one) and of the weight; shared with `kernels.add_rms_norm`."""
    num_cols = weight.numel()
    grad_rows, rows = rows_of(grad, num_cols), rows_of(x, num_cols)
    extra_rows = grad_rows if extra is None else rows_of(extra, num_cols)
    group, num_warps = split_rows(num_cols)
    num_programs = min(-(-rows.shape[0] // group), MAX_PROGRAMS)
    x_grad = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    partial_PE = torch.empty(num_programs, num_cols, dtype=torch.float32, device=x.device)
    if num_programs:
        rms_norm_backward_kernel[(num_programs,)](
            grad_rows, extra_rows, rows, weight.contiguous(), x_grad, partial_PE,
            grad_rows.stride(0), extra_rows.stride(0), rows.stride(0), rows.shape[0], eps,
            E=num_cols, BLOCK=power_of_2(num_cols), CAST_FIRST=cast_first, HAS_EXTRA=extra is not None, R=group,
            num_warps=num_warps,
        )  # fmt: skip
    return x_grad, partial_PE.sum(0).to(weight.dtype)


@torch.library.custom_op(f"{NAMESPACE}::rms_norm_backward", mutates_args=())
def rms_norm_backward_operator(
    grad: Tensor, x: Tensor, weight: Tensor, eps: float, cast_first: bool
) -> tuple[Tensor, Tensor]:
    """The registered operator behind the gradient: (x's, the weight's)."""
    require_launchable("triton_rms_norm", grad, x, weight)
    return launch_backward(grad, None, x, weight, eps, cast_first)


@rms_norm_backward_operator.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, eps: float, cast_first: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.eps, ctx.cast_first = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
    return *rms_norm_backward_operator(grad, *ctx.saved_tensors, ctx.eps, ctx.cast_first), None, None


rms_norm_operator.register_autograd(_backward, setup_context=_save)


def prepare(
    operator: str, x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, eps: float | None
) -> tuple[tuple[int, ...], Tensor, float]:
    """x's shape with the normalised dimensions as one, the weight [E] (ones for None), and eps (fp32's for None, as in
    torch). Raises ValueError where the shapes do not fit."""
    shape = tuple(normalized_shape)
    if not shape or tuple(x.shape[-len(shape) :]) != shape or (weight is not None and tuple(weight.shape) != shape):
        has = "no weight" if weight is None else f"weight {tuple(weight.shape)}"
        raise ValueError(f"{operator}: normalized_shape {shape} does not fit input {tuple(x.shape)} and {has}")
    num_cols = math.prod(shape)
    check_size(operator, num_cols)
    flat = torch.ones(num_cols, dtype=x.dtype, device=x.device) if weight is None else weight.reshape(num_cols)
    return (*x.shape[: -len(shape)], num_cols), flat, torch.finfo(torch.float32).eps if eps is None else eps


def triton_rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    cast_first: bool = False,
) -> Tensor:
    """torch.nn.functional.rms_norm's signature and, with `cast_first`, MiniMind2's cast order, whose result has the
    dtype of input * weight; otherwise it has input's. Contiguous. Raises ValueError for shapes and dtypes that do not
    fit, RuntimeError where Triton cannot run."""
    shape, flat, eps = prepare("triton_rms_norm", input, normalized_shape, weight, eps)
    y: Tensor = rms_norm_operator(input.reshape(shape), flat, eps, cast_first)
    return y.view(input.shape)


def _ahead(dtype: str, num_cols: int, rows: int) -> tuple[AheadOfTime, AheadOfTime]:
    """Both kernels at one width; the weight is fp32 for MiniMind2's order, so that both orders are compiled."""
    mixed = dtype == "fp16"
    weight = "*fp32" if mixed else f"*{dtype}"
    shared = {"E": num_cols, "BLOCK": power_of_2(num_cols), "CAST_FIRST": mixed}
    pointers = {"x_ptr": f"*{dtype}", "weight_ptr": weight}
    out = weight if mixed else f"*{dtype}"
    group, num_warps = split_rows(num_cols)
    return (
        AheadOfTime(
            rms_norm_forward_kernel, f"E={num_cols} R={rows} {dtype}",
            {**pointers, "y_ptr": out, "x_stride": "i32", "num_rows": "i32", "size": "i32", "eps": "fp32"},
            {**shared, "R": rows}, divisible=("x_stride",), num_warps=4 if num_cols <= 4096 else 8,
        ),
        AheadOfTime(
            rms_norm_backward_kernel, f"E={num_cols} {dtype}",
            {**pointers, "grad_ptr": out, "extra_ptr": f"*{dtype}", "x_grad_ptr": f"*{dtype}", "partial_ptr": "*fp32",
             "grad_stride": "i32", "extra_stride": "i32", "x_stride": "i32", "num_rows": "i32", "eps": "fp32"},
            {**shared, "HAS_EXTRA": True, "R": group},
            divisible=("grad_stride", "extra_stride", "x_stride"), num_warps=num_warps,
        ),
    )  # fmt: skip


AHEAD_OF_TIME = (*_ahead("bf16", 768, 1), *_ahead("fp32", MAX_COLS, 1), *_ahead("fp16", 64, 16))
