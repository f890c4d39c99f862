"""Cross-entropy, decode attention and quantised products in Triton, interpreted, against float64; started by
tests/kernels/test_interpreted.py.

NOTE: the interpreter's tl.dot is wrong for bf16, so what multiplies by it is checked in fp32 and fp16.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import kernels.decode_attention
from kernels.decode_attention import decode_attention, decode_attention_op, splits_of
from kernels.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_triton
from kernels.quantized_linear import (
    dequantize_int4,
    dequantize_int8,
    quantize_int4,
    quantize_int8,
)
from kernels.quantized_matvec import int4_linear, int4_linear_op, int8_linear, int8_linear_op

HALF = (torch.bfloat16, torch.float16)


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal numbers, the same for one seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def error(found: Tensor, exact: Tensor) -> float:
    """The largest difference."""
    assert found.shape == exact.shape
    return (found.double() - exact).abs().max().item() if found.numel() else 0.0


# --- linear_cross_entropy ---


def targets(num_rows: int, num_classes: int) -> Tensor:
    """Random classes; every third row is ignored where there are several."""
    drawn = torch.randint(0, num_classes, (num_rows,), generator=torch.Generator().manual_seed(3))
    drawn[2::3] = -100
    return drawn


def loss_and_gradients(loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, w: Tensor) -> list[Tensor]:
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    value = loss(x, w)
    return [value.detach(), *torch.autograd.grad(1.7 * value, (x, w))]


@pytest.mark.parametrize("shape", [(7, 53, 6), (4, 5003, 3), (1, 1, 5), (9, 64, 16), (30, 40, 2)], ids=str)
def test_loss_and_gradients(shape: tuple[int, int, int]) -> None:
    """5003 classes take more than one block, 30 rows of 2 values more than one chunk."""
    num_rows, num_classes, hidden = shape
    x, w, target = draw(num_rows, hidden), 3 * draw(num_classes, hidden, seed=1), targets(num_rows, num_classes)
    found = loss_and_gradients(lambda x, w: linear_cross_entropy(x, w, target, implementation="triton"), x, w)
    exact = loss_and_gradients(lambda x, w: F.cross_entropy(x @ w.t(), target), x.double(), w.double())
    assert [one.dtype for one in found] == [torch.float32] * 3
    # No worse than a few of torch's own roundings: how many those are differs from processor to processor.
    plain = loss_and_gradients(lambda x, w: F.cross_entropy(x @ w.t(), target), x, w)
    for ours, usual, theirs in zip(found, plain, exact, strict=True):
        assert error(ours, theirs) < max(1e-5, 4 * error(usual, theirs))
    with torch.no_grad():
        alone = linear_cross_entropy(x, w, target, implementation="triton")
    assert torch.equal(alone, found[0])


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_loss_in_half_precision(dtype: torch.dtype) -> None:
    """The loss is fp32; as exact as logits and gradient in `dtype` allow."""
    x, w, target = draw(7, 16, dtype=dtype), draw(53, 16, dtype=dtype, seed=1), targets(7, 53)
    found = loss_and_gradients(lambda x, w: linear_cross_entropy(x, w, target, implementation="triton"), x, w)
    exact = loss_and_gradients(lambda x, w: F.cross_entropy(x @ w.t(), target), x.double(), w.double())
    assert [one.dtype for one in found] == [torch.float32, dtype, dtype]
    assert all(
        error(ours, theirs) < 8 * torch.finfo(dtype).eps * max(1.0, theirs.abs().max().item())
        for ours, theirs in zip(found, exact, strict=True)
    )


def test_loss_of_huge_logits_and_of_a_class_that_is_none() -> None:
    x, w = torch.tensor([[1.0], [-1.0]]), torch.tensor([[3e4], [-3e4], [0.0]])
    found = linear_cross_entropy(x, w, torch.tensor([0, 0]), implementation="triton")
    assert found.item() == 3e4
    assert linear_cross_entropy(x, w, torch.tensor([0, 3]), implementation="triton").isnan()


def test_loss_with_nothing_to_learn_from() -> None:
    for num_rows in (0, 4):
        target = torch.full((num_rows,), -100)
        value, dx, dw = loss_and_gradients(
            lambda x, w, target=target: linear_cross_entropy(x, w, target, implementation="triton"),
            draw(num_rows, 3),
            draw(5, 3),
        )
        assert value.isnan() and not dx.any() and not dw.any()


def test_the_operators_meet_their_contracts() -> None:
    """Schema, fake kernel, autograd: what torch.compile and export rely on. No dynamic shapes: they only cost time."""
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    x, w = draw(4, 3).requires_grad_(), draw(5, 3).requires_grad_()
    torch.library.opcheck(linear_cross_entropy_triton, (x, w, targets(4, 5), -100, True), test_utils=tests)
    query, key = draw(1, 2, 1, 16), draw(1, 1, 3, 16)
    torch.library.opcheck(decode_attention_op, (query, key, key, 0.25), test_utils=tests)
    weight = draw(3, 32)
    torch.library.opcheck(int8_linear_op, (draw(1, 32), *quantize_int8(weight)), test_utils=tests)
    torch.library.opcheck(int4_linear_op, (draw(1, 32), *quantize_int4(weight)), test_utils=tests)


# --- decode_attention ---


def attention_error(query: Tensor, key: Tensor, value: Tensor) -> float:
    num_new, length = query.shape[2], key.shape[2]
    exact = F.scaled_dot_product_attention(
        query.double(),
        key.double(),
        value.double(),
        attn_mask=torch.ones(num_new, length, dtype=torch.bool).tril(length - num_new),
        enable_gqa=True,
    )
    found = decode_attention(query, key, value)
    assert found.dtype == query.dtype and found.transpose(1, 2).is_contiguous()
    return error(found, exact)


@pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "new", "length", "dim"),
    [
        (1, 4, 2, 1, 1, 16),
        (2, 8, 2, 1, 130, 16),  # two splits
        (1, 3, 1, 1, 70, 24),  # odd numbers of heads, dimensions that are no power of two
        (1, 2, 2, 1, 65, 8),  # no groups
        (1, 4, 2, 3, 131, 16),  # several new positions
        (1, 24, 1, 2, 5, 16),  # more rows than 16; as many new positions as cached ones, nearly
        (1, 4, 2, 3, 3, 16),  # nothing but new positions
    ],
)
def test_attention(batch: int, heads: int, kv_heads: int, new: int, length: int, dim: int) -> None:
    query = draw(batch, heads, new, dim)
    key, value = draw(batch, kv_heads, length, dim, seed=1), draw(batch, kv_heads, length, dim, seed=2)
    assert attention_error(query, key, value) < 1e-5


def test_attention_over_the_views_of_both_caches() -> None:
    """[B, K, :S, D] of a longer buffer, and [B, S, K, D] turned round; the query comes as a projection's view."""
    query = draw(2, 1, 4, 16).transpose(1, 2)
    buffers = draw(2, 2, 90, 16, seed=1), draw(2, 2, 90, 16, seed=2)
    assert attention_error(query, *(buffer[:, :, :67] for buffer in buffers)) < 1e-5
    grown = draw(2, 67, 2, 16, seed=1), draw(2, 67, 2, 16, seed=2)
    assert attention_error(query, *(one.transpose(1, 2) for one in grown)) < 1e-5
    for buffer in buffers:
        buffer[:, :, 67:] = float("nan")  # what lies behind the context is not read
    assert attention_error(query, *(buffer[:, :, :67] for buffer in buffers)) < 1e-5


