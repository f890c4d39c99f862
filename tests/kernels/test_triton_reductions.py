"""Cross-entropy, decode attention and quantised products in Triton: what they refuse, and how they do on a GPU.

Their numbers on a CPU are in interpreted/check_reductions.py, their registers in test_ahead_of_time.py.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.decode_attention import MAX_SPLITS, MIN_SPLIT, decode_attention, splits_of
from kernels.linear_cross_entropy import linear_cross_entropy
from kernels.quantized_linear import dequantize_int4, dequantize_int8, quantize_int4, quantize_int8
from kernels.quantized_matvec import int4_linear, int8_linear

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def calls(device: str = "cpu") -> dict[str, Callable[[], Tensor]]:
    x, w, key = (
        torch.ones(2, 32, device=device),
        torch.ones(3, 32, device=device),
        torch.ones(1, 1, 5, 8, device=device),
    )
    return {
        "linear_cross_entropy": lambda: linear_cross_entropy(
            x, w, torch.zeros(2, dtype=torch.int64, device=device), implementation="triton"
        ),
        "decode_attention": lambda: decode_attention(key[:, :, :1], key, key),
        "int8_linear": lambda: int8_linear(x, *quantize_int8(w)),
        "int4_linear": lambda: int4_linear(x, *quantize_int4(w)),
    }


@pytest.mark.parametrize("name", calls())
def test_nothing_runs_in_a_kernels_place_on_a_cpu(name: str) -> None:
    with pytest.raises(RuntimeError, match=r"needs CUDA tensors, not cpu|triton cannot be imported"):
        calls()[name]()


def test_attention_refuses_what_it_cannot_take() -> None:
    key = torch.ones(1, 2, 5, 8)
    for query, keys, said in (
        (torch.ones(1, 3, 1, 8), key, "do not fit"),
        (torch.ones(1, 4, 6, 8), key, "do not fit"),
        (torch.ones(2, 4, 1, 8), key, "do not fit"),
        (torch.ones(1, 2, 5, 8).double(), key, "one dtype"),
        (torch.ones(1, 4, 1, 8)[:, :, 0], key, "four dimensions"),
        (torch.ones(1, 132, 1, 8), key, "at most 64 rows"),
        (torch.ones(1, 2, 1, 257), torch.ones(1, 2, 5, 257), "head_dim of 256"),
        (torch.ones(1, 2, 1, 8), torch.ones(1, 2, 8, 5).transpose(2, 3), "contiguous"),
    ):
        with pytest.raises(ValueError, match=said):
            decode_attention(query, keys, keys)


def test_quantised_products_refuse_what_they_cannot_take() -> None:
    x, eight, four = torch.ones(1, 64), quantize_int8(torch.ones(3, 64)), quantize_int4(torch.ones(3, 64))
    for call, said in (
        (lambda: int8_linear(torch.ones(17, 64), *eight), "at most 16 rows"),
        (lambda: int8_linear(x[:, :32], *eight), r"x \[\.\.\., 64\]"),
        (lambda: int8_linear(x, eight[0].t().contiguous().t(), eight[1]), "contiguous matrix"),
        (lambda: int8_linear(x, eight[0].float(), eight[1]), "int8"),
        (lambda: int8_linear(x, eight[0], eight[1].half()), "fp32 scales"),
        (lambda: int4_linear(x, four[0], four[1].float()), "fp16 scales"),
        (lambda: int4_linear(x[:, :40], four[0][:, :20].contiguous(), four[1]), "groups of 32"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_splits_cover_the_context_and_fill_the_device() -> None:
    for length in (1, 63, 64, 129, 1000, 4096, 100_000):
        for num_pairs in (1, 2, 16, 500):
            num_splits, per_split = splits_of(length, num_pairs)
            assert (num_splits - 1) * per_split < length <= num_splits * per_split
            assert num_splits <= MAX_SPLITS and (num_splits == 1 or per_split >= MIN_SPLIT)
    assert splits_of(100_000, 2)[0] == MAX_SPLITS and splits_of(100_000, 500)[0] == 1


# --- on a GPU ---

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device; interpreted elsewhere")


def draw(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to("cuda", dtype)


def assert_near(found: Tensor, exact: Tensor, roundings: float) -> None:
    """Within so many roundings of `found`'s dtype (at least 1e-5) of the largest value."""
    scale = max(1.0, exact.abs().max().item())
    tolerance = max(1e-5, roundings * torch.finfo(found.dtype).eps) * scale
    torch.testing.assert_close(found.double(), exact.double(), rtol=0, atol=tolerance)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_loss_on_a_gpu(dtype: torch.dtype) -> None:
    x, w = draw(2000, 512, dtype=dtype).requires_grad_(), (0.05 * draw(6400, 512, dtype=dtype)).requires_grad_()
    target = torch.randint(0, 6400, (2000,), device="cuda")
    target[::7] = -100
    exact = [one.detach().double().requires_grad_() for one in (x, w)]
    loss, truth = (
        linear_cross_entropy(x, w, target, implementation="triton"),
        F.cross_entropy(exact[0] @ exact[1].t(), target),
    )
    assert_near(loss, truth, 4)
    for ours, theirs in zip(torch.autograd.grad(loss, (x, w)), torch.autograd.grad(truth, exact), strict=True):
        assert_near(2000 * ours, 2000 * theirs, 16)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [64, 96])
