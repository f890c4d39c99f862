"""Linear layers with int8 or int4 weights for a few rows, dequantised on the way: what one decode step needs, on CUDA.

    y = int8_linear(x, q_NK, scale_N)
    y = int4_linear(x, q_NP, scale_NG)

Legend: M rows of x (tokens, at most 16), N outputs, K inputs, P = K / 2 bytes, G = K / 32 groups. The format is that of
`kernels.quantized_linear`: symmetric, no zero point. int8 has one fp32 scale per output; int4 has one fp16 scale per
group of 32 inputs, whose byte j holds value j in its low and value j + 16 in its high half, 8 added to each.

A program makes BLOCK_N outputs: it streams their weights once and keeps sums in registers. One row is multiplied
element by element in fp32, several by tensor cores in x's dtype (16 rows, the missing ones zero; fp32 as three TF32
products, which keeps its precision; int8 values are exact in bf16 and fp16, dequantised int4 weights are rounded to
them once). Sums are fp32 throughout, without atomics: the same
input gives the same bits.

Bytes: the weights, N * K for int8 and N * K * (1/2 + 1/16) for int4; x and y are nothing beside them. For the feed
forward of MiniMind2 (2048 x 768) that is 1.6 MB and 0.9 MB: 0.5 us and 0.3 us at the 3.35 TB/s of an H100 (1.0 and
0.6 us at an A100's 1.56), less than a launch takes; only larger models, or a CUDA graph, come near the floor.

Refused: more than 16 rows (dequantise and use a matrix product), K that is not a multiple of 32 for int4, gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels._triton import NAMESPACE, AheadOfTime, autotune, jit, require_launchable, rows_of, tl

MAX_ROWS = 16
GROUP = 32


def int8_linear(x: Tensor, q_NK: Tensor, scale_N: Tensor) -> Tensor:
    """torch.nn.functional.linear(x, q_NK * scale_N[:, None]) of [..., K] with at most 16 rows; [..., N] in x's dtype.

    q_NK int8 [N, K] and scale_N fp32 [N], contiguous. Raises ValueError for shapes, dtypes and strides that do not fit,
    RuntimeError where Triton cannot run. No gradient.
    """
    num_out, num_in = q_NK.shape
    _check("int8_linear", x, q_NK, torch.int8, num_in)
    if scale_N.shape != (num_out,) or scale_N.dtype != torch.float32 or not scale_N.is_contiguous():
        raise ValueError(f"int8_linear wants contiguous fp32 scales [{num_out}], not {_described(scale_N)}")
    y_MN: Tensor = int8_linear_op(rows_of(x, num_in), q_NK, scale_N)
    return y_MN.view(*x.shape[:-1], num_out)


def int4_linear(x: Tensor, q_NP: Tensor, scale_NG: Tensor) -> Tensor:
    """torch.nn.functional.linear(x, dequantised weight) of [..., K] with at most 16 rows; [..., N] in x's dtype.

    q_NP uint8 [N, K / 2] and scale_NG fp16 [N, K / 32], contiguous. Raises as `int8_linear`. No gradient.
    """
    num_out, num_in = q_NP.shape[0], 2 * q_NP.shape[1]
    _check("int4_linear", x, q_NP, torch.uint8, num_in)
    if num_in % GROUP:
        raise ValueError(f"int4_linear wants inputs in whole groups of {GROUP}, not {num_in}")
    shape = (num_out, num_in // GROUP)
    if scale_NG.shape != shape or scale_NG.dtype != torch.float16 or not scale_NG.is_contiguous():
        raise ValueError(f"int4_linear wants contiguous fp16 scales {list(shape)}, not {_described(scale_NG)}")
    y_MN: Tensor = int4_linear_op(rows_of(x, num_in), q_NP, scale_NG)
    return y_MN.view(*x.shape[:-1], num_out)


def _check(name: str, x: Tensor, q: Tensor, dtype: torch.dtype, num_in: int) -> None:
    if q.ndim != 2 or q.dtype != dtype or not q.is_contiguous():
        raise ValueError(f"{name} wants a contiguous matrix of {dtype}, not {_described(q)}")
    if x.ndim == 0 or x.shape[-1] != num_in or num_in == 0:
        raise ValueError(f"{name} wants x [..., {num_in}], not {list(x.shape)}")
    if x.numel() // num_in > MAX_ROWS:
        raise ValueError(f"{name} takes at most {MAX_ROWS} rows, not {x.numel() // num_in}")


def _described(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} of {tensor.dtype} with strides {tensor.stride()}"


@autotune(
    [
        {"BLOCK_N": 32, "BLOCK_K": 128, "num_warps": 4, "num_stages": 3},
        {"BLOCK_N": 16, "BLOCK_K": 128, "num_warps": 4, "num_stages": 3},
        {"BLOCK_N": 16, "BLOCK_K": 256, "num_warps": 4, "num_stages": 2},
        {"BLOCK_N": 8, "BLOCK_K": 256, "num_warps": 2, "num_stages": 2},
    ],
    key=("NUM_OUT", "NUM_IN", "ROWS"),
)
@jit(do_not_specialize=("num_rows",))
def int8_linear_kernel(
    x_ptr,
    q_ptr,
    scale_ptr,
    y_ptr,
    x_stride,
    num_rows,
    NUM_OUT: tl.constexpr,
    NUM_IN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Program n: outputs [n * BLOCK_N, (n + 1) * BLOCK_N) of every row. ROWS is 1, or 16 for tensor cores."""
    out_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_N = out_N < NUM_OUT
    q_N = q_ptr + out_N.to(tl.int64) * NUM_IN
    scale_N = tl.load(scale_ptr + out_N, mask=inside_N, other=0.0)
    if ROWS == 1:
        sum_NK = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        for start in range(0, NUM_IN, BLOCK_K):
            in_K = start + tl.arange(0, BLOCK_K)
            inside_K = in_K < NUM_IN
            q_NK = tl.load(q_N[:, None] + in_K[None, :], mask=inside_N[:, None] & inside_K[None, :], other=0)
            x_K = tl.load(x_ptr + in_K, mask=inside_K, other=0.0).to(tl.float32)
            sum_NK += q_NK.to(tl.float32) * x_K[None, :]
        tl.store(y_ptr + out_N, tl.sum(sum_NK, axis=1) * scale_N, mask=inside_N)
    else:
        row_M = tl.arange(0, ROWS)
        inside_M = row_M < num_rows
        sum_MN = tl.zeros([ROWS, BLOCK_N], tl.float32)
        for start in range(0, NUM_IN, BLOCK_K):
            in_K = start + tl.arange(0, BLOCK_K)
            inside_K = in_K < NUM_IN
            q_NK = tl.load(q_N[:, None] + in_K[None, :], mask=inside_N[:, None] & inside_K[None, :], other=0)
            x_MK = tl.load(
                x_ptr + row_M[:, None] * x_stride + in_K[None, :],
                mask=inside_M[:, None] & inside_K[None, :],
                other=0.0,
            )
            sum_MN = tl.dot(x_MK, tl.trans(q_NK.to(x_MK.dtype)), sum_MN, input_precision="tf32x3")
        tl.store(
            y_ptr + row_M[:, None] * NUM_OUT + out_N[None, :],
            sum_MN * scale_N[None, :],
            mask=inside_M[:, None] & inside_N[None, :],
        )


