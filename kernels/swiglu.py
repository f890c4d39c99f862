"""silu(gate) * up (SwiGLU, arXiv 2002.05202) as one Triton kernel forward and one backward.

    hidden = triton_swiglu(gate, up)

Legend: n values in all, N rows of F columns, b bytes per value.

Bytes that must move: forward 3 * n * b (two in, one out) against 5 for torch's two operations; backward 5 * n * b
(gradient, gate and up in; two gradients out). At the 3.35 TB/s of an H100's datasheet: n = 8192 * 11008 in bf16 is
541 MB or 162 us forward, 902 MB or 269 us backward; 512 * 2048 is 6.3 MB, 1.9 us. silu's result is rounded to gate's
dtype before the product, as in torch. Both halves of one fused projection are taken as they lie, without a copy.

Refuses: dtypes other than fp32, bf16 and fp16; unequal shapes; tensors that are not on the GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels._triton import NAMESPACE, AheadOfTime, autotune, jit, magnitude, require_launchable, rows_of, tl

_CONFIGURATIONS = [
    {"BLOCK": block, "num_warps": warps} for block, warps in ((1024, 4), (512, 4), (2048, 4), (2048, 8), (4096, 8))
]


@autotune(_CONFIGURATIONS, key=("size",))
@jit(do_not_specialize=("size",))
def swiglu_forward_kernel(gate_ptr, up_ptr, y_ptr, gate_stride, up_stride, num_cols, size, BLOCK: tl.constexpr):
    """One program: BLOCK columns of one row. `size` only tells the autotuner how many values there are."""
    blocks = tl.cdiv(num_cols, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    col = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = col < num_cols
    gate = tl.load(gate_ptr + row * gate_stride + col, mask=inside, other=0.0)
    up = tl.load(up_ptr + row * up_stride + col, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    silu = (wide * tl.sigmoid(wide)).to(gate.dtype)
    tl.store(y_ptr + row * num_cols + col, silu.to(tl.float32) * up.to(tl.float32), mask=inside)


@autotune(_CONFIGURATIONS, key=("size",))
@jit(do_not_specialize=("size",))
def swiglu_backward_kernel(
    grad_ptr,
    gate_ptr,
    up_ptr,
    gate_grad_ptr,
    up_grad_ptr,
    grad_stride,
    gate_stride,
    up_stride,
    num_cols,
    size,
    BLOCK: tl.constexpr,
):
    """One program: both gradients of BLOCK columns of one row."""
    blocks = tl.cdiv(num_cols, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    col = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = col < num_cols
    grad = tl.load(grad_ptr + row * grad_stride + col, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + row * gate_stride + col, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + col, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    tl.store(gate_grad_ptr + row * num_cols + col, grad * up * (sigmoid + silu * (1.0 - sigmoid)), mask=inside)
    tl.store(up_grad_ptr + row * num_cols + col, grad * silu, mask=inside)


def _rows(*tensors: Tensor) -> tuple[int, int, tuple[Tensor, ...]]:
    """(N, F, the tensors as rows); one long row where all are contiguous: no block is cut off at a row's end."""
    first = tensors[0]
    num_cols = first.numel() if all(tensor.is_contiguous() for tensor in tensors) else first.shape[-1]
    return first.numel() // num_cols, num_cols, tuple(rows_of(tensor, num_cols) for tensor in tensors)


@torch.library.custom_op(f"{NAMESPACE}::swiglu", mutates_args=())
def swiglu_operator(gate: Tensor, up: Tensor) -> Tensor:
    """The registered operator: two equal shapes -> that shape in the promoted dtype, contiguous."""
    require_launchable("triton_swiglu", gate, up)
    y = torch.empty(gate.shape, dtype=torch.promote_types(gate.dtype, up.dtype), device=gate.device)
    if gate.numel():
        num_rows, num_cols, (gate_rows, up_rows) = _rows(gate, up)
        swiglu_forward_kernel[lambda meta: (num_rows * -(-num_cols // meta["BLOCK"]),)](
            gate_rows, up_rows, y, gate_rows.stride(0), up_rows.stride(0), num_cols, magnitude(gate.numel())
        )
    return y


@swiglu_operator.register_fake
def _(gate: Tensor, up: Tensor) -> Tensor:
    return gate.new_empty(gate.shape, dtype=torch.promote_types(gate.dtype, up.dtype))


@torch.library.custom_op(f"{NAMESPACE}::swiglu_backward", mutates_args=())
def swiglu_backward_operator(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """The registered operator behind the gradient: (gate's, up's)."""
    require_launchable("triton_swiglu", grad, gate, up)
    gate_grad = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    up_grad = torch.empty(up.shape, dtype=up.dtype, device=up.device)
    if gate.numel():
        num_rows, num_cols, (grad_rows, gate_rows, up_rows) = _rows(grad, gate, up)
        swiglu_backward_kernel[lambda meta: (num_rows * -(-num_cols // meta["BLOCK"]),)](
            grad_rows, gate_rows, up_rows, gate_grad, up_grad,
            grad_rows.stride(0), gate_rows.stride(0), up_rows.stride(0), num_cols, magnitude(gate.numel()),
        )  # fmt: skip
    return gate_grad, up_grad


@swiglu_backward_operator.register_fake
def _(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), up.new_empty(up.shape)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    return swiglu_backward_operator(grad, *ctx.saved_tensors)


swiglu_operator.register_autograd(_backward, setup_context=_save)


def triton_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up of two tensors of one shape, in their promoted dtype, contiguous; differentiable in both. Raises
    ValueError for shapes and dtypes that do not fit, RuntimeError where Triton cannot run."""
    if gate.shape != up.shape:
        raise ValueError(f"triton_swiglu: {tuple(gate.shape)} and {tuple(up.shape)} must be equal shapes")
    y: Tensor = swiglu_operator(gate, up)
    return y


def _ahead(dtype: str) -> tuple[AheadOfTime, AheadOfTime]:
    names = ("gate", "up", "grad", "gate_grad", "up_grad", "y")
    types = {f"{name}_ptr": f"*{dtype}" for name in names} | dict.fromkeys(("num_cols", "size"), "i32")
    types |= dict.fromkeys(("grad_stride", "gate_stride", "up_stride"), "i32")
    strides = ("grad_stride", "gate_stride", "up_stride", "num_cols")
    forward = {name: kind for name, kind in types.items() if "grad" not in name}
    backward = {name: kind for name, kind in types.items() if name != "y_ptr"}
    return (
        AheadOfTime(swiglu_forward_kernel, f"BLOCK=1024 {dtype}", forward, {"BLOCK": 1024}, divisible=strides),
        AheadOfTime(swiglu_backward_kernel, f"BLOCK=1024 {dtype}", backward, {"BLOCK": 1024}, divisible=strides),
    )


AHEAD_OF_TIME = (*_ahead("bf16"), *_ahead("fp32"), *_ahead("fp16"))
