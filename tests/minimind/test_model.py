"""The model beyond upstream's numbers: loading, construction, experts, head conversion, compilation, generation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from kernels import reference
from kernels.rms_norm import FusedRMSNorm, rms_norm
from minimind import MiniMindConfig, MiniMindForCausalLM, convert_heads, generate
from minimind.norm import RMSNorm, RMSNormCastFirst

SMALL = {
    "vocab_size": 48,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
IDS = torch.randint(0, 48, (2, 12), generator=torch.Generator().manual_seed(1))


def build(seed: int = 0, **fields: object) -> MiniMindForCausalLM:
    torch.manual_seed(seed)
    return MiniMindForCausalLM(MiniMindConfig.from_dict(SMALL | {"generation": 3} | fields)).eval()


@torch.no_grad()
def test_tied_weights_load_once_or_twice_and_nothing_is_ignored() -> None:
    source, ids = build(), IDS
    full = source.state_dict()
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    assert embedding in full and head in full and not any("rotary" in name for name in full)
    expected = source(ids).logits
    for left_out in ((), (head,), (embedding,)):
        model = build(seed=1)
        model.load_state_dict({name: weight for name, weight in full.items() if name not in left_out})
        assert torch.equal(model(ids).logits, expected)
        assert model.lm_head.weight is model.model.embed_tokens.weight
    model = build(seed=1)
    with pytest.raises(ValueError, match="differ"):
        model.load_state_dict(full | {head: full[head] + 1})
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({name: weight for name, weight in full.items() if name not in (head, embedding)})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*surplus"):
        model.load_state_dict(full | {"surplus": torch.zeros(1)})
    untied = build(tie_word_embeddings=False)
    with pytest.raises(RuntimeError, match="Missing key"):
        untied.load_state_dict({name: weight for name, weight in full.items() if name != head})


@pytest.mark.parametrize("generation", [2, 3])
def test_construction_is_deterministic_and_starts_as_upstream(generation: int) -> None:
    one, same, other = (build(seed, generation=generation, hidden_size=64) for seed in (3, 3, 4))
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, same.state_dict()[name])
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)
    spread = one.model.layers[0].self_attn.q_proj.weight.std().item()
    assert spread == pytest.approx(0.02 if generation == 3 else 1 / math.sqrt(3 * 64), rel=0.1)


@torch.no_grad()
def test_a_model_from_the_meta_device_has_its_rotations() -> None:
    source = build()
    with torch.device("meta"):
        model = MiniMindForCausalLM(source.config)
    assert model.lm_head.weight.is_meta
    model = model.to_empty(device="cpu").eval()
    model.load_state_dict(source.state_dict())
    assert torch.equal(model(IDS).logits, source(IDS).logits)
    with torch.device("meta"):
        assigned = MiniMindForCausalLM(source.config).eval()
    assigned.load_state_dict(source.state_dict(), assign=True)
    assert torch.equal(assigned(IDS).logits, source(IDS).logits)
    assert assigned.lm_head.weight is assigned.model.embed_tokens.weight


@pytest.mark.parametrize("generation", [2, 3])
@torch.no_grad()
def test_more_heads_are_the_same_function(generation: int) -> None:
    model = build(generation=generation)
    for heads in (1, 2, 4):
        config, weights = convert_heads(model.config, model.state_dict(), heads)
        converted = MiniMindForCausalLM(config).eval()
        converted.load_state_dict(weights)
        logits, expected = converted(IDS).logits, model(IDS).logits
        if heads >= 2:
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)
        else:
            assert (logits - expected).abs().max() > 1e-4
            keys = weights["model.layers.0.self_attn.k_proj.weight"]
            assert torch.allclose(keys, model.model.layers[0].self_attn.k_proj.weight.view(2, 8, 32).mean(0))
    there, back = convert_heads(*convert_heads(model.config, model.state_dict(), 4), 2)
    assert there == model.config
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(back[name], weight)
    with pytest.raises(ValueError, match="cannot convert 2"):
        convert_heads(model.config, model.state_dict(), 3)


MOE = {"three": {"generation": 3, "num_experts": 6}, "two": {"generation": 2, "n_routed_experts": 6}}


@pytest.mark.parametrize("name", MOE)
def test_an_expert_without_tokens_gets_zero_gradients(name: str) -> None:
    model = build(**MOE[name], use_moe=True).train()
    ids = IDS[:1, :2]
    out = model(ids, labels=ids)
    (out.loss + out.aux_loss).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    idle = [name for name, gradient in gradients.items() if ".experts." in name and not gradient.any()]
    assert idle, "two tokens cannot reach six experts in every layer"


@pytest.mark.parametrize("name", [*MOE, "dense"])
@pytest.mark.parametrize("sdpa", ["upstream", "fused"])
def test_wholly_masked_rows_stay_finite(name: str, sdpa: str) -> None:
    model = build(**MOE.get(name, {}), use_moe=name in MOE)
    model.set_attention(sdpa)
    mask = torch.zeros_like(IDS)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        out = model.to(dtype)(IDS, attention_mask=mask, labels=torch.full_like(IDS, -100))
        assert out.logits.isfinite().all()


def test_auxiliary_loss_is_for_training_only_and_can_be_batch_wise() -> None:
    for fields in ({"generation": 3}, {"generation": 2}, {"generation": 2, "seq_aux": False}):
        model = build(**fields, use_moe=True)
        assert model(IDS).aux_loss.item() == 0.0
        assert model.train()(IDS).aux_loss.item() > 0.0
    coefficient = {"generation": 2, "aux_loss_alpha": 0.5, "seq_aux": False, "n_shared_experts": 0}
    model = build(**coefficient, use_moe=True).train()
    # Balanced routing costs alpha per layer (Switch Transformer, arXiv 2101.03961): no less than about that here.
    assert 0.9 < model(IDS).aux_loss.item() < 2.0


def test_norms_equal_their_plain_twins() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(3, 5, 16, generator=generator), torch.randn(16, generator=generator)
    pairs = ((RMSNorm, reference.rms_norm), (RMSNormCastFirst, reference.rms_norm_cast_first))
    for norm_type, twin in pairs:
        norm = norm_type(16, 1e-5)
        norm.weight.data = weight
        for dtype in (torch.float32, torch.bfloat16):
            actual, expected = norm(x.to(dtype)), twin(x.to(dtype), (16,), weight, 1e-5)
            assert torch.equal(actual, expected) and actual.dtype == expected.dtype
    torch.testing.assert_close(rms_norm(x, (16,), weight, 1e-5), reference.rms_norm(x, (16,), weight, 1e-5))
    torch.testing.assert_close(rms_norm(x, (5, 16)), reference.rms_norm(x, (5, 16)))
    assert reference.rms_norm_cast_first(x.bfloat16(), (16,), weight, 1e-5).dtype == torch.float32


def test_the_fused_norm_takes_a_norm_over() -> None:
    model = build().train()
    expected = model(IDS, labels=IDS)
    expected.loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    keys = list(model.state_dict())
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, RMSNorm):
                fused = FusedRMSNorm.from_norm(child)
                assert fused.weight is child.weight and fused.eps == child.eps and fused.training
                setattr(module, name, fused)
    assert list(model.state_dict()) == keys
    out = model(IDS, labels=IDS)
    torch.testing.assert_close(out.logits, expected.logits, rtol=0, atol=1e-5)
    out.loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert model(IDS).logits.isfinite().all()


@pytest.mark.parametrize(("sdpa", "kind"), [("upstream", "cat"), ("fused", "prealloc")])
def test_dynamo_captures_one_graph(sdpa: str, kind: str) -> None:
    """The `eager` backend traces like any other and spares the test the C++ compiler."""
    model = build(num_hidden_layers=1)
    model.set_attention(sdpa)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        expected = model(IDS).logits
        torch.testing.assert_close(compiled(IDS).logits, expected, rtol=0, atol=1e-5)
        cache = model.new_cache(kind=kind, batch_size=2, max_length=12)
        parts = [compiled(IDS[:, :6], cache=cache).logits]
        parts += [compiled(IDS[:, step : step + 1], cache=cache).logits for step in range(6, 12)]
    assert cache.length == 12
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=0, atol=1e-5)
    torch.compiler.reset()


def test_sampling_is_seeded_and_follows_the_distribution() -> None:
    model = build()
    prompt = IDS[:, :4]

    def sample(seed: int, **arguments: object) -> torch.Tensor:
        return generate(model, prompt, 6, temperature=0.9, generator=torch.Generator().manual_seed(seed), **arguments)

    assert torch.equal(sample(0), sample(0)) and not torch.equal(sample(0), sample(1))
    assert torch.equal(sample(0), sample(0, cache_kind="prealloc"))
    assert torch.equal(sample(0, top_k=1), generate(model, prompt, 6))
    assert torch.equal(sample(0, top_p=1e-6), generate(model, prompt, 6))
    assert sample(0, top_k=1000).shape == (2, 10)
    steps: list[torch.Tensor] = []
    ids = generate(model, prompt, 6, on_token=steps.append)
    assert torch.equal(torch.cat(steps, dim=1), ids[:, 4:])
    assert torch.equal(generate(model, prompt, 0), prompt)


def test_left_padded_rows_end_on_their_own() -> None:
    model = build()
    mask = torch.ones(2, 4, dtype=torch.int64)
    mask[0, :2] = 0
    ids = generate(model, IDS[:, :4], 5, attention_mask=mask)
    with torch.no_grad():
        grown = torch.cat((mask, torch.ones(2, 4, dtype=torch.int64)), dim=1)
        logits = model(ids[:, :8], attention_mask=grown).logits
    assert torch.equal(logits[:, 3:].argmax(-1), ids[:, 4:])
    eos = int(ids[0, 4])
    ended = generate(model, IDS[:, :4], 5, attention_mask=mask, eos_token_id=eos)
    assert (ended[0, 4:] == eos).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"max_new_tokens": 61}, "max_position_embeddings is 64"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"cache_kind": "ring"}, "ring"),
    ],
)
def test_generation_refuses(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        generate(build(), IDS[:, :4], **arguments)


def test_model_refuses() -> None:
    model = build()
    with pytest.raises(ValueError, match=r"\[batch, length\]"):
        model(IDS[0])
    with pytest.raises(ValueError, match="prompt_ids"):
        generate(model, IDS[:, :0])
    with pytest.raises(ValueError, match=r"flash9.*upstream"):
        model.set_attention("flash9")
    with pytest.raises(ValueError, match="logits_to_keep"):
        model(IDS, labels=IDS, logits_to_keep=1)


def test_dropout_drops_in_training_only() -> None:
    model = build(dropout=0.5)
    assert torch.equal(model(IDS).logits, model(IDS).logits)
    model.train()
    assert not torch.equal(model(IDS).logits, model(IDS).logits)
    assert any(isinstance(module, nn.Dropout) for module in model.modules())