@autotune(
    [
        {"BLOCK_N": 32, "BLOCK_G": 4, "num_warps": 4, "num_stages": 3},
        {"BLOCK_N": 16, "BLOCK_G": 8, "num_warps": 4, "num_stages": 3},
        {"BLOCK_N": 16, "BLOCK_G": 16, "num_warps": 4, "num_stages": 2},
        {"BLOCK_N": 8, "BLOCK_G": 16, "num_warps": 2, "num_stages": 2},
    ],
    key=("NUM_OUT", "NUM_IN", "ROWS"),
)
@jit(do_not_specialize=("num_rows",))
def int4_linear_kernel(
    x_ptr,
    q_ptr,
    scale_ptr,
    y_ptr,
    x_stride,
    num_rows,
    NUM_OUT: tl.constexpr,
    NUM_IN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """As `int8_linear_kernel`, over BLOCK_G groups at a time; J counts the 16 bytes of a group."""
    out_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_N = out_N < NUM_OUT
    byte_J = tl.arange(0, 16)
    row_M = tl.arange(0, ROWS)
    inside_M = row_M < num_rows
    sum_NGJ = tl.zeros([BLOCK_N, BLOCK_G, 16], tl.float32)
    sum_MN = tl.zeros([ROWS, BLOCK_N], tl.float32)
    for start in range(0, NUM_IN // 32, BLOCK_G):
        group_G = start + tl.arange(0, BLOCK_G)
        inside_G = group_G < NUM_IN // 32
        scale_at_NG = out_N.to(tl.int64)[:, None] * (NUM_IN // 32) + group_G[None, :]
        inside_NG = inside_N[:, None] & inside_G[None, :]
        scale_NG = tl.load(scale_ptr + scale_at_NG, mask=inside_NG, other=0.0).to(tl.float32)
        q_NGJ = tl.load(
            q_ptr + scale_at_NG[:, :, None] * 16 + byte_J[None, None, :], mask=inside_NG[:, :, None], other=136
        )
        low_NGJ = ((q_NGJ & 15).to(tl.float32) - 8.0) * scale_NG[:, :, None]
        high_NGJ = ((q_NGJ >> 4).to(tl.float32) - 8.0) * scale_NG[:, :, None]
        in_GJ = group_G[:, None] * 32 + byte_J[None, :]
        if ROWS == 1:
            x_low_GJ = tl.load(x_ptr + in_GJ, mask=inside_G[:, None], other=0.0).to(tl.float32)
            x_high_GJ = tl.load(x_ptr + in_GJ + 16, mask=inside_G[:, None], other=0.0).to(tl.float32)
            sum_NGJ += low_NGJ * x_low_GJ[None, :, :] + high_NGJ * x_high_GJ[None, :, :]
        else:
            # The bytes of the block in a row: values j of all its groups, then values j + 16.
            in_P = tl.reshape(in_GJ, [BLOCK_G * 16])
            x_at_MP = row_M[:, None] * x_stride + in_P[None, :]
            inside_MP = inside_M[:, None] & (in_P < NUM_IN)[None, :]
            x_low_MP = tl.load(x_ptr + x_at_MP, mask=inside_MP, other=0.0)
            x_high_MP = tl.load(x_ptr + x_at_MP + 16, mask=inside_MP, other=0.0)
            low_NP = tl.reshape(low_NGJ, [BLOCK_N, BLOCK_G * 16]).to(x_low_MP.dtype)
            high_NP = tl.reshape(high_NGJ, [BLOCK_N, BLOCK_G * 16]).to(x_low_MP.dtype)
            sum_MN = tl.dot(x_low_MP, tl.trans(low_NP), sum_MN, input_precision="tf32x3")
            sum_MN = tl.dot(x_high_MP, tl.trans(high_NP), sum_MN, input_precision="tf32x3")
    if ROWS == 1:
        tl.store(y_ptr + out_N, tl.sum(tl.sum(sum_NGJ, axis=2), axis=1), mask=inside_N)
    else:
        inside_MN = inside_M[:, None] & inside_N[None, :]
        tl.store(y_ptr + row_M[:, None] * NUM_OUT + out_N[None, :], sum_MN, mask=inside_MN)


def _launch(kernel, x_MK: Tensor, q: Tensor, scale: Tensor) -> Tensor:
    """y [M, N] of one of the two kernels."""
    require_launchable("int8_linear or int4_linear", x_MK)
    num_rows, num_in = x_MK.shape
    num_out = q.shape[0]
    y_MN = x_MK.new_empty((num_rows, num_out))
    if y_MN.numel():
        kernel[lambda chosen: (-(-num_out // chosen["BLOCK_N"]),)](
            x_MK, q, scale, y_MN, x_MK.stride(0), num_rows, num_out, num_in, 1 if num_rows == 1 else MAX_ROWS
        )
    return y_MN


@torch.library.custom_op(f"{NAMESPACE}::int8_linear", mutates_args=())
def int8_linear_op(x: Tensor, q: Tensor, scale: Tensor) -> Tensor:
    """See `int8_linear`, which checks the arguments; x [M, K] with a last stride of 1."""
    return _launch(int8_linear_kernel, x, q, scale)


@torch.library.custom_op(f"{NAMESPACE}::int4_linear", mutates_args=())
def int4_linear_op(x: Tensor, q: Tensor, scale: Tensor) -> Tensor:
    """See `int4_linear`, which checks the arguments; x [M, K] with a last stride of 1."""
    return _launch(int4_linear_kernel, x, q, scale)


def _fake(x: Tensor, q: Tensor, scale: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], q.shape[0]))


for _operator in (int8_linear_op, int4_linear_op):
    _operator.register_fake(_fake)


def _entry(kernel, q: str, scale: str, dtype: str, rows: int, num_out: int, num_in: int) -> AheadOfTime:
    pointers = {"x_ptr": f"*{dtype}", "q_ptr": q, "scale_ptr": scale, "y_ptr": f"*{dtype}"}
    return AheadOfTime(
        kernel,
        f"{dtype} M={rows} {num_out}x{num_in}",
        {**pointers, "x_stride": "i32", "num_rows": "i32"},
        {"NUM_OUT": num_out, "NUM_IN": num_in, "ROWS": rows},
        divisible=("x_stride",),
        num_stages=3,
    )


AHEAD_OF_TIME = tuple(
    _entry(*kernel, dtype, rows, 1408, 512)
    for kernel in ((int8_linear_kernel, "*i8", "*fp32"), (int4_linear_kernel, "*u8", "*fp16"))
    for dtype in ("fp32", "bf16")
    for rows in (1, MAX_ROWS)
)