def test_attention_on_a_gpu(dim: int, dtype: torch.dtype) -> None:
    for batch, new, length in ((1, 1, 1), (4, 1, 1000), (1, 1, 8000), (2, 4, 333)):
        query = draw(batch, 8, new, dim, dtype=dtype)
        key, value = (draw(batch, 2, length + one, dim, dtype=dtype)[:, :, :length] for one in (9, 10))
        exact = F.scaled_dot_product_attention(
            query.double(),
            key.double(),
            value.double(),
            attn_mask=torch.ones(new, length, dtype=torch.bool, device="cuda").tril(length - new),
            enable_gqa=True,
        )
        assert_near(decode_attention(query, key, value), exact, 4)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_rows", [1, 2, 16])
def test_quantised_products_on_a_gpu(num_rows: int, dtype: torch.dtype) -> None:
    weight, x = draw(1408, 512, dtype=torch.float32) / 512**0.5, draw(num_rows, 512, dtype=dtype)
    eight, four = quantize_int8(weight), quantize_int4(weight)
    assert_near(int8_linear(x, *eight), x.double() @ dequantize_int8(*eight).double().t(), 4)
    assert_near(int4_linear(x, *four), x.double() @ dequantize_int4(*four).double().t(), 4)


@pytest.mark.gpu
@needs_gpu
def test_how_fast_they_are(record_property: Callable[[str, object], None]) -> None:
    """Milliseconds beside torch's, with cold L2, and in a CUDA graph with hot L2, into the report; none is asserted."""
    from triton.testing import do_bench, do_bench_cudagraph

    bf16 = torch.bfloat16
    x, w = draw(8192, 512, dtype=bf16), draw(6400, 512, dtype=bf16)
    target = torch.randint(0, 6400, (8192,), device="cuda")
    query, key = draw(1, 8, 1, 64, dtype=bf16), draw(1, 2, 4096, 64, dtype=bf16)
    weight, row = draw(2048, 768, dtype=bf16), draw(1, 768, dtype=bf16)
    eight, four = quantize_int8(weight), quantize_int4(weight)
    timed: dict[str, Callable[[], object]] = {
        "loss native": lambda: F.cross_entropy(x @ w.t(), target),
        "loss chunked": lambda: linear_cross_entropy(x, w, target),
        "loss triton": lambda: linear_cross_entropy(x, w, target, implementation="triton"),
        "attention sdpa": lambda: F.scaled_dot_product_attention(query, key, key, enable_gqa=True),
        "attention triton": lambda: decode_attention(query, key, key),
        "linear bf16": lambda: F.linear(row, weight),
        "linear int8": lambda: int8_linear(row, *eight),
        "linear int4": lambda: int4_linear(row, *four),
    }
    for name, call in timed.items():
        cold, hot = do_bench(call), do_bench_cudagraph(call)
        assert cold > 0 and hot > 0
        record_property(f"{name}, ms", {"cold L2": cold, "CUDA graph, hot L2": hot})
        print(f"{name:18} cold L2 {cold:.4f} ms, CUDA graph with hot L2 {hot:.4f} ms")
