"""The Triton norms and SwiGLU, interpreted, against float64; started by tests/kernels/test_interpreted.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import kernels.triton_rms_norm
from kernels import reference
from kernels._triton import within_registers
from kernels.add_rms_norm import add_rms_norm_operator, triton_add_rms_norm
from kernels.swiglu import swiglu_operator, triton_swiglu
from kernels.triton_rms_norm import MAX_COLS, rms_norm_forward_kernel, rms_norm_operator, triton_rms_norm

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((3, 33), (2, 5, 16), (9, 100), (1, 1), (17, 64), (0, 8), (2, 0, 8))
Function = Callable[..., Any]


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal numbers, the same for one seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def wide(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies in float64 that want gradients."""
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


def outputs(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def assert_near(found: Tensor, exact: Tensor, roundings: int = 1) -> None:
    """fp32: within 1e-5 of float64. Below: within so many roundings of it; the interpreter truncates, so 1 ulp each."""
    assert found.shape == exact.shape and found.is_contiguous()
    if found.dtype == torch.float32:
        assert (found.double() - exact).abs().max().item() < 1e-5 if found.numel() else True
    else:
        ulp = torch.finfo(found.dtype).eps
        torch.testing.assert_close(found.double(), exact, rtol=roundings * ulp, atol=roundings * ulp / 8)


def assert_gradients_near(ours: Function, twin: Function, tensors: Sequence[Tensor], tolerance: float = 1e-5) -> None:
    """Random cotangents through the kernel, and through the twin in float64; compared relative to the largest entry."""
    mine = [tensor.detach().requires_grad_() for tensor in tensors]
    exact = wide(tensors)
    found, expected = outputs(ours(*mine)), outputs(twin(*exact))
    cotangents = [draw(*y.shape, dtype=y.dtype, seed=7 + place) for place, y in enumerate(found)]
    torch.autograd.backward(found, cotangents)
    torch.autograd.backward(expected, [g.double() for g in cotangents])
    for our, their in zip(mine, exact, strict=True):
        assert our.grad is not None and their.grad is not None
        assert our.grad.dtype == our.dtype and our.grad.shape == our.shape
        if our.numel():
            scale = max(their.grad.abs().max().item(), 1.0)
            assert (our.grad.double() - their.grad).abs().max().item() < tolerance * scale


def norm_twin(x: Tensor, weight: Tensor, *, cast_first: bool, eps: float = 1e-5) -> Tensor:
    plain = reference.rms_norm_cast_first if cast_first else reference.rms_norm
    return plain(x, weight.shape, weight, eps)


def norm(x: Tensor, weight: Tensor, *, cast_first: bool, eps: float = 1e-5) -> Tensor:
    return triton_rms_norm(x, weight.shape, weight, eps, cast_first=cast_first)


# --- rms_norm ---


@pytest.mark.parametrize("cast_first", [False, True], ids=["minimind3", "minimind2"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norm(shape: tuple[int, ...], dtype: torch.dtype, cast_first: bool) -> None:
    x, weight = draw(*shape, dtype=dtype), draw(shape[-1], dtype=dtype, seed=1)
    found = norm(x, weight, cast_first=cast_first)
    assert found.dtype == dtype
    assert_near(found, norm_twin(x.double(), weight.double(), cast_first=cast_first), 2 if cast_first else 1)


def test_norm_with_an_fp32_weight_has_the_dtype_of_its_generation() -> None:
    """Autocast leaves the weights in fp32: MiniMind2's norm then returns fp32, MiniMind-3's the input's dtype."""
    x, weight = draw(4, 24, dtype=torch.bfloat16), draw(24, seed=1)
    for cast_first, dtype in ((False, torch.bfloat16), (True, torch.float32)):
        found, twin = norm(x, weight, cast_first=cast_first), norm_twin(x, weight, cast_first=cast_first)
        assert found.dtype == twin.dtype == dtype
        torch.testing.assert_close(found, twin, rtol=2**-7, atol=2**-10)


@pytest.mark.parametrize("lay_out", [
    lambda: draw(6, 50)[:, 3:36],                     # rows of a wider tensor, as they lie
    lambda: draw(6, 66)[:, ::2],                      # a last stride of 2 is copied
    lambda: draw(33, 6).t(),
    lambda: draw(1, 33).expand(5, 33),                # rows on top of each other
    lambda: draw(2, 33, 3).transpose(1, 2),
    lambda: draw(2, 4, 3, 33)[:, ::2],
])  # fmt: skip
def test_norm_of_any_strides(lay_out: Callable[[], Tensor]) -> None:
    x, weight = lay_out(), draw(33, seed=1)
    assert_near(norm(x, weight, cast_first=False), norm_twin(x.double(), weight.double(), cast_first=False))
    assert_gradients_near(
        lambda x, w: norm(x, w, cast_first=False), lambda x, w: norm_twin(x, w, cast_first=False), (x, weight)
    )


def test_norm_takes_what_torch_takes() -> None:
    x = draw(3, 4, 6)
    for shape, weight, eps in (((4, 6), None, None), ((4, 6), draw(4, 6, seed=1), 1e-6), ((6,), None, 1e-3)):
        exact = torch.nn.functional.rms_norm(
            x.double(),
            shape,
            None if weight is None else weight.double(),
            torch.finfo(torch.float32).eps if eps is None else eps,
        )
        assert_near(triton_rms_norm(x, shape, weight, eps), exact)


def test_norm_of_tiny_and_huge_rows_stays_finite() -> None:
    x = torch.tensor([[0.0, 0.0, 0.0], [1e-20, -1e-20, 1e-20], [1e18, -1e18, 1e18]])
    found = norm(x, torch.ones(3), cast_first=False, eps=1e-6)
    assert_near(found, norm_twin(x.double(), torch.ones(3).double(), cast_first=False, eps=1e-6))


@pytest.mark.parametrize("programs", [1, 2, 512])
@pytest.mark.parametrize("cast_first", [False, True], ids=["minimind3", "minimind2"])
def test_gradients_of_norm(cast_first: bool, programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few programs have to take several groups of rows each."""
    monkeypatch.setattr(kernels.triton_rms_norm, "MAX_PROGRAMS", programs)
    for shape in ((70, 100), (2, 3, 33), (0, 8), (5, 1)):
        assert_gradients_near(
            lambda x, w: norm(x, w, cast_first=cast_first),
            lambda x, w: norm_twin(x, w, cast_first=cast_first),
            (draw(*shape), draw(shape[-1], seed=1)),
        )


def test_gradients_of_norm_in_half_precision() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        tensors = (draw(5, 33, dtype=dtype), draw(33, dtype=dtype, seed=1))
        assert_gradients_near(
            lambda x, w: norm(x, w, cast_first=False),
            lambda x, w: norm_twin(x, w, cast_first=False),
            tensors,
            tolerance=2 * torch.finfo(dtype).eps,
        )


def test_the_weights_gradient_is_the_same_every_time() -> None:
    x, weight = draw(300, 33), draw(33, seed=1).requires_grad_()
    first, second = (torch.autograd.grad(norm(x, weight, cast_first=False).square().sum(), weight)[0] for _ in range(2))
    assert torch.equal(first, second)


# --- add_rms_norm ---


def add_norm(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return triton_add_rms_norm(x, residual, weight.shape, weight, 1e-5)


def add_norm_twin(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return reference.add_rms_norm(x, residual, weight.shape, weight, 1e-5)


@pytest.mark.parametrize("cast_first", [False, True], ids=["minimind3", "minimind2"])
@pytest.mark.parametrize("dtypes", [*((d, d) for d in DTYPES), (torch.bfloat16, torch.float32)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_add_norm(shape: tuple[int, ...], dtypes: tuple[torch.dtype, torch.dtype], cast_first: bool) -> None:
    x, residual = draw(*shape, dtype=dtypes[0]), draw(*shape, dtype=dtypes[1], seed=2)
    weight = draw(shape[-1], dtype=dtypes[0], seed=1)
    normed, total = triton_add_rms_norm(x, residual, weight.shape, weight, 1e-5, cast_first=cast_first)
    assert normed.dtype == total.dtype == x.dtype
    assert_near(total, x.double() + residual.double())
    # The norm is that of the rounded sum.
    assert_near(normed, norm_twin(total.double(), weight.double(), cast_first=cast_first), 2 if cast_first else 1)


@pytest.mark.parametrize("shape", [(70, 33), (2, 3, 16), (0, 8)], ids=str)
def test_gradients_of_add_norm(shape: tuple[int, ...]) -> None:
    tensors = (draw(*shape), draw(*shape, seed=2), draw(shape[-1], seed=1))
    assert_gradients_near(add_norm, add_norm_twin, tensors)
    # One output alone, as at the model's end, where nobody uses the sum.
    assert_gradients_near(lambda *given: add_norm(*given)[0], lambda *given: add_norm_twin(*given)[0], tensors)


def test_gradients_of_add_norm_in_mixed_precision() -> None:
    tensors = (draw(5, 33, dtype=torch.bfloat16), draw(5, 33, seed=2), draw(33, seed=1))
    assert_gradients_near(add_norm, add_norm_twin, tensors, tolerance=2**-6)


def test_add_norm_of_any_strides() -> None:
    wide_x = draw(2, 4, 80)
    tensors = (wide_x[:, ::2, 5:38], wide_x[:, 1::2, 40:73].flip(0), draw(66, seed=1)[::2])
    for found, exact in zip(add_norm(*tensors), add_norm_twin(*(t.double() for t in tensors)), strict=True):
        assert_near(found, exact)
    assert_gradients_near(add_norm, add_norm_twin, tensors)


# --- swiglu ---


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 1500)], ids=str)
def test_swiglu(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    gate, up = 3 * draw(*shape, dtype=dtype), draw(*shape, dtype=dtype, seed=1)
    found = triton_swiglu(gate, up)
    assert found.dtype == dtype
    assert_near(found, reference.swiglu(gate.double(), up.double()), 2)


@pytest.mark.filterwarnings("ignore:.*overflow encountered in exp")  # the interpreter's numpy; a GPU has inf there
def test_swiglu_of_large_numbers_is_right() -> None:
    gate = torch.tensor([-200.0, -88.8, -20.0, 0.0, 20.0, 88.8, 200.0])
    assert_near(triton_swiglu(gate, torch.ones(7)), reference.swiglu(gate.double(), torch.ones(7).double()))


def test_swiglu_takes_both_halves_of_one_projection() -> None:
    fused = draw(2, 3, 66)
    tensors = tuple(fused.chunk(2, dim=-1))
    assert_near(triton_swiglu(*tensors), reference.swiglu(*(t.double() for t in tensors)))
    assert_gradients_near(triton_swiglu, reference.swiglu, tensors)
    assert_gradients_near(triton_swiglu, reference.swiglu, (draw(33, 6).t(), draw(1, 33).expand(6, 33)))


@pytest.mark.parametrize("shape", [(5, 33), (2, 0, 8), (1100,)], ids=str)
def test_gradients_of_swiglu(shape: tuple[int, ...]) -> None:
    assert_gradients_near(triton_swiglu, reference.swiglu, (3 * draw(*shape), draw(*shape, seed=1)))


# --- registration ---


OPERATORS: dict[str, tuple[Any, Callable[[], tuple[Any, ...]]]] = {
    "rms_norm": (rms_norm_operator, lambda: (draw(3, 33), draw(33, seed=1), 1e-5, False)),
    "rms_norm cast first": (
        rms_norm_operator,
        lambda: (draw(3, 16, dtype=torch.bfloat16), draw(16, seed=1), 1e-5, True),
    ),
    "add_rms_norm": (add_rms_norm_operator, lambda: (draw(3, 33), draw(3, 33, seed=2), draw(33, seed=1), 1e-5, True)),
    "swiglu": (swiglu_operator, lambda: (draw(3, 33), draw(3, 33, seed=1))),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_torch_accepts_the_registration(name: str) -> None:
    """Schema, shapes without data, autograd, and tracing with symbolic sizes: torch's own check."""
    operator, arguments = OPERATORS[name]
    given = [a.requires_grad_() if isinstance(a, Tensor) else a for a in arguments()]
    torch.library.opcheck(operator, tuple(given))


class Chain(torch.nn.Module):
    """All three operators in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(draw(33, seed=1))

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        normed, total = triton_add_rms_norm(x, residual, (33,), self.weight, 1e-5)
        return triton_rms_norm(triton_swiglu(normed, total), (33,), self.weight, 1e-5)


def test_compiling_and_exporting_see_the_operators() -> None:
    chain, x, residual = Chain(), draw(4, 33), draw(4, 33, seed=2)
    expected = chain(x, residual)
    compiled = torch.compile(chain, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, residual), expected, rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(compiled(x, residual).sum(), chain.weight)
    (eager,) = torch.autograd.grad(expected.sum(), chain.weight)
    torch.testing.assert_close(gradient, eager)
    rows = torch.export.Dim("rows", min=2, max=64)
    program = torch.export.export(chain, (x, residual), dynamic_shapes=({0: rows}, {0: rows}))
    names = {node.target.name() for node in program.graph.nodes if hasattr(node.target, "name")}
    assert {"minimind_bench::add_rms_norm", "minimind_bench::swiglu", "minimind_bench::rms_norm"} <= names
    other = draw(7, 33), draw(7, 33, seed=2)
    torch.testing.assert_close(program.module()(*other), chain(*other))


# --- configurations ---


@pytest.mark.parametrize("rows", [1, 2, 16])
def test_every_number_of_rows_per_program_gives_the_same(rows: int) -> None:
    """The interpreter takes one configuration, a GPU whichever is fastest."""
    x, weight, y = draw(7, 33), draw(33, seed=1), torch.empty(7, 33)
    kernel = rms_norm_forward_kernel.fn
    kernel[(-(-7 // rows),)](x, weight, y, 33, 7, 1, 1e-5, E=33, BLOCK=64, CAST_FIRST=False, R=rows)
    assert_near(y, norm_twin(x.double(), weight.double(), cast_first=False))


def test_what_registers_cannot_hold_is_not_tried() -> None:
    """16 rows of 8192 columns would be 1024 values per thread of four warps."""
    configs = [
        SimpleNamespace(kwargs={"R": rows}, num_warps=warps) for rows, warps in ((1, 4), (1, 8), (2, 16), (16, 4))
    ]
    sizes = {"E": 8000, "BLOCK": 8192}
    assert within_registers(("R", "BLOCK"), 32, configs, {}, **sizes) == configs[1:3]
    assert within_registers(("R", "BLOCK"), 1, configs, {}, **sizes) == [configs[1]]
    assert within_registers(("R", "BLOCK"), 32, configs, {}, **sizes | {"BLOCK": 64}) == configs


# --- refusals ---


@pytest.mark.parametrize(("call", "message"), [
    (lambda: triton_rms_norm(draw(2, 8), (7,)), r"normalized_shape \(7,\) does not fit input \(2, 8\)"),
    (lambda: triton_rms_norm(draw(2, 8), ()), "does not fit"),
    (lambda: triton_rms_norm(draw(2, 8), (8,), draw(4)), r"weight \(4,\)"),
    (lambda: triton_rms_norm(draw(2, 8).double(), (8,)), "takes float32, bfloat16 or float16, not torch.float64"),
    (lambda: triton_rms_norm(draw(1, MAX_COLS + 1), (MAX_COLS + 1,)), "1 to 8192 values at a time"),
    (lambda: triton_rms_norm(draw(3, 0), (0,)), "1 to 8192 values at a time, not 0"),
    (lambda: triton_add_rms_norm(draw(2, 8), draw(1, 8), (8,)), "must be equal shapes"),
    (lambda: triton_swiglu(draw(2, 8), draw(8)), "must be equal shapes"),
    (lambda: triton_swiglu(draw(2, 8).long(), draw(2, 8)), "not torch.int64"),
])  # fmt: skip
def test_refusals_say_why(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