def test_attention_with_a_split_that_no_row_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """With splits of two positions the first new row sees nothing of the last split."""
    monkeypatch.setattr(kernels.decode_attention, "MIN_SPLIT", 2)
    assert splits_of(8, 2) == (4, 2)
    assert attention_error(draw(1, 4, 4, 16), draw(1, 2, 8, 16, seed=1), draw(1, 2, 8, 16, seed=2)) < 1e-5


def test_attention_to_extremes() -> None:
    query, value = 1e3 * draw(1, 2, 1, 16), draw(1, 1, 70, 16, seed=2)
    assert attention_error(query, 1e3 * draw(1, 1, 70, 16, seed=1), value) < 1e-5
    assert attention_error(torch.zeros(1, 2, 1, 16), draw(1, 1, 70, 16), value) < 1e-5


def test_attention_in_fp16_and_without_sequences() -> None:
    shapes = ((1, 4, 1, 16), (1, 2, 70, 16), (1, 2, 70, 16))
    query, key, value = (draw(*shape, dtype=torch.float16, seed=place) for place, shape in enumerate(shapes))
    assert attention_error(query, key, value) < 2e-3
    assert decode_attention(query[:0], key[:0], value[:0]).shape == (0, 4, 1, 16)


# --- quantised products ---


@pytest.mark.parametrize("num_rows", [1, 3, 16])
@pytest.mark.parametrize("shape", [(5, 32), (40, 160), (33, 288)], ids=str)
def test_quantised_products(shape: tuple[int, int], num_rows: int) -> None:
    weight, x = draw(*shape) / shape[1] ** 0.5, draw(num_rows, shape[1], seed=1)
    eight, four = quantize_int8(weight), quantize_int4(weight)
    for found, exact in (
        (int8_linear(x, *eight), dequantize_int8(*eight)),
        (int4_linear(x, *four), dequantize_int4(*four)),
    ):
        assert found.dtype == torch.float32
        assert error(found, x.double() @ exact.double().t()) < 1e-5


def test_int8_takes_any_width() -> None:
    eight = quantize_int8(draw(6, 37))
    for num_rows in (1, 2):
        x = draw(num_rows, 37, seed=1)
        assert error(int8_linear(x, *eight), x.double() @ dequantize_int8(*eight).double().t()) < 1e-5


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_quantised_products_in_half_precision(dtype: torch.dtype) -> None:
    """One row is summed in fp32 and rounded once; several go through tl.dot, which the interpreter cannot in bf16."""
    weight = draw(40, 160) / 160**0.5
    eight, four = quantize_int8(weight), quantize_int4(weight)
    for num_rows in (1,) if dtype == torch.bfloat16 else (1, 2):
        x = draw(num_rows, 160, dtype=dtype, seed=1)
        for found, exact in (
            (int8_linear(x, *eight), dequantize_int8(*eight)),
            (int4_linear(x, *four), dequantize_int4(*four)),
        ):
            assert found.dtype == dtype
            assert error(found, x.double() @ exact.double().t()) < 4 * torch.finfo(dtype).eps


def test_quantised_products_of_other_layouts() -> None:
    eight = quantize_int8(draw(8, 32))
    exact = dequantize_int8(*eight).double().t()
    for x in (draw(2, 3, 32), draw(5, 64)[:, 16:48], draw(32, 3).t(), draw(32), draw(0, 32), draw(2, 0, 32)):
        assert error(int8_linear(x, *eight), x.double() @ exact) < 1e-5
