"""The options around the Triton kernels on a tiny model, interpreted; started by tests/kernels/test_interpreted.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness import registry
from harness.backends import _torch
from harness.backends._torch import MiniMindEngine, load
from harness.core import Case, CaseFailed, ModelSource, Unsupported, Variant, Workload
from harness.registry import resolve_workload
from harness.worker import check_evidence
from minimind import MiniMindConfig, MiniMindForCausalLM, save_weights

registry.load_all()
TEXTS = ("norm=triton", "norm=triton-add", "mlp=triton", "mlp=triton norm=triton-add")
IDS = torch.randint(0, 300, (2, 5), generator=torch.Generator().manual_seed(1))
MODELS = {
    "minimind2": {"generation": 2},
    "minimind3": {"generation": 3},
    "minimind2-moe": {"generation": 2, "use_moe": True},
    "minimind3-moe": {"generation": 3, "use_moe": True},
}
WORKLOADS = {
    kind: resolve_workload(Workload.of(kind, **params))
    for kind, params in {
        "decode": {"batch": 1, "context": 3, "new_tokens": 2},
        "train_step": {"batch": 1, "length": 4},
    }.items()
}


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_torch, "usable_cpus", lambda: {0})


def source_of(folder: Path, **fields: object) -> ModelSource:
    """A random model in a file of its own; its norms' weights are not all ones, so that they matter."""
    torch.manual_seed(3)
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = MiniMindConfig.from_dict({"vocab_size": 6400, "intermediate_size": 40, **shape, **fields})
    model = MiniMindForCausalLM(config)
    for name, parameter in model.named_parameters():
        torch.nn.init.uniform_(parameter, 0.5, 1.5) if "norm" in name else torch.nn.init.normal_(parameter, std=0.1)
    path = folder / "model.safetensors"
    save_weights(path, config, model.state_dict())
    text = folder / "text.txt"
    text.write_text("nothing is lost\n" * 40)
    return ModelSource(path.stem, weights=str(path), data=str(text))


@pytest.fixture(params=MODELS)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> ModelSource:
    return source_of(tmp_path, **MODELS[request.param])


@pytest.fixture
def small(tmp_path: Path) -> ModelSource:
    """One of them, where it does not matter which."""
    return source_of(tmp_path, generation=3)


def engine(source: ModelSource, text: str) -> MiniMindEngine:
    return load(source, Variant.parse(text), "cpu", 0)


@torch.inference_mode()
def logits_of(built: MiniMindEngine) -> list[torch.Tensor]:
    """A prompt of three tokens and two cached steps."""
    state = built.new_state(2, 5)
    with built.computing():
        return [built.forward(piece, state) for piece in (IDS[:, :3], IDS[:, 3:4], IDS[:, 4:])]


@pytest.mark.parametrize("text", TEXTS)
def test_logits_are_those_of_the_reference(text: str, source: ModelSource) -> None:
    for ours, theirs in zip(logits_of(engine(source, text)), logits_of(engine(source, "reference")), strict=True):
        assert theirs.std().item() > 0.05
        assert (ours - theirs).abs().max().item() <= 1e-4


@pytest.mark.parametrize("generation", [2, 3])
@pytest.mark.parametrize("precision", ["bf16", "amp-bf16"])
def test_logits_in_bf16_have_its_dtypes_and_bounds(precision: str, generation: int, tmp_path: Path) -> None:
    """Autocast is where the dtypes of stream, weights and norms differ."""
    source = source_of(tmp_path, generation=generation)
    found = engine(source, f"mlp=triton norm=triton-add precision={precision}")
    reference = engine(source, f"precision={precision}")
    for ours, theirs in zip(logits_of(found), logits_of(reference), strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours.float() - theirs.float()).abs().max().item() <= 0.25


@pytest.mark.parametrize("text", TEXTS)
def test_training_is_that_of_the_reference(text: str, source: ModelSource) -> None:
    """Loss and every gradient; the parameters keep their names."""
    found, reference = engine(source, text), engine(source, "reference")
    assert found.model.state_dict().keys() == reference.model.state_dict().keys()
    losses = [built.train_loss(IDS) for built in (found, reference)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
    for loss in losses:
        loss.backward()
    expected = dict(reference.model.named_parameters())
    for name, parameter in found.model.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", WORKLOADS)
@pytest.mark.parametrize("text", TEXTS)
def test_evidence_holds_where_the_kernels_ran(text: str, kind: str, small: ModelSource) -> None:
    case = Case(WORKLOADS[kind], small.name, Variant.parse(text))
    check_evidence(case, engine(small, text).session(WORKLOADS[kind]).facts())
    plain = engine(small, "reference").session(WORKLOADS[kind]).facts()
    with pytest.raises(CaseFailed, match="was asked for but did not run") as error:
        check_evidence(case, plain)
    assert error.value.status == "wrong"


def test_the_stream_is_added_inside_the_norms(small: ModelSource) -> None:
    """Per step: each block's two norms, less the first, which has nothing to add, plus the one at the end."""
    plain, fused = (
        engine(small, text).session(WORKLOADS["decode"]).facts() for text in ("norm=triton", "norm=triton-add")
    )
    norms, added = (facts["operations"] for facts in (plain, fused))
    assert norms["minimind_bench::rms_norm"] == 4 * 2 + 1
    assert added["minimind_bench::add_rms_norm"] == 2 * 2 and added["minimind_bench::rms_norm"] == 2 * 2 + 1
    assert fused["modules"].keys().isdisjoint({"Block", "RMSNorm"}) and fused["modules"]["FusedBlock"] == 2


def test_another_activation_is_unsupported(tmp_path: Path) -> None:
    source = source_of(tmp_path, generation=3, hidden_act="gelu")
    with pytest.raises(Unsupported, match=r"computes silu\(gate\) \* up; this model has hidden_act=gelu"):
        engine(source, "mlp=triton")
