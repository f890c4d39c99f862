"""Attention of one or a few new queries over a long cache, for grouped query heads: split over the context.

    out_BHTD = decode_attention(q_BHTD, k_BKSD, v_BKSD)

Legend: B batch, H query heads, K key/value heads (K divides H, G = H / K), T new positions, S all positions,
D head_dim, R = T * G rows that share one key/value head, P splits of the context.

Two kernels (flash-decoding, Dao et al. 2023). The first gives every (batch, key/value head, split) a program that reads
its share of keys and values once, for all R rows together, and leaves a partial result with the logarithm of its
weight; the second adds the P partial results up. Nothing is repeated in memory, and the strides of keys and values are
taken as they are: the views of a preallocated cache [B, K, max_length, D] and a concatenated one [B, S, K, D] both do.

Bytes: 2 * B * K * S * D values of cache, once. For S = 4096, K = 2, D = 64 in bf16 that is 2.1 MB a layer and sequence,
0.6 us at the 3.35 TB/s of an H100 (1.4 us at an A100's 1.56), less than the two launches take; the partial results,
P * B * H * T * (D + 1) fp32 values written and read, are kept under that by giving every split 64 positions or more.

Refused: masks other than causality among the new positions, dropout, gradients, T * G above 64, D above 256.
"""

from __future__ import annotations

import math

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
    tl,
)

MAX_ROWS = 64
MAX_HEAD_DIM = 256
MAX_SPLITS = 64
MIN_SPLIT = 64  # positions
PROGRAMS = 264  # wanted at least: two for each of an H100's 132 multiprocessors


def decode_attention(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None) -> Tensor:
    """scaled_dot_product_attention(query, key, value, enable_gqa=True) of [B, H, T, D], [B, K, S, D] twice, causal
    among the T new positions, which are the last of the S. `scale` defaults to 1 / sqrt(D).

    Returns [B, H, T, D] in query's dtype, as a view of contiguous [B, T, H, D]. No gradient. Raises ValueError for
    shapes, dtypes and strides that the kernel cannot take, RuntimeError where Triton cannot run.
    """
    if query.ndim != 4 or key.ndim != 4 or key.shape != value.shape:
        raise ValueError(f"decode_attention wants four dimensions, not {_shapes(query, key, value)}")
    batch, num_heads, num_new, head_dim = query.shape
    num_kv, length = key.shape[1:3]
    if key.shape[0] != batch or key.shape[3] != head_dim or num_heads % num_kv or not 0 < num_new <= length:
        raise ValueError(f"decode_attention: {_shapes(query, key, value)} do not fit together")
    if num_heads // num_kv * num_new > MAX_ROWS or head_dim > MAX_HEAD_DIM:
        raise ValueError(
            f"decode_attention takes at most {MAX_ROWS} rows (new positions times query heads per key/value head) and "
            f"a head_dim of {MAX_HEAD_DIM}, not {num_heads // num_kv * num_new} and {head_dim}"
        )
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError(f"decode_attention wants one dtype, not {query.dtype}, {key.dtype}, {value.dtype}")
    if any(tensor.stride(3) != 1 for tensor in (query, key, value)):
        raise ValueError("decode_attention wants the head dimension contiguous")
    attended: Tensor = decode_attention_op(query, key, value, 1 / math.sqrt(head_dim) if scale is None else scale)
    return attended


def _shapes(*tensors: Tensor) -> str:
    return ", ".join(str(list(tensor.shape)) for tensor in tensors)


