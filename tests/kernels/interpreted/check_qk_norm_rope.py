"""Query and key norm with rotation, interpreted, against float64; started by tests/kernels/test_interpreted.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import kernels.qk_norm_rope
from kernels import reference
from kernels.qk_norm_rope import qk_norm_rope_operator, triton_qk_norm_rope, triton_qk_rope
from minimind import MiniMindConfig
from minimind.attention import Attention
from minimind.rope import RotaryTables, rotate, rotate_and_cast

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# (B, T, H, K, D): one head each, odd numbers, a decode step, MiniMind-3's heads, and two empty batches.
SHAPES = ((1, 1, 1, 1, 2), (2, 3, 5, 2, 6), (2, 1, 4, 2, 16), (1, 2, 8, 4, 96), (0, 3, 2, 1, 8), (2, 0, 2, 1, 8))


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def tables(length: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin of positions 3, 4, ...; the two halves of a row differ, so that mixing them up would show."""
    angles = (torch.arange(length).float() + 3)[:, None] / 7 ** (torch.arange(head_dim).float() / head_dim)
    return angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """q, k, and their norms' weights."""
    batch, length, num_q, num_k, head_dim = shape
    return (
        draw(batch, length, num_q, head_dim, dtype=dtype),
        draw(batch, length, num_k, head_dim, dtype=dtype, seed=1),
        draw(head_dim, dtype=dtype, seed=2),
        draw(head_dim, dtype=dtype, seed=3),
    )


def assert_near(found: tuple[Tensor, ...], exact: tuple[Tensor, ...], ulps: int) -> None:
    """fp32: within 1e-5 of float64. Below: so many units in the last place of the largest values that take part."""
    for ours, theirs in zip(found, exact, strict=True):
        assert ours.shape == theirs.shape and ours.is_contiguous()
        if ours.numel():
            scale = max(theirs.abs().max().item(), 1.0)
            tolerance = 1e-5 if ours.dtype == torch.float32 else ulps * torch.finfo(ours.dtype).eps * scale
            assert (ours.double() - theirs.double()).abs().max().item() < tolerance


