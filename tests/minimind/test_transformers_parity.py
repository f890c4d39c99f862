"""The same weights in Transformers' Llama, Qwen3 and Qwen3-MoE: an independent implementation of both generations.

Needs nothing but the repository and Transformers, whose import takes some seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from minimind import MiniMindConfig, MiniMindForCausalLM, generate, load_weights
from minimind.transformers_format import config_from_transformers

transformers = pytest.importorskip("transformers", reason="Transformers is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "rope_theta": 1e6,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True}
TWINS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {"rms_norm_eps": 1e-5, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 24, "tie_word_embeddings": True}),
    "qwen3-untied": ("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 16, "tie_word_embeddings": False}),
    "qwen3-moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", {"head_dim": 16, "tie_word_embeddings": True, **EXPERTS}),
}
IDS = torch.randint(0, 96, (2, 17), generator=torch.Generator().manual_seed(1))


def twin(name: str) -> Any:
    config_class, model_class, fields = TWINS[name]
    values = dict(SHAPE | fields)
    values["rope_parameters"] = {"rope_type": "default", "rope_theta": values.pop("rope_theta")}
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**values))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.15)
    return model.eval()


@pytest.fixture(scope="module", params=TWINS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, MiniMindForCausalLM]:
    """Transformers' model, and ours loaded from the folder that it saved."""
    theirs = twin(request.param)
    folder: Path = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    config, weights = load_weights(folder)
    ours = MiniMindForCausalLM(config)
    ours.load_state_dict(weights)
    return theirs, ours.eval()


@torch.no_grad()
@pytest.mark.parametrize("sdpa", ["upstream", "fused"])
def test_logits(pair: tuple[Any, MiniMindForCausalLM], sdpa: str) -> None:
    theirs, ours = pair
    ours.set_attention(sdpa)
    torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, rtol=0, atol=1e-4)
    ours.set_attention("upstream")


def test_losses_and_gradients(pair: tuple[Any, MiniMindForCausalLM]) -> None:
    theirs, ours = pair
    if ours.config.use_moe:
        pytest.skip("the auxiliary losses are defined differently; gradients are checked on the dense models")
    expected = theirs(IDS, labels=IDS).loss
    actual = ours(IDS, labels=IDS).loss
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    expected.backward()
    actual.backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-5)


def test_greedy_generation(pair: tuple[Any, MiniMindForCausalLM]) -> None:
    theirs, ours = pair
    ids = generate(ours, IDS[:, :9], max_new_tokens=8, cache_kind="prealloc")
    with torch.no_grad():
        logits = theirs(ids[:, :-1]).logits[:, 8:]
    top = logits.topk(2, dim=-1)
    settled = top.values[..., 0] - top.values[..., 1] > 1e-3
    assert settled.float().mean() > 0.8
    assert torch.equal(top.indices[..., 0][settled], ids[:, 9:][settled])


def test_stacked_experts_in_memory_load_too() -> None:
    from minimind.transformers_format import weights_from_transformers

    theirs = twin("qwen3-moe")
    ours = MiniMindForCausalLM(config_from_transformers(theirs.config.to_dict())).eval()
    ours.load_state_dict(weights_from_transformers(theirs.state_dict()))
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, rtol=0, atol=1e-4)
    assert isinstance(ours.config, MiniMindConfig) and ours.config.num_experts == 4
