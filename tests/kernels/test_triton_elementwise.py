"""The Triton norms, rotation and SwiGLU on a GPU: right numbers at real sizes, under torch.compile, and how fast.

Their numbers on a CPU are in interpreted/check_elementwise.py and check_qk_norm_rope.py, their registers in
test_ahead_of_time.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import reference
from kernels.add_rms_norm import triton_add_rms_norm
from kernels.qk_norm_rope import triton_qk_norm_rope
from kernels.swiglu import triton_swiglu
from kernels.triton_rms_norm import MAX_COLS, triton_rms_norm

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device; interpreted elsewhere"),
]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Function = Callable[..., Any]


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to("cuda", dtype)


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return triton_rms_norm(x, weight.shape, weight, 1e-6)


def add_norm(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return triton_add_rms_norm(x, residual, weight.shape, weight, 1e-6)


def rotation() -> tuple[Tensor, Tensor]:
    """cos and sin [T, 1, D] of 256 positions and a head_dim of 96."""
    angles = torch.outer(torch.arange(256.0), 1e4 ** (-torch.arange(48.0) / 48)).repeat(1, 2).unsqueeze(1).cuda()
    return angles.cos(), angles.sin()


def qk(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor) -> tuple[Tensor, Tensor]:
    return triton_qk_norm_rope(q, k, q_weight, k_weight, *rotation(), 1e-6)


def qk_twin(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor) -> tuple[Tensor, Tensor]:
    return reference.qk_norm_rope(q, k, q_weight, k_weight, *(table.to(q.dtype) for table in rotation()), 1e-6)


# name -> kernel, plain twin, and its arguments of one dtype
CASES: dict[str, tuple[Function, Function, Callable[[torch.dtype], tuple[Tensor, ...]]]] = {
    "norm": (
        norm,
        lambda x, w: reference.rms_norm(x, w.shape, w, 1e-6),
        lambda dtype: (draw(3000, 768, dtype=dtype), draw(768, dtype=dtype, seed=1)),
    ),
    "widest norm": (
        norm,
        lambda x, w: reference.rms_norm(x, w.shape, w, 1e-6),
        lambda dtype: (draw(33, MAX_COLS, dtype=dtype), draw(MAX_COLS, dtype=dtype, seed=1)),
    ),
    "add norm": (
        add_norm,
        lambda x, r, w: reference.add_rms_norm(x, r, w.shape, w, 1e-6),
        lambda dtype: (
            draw(999, 640, dtype=dtype), draw(999, 640, dtype=dtype, seed=2), draw(640, dtype=dtype, seed=1),
        ),
    ),
    "swiglu": (
        triton_swiglu,
        reference.swiglu,
        lambda dtype: (draw(700, 1409, dtype=dtype), draw(700, 1409, dtype=dtype, seed=1)),
    ),
    "qk": (
        qk,
        qk_twin,
        lambda dtype: (
            draw(2, 256, 8, 96, dtype=dtype), draw(2, 256, 4, 96, dtype=dtype, seed=1),
            draw(96, dtype=dtype, seed=2), draw(96, dtype=dtype, seed=3),
        ),
    ),
}  # fmt: skip


def outputs(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def assert_near(found: Tensor, exact: Tensor, roundings: float) -> None:
    """Within so many roundings of `found`'s dtype (at least 1e-5) of the largest value."""
    scale = max(1.0, exact.abs().max().item())
    tolerance = max(1e-5, roundings * torch.finfo(found.dtype).eps) * scale
    torch.testing.assert_close(found.double(), exact.double(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name: str, dtype: torch.dtype) -> None:
    kernel, twin, arguments = CASES[name]
    mine = [x.requires_grad_() for x in arguments(dtype)]
    exact = [x.detach().double().requires_grad_() for x in mine]
    found, expected = outputs(kernel(*mine)), outputs(twin(*exact))
    for ours, theirs in zip(found, expected, strict=True):
        assert_near(ours, theirs, 3)
    cotangents = [draw(*y.shape, dtype=dtype, seed=9) for y in found]
    gradients = torch.autograd.grad(found, mine, cotangents)
    truth = torch.autograd.grad(expected, exact, [g.double() for g in cotangents])
    for ours, theirs in zip(gradients, truth, strict=True):
        assert_near(ours, theirs, 4)
    again = torch.autograd.grad(outputs(kernel(*mine)), mine, cotangents)
    assert all(torch.equal(first, second) for first, second in zip(gradients, again, strict=True))


@pytest.mark.slow
def test_torch_compile_keeps_the_operators() -> None:
    """Inductor around them, no graph break, same numbers."""
    for name in ("norm", "add norm", "swiglu", "qk"):
        kernel, _, arguments = CASES[name]
        given = arguments(torch.bfloat16)
        compiled = torch.compile(kernel, fullgraph=True)
        for ours, theirs in zip(outputs(compiled(*given)), outputs(kernel(*given)), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_a_captured_graph_replays_them() -> None:
    """Tuned and compiled before the capture, as a warm-up does."""
    x, weight = draw(512, 768, dtype=torch.bfloat16), draw(768, dtype=torch.bfloat16, seed=1)
    expected = norm(x, weight)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = norm(x, weight)
    graph.replay()
    torch.testing.assert_close(captured, expected, rtol=0, atol=0)


def test_how_fast_they_are(record_property: Callable[[str, object], None]) -> None:
    """Bytes per second and milliseconds beside torch's and a copy's, with cold L2 and in a CUDA graph with hot L2, into
    the report; none is asserted. `large` leaves every cache, `small` is a prompt of 512 tokens."""
    from triton.testing import do_bench, do_bench_cudagraph

    bf16 = torch.bfloat16
    for size, rows, cols in (("large", 16384, 4096), ("small", 512, 768)):
        x, y, w = draw(rows, cols, dtype=bf16), draw(rows, cols, dtype=bf16, seed=1), draw(cols, dtype=bf16, seed=2)
        target = torch.empty_like(x)
        timed: dict[str, tuple[int, Callable[[], object]]] = {
            "copy": (2, lambda: target.copy_(x)),  # noqa: B023
            "norm native": (2, lambda: reference.rms_norm(x, (cols,), w, 1e-6)),  # noqa: B023
            "norm torch's fused": (2, lambda: F.rms_norm(x, (cols,), w, 1e-6)),  # noqa: B023
            "norm triton": (2, lambda: norm(x, w)),  # noqa: B023
            "add norm native": (4, lambda: reference.add_rms_norm(x, y, (cols,), w, 1e-6)),  # noqa: B023
            "add norm triton": (4, lambda: add_norm(x, y, w)),  # noqa: B023
            "swiglu native": (3, lambda: reference.swiglu(x, y)),  # noqa: B023
            "swiglu triton": (3, lambda: triton_swiglu(x, y)),  # noqa: B023
        }
        for name, (passes, call) in timed.items():
            cold, hot = do_bench(call), do_bench_cudagraph(call)
            assert cold > 0 and hot > 0
            rate = passes * x.nbytes / cold / 1e6
            record_property(f"{name}, {size}", {"cold L2, ms": cold, "CUDA graph, hot L2, ms": hot, "cold GB/s": rate})
            print(f"{name:20} {size} cold L2 {cold:.4f} ms ({rate:.0f} GB/s), CUDA graph with hot L2 {hot:.4f} ms")
