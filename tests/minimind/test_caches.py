"""Caches: prealloc equals cat for any chunking; sizes, limits and gradients."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minimind import MiniMindConfig, MiniMindForCausalLM
from minimind.cache import CacheError, CatCache

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
    for kind in ("cat", "prealloc"):
        cache = model.new_cache(kind=kind, batch_size=2, max_length=LENGTH + spare)
        chunks = [
            model(IDS[:, start:end], attention_mask=mask[:, :end], cache=cache).logits for start, end in pairwise(edges)
        ]
        assert cache.length == LENGTH
        results[kind] = torch.cat(chunks, dim=1)
    real = mask.bool()
    torch.testing.assert_close(results["prealloc"][real], results["cat"][real], rtol=0, atol=1e-6)
    torch.testing.assert_close(results["cat"][real], whole[real], rtol=0, atol=1e-5)


@torch.no_grad()
def test_overflow_names_max_length_and_leaves_the_cache_usable() -> None:
    model = MODELS["upstream"]
    cache = model.new_cache(kind="prealloc", batch_size=2, max_length=6)
    model(IDS[:, :5], cache=cache)
    with pytest.raises(CacheError, match="max_length 6"):
        model(IDS[:, 5:8], cache=cache)
    assert cache.length == 5
    last = model(IDS[:, 5:6], cache=cache).logits
    torch.testing.assert_close(last, model(IDS[:, :6]).logits[:, -1:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["cat", "prealloc"])
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
    with pytest.raises(CacheError, match=r"paged.*cat, prealloc"):
        model.new_cache(kind="paged")
    with pytest.raises(CacheError, match="max_length"):
        model.new_cache(kind="prealloc")
    with torch.no_grad(), pytest.raises(CacheError, match="batch_size 3, not 2"):
        model(IDS, cache=model.new_cache(kind="prealloc", batch_size=3, max_length=LENGTH))
    with pytest.raises(CacheError, match="empty"):
        CatCache(2).layer(0)
    with torch.no_grad(), pytest.raises(ValueError, match="max_position_embeddings is 32"):
        model(torch.zeros(1, 33, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\[2, 20\], not \[2, 19\]"):
        model(IDS, attention_mask=torch.ones(2, 19))


def test_a_cache_made_in_inference_mode_works_outside() -> None:
    model = MODELS["upstream"]
    with torch.inference_mode():
        cache = model.new_cache(kind="prealloc", batch_size=2, max_length=LENGTH)
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
@pytest.mark.parametrize("kind", ["cat", "prealloc"])
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
