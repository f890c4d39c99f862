"""The static decode step, without a graph: it computes what a normal step computes, and reads no host value."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from minimind import MiniMindConfig, MiniMindForCausalLM
from minimind.cache import CacheError
from minimind.static_step import GraphedStep, StaticStep

IDS = torch.randint(0, 48, (2, 20), generator=torch.Generator().manual_seed(1))


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


@pytest.mark.parametrize("generation", [2, 3])
@pytest.mark.parametrize("sdpa", ["upstream", "fused"])
@pytest.mark.parametrize("use_moe", [False, True])
@torch.inference_mode()
def test_it_computes_what_a_normal_step_does(generation: int, sdpa: str, use_moe: bool) -> None:
    model = build(sdpa, generation=generation, use_moe=use_moe)
    normal, static = (model.new_cache(kind="prealloc", batch_size=2, max_length=20) for _ in range(2))
    for cache in (normal, static):
        model(IDS[:, :8], cache=cache)
    step = StaticStep(model, static)
    for place in range(8, 20):
        if place == 15:  # what was written beyond the length must not be seen
            for cache in (normal, static):
                cache.rewind(9)
        ids = IDS[:, place : place + 1]
        torch.testing.assert_close(step(ids), model(ids, cache=normal).logits, rtol=0, atol=1e-5)
        assert static.length == normal.length
    for index in range(2):
        for ours, theirs in zip(static.layer(index), normal.layer(index), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_autocast_reaches_it(dtype: torch.dtype) -> None:
    model = build()
    with torch.autocast("cpu", dtype=dtype):
        normal, static = (model.new_cache(kind="prealloc", batch_size=2, max_length=20) for _ in range(2))
        for cache in (normal, static):
            model(IDS[:, :8], cache=cache)
        ours, theirs = StaticStep(model, static)(IDS[:, 8:9]), model(IDS[:, 8:9], cache=normal).logits
    assert ours.dtype == theirs.dtype == dtype
    torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.01)


class Recorded(TorchDispatchMode):
    """Every operation with the shapes and the numbers that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        given = tree_map(lambda value: tuple(value.shape) if isinstance(value, torch.Tensor) else value, (args, kwargs))
        self.calls.append(f"{func._schema.name}{given}")
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_every_position_runs_the_same_operations_on_the_same_shapes_and_places() -> None:
    """What a graph records at one position is then right at every other: only tensors differ."""
    model = build()
    cache = model.new_cache(kind="prealloc", batch_size=2, max_length=20)
    model(IDS[:, :8], cache=cache)
    step = StaticStep(model, cache)
    addresses = [step.ids_B1.data_ptr(), step.position_1.data_ptr(), cache.buffers(0)[0].data_ptr()]
    recorded = []
    for place in (8, 9, 10):
        step.place(IDS[:, place : place + 1])
        with Recorded() as mode:
            step.compute()
        cache.advance(1)
        recorded.append(mode.calls)
    assert recorded[0] == recorded[1] == recorded[2] and len(recorded[0]) > 40
    assert not [call for call in recorded[0] if "_local_scalar_dense" in call or "nonzero" in call]
    assert addresses == [step.ids_B1.data_ptr(), step.position_1.data_ptr(), cache.buffers(0)[0].data_ptr()]


@torch.no_grad()
def test_computing_a_position_twice_changes_nothing() -> None:
    """The warm-up before a capture does that."""
    model = build()
    once, often = (model.new_cache(kind="prealloc", batch_size=2, max_length=20) for _ in range(2))
    results = []
    for cache, times in ((once, 1), (often, 4)):
        model(IDS[:, :8], cache=cache)
        step = StaticStep(model, cache)
        step.place(IDS[:, 8:9])
        results.append([step.compute() for _ in range(times)][-1])
    assert torch.equal(*results)


@torch.no_grad()
def test_refusals() -> None:
    model = build()
    with pytest.raises(CacheError, match="needs a prealloc cache, not paged"):
        StaticStep(model, model.new_cache(kind="paged", batch_size=2, max_length=8))
    with pytest.raises(ValueError, match="max_position_embeddings, 32"):
        StaticStep(model, model.new_cache(kind="prealloc", batch_size=2, max_length=33))
    cache = model.new_cache(kind="prealloc", batch_size=2, max_length=8)
    model(IDS[:, :8], cache=cache)
    step = StaticStep(model, cache)
    with pytest.raises(CacheError, match="max_length 8"):
        step(IDS[:, 8:9])
    cache.rewind(7)
    with pytest.raises(CacheError, match=r"\[2, 1\], not \[1, 1\]"):
        step(IDS[:1, 7:8])
    assert cache.length == 7 and step(IDS[:, 7:8]).shape == (2, 1, 48) and cache.length == 8
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="need a CUDA device"):
            GraphedStep(model, cache)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a CUDA device")
@pytest.mark.parametrize("generation", [2, 3])
@pytest.mark.parametrize("autocast", [False, True])
@torch.inference_mode()
def test_a_replayed_graph_computes_the_same(generation: int, autocast: bool) -> None:
    model = build(generation=generation).to("cuda")
    ids = IDS.to("cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast):
        normal, graphed = (model.new_cache(kind="prealloc", batch_size=2, max_length=20) for _ in range(2))
        for cache in (normal, graphed):
            model(ids[:, :8], cache=cache)
        step = GraphedStep(model, graphed)
        pairs = [(step(new), model(new, cache=normal).logits) for new in ids[:, 8:].split(1, dim=1)]
    assert step.replays == 12 and graphed.length == 20
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.02 if autocast else 1e-4)