@autotune(
    [
        {"BLOCK_S": 64, "num_warps": 4, "num_stages": 2},
        {"BLOCK_S": 32, "num_warps": 4, "num_stages": 3},
        {"BLOCK_S": 64, "num_warps": 2, "num_stages": 3},
        {"BLOCK_S": 128, "num_warps": 4, "num_stages": 2},
    ],
    key=("GROUP", "NUM_NEW", "HEAD_DIM", "magnitude"),
)
@jit(do_not_specialize=("length", "per_split", "magnitude"))
def partial_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    partial_ptr,
    weight_ptr,
    scale,
    length,
    per_split,
    magnitude,
    q_stride_b,
    q_stride_h,
    q_stride_t,
    k_stride_b,
    k_stride_h,
    k_stride_s,
    v_stride_b,
    v_stride_h,
    v_stride_s,
    NUM_KV: tl.constexpr,
    GROUP: tl.constexpr,
    NUM_NEW: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Program (b * K + k, split): partial_ptr [B * K, P, R, D] and weight_ptr [B * K, P, R] (log2), both fp32."""
    pair = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    batch, kv_head = pair // NUM_KV, pair % NUM_KV
    row_R, dim_D = tl.arange(0, ROWS), tl.arange(0, BLOCK_D)
    new_R, head_R = row_R // GROUP, kv_head * GROUP + row_R % GROUP
    inside_R, inside_D = row_R < NUM_NEW * GROUP, dim_D < HEAD_DIM
    inside_RD = inside_R[:, None] & inside_D[None, :]
    q_R = q_ptr + batch * q_stride_b + head_R * q_stride_h + new_R * q_stride_t
    q_RD = tl.load(q_R[:, None] + dim_D[None, :], mask=inside_RD, other=0.0)
    k_ptr += batch * k_stride_b + kv_head * k_stride_h
    v_ptr += batch * v_stride_b + kv_head * v_stride_h
    # A finite "minus infinity": where a row sees nothing of a split, its weight is nothing and no NaN arises.
    largest_R = tl.full([ROWS], -1.0e30, tl.float32)
    total_R = tl.zeros([ROWS], tl.float32)
    sum_RD = tl.zeros([ROWS, BLOCK_D], tl.float32)
    begin = split * per_split
    end = tl.minimum(begin + per_split, length)
    for start in range(begin, end, BLOCK_S):
        place_S = start + tl.arange(0, BLOCK_S)
        inside_SD = (place_S < end)[:, None] & inside_D[None, :]
        # 64 bits: a cache of many long sequences has more than 2^31 values.
        k_SD = tl.load(k_ptr + place_S.to(tl.int64)[:, None] * k_stride_s + dim_D[None, :], mask=inside_SD, other=0.0)
        v_SD = tl.load(v_ptr + place_S.to(tl.int64)[:, None] * v_stride_s + dim_D[None, :], mask=inside_SD, other=0.0)
        scores_RS = tl.dot(q_RD, tl.trans(k_SD), input_precision="ieee") * (scale * 1.4426950408889634)
        seen_RS = (place_S < end)[None, :] & (place_S[None, :] <= length - NUM_NEW + new_R[:, None])
        scores_RS = tl.where(seen_RS, scores_RS, -1.0e30)
        larger_R = tl.maximum(largest_R, tl.max(scores_RS, axis=1))
        weights_RS = tl.exp2(scores_RS - larger_R[:, None])
        shrink_R = tl.exp2(largest_R - larger_R)
        total_R = total_R * shrink_R + tl.sum(weights_RS, axis=1)
        sum_RD = sum_RD * shrink_R[:, None]
        sum_RD += tl.dot(weights_RS.to(v_SD.dtype), v_SD, input_precision="ieee")
        largest_R = larger_R
    row = (pair * tl.num_programs(1) + split) * (NUM_NEW * GROUP) + row_R
    tl.store(weight_ptr + row, largest_R + tl.log2(total_R), mask=inside_R)
    tl.store(partial_ptr + row[:, None] * HEAD_DIM + dim_D[None, :], sum_RD / total_R[:, None], mask=inside_RD)


@jit(do_not_specialize=("num_splits",))
def combine_kernel(
    partial_ptr,
    weight_ptr,
    out_ptr,
    num_splits,
    NUM_KV: tl.constexpr,
    GROUP: tl.constexpr,
    NUM_NEW: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Program (b * K + k, row): one head's output of one position, out_ptr [B, T, H, D]."""
    pair = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1)
    split_P, dim_D = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_D)
    inside_P, inside_D = split_P < num_splits, dim_D < HEAD_DIM
    row_P = (pair * num_splits + split_P) * (NUM_NEW * GROUP) + row
    log_P = tl.load(weight_ptr + row_P, mask=inside_P, other=-float("inf"))
    weight_P = tl.exp2(log_P - tl.max(log_P, axis=0))
    inside_PD = inside_P[:, None] & inside_D[None, :]
    part_PD = tl.load(partial_ptr + row_P[:, None] * HEAD_DIM + dim_D[None, :], mask=inside_PD, other=0.0)
    out_D = tl.sum(part_PD * weight_P[:, None], axis=0) / tl.sum(weight_P, axis=0)
    batch, kv_head = pair // NUM_KV, pair % NUM_KV
    out_row = (batch * NUM_NEW + row // GROUP) * (NUM_KV * GROUP) + kv_head * GROUP + row % GROUP
    tl.store(out_ptr + out_row * HEAD_DIM + dim_D, out_D, mask=inside_D)


def splits_of(length: int, num_pairs: int) -> tuple[int, int]:
    """(number of splits, positions per split): as many as fill the device, of at least `MIN_SPLIT` positions each."""
    most = max(1, min(MAX_SPLITS, length // MIN_SPLIT))
    per_split = math.ceil(length / min(most, math.ceil(PROGRAMS / num_pairs)))
    return math.ceil(length / per_split), per_split


@torch.library.custom_op(f"{NAMESPACE}::decode_attention", mutates_args=())
def decode_attention_op(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """See `decode_attention`, which checks the arguments."""
    require_launchable("decode_attention", query, key, value)
    out_BHTD = _empty_like_query(query, key, value, scale)
    batch, num_heads, num_new, head_dim = query.shape
    num_kv, length = key.shape[1:3]
    group, num_pairs = num_heads // num_kv, batch * num_kv
    if num_pairs == 0:
        return out_BHTD
    num_splits, per_split = splits_of(length, num_pairs)
    num_rows = num_new * group
    partial = query.new_empty((num_pairs, num_splits, num_rows, head_dim), dtype=torch.float32)
    weight = query.new_empty((num_pairs, num_splits, num_rows), dtype=torch.float32)
    heads = {"NUM_KV": num_kv, "GROUP": group, "NUM_NEW": num_new, "HEAD_DIM": head_dim}
    block_d = max(16, power_of_2(head_dim))
    strides = (*query.stride()[:3], *key.stride()[:3], *value.stride()[:3])
    partial_kernel[(num_pairs, num_splits)](
        query,
        key,
        value,
        partial,
        weight,
        scale,
        length,
        per_split,
        magnitude(length),
        *strides,
        **heads,
        ROWS=max(16, power_of_2(num_rows)),
        BLOCK_D=block_d,
    )
    combine_kernel[(num_pairs, num_rows)](
        partial, weight, out_BHTD, num_splits, **heads, BLOCK_P=power_of_2(num_splits), BLOCK_D=block_d
    )
    return out_BHTD


@decode_attention_op.register_fake
def _empty_like_query(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    batch, num_heads, num_new, head_dim = query.shape
    return query.new_empty((batch, num_new, num_heads, head_dim)).transpose(1, 2)


def _partial_entry(dtype: str, head_dim: int, num_new: int) -> AheadOfTime:
    pointers = {f"{name}_ptr": f"*{dtype}" for name in ("q", "k", "v")} | {
        "partial_ptr": "*fp32",
        "weight_ptr": "*fp32",
    }
    counts = dict.fromkeys(("length", "per_split", "magnitude"), "i32")
    strides = {
        f"{name}_stride_{of}": "i32" for name, last in (("q", "t"), ("k", "s"), ("v", "s")) for of in f"bh{last}"
    }
    return AheadOfTime(
        partial_kernel,
        f"{dtype} D={head_dim} T={num_new}",
        {**pointers, "scale": "fp32", **counts, **strides},
        {
            "NUM_KV": 2,
            "GROUP": 4,
            "NUM_NEW": num_new,
            "HEAD_DIM": head_dim,
            "ROWS": 16,
            "BLOCK_D": power_of_2(head_dim),
        },
        divisible=tuple(strides),
    )


AHEAD_OF_TIME = (
    *(_partial_entry(dtype, head_dim, 1) for dtype in ("fp32", "bf16") for head_dim in (64, 96)),
    _partial_entry("bf16", 64, 4),
    *(
        AheadOfTime(
            combine_kernel,
            f"{dtype} D={head_dim} P=64",
            {"partial_ptr": "*fp32", "weight_ptr": "*fp32", "out_ptr": f"*{dtype}", "num_splits": "i32"},
            {
                "NUM_KV": 2,
                "GROUP": 4,
                "NUM_NEW": 1,
                "HEAD_DIM": head_dim,
                "BLOCK_P": 64,
                "BLOCK_D": power_of_2(head_dim),
            },
        )
        for dtype in ("fp32", "bf16")
        for head_dim in (64, 96)
    ),
)
