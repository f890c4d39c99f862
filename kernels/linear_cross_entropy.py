"""Language-model head and cross-entropy as one op that never holds all logits.

    loss = linear_cross_entropy(hidden_NE, weight_VE, target_N)
    loss = linear_cross_entropy(hidden_NE, weight_VE, target_N, implementation="triton")

Legend: N rows (tokens), E hidden size, V vocabulary, C rows of one chunk, n rows that count.

The rows are taken in chunks. A chunk's logits [C, V] are made by a matrix product, become loss and gradient [C, V],
and two further products use the gradient up before the next chunk begins; the backward pass only scales what the
forward left (the idea of Liger Kernel, Hsu et al., arXiv 2410.10989). So there are three matrix products, as many as
without chunks, and C is such that neither of the two takes more memory than the larger of `input` and `linear_weight`,
whose gradients must be held anyway; all logits are in memory only where they are no larger than the weight.
`implementation` says what turns logits into loss and gradient: torch's operations ("chunked", on any device), or one
Triton kernel ("triton", on CUDA).

Bytes: with N = 2048, V = 6400, E = 512 in fp32 the logits are 52 MB, and torch's chain holds them several times; here
a chunk is 13 MB. The Triton kernel must read the logits and write the gradient, 2 * N * V values (the second reading
comes from a cache): 52 MB in bf16, which is 16 us at the 3.35 TB/s of an H100, beside 40 us for the 40 GFLOP of the
products at 1 PFLOP/s. A chunk stays in the 50 MB of its L2 cache, so that the kernel may be faster than that.

Refused: class probabilities as targets, class weights, label smoothing, bias, reductions other than the mean, and
second derivatives.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels._triton import NAMESPACE, AheadOfTime, autotune, jit, require_launchable, tl

# (logits [C, V], target [C], gradient wanted) -> loss [C], and softmax(logits) - onehot(target) in the logits' dtype
RowLoss = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    ignore_index: int = -100,
    implementation: str = "chunked",
) -> Tensor:
    """cross_entropy(linear(input, linear_weight), target) of [N, E], [V, E] and [N] int64: the mean over the rows whose
    target is not `ignore_index`, NaN where there is none, as in torch.

    A scalar in fp32 (float64 for float64 inputs). Differentiable in the first two; under autocast the products run in
    its dtype. Raises ValueError for shapes and dtypes that do not fit and for an unknown implementation, RuntimeError
    for "triton" where Triton cannot run.
    """
    operators = {"chunked": linear_cross_entropy_chunked, "triton": linear_cross_entropy_triton}
    if implementation not in operators:
        raise ValueError(f"unknown implementation {implementation!r}; known: {', '.join(operators)}")
    if input.ndim != 2 or linear_weight.ndim != 2 or target.shape != input.shape[:1]:
        shapes = f"{list(input.shape)}, {list(linear_weight.shape)}, {list(target.shape)}"
        raise ValueError(f"linear_cross_entropy wants [N, E], [V, E] and [N], not {shapes}")
    if input.shape[1] != linear_weight.shape[1] or target.dtype != torch.int64:
        raise ValueError(
            f"linear_cross_entropy wants one hidden size and int64 targets, not {input.shape[1]}, "
            f"{linear_weight.shape[1]} and {target.dtype}"
        )
    kind = input.device.type
    if torch.is_autocast_enabled(kind) and input.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
        input, linear_weight = input.to(dtype), linear_weight.to(dtype)
    if input.dtype != linear_weight.dtype:
        raise ValueError(f"input and weight must have one dtype, not {input.dtype} and {linear_weight.dtype}")
    learning = torch.is_grad_enabled() and (input.requires_grad or linear_weight.requires_grad)
    loss: Tensor = operators[implementation](input, linear_weight, target, ignore_index, learning)[0]
    return loss


def chunk_rows(num_rows: int, num_classes: int, hidden_size: int) -> int:
    """Rows per chunk: the most whose logits take no more memory than the larger of hidden states and weight, evened out
    over the chunks. At least one."""
    most = max(1, max(num_rows, num_classes) * hidden_size // num_classes)
    num_chunks = max(1, math.ceil(num_rows / most))
    return max(1, math.ceil(num_rows / num_chunks))


def row_loss(logits_CV: Tensor, target_C: Tensor, learning: bool) -> tuple[Tensor, Tensor | None]:
    """`RowLoss` by torch's operations."""
    index_C1 = target_C[:, None]
    log_CV = torch.log_softmax(logits_CV, dim=-1, dtype=_wide(logits_CV.dtype))
    loss_C = -log_CV.gather(1, index_C1).squeeze(1)
    if not learning:
        return loss_C, None
    gradient_CV = log_CV.exp_()
    gradient_CV.scatter_add_(1, index_C1, gradient_CV.new_full((1, 1), -1.0).expand_as(index_C1))
    return loss_C, gradient_CV.to(logits_CV.dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums: fp32 at least."""
    return torch.promote_types(dtype, torch.float32)


def loss_and_gradients(
    x_NE: Tensor, w_VE: Tensor, target_N: Tensor, ignore_index: int, learning: bool, rows: RowLoss
) -> tuple[Tensor, Tensor, Tensor]:
    """The mean loss, and the gradients of the loss's sum by x (in its dtype) and w (in fp32 at least).

    Without `learning` the gradients are empty. Rows to ignore are computed and then dropped: choosing them would make
    the host wait for the device.
    """
    num_rows, num_classes = x_NE.shape[0], w_VE.shape[0]
    keep_N = target_N != ignore_index
    index_N = torch.where(keep_N, target_N, 0)
    keep_N1 = keep_N[:, None]
    dtype = _wide(x_NE.dtype)
    loss = x_NE.new_zeros((), dtype=dtype)
    dx_NE, dw_VE = _gradients(x_NE, w_VE, learning)
    size = chunk_rows(num_rows, num_classes, x_NE.shape[1])
    # Callers have cast already; autocast would cast again what is meant to stay wide.
    with torch.autocast(x_NE.device.type, enabled=False):
        for start in range(0, num_rows, size):
            part = slice(start, start + size)
            x_CE, keep_C1 = x_NE[part], keep_N1[part]
            loss_C, gradient_CV = rows(x_CE @ w_VE.t(), index_N[part], learning)
            loss += torch.where(keep_N[part], loss_C, 0).sum()
            if gradient_CV is not None:
                torch.mul(gradient_CV @ w_VE, keep_C1, out=dx_NE[part])
                _add_product(dw_VE, gradient_CV.t(), x_CE * keep_C1)
                gradient_CV = None
    return loss / keep_N.sum(), dx_NE, dw_VE


def _gradients(x_NE: Tensor, w_VE: Tensor, learning: bool) -> tuple[Tensor, Tensor]:
    """Where the gradients go: [N, E] in x's dtype, and zeros [V, E] in fp32 at least; without `learning` [0] each."""
    shapes = (x_NE.shape, w_VE.shape) if learning else ((0,), (0,))
    return x_NE.new_empty(shapes[0]), w_VE.new_zeros(shapes[1], dtype=_wide(w_VE.dtype))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, without a product of its own where the dtypes agree."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


@torch.library.custom_op(f"{NAMESPACE}::linear_cross_entropy_chunked", mutates_args=())
def linear_cross_entropy_chunked(
    input: Tensor, weight: Tensor, target: Tensor, ignore_index: int, learning: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See `loss_and_gradients`."""
    return loss_and_gradients(input, weight, target, ignore_index, learning, row_loss)


@autotune(
    [
        {"BLOCK": 4096, "num_warps": 8},
        {"BLOCK": 2048, "num_warps": 4},
        {"BLOCK": 2048, "num_warps": 8},
        {"BLOCK": 8192, "num_warps": 16},
    ],
    key=("NUM_CLASSES", "LEARNING"),
)
@jit
def row_loss_kernel(
    logits_ptr,
    target_ptr,
    loss_ptr,
    gradient_ptr,
    NUM_CLASSES: tl.constexpr,
    LEARNING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row per program: running maximum and sum per lane, reduced once; then the row again, for its gradient."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * NUM_CLASSES
    gradient_ptr += row * NUM_CLASSES
    # Finite where nothing was seen: the difference of two infinities would be NaN.
    largest_B = tl.full([BLOCK], -3.0e38, tl.float32)
    total_B = tl.zeros([BLOCK], tl.float32)
    for start in range(0, NUM_CLASSES, BLOCK):
        column_B = start + tl.arange(0, BLOCK)
        x_B = tl.load(logits_ptr + column_B, mask=column_B < NUM_CLASSES, other=-float("inf")).to(tl.float32)
        larger_B = tl.maximum(largest_B, x_B)
        total_B = total_B * tl.exp(largest_B - larger_B) + tl.exp(x_B - larger_B)
        largest_B = larger_B
    largest = tl.max(largest_B, axis=0)
    log_total = largest + tl.log(tl.sum(total_B * tl.exp(largest_B - largest), axis=0))
    target = tl.load(target_ptr + row)
    # NOTE: a target that is no class makes the loss NaN; torch raises, which a kernel cannot.
    known = (target >= 0) & (target < NUM_CLASSES)
    picked = tl.load(logits_ptr + target, mask=known, other=float("nan")).to(tl.float32)
    tl.store(loss_ptr + row, log_total - picked)
    if LEARNING:
        for start in range(0, NUM_CLASSES, BLOCK):
            column_B = start + tl.arange(0, BLOCK)
            inside_B = column_B < NUM_CLASSES
            x_B = tl.load(logits_ptr + column_B, mask=inside_B, other=-float("inf")).to(tl.float32)
            gradient_B = tl.exp(x_B - log_total) - tl.where(column_B == target, 1.0, 0.0)
            tl.store(gradient_ptr + column_B, gradient_B, mask=inside_B)


def row_loss_triton(logits_CV: Tensor, target_C: Tensor, learning: bool) -> tuple[Tensor, Tensor | None]:
    """`RowLoss` by `row_loss_kernel`; logits contiguous."""
    num_rows, num_classes = logits_CV.shape
    loss_C = logits_CV.new_empty(num_rows, dtype=torch.float32)
    gradient_CV = torch.empty_like(logits_CV) if learning else None
    into = logits_CV if gradient_CV is None else gradient_CV
    row_loss_kernel[(num_rows,)](logits_CV, target_C, loss_C, into, num_classes, learning)
    return loss_C, gradient_CV


@torch.library.custom_op(f"{NAMESPACE}::linear_cross_entropy_triton", mutates_args=())
def linear_cross_entropy_triton(
    input: Tensor, weight: Tensor, target: Tensor, ignore_index: int, learning: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See `loss_and_gradients`. Raises RuntimeError without triton or off CUDA, ValueError for other dtypes."""
    require_launchable("linear_cross_entropy", input, weight)
    return loss_and_gradients(input, weight, target, ignore_index, learning, row_loss_triton)


def _fake(input: Tensor, weight: Tensor, target: Tensor, ignore_index: int, learning: bool) -> tuple[Tensor, ...]:
    return (input.new_empty((), dtype=_wide(input.dtype)), *_gradients(input, weight, learning))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, weight, target, ignore_index, ctx.learning = inputs
    _, dx_NE, dw_VE = output
    ctx.save_for_backward(target, dx_NE, dw_VE)
    ctx.ignore_index, ctx.weight_dtype = ignore_index, weight.dtype
    ctx.mark_non_differentiable(dx_NE, dw_VE)
    ctx.set_materialize_grads(False)


@once_differentiable
def _scale(ctx: Any, grad_loss: Tensor | None, *unused: None) -> tuple[Tensor | None, ...]:
    """The saved gradients are those of the sum; all rows ignored gives zeros, as in torch."""
    if grad_loss is None:
        return None, None, None, None, None
    if not ctx.learning:
        raise RuntimeError("linear_cross_entropy was computed without its gradients")
    target_N, dx_NE, dw_VE = ctx.saved_tensors
    scale = grad_loss / (target_N != ctx.ignore_index).sum().clamp(min=1)
    wants_x, wants_w = ctx.needs_input_grad[:2]
    dx_NE = (dx_NE * scale).to(dx_NE.dtype) if wants_x else None
    dw_VE = (dw_VE * scale).to(ctx.weight_dtype) if wants_w else None
    return dx_NE, dw_VE, None, None, None


for _operator in (linear_cross_entropy_chunked, linear_cross_entropy_triton):
    _operator.register_fake(_fake)
    _operator.register_autograd(_scale, setup_context=_save)


AHEAD_OF_TIME = tuple(
    AheadOfTime(
        row_loss_kernel,
        f"6400 {dtype} {'gradient' if learning else 'loss alone'}",
        {"logits_ptr": f"*{dtype}", "target_ptr": "*i64", "loss_ptr": "*fp32", "gradient_ptr": f"*{dtype}"},
        {"NUM_CLASSES": 6400, "LEARNING": learning},
        num_warps=8,
    )
    for dtype, learning in (("fp32", True), ("bf16", True), ("fp16", True), ("bf16", False))
)
