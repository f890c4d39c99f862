"""Quantised weights: grids against plain loops, GPTQ and HQQ against rounding, and what is recorded of each option."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from harness import registry
from harness.backends._torch import MiniMindEngine, load
from harness.capability import capabilities
from harness.core import ModelSource, Unsupported, Variant, Workload
from kernels.gptq import gptq
from kernels.hqq import hqq, objective
from kernels.quantized_linear import Int4Linear, dequantize_int4, quantize_int4
from kernels.weight_grids import Granularity, in_groups, round_to_nearest
from minimind import MiniMindConfig, MiniMindForCausalLM, save_weights
from minimind.data.corpus import load_corpus, split_of
from minimind.tokenizer import load_tokenizer

registry.load_all()
DECODE = Workload.of("decode", batch=1, context=8, new_tokens=2)
# Bytes of an integer and its share of a scale, per weight of the small model's rows of 64 and 192 values.
STORED = {
    "dynamic-int8": "int8 per channel",
    "int8": "int8 per channel",
    "bnb-int8": "int8 per channel",
    "torchao-int8": "int8 per channel",
    "gptq-int4": "packed int4",
    "hqq-int4": "packed int4",
    "int4": "packed int4",
    "bnb-nf4": "packed int4",
    "bnb-fp4": "packed int4",
    "torchao-int4": "unpacked int4",
}
BYTES_PER_WEIGHT = {"int8 per channel": (1.0, 1.12), "packed int4": (0.5, 0.63), "unpacked int4": (1.0, 1.2)}


@pytest.fixture
def weight() -> torch.Tensor:
    """[24, 64], with an outlier and a row of zeros."""
    weight = torch.randn(24, 64, generator=torch.Generator().manual_seed(0)) * 0.05
    weight[3, 7] = -0.9
    weight[5] = 0.0
    return weight


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """A small random model with a tied head, and a text of its own."""
    folder = tmp_path_factory.mktemp("quantised")
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = MiniMindConfig.from_dict({"generation": 3, "vocab_size": 6400, **shape})
    save_weights(folder / "small.safetensors", config, MiniMindForCausalLM(config).state_dict())
    (folder / "text.txt").write_text("def main(arguments):\n    return len(arguments) and 'nothing is lost'\n" * 40)
    return ModelSource("small", weights=str(folder / "small.safetensors"), data=str(folder / "text.txt"))


def engine(source: ModelSource, text: str) -> MiniMindEngine:
    variant = Variant.parse(text)
    if (reason := registry.why_unsupported(variant, capabilities("cpu"))) is not None:
        pytest.skip(reason)
    return load(source, variant, "cpu", 0)


# --- grids ---


@pytest.mark.parametrize("granularity", ["tensor", "channel", 16, 32, 64])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_grid_is_what_plain_loops_make_of_it(weight: torch.Tensor, bits: int, granularity: Granularity) -> None:
    width = {"tensor": weight.numel(), "channel": 64}.get(granularity, granularity)  # type: ignore[call-overload]
    expected = []
    flat = weight.flatten().tolist()
    for start in range(0, len(flat), width):
        values = flat[start : start + width]
        peak = max(values, key=abs)
        scale = abs(peak) / 127 if bits == 8 else torch.tensor(peak / -8).half().item()
        low, high = (-127, 127) if bits == 8 else (-8, 7)
        expected += [scale * min(max(round(value / scale), low), high) if scale else 0.0 for value in values]
    found = round_to_nearest(weight, bits=bits, granularity=granularity).dequantized()
    torch.testing.assert_close(found, torch.tensor(expected).view_as(weight), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("granularity", ["tensor", "channel", 32])
def test_rounding_errs_by_half_a_scale_at_most(weight: torch.Tensor, granularity: Granularity) -> None:
    grid = round_to_nearest(weight, bits=8, granularity=granularity)
    error = in_groups((grid.dequantized() - weight).abs(), granularity)
    assert bool((error <= grid.scale_NG1 / 2 * 1.0001 + 1e-12).all()) and error.max() > 0
    grid = round_to_nearest(weight, bits=4, granularity=granularity)
    error, scale = in_groups((grid.dequantized() - weight).abs(), granularity), grid.scale_NG1.abs()
    clipped = in_groups(weight, granularity) / torch.where(grid.scale_NG1 != 0, grid.scale_NG1, 1.0) > 7.5
    # A float16 scale is off by 2^-11 of itself, which the eighth step away from zero multiplies.
    assert bool((error[~clipped] <= (scale / 2 * 1.01).expand_as(error)[~clipped] + 1e-12).all())
    assert bool((error <= scale * 1.01 + 1e-12).all())


def test_smaller_groups_lose_less(weight: torch.Tensor) -> None:
    order: list[Granularity] = ["tensor", "channel", 32]
    errors = [(round_to_nearest(weight, bits=4, granularity=it).dequantized() - weight).norm().item() for it in order]
    assert errors[0] > errors[1] > errors[2] > 0


def test_a_packed_grid_is_the_shared_int4_format(weight: torch.Tensor) -> None:
    grid = round_to_nearest(weight, bits=4, granularity=32)
    assert torch.equal(dequantize_int4(*grid.packed()), grid.dequantized())
    assert torch.equal(dequantize_int4(*quantize_int4(weight)), grid.dequantized())


def test_what_does_not_fit_is_refused(weight: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="groups of 48 do not divide the 64 input channels"):
        round_to_nearest(weight, bits=8, granularity=48)
    with pytest.raises(ValueError, match="4 or 8 bits, not 3"):
        round_to_nearest(weight, bits=3, granularity="channel")
    with pytest.raises(ValueError, match=r"second moments must be \[64, 64\]"):
        gptq(weight, torch.eye(32), group_size=32)
    with pytest.raises(ValueError, match="groups of 48"):
        gptq(weight, torch.eye(64), group_size=48)


# --- GPTQ and HQQ ---


def test_gptq_beats_rounding_on_correlated_inputs(weight: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(1)
    mixed = torch.randn(2000, 8, generator=generator) @ torch.randn(8, 64, generator=generator)
    inputs_MK = mixed + 0.1 * torch.randn(2000, 64, generator=generator)
    grid = gptq(weight, inputs_MK.T @ inputs_MK, group_size=32)
    assert grid.q_NGS.min() >= -8 and grid.q_NGS.max() <= 7
    rounded = round_to_nearest(weight, bits=4, granularity=32).dequantized()
    lost, before = (((it - weight) @ inputs_MK.T).norm().item() for it in (grid.dequantized(), rounded))
    assert 0 < lost < 0.6 * before


def test_gptq_without_correlation_or_data_is_rounding(weight: torch.Tensor) -> None:
    rounded = round_to_nearest(weight, bits=4, granularity=32).dequantized()
    for moments in (torch.eye(64), torch.zeros(64, 64)):
        torch.testing.assert_close(gptq(weight, moments, group_size=32).dequantized(), rounded)


def test_gptq_bears_an_input_that_is_always_zero(weight: torch.Tensor) -> None:
    inputs_MK = torch.randn(200, 64, generator=torch.Generator().manual_seed(2))
    inputs_MK[:, 10] = 0.0
    assert bool(torch.isfinite(gptq(weight, inputs_MK.T @ inputs_MK, group_size=32).dequantized()).all())


@pytest.mark.parametrize("bits", [4, 8])
def test_hqq_is_nowhere_worse_than_rounding_in_its_objective(weight: torch.Tensor, bits: int) -> None:
    found, rounded = hqq(weight, bits=bits, group_size=32), round_to_nearest(weight, bits=bits, granularity=32)
    ours, theirs = (objective(in_groups(it.dequantized() - weight, 32)) for it in (found, rounded))
    assert bool((ours <= theirs * 1.00001).all())
    assert ours.sum() < 0.99 * theirs.sum()


# --- options ---


@pytest.mark.parametrize("name", STORED)
def test_bytes_on_disk_are_those_of_the_scheme(name: str, source: ModelSource) -> None:
    plain, quantised = engine(source, "quant=none"), engine(source, f"quant={name}")
    low, high = BYTES_PER_WEIGHT[STORED[name]]
    layers = [module for module in plain.model.modules() if isinstance(module, nn.Linear)]
    facts = quantised.facts()
    assert facts["quantized_layers"] == len(layers) and facts["head_quantized"] and facts["quant_storage"]
    assert low < facts["bytes_per_weight"] < high and facts["num_params"] == plain.facts()["num_params"]
    embedding = plain.model.model.embed_tokens.weight
    kept = embedding.nbytes if facts["embedding"] == "float" else 0
    norms = sum(it.nbytes for it in plain.model.parameters() if it.dim() == 1)
    weights = sum(layer.weight.numel() for layer in layers)
    assert low * weights < quantised.disk_bytes() - kept - norms < high * weights
    assert plain.work(DECODE).bytes / quantised.work(DECODE).bytes > 3


def test_simulated_weights_take_their_float_bytes(source: ModelSource) -> None:
    facts = engine(source, "quant=fake-int4").facts()
    assert facts["bytes_per_weight"] == 4 and facts["quant_storage"].startswith("simulated")


@pytest.mark.parametrize("name", ["fake-int8-tensor", "fake-int4-channel", "fake-int4-group64", "fake-int8-group16"])
def test_a_simulated_family_has_the_levels_of_its_bits(name: str, source: ModelSource) -> None:
    built = engine(source, f"quant={name}")
    proof = registry.OPTIONS["quant", "fake-int4"].evidence
    facts = built.session(DECODE).facts()
    assert proof is not None and proof(facts)
    linear = built.model.model.layers[0].mlp.down_proj
    with torch.no_grad():
        linear.weight.add_(torch.randn_like(linear.weight) * 1e-3)
    caught = built.session(DECODE).facts()
    assert not proof(caught) or name == "fake-int8-group16", "weights off the grid go unnoticed"


def test_a_group_that_does_not_fit_is_unsupported(source: ModelSource) -> None:
    with pytest.raises(Unsupported, match="q_proj cannot be quantised: groups of 48 do not divide the 64 input"):
        engine(source, "quant=fake-int4-group48")


@pytest.mark.parametrize("name", ["fake-int8", "dynamic-int8", "gptq-int4"])
def test_quantised_weights_are_not_trained(name: str, source: ModelSource) -> None:
    with pytest.raises(Unsupported, match="quantised weights are not trained"):
        engine(source, f"quant={name}").session(Workload.of("train_step", batch=1, length=8))


def test_routers_stay_float(tmp_path: Path) -> None:
    shape = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = MiniMindConfig.from_dict({"generation": 3, "vocab_size": 6400, "use_moe": True, **shape})
    torch.manual_seed(0)
    path = tmp_path / "mixture.safetensors"
    save_weights(path, config, MiniMindForCausalLM(config).state_dict())
    mixture = ModelSource("mixture", weights=str(path), data=None)
    for name in ("fake-int8", "gptq-int4"):
        built = engine(mixture, f"quant={name}")
        linears = [path for path, module in built.model.named_modules() if isinstance(module, nn.Linear)]
        assert linears == ["model.layers.0.mlp.gate"]


def test_gptq_calibrates_on_training_text_only(source: ModelSource) -> None:
    from harness.backends._torch import Build, weights_of
    from harness.options._quantize import calibration_ids

    config, weights = weights_of(source, 0)
    ids, words = calibration_ids(Build(config=config, weights=weights, device="cpu", source=source))
    assert f"{ids.numel()} tokens" in words and "training split" in words and ids.numel() >= 2048
    tokenizer = load_tokenizer()
    starts = {document.text[:100]: document.name for document in load_corpus("train")}
    for row in ids.tolist():
        name = starts[tokenizer.decode(row)[:100]]
        assert split_of(name) == "train"
    built = engine(source, "quant=gptq-int4")
    assert built.facts()["calibration"] == words
    assert isinstance(built.model.lm_head, Int4Linear)


def test_gptq_keeps_more_of_the_trained_model_than_rounding() -> None:
    source, workload = ModelSource("tiny"), Workload.of("perplexity", batch=4, length=64, prefill=48)
    lost = {name: engine(source, f"quant={name}").session(workload).quality()["kl"] for name in ("gptq-int4", "int4")}
    assert lost["gptq-int4"] < 0.5 * lost["int4"]


def test_a_quality_session_carries_a_sample_of_text(source: ModelSource) -> None:
    facts = engine(source, "quant=none").session(Workload.of("perplexity", batch=1, length=32, prefill=24)).facts()
    assert facts["sample_prompt"].startswith("def main") and facts["sample_text"]
    assert len(load_tokenizer().encode(facts["sample_text"])) >= 8
