"""Caches: every exact kind equals cat for any chunking, int8 within its error; sizes, limits, gradients, pages."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minimind import MiniMindConfig, MiniMindForCausalLM
from minimind.cache import CACHE_KINDS, CacheError, CatCache
from minimind.cache_int8 import Int8Cache, dequantize, quantize
from minimind.cache_paged import PagedCache, PagePool, pages_for

LENGTH = 20


def build(sdpa: str = "upstream", **fields: object) -> MiniMindForCausalLM:
    torch.manual_seed(0)
    values = {
        "generation": 3,
        "vocab_size": 48,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 32,
    }
    model = MiniMindForCausalLM(MiniMindConfig.from_dict(values | fields)).eval()
    model.set_attention(sdpa)
    return model


MODELS = {sdpa: build(sdpa) for sdpa in ("upstream", "fused")}
IDS = torch.randint(0, 48, (2, LENGTH), generator=torch.Generator().manual_seed(1))


@settings(max_examples=25, deadline=None)
@given(
    cuts=st.sets(st.integers(1, LENGTH - 1), max_size=6),
    sdpa=st.sampled_from(sorted(MODELS)),
    pads=st.integers(0, 4),
    spare=st.integers(0, 5),
)
@torch.no_grad()
def test_any_chunking_gives_the_logits_of_one_pass(cuts: set[int], sdpa: str, pads: int, spare: int) -> None:
    model = MODELS[sdpa]
    mask = torch.ones_like(IDS)
    mask[0, :pads] = 0
    whole = model(IDS, attention_mask=mask).logits
    edges = [0, *sorted(cuts), LENGTH]
    results = {}
    for kind in CACHE_KINDS:
        cache = model.new_cache(kind=kind, batch_size=2, max_length=LENGTH + spare)
        chunks = [
            model(IDS[:, start:end], attention_mask=mask[:, :end], cache=cache).logits for start, end in pairwise(edges)
        ]
        assert cache.length == LENGTH
        results[kind] = torch.cat(chunks, dim=1)
    real = mask.bool()
    for kind in ("prealloc", "paged"):
        torch.testing.assert_close(results[kind][real], results["cat"][real], rtol=0, atol=1e-6)
    torch.testing.assert_close(results["int8"][real], results["cat"][real], rtol=0, atol=0.02)
    assert not torch.equal(results["int8"][real], results["cat"][real])
    torch.testing.assert_close(results["cat"][real], whole[real], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["prealloc", "int8", "paged"])
@torch.no_grad()
def test_overflow_names_max_length_and_leaves_the_cache_usable(kind: str) -> None:
    model = MODELS["upstream"]
    cache = model.new_cache(kind=kind, batch_size=2, max_length=6)
    model(IDS[:, :5], cache=cache)
    with pytest.raises(CacheError, match="max_length 6"):
        model(IDS[:, 5:8], cache=cache)
    assert cache.length == 5
    last = model(IDS[:, 5:6], cache=cache).logits
    torch.testing.assert_close(last, model(IDS[:, :6]).logits[:, -1:], rtol=0, atol=0.02 if kind == "int8" else 1e-5)


@pytest.mark.parametrize("kind", ["cat", "prealloc", "paged"])
@torch.no_grad()
def test_rewound_positions_are_forgotten(kind: str) -> None:
    model = MODELS["upstream"]
    expected = model(IDS[:, :8]).logits
    cache = model.new_cache(kind=kind, batch_size=2, max_length=8)
    for keep in (3, 0):
        model(IDS[:, 10 + keep : 18 - cache.length], cache=cache)
        cache.rewind(keep)
        assert cache.length == keep and cache.used_bytes == 2 * keep * model.kv_bytes_per_token(4)
        if keep == 0:
            torch.testing.assert_close(model(IDS[:, :8], cache=cache).logits, expected, rtol=0, atol=1e-6)
    with pytest.raises(CacheError, match="cannot rewind to 9"):
        cache.rewind(9)
    cache.rewind(3)
    torch.testing.assert_close(model(IDS[:, 3:8], cache=cache).logits, expected[:, 3:], rtol=0, atol=1e-5)


def test_refusals() -> None:
    model = MODELS["upstream"]
    with pytest.raises(CacheError, match=r"ring.*cat, prealloc, int8, paged"):
        model.new_cache(kind="ring")
    for kind in ("prealloc", "int8", "paged"):
        with pytest.raises(CacheError, match=f"{kind} cache needs batch_size and max_length"):
            model.new_cache(kind=kind)
        with torch.no_grad(), pytest.raises(CacheError, match="batch_size 3, not 2"):
            model(IDS, cache=model.new_cache(kind=kind, batch_size=3, max_length=LENGTH))
    for kind in ("int8", "paged"):
        with pytest.raises(CacheError, match="no gradients flow"):
            model(IDS, cache=model.new_cache(kind=kind, batch_size=2, max_length=LENGTH))
    with pytest.raises(CacheError, match="empty"):
        model.new_cache(kind="paged", batch_size=2, max_length=LENGTH).layer(0)
    with pytest.raises(CacheError, match="empty"):
        CatCache(2).layer(0)
    with torch.no_grad(), pytest.raises(ValueError, match="max_position_embeddings is 32"):
        model(torch.zeros(1, 33, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\[2, 20\], not \[2, 19\]"):
        model(IDS, attention_mask=torch.ones(2, 19))


@pytest.mark.parametrize("kind", ["prealloc", "int8", "paged"])
def test_a_cache_made_in_inference_mode_works_outside(kind: str) -> None:
    model = MODELS["upstream"]
    with torch.inference_mode():
        cache = model.new_cache(kind=kind, batch_size=2, max_length=LENGTH)
        model(IDS[:, :4], cache=cache)
    with torch.no_grad():
        model(IDS[:, 4:], cache=cache)
    assert cache.length == LENGTH


def test_gradients_of_the_current_positions_survive_a_prealloc_cache() -> None:
    gradients = {}
    for kind in ("cat", "prealloc"):
        model = build()
        cache = model.new_cache(kind=kind, batch_size=2, max_length=LENGTH)
        with torch.no_grad():
            model(IDS[:, :10], cache=cache)
        model(IDS[:, 10:], cache=cache, labels=IDS[:, 10:]).loss.backward()
        gradients[kind] = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, gradient in gradients["cat"].items():
        torch.testing.assert_close(gradients["prealloc"][name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("generation", [2, 3])
@pytest.mark.parametrize("kind", CACHE_KINDS)
@torch.no_grad()
def test_low_precision(generation: int, kind: str) -> None:
    model = build(generation=generation)
    exact = model(IDS).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cache = model.new_cache(kind=kind, batch_size=2, max_length=LENGTH)
        parts = [model(IDS[:, :15], cache=cache).logits, model(IDS[:, 15:], cache=cache).logits]
    torch.testing.assert_close(torch.cat(parts, dim=1).float(), exact, rtol=0.1, atol=0.05)
    model.bfloat16()
    cache = model.new_cache(kind=kind, batch_size=2, max_length=LENGTH)
    parts = [model(IDS[:, :15], cache=cache).logits, model(IDS[:, 15:], cache=cache).logits]
    assert parts[0].dtype == torch.bfloat16 and cache.layer(0)[0].dtype == torch.bfloat16
    torch.testing.assert_close(torch.cat(parts, dim=1).float(), exact, rtol=0.1, atol=0.05)


# --- int8 ---


def test_an_int8_value_is_within_half_a_scale() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 3, 5, 16, generator=generator) * torch.tensor([1e-6, 1.0, 1e4]).view(1, 3, 1, 1)
    x[0, 0, 0] = 0.0
    q, scale = quantize(x)
    assert q.dtype == torch.int8 and int(q.abs().max()) == 127 and scale.shape == (2, 3, 5, 1)
    error = (q.double() * scale.double() - x.double()).abs()
    assert bool((error <= scale.double() / 2 * (1 + 1e-5)).all())
    assert torch.equal(dequantize(q, scale, torch.float32)[0, 0, 0], torch.zeros(16))


@torch.no_grad()
def test_int8_stores_each_position_once_and_takes_the_bytes_that_it_says() -> None:
    model = MODELS["upstream"]
    cache = model.new_cache(kind="int8", batch_size=2, max_length=LENGTH)
    assert isinstance(cache, Int8Cache)
    model(IDS[:, :5], cache=cache)
    before = [tensor.clone() for tensor in cache.layer(1)]
    model(IDS[:, 5:9], cache=cache)
    assert all(torch.equal(old, new[:, :5]) for old, new in zip(before, cache.layer(1), strict=True))
    head_dim = model.config.head_dim
    assert cache.nbytes == 2 * LENGTH * model.kv_bytes_per_token(1 + 4 / head_dim)
    assert cache.used_bytes == 2 * 9 * model.kv_bytes_per_token(1 + 4 / head_dim)
    exact = model.new_cache(kind="cat")
    model(IDS[:, :9], cache=exact)
    for read, true in zip(cache.layer(0), exact.layer(0), strict=True):  # layer 0 sees unharmed inputs
        assert bool(((read - true).abs() <= true.abs().amax(-1, keepdim=True) / 127 / 2 * (1 + 1e-4)).all())


# --- pages ---


def pool(num_pages: int, page_size: int = 4) -> PagePool:
    shape = {"num_key_value_heads": 2, "head_dim": 8, "dtype": torch.float32, "device": "cpu"}
    return PagePool(2, num_pages=num_pages, page_size=page_size, **shape)  # type: ignore[arg-type]


@torch.no_grad()
def test_pages_are_taken_as_the_context_grows_and_nothing_that_is_stored_moves() -> None:
    pages, model = pool(10), MODELS["upstream"]
    cache = PagedCache(pages, batch_size=2, max_length=20)
    assert cache.nbytes == 0 and pages.num_free == 10
    addresses = [buffer.data_ptr() for buffer in (*pages.keys, *pages.values)]
    for length in range(1, 10):
        stored = [buffer.clone() for buffer in pages.keys]
        model(IDS[:, length - 1 : length], cache=cache)
        assert cache.num_pages == 2 * pages_for(length, 4) == 10 - pages.num_free
        written = (pages.keys[0] != stored[0]).any(-1).any(-1)
        assert int(written.sum()) == 2, "one position of each row is written, and nothing else"
    assert addresses == [buffer.data_ptr() for buffer in (*pages.keys, *pages.values)]
    assert cache.nbytes == 6 * pages.page_bytes
    assert cache.used_bytes == 9 * 2 * model.kv_bytes_per_token(4) <= cache.nbytes
    cache.rewind(4)
    assert cache.num_pages == 2 and pages.num_free == 8
    cache.rewind(0)
    assert cache.nbytes == 0 and pages.num_free == 10


@torch.no_grad()
def test_sequences_of_one_pool_keep_apart_and_reuse_freed_pages() -> None:
    pages, model = pool(5), MODELS["upstream"]
    first, second = (PagedCache(pages, batch_size=1, max_length=20) for _ in range(2))
    expected = model(IDS).logits
    parts: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    for start in range(0, 8, 2):  # by turns, so that their pages lie among each other
        for row, cache in enumerate((first, second)):
            parts[row].append(model(IDS[row : row + 1, start : start + 2], cache=cache).logits)
    for row in (0, 1):
        torch.testing.assert_close(torch.cat(parts[row], dim=1)[0], expected[row, :8], rtol=0, atol=1e-5)
    assert pages.num_free == 1
    model(IDS[:1, 8:12], cache=first)
    with pytest.raises(CacheError, match=r"1 more pages of 4 positions are needed, but 0 of the pool's 5 are free"):
        model(IDS[1:, 8:12], cache=second)
    assert second.length == 8
    first.rewind(0)
    rest = model(IDS[1:, 8:16], cache=second).logits
    torch.testing.assert_close(rest[0], expected[1, 8:16], rtol=0, atol=1e-5)
    with pytest.raises(CacheError, match="at least one page"):
        pool(0)
