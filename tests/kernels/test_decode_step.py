"""The C++ decode step against the model's own modules, token by token."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

if not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
    pytest.skip("the C++ kernels need a compiler", allow_module_level=True)

from kernels.cpu import ops
from kernels.decode_step import DecodeStep
from kernels.quantized_linear import Int4Embedding, Int4Linear, Int8Embedding, Int8Linear
from minimind import MiniMindConfig, MiniMindForCausalLM
from minimind.attention import convert_heads
from minimind.cache import KeyValueCache

PROMPT, STEPS, VOCAB = 9, 4, 203


@pytest.fixture(autouse=True, params=[1, 2], ids=["one-thread", "two-threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    with torch.inference_mode():
        yield
    torch.set_num_threads(before)


def small(generation: int, **fields: Any) -> MiniMindForCausalLM:
    """Three layers whose logits spread by about one, so that a tolerance means something."""
    torch.manual_seed(7)
    shape = {"vocab_size": VOCAB, "hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6}
    config = MiniMindConfig.from_dict({"generation": generation, **shape, "num_key_value_heads": 2, **fields})
    with torch.inference_mode(False):
        model = MiniMindForCausalLM(config).eval()
        for _, weight in model.named_parameters():
            if weight.ndim == 1:
                nn.init.uniform_(weight, 0.5, 1.5)
            else:
                nn.init.normal_(weight, std=0.1)
            weight.requires_grad_(False)
    return model


def quantised(model: MiniMindForCausalLM, kind: str) -> MiniMindForCausalLM:
    linear: Any = {"int8": Int8Linear, "int4": Int4Linear}[kind]
    embedding: Any = {"int8": Int8Embedding, "int4": Int4Embedding}[kind]
    table = nn.Linear(1, 1, bias=False)
    table.weight = model.model.embed_tokens.weight
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            model.set_submodule(path, linear.from_linear(module))
    model.model.embed_tokens = embedding(*linear.from_linear(table).buffers(), torch.float32)
    return model


def cache_of(model: MiniMindForCausalLM, ids: Tensor, length: int, dtype: torch.dtype) -> KeyValueCache:
    cache = model.new_cache("prealloc", ids.shape[0], length, dtype=dtype)
    model(ids, cache=cache)
    return cache


def largest_difference(model: MiniMindForCausalLM, *, batch: int = 1, prompt: int = PROMPT) -> float:
    """Over STEPS tokens after a prompt; both caches are filled by the modules."""
    dtype = model.model.norm.weight.dtype
    ids = torch.randint(0, VOCAB, (batch, prompt + STEPS), generator=torch.Generator().manual_seed(1))
    ours, theirs = (cache_of(model, ids[:, :prompt], prompt + STEPS, dtype) for _ in range(2))
    step, worst = DecodeStep(model), 0.0
    for token in ids[:, prompt:].split(1, dim=1):
        expected = model(token, cache=theirs).logits
        found = step(token, ours)
        assert found.shape == expected.shape == (batch, 1, VOCAB) and found.dtype == expected.dtype
        assert ours.length == theirs.length and expected.std() > 0.3
        worst = max(worst, (found.float() - expected.float()).abs().max().item())
    assert step.num_steps == STEPS
    for layer in range(3):
        for mine, other in zip(ours.layer(layer), theirs.layer(layer), strict=True):
            assert (mine.float() - other.float()).abs().max() < max(4 * worst, 1e-5)
    return worst


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("generation", [2, 3])
def test_fp32_equals_the_modules(generation: int, batch: int) -> None:
    assert largest_difference(small(generation), batch=batch) < 2e-5


@pytest.mark.parametrize("fields", [
    {"num_key_value_heads": 1}, {"num_key_value_heads": 6}, {"num_key_value_heads": 3}, {"head_dim": 40},
    {"tie_word_embeddings": False}, {"hidden_act": "gelu"}, {"hidden_act": "gelu_pytorch_tanh"},
    {"hidden_act": "relu"}, {"hidden_size": 90, "head_dim": 22, "intermediate_size": 101}, {"num_hidden_layers": 3,
    "inference_rope_scaling": True},
], ids=str)  # fmt: skip
def test_shapes_and_fields(fields: dict[str, Any]) -> None:
    assert largest_difference(small(3, **fields), batch=2) < 2e-5


@pytest.mark.parametrize("num_key_value_heads", [6, 1])
def test_converted_heads(num_key_value_heads: int) -> None:
    model = small(2)
    config, weights = convert_heads(model.config, model.state_dict(), num_key_value_heads)
    with torch.inference_mode(False):
        converted = MiniMindForCausalLM(config).eval()
        converted.load_state_dict(weights)
    assert largest_difference(converted, batch=2) < 2e-5


@pytest.mark.parametrize("generation", [2, 3])
def test_bf16_is_near_the_modules(generation: int) -> None:
    assert largest_difference(small(generation).to(torch.bfloat16), batch=2) < 0.15


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("generation", [2, 3])
def test_quantised_weights(generation: int, kind: str) -> None:
    """The same kernels in the same order; a rounding that falls the other way shows as one step of 8 bits."""
    model = quantised(small(generation), kind)
    assert largest_difference(model, batch=2) < 0.1
    assert model.lm_head.weight.shape == (VOCAB, 96)


def test_quantised_and_untied_in_bf16() -> None:
    model = quantised(small(3, tie_word_embeddings=False).to(torch.bfloat16), "int8")
    model.model.embed_tokens.dtype = torch.bfloat16
    assert largest_difference(model) < 0.25


def test_a_long_context() -> None:
    assert largest_difference(small(3), prompt=300) < 2e-5


def test_threads_do_not_change_a_bit() -> None:
    model, results = small(2), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        cache = model.new_cache("prealloc", 1, 8)
        results.append(torch.cat([DecodeStep(model)(torch.tensor([[n]]), cache) for n in range(8)]))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_rewinding_repeats_the_same_numbers() -> None:
    model = small(3)
    cache = cache_of(model, torch.tensor([[1, 2, 3]]), 6, torch.float32)
    step = DecodeStep(model)
    first = [step(torch.tensor([[n]]), cache) for n in (4, 5, 6)]
    cache.rewind(3)
    again = [step(torch.tensor([[n]]), cache) for n in (4, 5, 6)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    with pytest.raises(RuntimeError, match="exceed"):
        step(torch.tensor([[7]]), cache)


def test_weights_are_used_where_they_lie() -> None:
    model = small(2)
    step, cache = DecodeStep(model), model.new_cache("prealloc", 1, 4)
    before = step(torch.tensor([[5]]), cache)
    model.model.layers[1].mlp.down_proj.weight.zero_()
    cache.rewind(0)
    assert not torch.equal(step(torch.tensor([[5]]), cache), before)


# --- what is refused ---


def test_other_models_caches_and_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="mixture of experts"):
        DecodeStep(small(3, use_moe=True))
    with pytest.raises(ValueError, match=r"not torch\.float16"):
        DecodeStep(small(2).half())
    model = small(2)
    step = DecodeStep(model)
    with pytest.raises(RuntimeError, match="needs a prealloc cache, not cat"):
        step(torch.tensor([[1]]), model.new_cache("cat"))  # type: ignore[arg-type]
    for token in (VOCAB, -1):
        with pytest.raises(RuntimeError, match="outside the vocabulary"):
            step(torch.tensor([[token]]), model.new_cache("prealloc", 1, 4))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=r"\[B, K, M, D\]"):
        step(torch.tensor([[1], [2]]), model.new_cache("prealloc", 1, 4))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=r"\[B, K, M, D\]"):
        step(torch.tensor([[1]]), model.new_cache("prealloc", 1, 4, dtype=torch.bfloat16))  # type: ignore[arg-type]


def test_a_linear_of_another_kind_is_refused() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model = small(2)
    model.model.layers[0].mlp.up_proj = Scaled(96, model.config.intermediate_size, bias=False)
    with pytest.raises(ValueError, match="cannot multiply with a Scaled"):
        DecodeStep(model)


def test_nothing_takes_the_place_of_a_failed_build(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing() -> None:
        raise RuntimeError("the C++ kernels could not be compiled: no")

    ops.operators.cache_clear()
    monkeypatch.setattr(ops, "load", failing)
    with pytest.raises(RuntimeError, match="could not be compiled"):
        DecodeStep(small(2))
    with pytest.raises(RuntimeError, match="could not be compiled"):
        Int8Linear.from_linear(nn.Linear(8, 8, bias=False))(torch.ones(1, 8))
    monkeypatch.undo()
    ops.operators.cache_clear()
