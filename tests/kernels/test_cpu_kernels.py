"""The C++ operators against float64: shapes that do and do not fit a vector, both dtypes, one and two threads."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

if not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
    pytest.skip("the C++ kernels need a compiler", allow_module_level=True)

from kernels.cpu import build, ops
from kernels.quantized_linear import (
    Int4Embedding,
    Int4Linear,
    Int8Embedding,
    Int8Linear,
    dequantize_int4,
    dequantize_int8,
    quantize_int4,
    quantize_int8,
    unpack_int4,
)

DTYPES = (torch.float32, torch.bfloat16)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.03}


@pytest.fixture(autouse=True, params=[1, 2], ids=["one-thread", "two-threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def close(found: Tensor, expected: Tensor) -> None:
    """Relative to the largest value expected."""
    assert found.shape == expected.shape
    if found.numel():
        scale = max(1.0, expected.abs().max().item())
        assert (found.double() - expected).abs().max().item() <= TOLERANCE[found.dtype] * scale


def norm64(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x.double(), weight.shape, weight.double(), eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 3, 16), (0, 8), (7, 72), (65, 513)])
def test_norms_and_swiglu(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, other = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    weight = torch.rand(shape[-1:]).to(dtype) + 0.5
    for cast_first in (False, True):
        close(ops.rms_norm(x, weight.shape, weight, 1e-5, cast_first=cast_first), norm64(x, weight, 1e-5))
        y, total = ops.add_rms_norm(x, other, weight.shape, weight, 1e-5, cast_first=cast_first)
        assert torch.equal(total, x + other)
        close(y, norm64(total, weight, 1e-5))
    close(ops.swiglu(x, other), F.silu(x.double()) * other.double())


def test_views_are_read_as_what_they_show() -> None:
    wide, weight = torch.randn(6, 40), torch.rand(20)
    close(ops.rms_norm(wide[:, ::2], (20,), weight, 1e-6), norm64(wide[:, ::2], weight, 1e-6))
    close(ops.swiglu(wide.t()[:, :3], wide.t()[:, 3:]), F.silu(wide.t()[:, :3].double()) * wide.t()[:, 3:].double())


def test_cast_first_with_an_fp32_weight_gives_fp32() -> None:
    x, weight = torch.randn(3, 24).bfloat16(), torch.rand(24)
    assert ops.rms_norm(x, (24,), weight, 1e-5, cast_first=True).dtype == torch.float32
    assert ops.rms_norm(x, (24,), weight, 1e-5).dtype == torch.bfloat16


def test_extreme_gates() -> None:
    gate = torch.tensor([-1e30, -200.0, -88.0, 0.0, 88.0, 200.0, 1e30, float("nan")])
    found = ops.swiglu(gate, torch.ones(8))
    assert found[:7].isfinite().all() and found[7].isnan()
    assert torch.allclose(found[:7], F.silu(gate)[:7], atol=1e-35)


def test_gradients() -> None:
    x, other, weight = (torch.randn(s, requires_grad=True) for s in ((3, 20), (3, 20), (20,)))
    upstream = torch.randn(3, 20)

    def both(y: Tensor, twin: Tensor, *inputs: Tensor) -> None:
        for found, expected in zip(
            torch.autograd.grad(y, inputs, upstream), torch.autograd.grad(twin, inputs, upstream), strict=True
        ):
            assert torch.allclose(found, expected, atol=1e-5)

    both(ops.rms_norm(x, (20,), weight, 1e-5), F.rms_norm(x, (20,), weight, 1e-5), x, weight)
    y, total = ops.add_rms_norm(x, other, (20,), weight, 1e-5)
    both(y + total, F.rms_norm(x + other, (20,), weight, 1e-5) + x + other, x, other, weight)
    both(ops.swiglu(x, other), F.silu(x) * other, x, other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(8, 2, 64), (6, 1, 40), (4, 4, 8), (3, 1, 100), (10, 2, 6)]
)
def test_decode_attention(heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> None:
    for batch, length in ((1, 1), (2, 17), (1, 700)):
        q = torch.randn(batch, 1, heads, head_dim).to(dtype)
        buffers = torch.randn(2, batch, kv_heads, length + 9, head_dim).to(dtype)
        k, v = buffers[:, :, :, :length].transpose(2, 3)
        expected = F.scaled_dot_product_attention(
            *(t.double().transpose(1, 2) for t in (q, k, v)), enable_gqa=True
        ).transpose(1, 2)
        close(ops.decode_attention(q, k, v), expected)


def test_attention_survives_large_scores() -> None:
    q, k = torch.full((1, 1, 2, 16), 30.0), torch.randn(1, 5, 1, 16)
    assert ops.decode_attention(q, k * 30, k).isfinite().all()


@pytest.mark.parametrize(("N", "K"), [(1, 1), (4, 16), (5, 33), (37, 130), (64, 512), (0, 8)])
def test_linear(N: int, K: int) -> None:
    for dtype in DTYPES:
        x, w = torch.randn(2, 3, K).to(dtype), torch.randn(N, K).to(dtype)
        close(ops.linear(x, w), x.double() @ w.double().T)
    assert ops.linear(torch.randn(0, K), torch.randn(N, K)).shape == (0, N)


# --- quantised weights ---


def rounded(x_MK: Tensor, group: int) -> Tensor:
    """What the kernels make of the activations: 8 bits per group, in float64."""
    padded = F.pad(x_MK.float(), (0, -x_MK.shape[1] % group)).view(x_MK.shape[0], -1, group)
    scale = padded.abs().amax(2, keepdim=True) / 127
    q = (padded * torch.where(scale > 0, 127 / (scale * 127), 0)).round()
    return (q.double() * scale.double()).flatten(1)[:, : x_MK.shape[1]]


@pytest.mark.parametrize(("N", "K"), [(4, 64), (5, 33), (37, 200), (64, 512), (3, 1)])
def test_int8_linear(N: int, K: int) -> None:
    q, scale = quantize_int8(torch.randn(N, K))
    w = dequantize_int8(q, scale).double()
    for dtype in DTYPES:
        x = torch.randn(5, K).to(dtype)
        found = ops.int8_linear(x, q, scale)
        close(found, rounded(x, 64) @ w.T)
        assert (found.double() - x.double() @ w.T).abs().max() < 0.05 * (x.double() @ w.T).abs().max() + 0.05


@pytest.mark.parametrize(("N", "K"), [(4, 32), (5, 96), (37, 160), (64, 512)])
def test_int4_linear(N: int, K: int) -> None:
    packed, scale = quantize_int4(torch.randn(N, K))
    w = dequantize_int4(packed, scale).double()
    for dtype in DTYPES:
        x = torch.randn(5, K).to(dtype)
        close(ops.int4_linear(x, packed, scale), rounded(x, 32) @ w.T)


def test_products_of_many_rows() -> None:
    x, w = torch.randn(40, 96), torch.randn(24, 96)
    expected = x.double() @ w.double().T
    for layer, bound in ((Int8Linear, 0.02), (Int4Linear, 0.2)):
        linear = torch.nn.Linear(96, 24, bias=False)
        linear.weight.data = w
        quantised = layer.from_linear(linear)
        exact = x.double() @ quantised.weight.double().T
        assert (quantised(x).double() - exact).abs().max() < 0.02 * exact.abs().max()
        assert (quantised(x) - expected).abs().max() < bound * expected.abs().max()
        one_by_one = torch.cat([quantised(row) for row in x.split(1)])
        assert (one_by_one - quantised(x)).abs().max() < 0.02 * exact.abs().max()
        assert quantised(x.view(2, 20, 96)).shape == (2, 20, 24) and quantised(x.bfloat16()).dtype == torch.bfloat16


def test_the_packed_format_is_the_documented_one() -> None:
    weight = torch.arange(-8.0, 24.0).view(1, 32).clamp(max=7)
    packed, scale = quantize_int4(weight)
    assert packed.shape == (1, 16) and packed.dtype == torch.uint8 and scale.dtype == torch.float16
    assert scale.item() == 1 and torch.equal(unpack_int4(packed), weight.to(torch.int8))
    assert packed[0, 3].item() == (-5 + 8) | (7 + 8) << 4  # elements 3 and 19


def test_quantisation_is_as_close_as_its_step() -> None:
    w = torch.randn(8, 128) * torch.logspace(-3, 2, 8)[:, None]
    q, scale = quantize_int8(w)
    assert ((dequantize_int8(q, scale) - w).abs() <= 0.51 * scale[:, None]).all()
    packed, groups = quantize_int4(w)
    step = groups.float().abs().repeat_interleave(32, dim=1)
    # The value opposite the largest may lie half a step beyond the last level, 7.
    assert ((dequantize_int4(packed, groups) - w).abs() <= 1.01 * step).all()
    for kind in (quantize_int8, quantize_int4):
        assert not any(t.isnan().any() for t in kind(torch.zeros(2, 32)))
    assert dequantize_int4(*quantize_int4(torch.zeros(2, 32))).abs().max() == 0


def test_embeddings_give_the_dequantised_rows() -> None:
    table, ids = torch.randn(11, 64), torch.tensor([[0, 10], [3, 3]])
    q, scale = quantize_int8(table)
    assert torch.equal(Int8Embedding(q, scale, torch.float32)(ids), dequantize_int8(q, scale)[ids])
    packed, groups = quantize_int4(table)
    found = Int4Embedding(packed, groups, torch.bfloat16)(ids)
    assert torch.equal(found, dequantize_int4(packed, groups)[ids].bfloat16())
    with pytest.raises(RuntimeError, match="outside the vocabulary"):
        ops.int8_embedding(torch.tensor([11]), q, scale)


# --- what is refused ---


def test_what_does_not_fit_is_refused() -> None:
    x, weight = torch.randn(2, 8), torch.rand(8)
    with pytest.raises(RuntimeError, match="float32 or bfloat16"):
        ops.rms_norm(x.double(), (8,), weight, 1e-5)
    with pytest.raises(ValueError, match="last dimension"):
        ops.rms_norm(x, (2, 8), torch.rand(2, 8), 1e-5)
    with pytest.raises(RuntimeError, match="length of the input's last dimension"):
        ops.rms_norm(x, (7,), torch.rand(7), 1e-5)
    with pytest.raises(RuntimeError, match="one shape and dtype"):
        ops.swiglu(x, x[:1])
    with pytest.raises(RuntimeError, match="last dimension must be the weight's second"):
        ops.linear(x, torch.randn(3, 9))
    with pytest.raises(ValueError, match="multiple of 32, not 40"):
        quantize_int4(torch.randn(2, 40))
    with pytest.raises(ValueError, match="no bias"):
        Int8Linear.from_linear(torch.nn.Linear(8, 8))
    with pytest.raises(RuntimeError, match="K must divide H"):
        ops.decode_attention(torch.randn(1, 1, 3, 8), torch.randn(1, 4, 2, 8), torch.randn(1, 4, 2, 8))


def test_torch_checks_the_registrations() -> None:
    """Schemas, fake kernels and autograd, as torch.compile and export rely on them."""
    operators = ops.operators()
    tests = ("test_schema", "test_faketensor")
    x, weight = torch.randn(3, 64), torch.rand(64)
    samples = {
        "rms_norm": (x, weight, 1e-5, False),
        "add_rms_norm": (x, x.clone(), weight, 1e-5, True),
        "swiglu": (x, x.clone()),
        "linear": (x, torch.randn(5, 64)),
        "int8_linear": (x, *quantize_int8(torch.randn(5, 64))),
        "int4_linear": (x, *quantize_int4(torch.randn(5, 64))),
        "int8_embedding": (torch.tensor([1, 2]), *quantize_int8(torch.randn(5, 64))),
        "int4_embedding": (torch.tensor([1, 2]), *quantize_int4(torch.randn(5, 64))),
        "decode_attention": (torch.randn(1, 1, 4, 8), torch.randn(1, 5, 2, 8), torch.randn(1, 5, 2, 8)),
        "quantize_rows": (x,),
        "expand_int4": (*quantize_int4(torch.randn(5, 64)), True),
    }
    for name, arguments in samples.items():
        torch.library.opcheck(getattr(operators, name).default, arguments, test_utils=tests)


# --- building ---


def test_a_broken_compiler_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    false = shutil.which("false")
    assert false is not None
    monkeypatch.setattr(build, "find_compiler", lambda: false)
    with pytest.raises(RuntimeError, match="could not be compiled"):
        build.build(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_compiler_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match="need a compiler"):
        build.build()


def test_the_compilers_own_words_are_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "csrc"
    source.mkdir()
    (source / "ops.cpp").write_text("int broken = not_declared;\n")
    monkeypatch.setattr(build, "SOURCE", source)
    with pytest.raises(RuntimeError, match="not_declared"):
        build.build(tmp_path)


def test_a_library_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "csrc"
    source.mkdir()
    (source / "ops.cpp").write_text("int answer = 42;\n")
    monkeypatch.setattr(build, "SOURCE", source)
    first = build.build(tmp_path)
    monkeypatch.setattr(build, "_compile", lambda arguments: pytest.fail("compiled twice"))
    assert build.build(tmp_path) == first and first.is_file()
    (source / "ops.cpp").write_text("int answer = 43;\n")
    with pytest.raises(BaseException, match="compiled twice"):
        build.build(tmp_path)