def assert_gradients_near(
    ours: Callable[..., tuple[Tensor, ...]], twin: Callable[..., tuple[Tensor, ...]], tensors: tuple[Tensor, ...],
    tolerance: float = 1e-5,
) -> None:  # fmt: skip
    mine = [tensor.detach().requires_grad_() for tensor in tensors]
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    found, expected = ours(*mine), twin(*exact)
    cotangents = [draw(*y.shape, dtype=y.dtype, seed=5 + place) for place, y in enumerate(found)]
    torch.autograd.backward(found, cotangents)
    torch.autograd.backward(expected, [g.double() for g in cotangents])
    for our, their in zip(mine, exact, strict=True):
        assert our.grad is not None and their.grad is not None and our.grad.dtype == our.dtype
        if our.numel():
            scale = max(their.grad.abs().max().item(), 1.0)
            assert (our.grad.double() - their.grad).abs().max().item() < tolerance * scale


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norm_and_rotation(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    given, rotation = inputs(shape, dtype), tables(shape[1], shape[4])
    found = triton_qk_norm_rope(*given, *rotation, 1e-6)
    assert {x.dtype for x in found} == {dtype}
    exact = reference.qk_norm_rope(*(x.double() for x in (*given, *rotation)), 1e-6)
    assert_near(found, exact, ulps=3)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rotation_alone_has_the_promoted_dtype(shape: tuple[int, ...]) -> None:
    """MiniMind2 rotates bf16 by fp32 tables under autocast, and the result is fp32."""
    for dtype, table_dtype in ((torch.float32,) * 2, (torch.bfloat16,) * 2, (torch.bfloat16, torch.float32)):
        q, k, *_ = inputs(shape, dtype)
        rotation = [x.to(table_dtype) for x in tables(shape[1], shape[4])]
        found = triton_qk_rope(q, k, *rotation)
        assert {x.dtype for x in found} == {table_dtype}
        assert_near(found, reference.qk_rope(*(x.double() for x in (q, k, *rotation))), ulps=2)


def assert_both_gradients_near(given: tuple[Tensor, ...], cos: Tensor, sin: Tensor, tolerance: float = 1e-5) -> None:
    """With the norm and without."""
    twin_tables = cos.double(), sin.double()
    assert_gradients_near(
        lambda *x: triton_qk_norm_rope(*x, cos, sin, 1e-6),
        lambda *x: reference.qk_norm_rope(*x, *twin_tables, 1e-6),
        given,
        tolerance,
    )
    assert_gradients_near(
        lambda *x: triton_qk_rope(*x, cos, sin), lambda *x: reference.qk_rope(*x, *twin_tables), given[:2], tolerance
    )


def test_any_strides() -> None:
    """Heads inside a fused projection, as they lie; and what can only be copied."""
    fused = draw(2, 3, 7 * 6)
    q, k = fused[..., :24].unflatten(-1, (4, 6)), fused[..., 24:36].unflatten(-1, (2, 6))
    weights = draw(12, seed=2)[::2], draw(6, 2, seed=3)[:, 1]
    cos, sin = (x.expand(3, 1, 6) for x in tables(1, 6))
    swapped = draw(2, 4, 3, 6).transpose(1, 2), draw(2, 6, 2, 3).permute(0, 3, 2, 1)
    for pair in ((q, k), swapped):
        found = triton_qk_norm_rope(*pair, *weights, cos, sin, 1e-6)
        assert_near(found, reference.qk_norm_rope(*(x.double() for x in (*pair, *weights, cos, sin)), 1e-6), ulps=1)
        assert_both_gradients_near((*pair, *weights), cos, sin)


@pytest.mark.parametrize("programs", [1, 4, 512])
def test_gradients(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few programs have to take several tokens each."""
    monkeypatch.setattr(kernels.qk_norm_rope, "MAX_PROGRAMS", programs)
    for shape in ((2, 5, 3, 2, 6), (1, 2, 8, 4, 96), (0, 3, 2, 1, 8)):
        assert_both_gradients_near(inputs(shape), *tables(shape[1], shape[4]))


def test_gradients_in_half_precision() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        assert_both_gradients_near(inputs((2, 5, 3, 2, 6), dtype), *tables(5, 6), tolerance=3 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("generation", [2, 3])
def test_it_is_what_the_models_attention_does(generation: int) -> None:
    """Against the model's own norm modules and rotation, with the model's own tables."""
    shape = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = MiniMindConfig.from_dict({"generation": generation, **shape})
    attention = Attention(config, 0, lambda q, k, v, visibility, dropout_p: q)
    rotation = RotaryTables(config)(5, 3)
    q, k = draw(2, 3, 4, config.head_dim), draw(2, 3, 2, config.head_dim, seed=1)
    turn = rotate if generation == 2 else rotate_and_cast
    expected = turn(attention.q_norm(q), *rotation), turn(attention.k_norm(k), *rotation)
    if generation == 2:
        found = triton_qk_rope(q, k, *rotation)
    else:
        weights = attention.q_norm.weight, attention.k_norm.weight
        found = triton_qk_norm_rope(q, k, *weights, *rotation, config.rms_norm_eps)
    assert_near(found, expected, ulps=1)


@pytest.mark.parametrize("normed", [True, False])
def test_torch_accepts_the_registration(normed: bool) -> None:
    q, k, *weights = (x.requires_grad_() for x in inputs((2, 3, 3, 2, 6)))
    arguments = (q, k, *(weights if normed else (None, None)), *tables(3, 6), 1e-6)
    torch.library.opcheck(qk_norm_rope_operator, arguments)


@pytest.mark.parametrize(("change", "message"), [
    ({"q": draw(2, 3, 4, 7), "k": draw(2, 3, 2, 7)}, r"tables \[T, 1, D\] with an even D"),
    ({"k": draw(2, 4, 2, 6)}, r"q \[B, T, H, D\] and k \[B, T, K, D\] of one dtype"),
    ({"k": draw(2, 3, 2, 6).bfloat16()}, "of one dtype"),
    ({"cos": draw(3, 6)}, r"tables \[T, 1, D\]"),
    ({"sin": draw(2, 1, 6)}, r"tables \[T, 1, D\]"),
    ({"q_weight": draw(5)}, r"weight \(5,\) for head_dim 6"),
    ({"q": draw(1, 3, 2000, 6), "k": draw(1, 3, 2, 6)}, "more heads and columns than registers hold"),
    ({"q": draw(2, 3, 4, 6).double(), "k": draw(2, 3, 2, 6).double()}, "not torch.float64"),
])  # fmt: skip
def test_refusals_say_why(change: dict[str, Any], message: str) -> None:
    q, k, q_weight, k_weight = inputs((2, 3, 4, 2, 6))
    cos, sin = tables(3, 6)
    given = {"q": q, "k": k, "q_weight": q_weight, "k_weight": k_weight, "cos": cos, "sin": sin} | change
    with pytest.raises(ValueError, match=message):
        triton_qk_norm_rope(*given.values(), 1e-6)
