"""Every option and every pair of options on a CPU: within its declared bound of the reference, or skipped as declared.

Options come from the registry, so that a new one is tested by being declared. Small random models of both generations;
bounds on the KL divergence hold on the trained tiny model. What needs a GPU or a package that is not here is skipped
with the reason that `harness doctor` gives.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import registry
from harness.backends._torch import MiniMindEngine, load
from harness.capability import capabilities
from harness.core import REFERENCE, Case, CaseFailed, Grid, ModelSource, Unsupported, Variant, Workload
from harness.options import _quantize
from harness.plan import arms_of
from harness.registry import Option, resolve_workload, why_unsupported
from harness.worker import check_evidence
from minimind import MiniMindConfig, MiniMindForCausalLM, save_weights
from minimind.assets import embedded_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

registry.load_all()
OPTIONS = {
    f"{axis}={name if re.fullmatch(declared.pattern or '.*', name) else '2'}": declared
    for (axis, name), declared in registry.OPTIONS.items()
    if "torch" in declared.backends
}
COMPILED = [text for text in OPTIONS if text.startswith("compile=") or text == "sdpa=flex"]  # half a minute each
PLAIN = [text for text in OPTIONS if text not in COMPILED]
WORKLOADS = {
    kind: resolve_workload(Workload.of(kind, **params))
    for kind, params in {
        "decode": {"batch": 2, "context": 12, "new_tokens": 3},
        "prefill": {"batch": 2, "context": 12},
        "generate": {"batch": 2, "prompt": 6, "new_tokens": 4},
        "train_step": {"batch": 2, "length": 12},
        "perplexity": {"batch": 2, "length": 16, "prefill": 12},
    }.items()
}
IDS = torch.randint(0, 6400, (2, 16), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True, scope="module")
def short_calibration() -> Iterator[None]:
    """GPTQ's text; its quality has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_quantize, "CALIBRATION_ROWS", 2)
        yield


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[int, ModelSource]:
    """Generation -> a small random model in a file of its own, with a text to run on."""
    folder = tmp_path_factory.mktemp("models")
    text = folder / "text.txt"
    text.write_text("def main(arguments):\n    return len(arguments) and 'nothing is lost'\n" * 40)
    found = {}
    for generation in (2, 3):
        torch.manual_seed(generation)
        shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
        config = MiniMindConfig.from_dict({"generation": generation, "vocab_size": 6400, **shape})
        model = MiniMindForCausalLM(config)
        for name, parameter in model.named_parameters():
            if "norm" in name:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
        path = folder / f"generation{generation}.safetensors"
        save_weights(path, config, model.state_dict())
        found[generation] = ModelSource(path.stem, weights=str(path), data=str(text))
    return found


@pytest.fixture(params=[2, 3], ids=["minimind2", "minimind3"])
def source(request: pytest.FixtureRequest, sources: dict[int, ModelSource]) -> ModelSource:
    return sources[request.param]


@pytest.fixture
def small(sources: dict[int, ModelSource]) -> ModelSource:
    """One of them, where the generation does not matter."""
    return sources[3]


def engine(source: ModelSource, text: str) -> MiniMindEngine:
    return load(source, Variant.parse(text), "cpu", 0)


@torch.inference_mode()
def logits_of(built: MiniMindEngine) -> list[torch.Tensor]:
    """A prefill of 12 tokens and four cached steps."""
    state = built.new_state(2, 16)
    with built.computing():
        return [built.forward(piece, state) for piece in (IDS[:, :12], *IDS[:, 12:].split(1, dim=1))]


def declared_in(variant: Variant) -> list[Option]:
    """The options that a variant chooses on axes other than the backend."""
    return [
        declared
        for axis, value in variant.choices
        if axis != "backend" and (declared := registry.find_option(axis, value)) is not None
    ]


def completed(variant: Variant) -> Variant:
    """The variant with what its options require, where it leaves that open; skips the test if it cannot run here."""
    for declared in declared_in(variant):
        for needed in declared.requires:
            for axis, value in needed.choices:
                if variant.option(axis) is None:
                    variant = variant.with_choice(axis, value)
    variant = registry.resolve_variant(variant)
    if (reason := why_unsupported(variant, capabilities("cpu"))) is not None:
        pytest.skip(reason)
    return variant


def lossy_part(variant: Variant) -> Variant:
    """Only the choices that may change the model's function, with what they require: what the rest is compared with."""
    kept = {declared.axis for declared in declared_in(variant) if declared.numerics.kind == "lossy"}
    kept |= {axis for one in declared_in(variant) if one.axis in kept for r in one.requires for axis, _ in r.choices}
    return Variant.of({axis: value for axis, value in variant.choices if axis in kept})


def assert_kept(variant: Variant, found: Any, source: ModelSource) -> None:
    """The promises of all exact and close options together, piece by piece, against the variant without them."""
    base = load(source, lossy_part(variant), "cpu", 0)
    dtype = base.compute_facts()["compute_dtype"]
    promises = [declared.numerics for declared in declared_in(variant) if declared.numerics.kind != "lossy"]
    bounds = [numerics.tolerance.get(dtype, 0.25) for numerics in promises if numerics.kind == "close"]
    if registry.backend_of(variant).name != "torch":
        bounds.append(1e-4 if dtype == "fp32" else 0.25)
    for ours, theirs in zip(logits_of(found), logits_of(base), strict=True):
        assert ours.shape == theirs.shape and bool(torch.isfinite(ours).all())
        if not bounds:
            assert torch.equal(ours, theirs)
        assert (ours.float() - theirs.float()).abs().max().item() <= sum(bounds)


# --- numbers ---


@pytest.mark.parametrize("text", PLAIN)
def test_every_option_keeps_its_promise(text: str, source: ModelSource) -> None:
    variant = completed(Variant.parse(text))
    assert_kept(variant, load(source, variant, "cpu", 0), source)


@pytest.mark.slow  # the covering array below holds each of these pairs too, on a smaller model
@pytest.mark.parametrize("text", [text for text in PLAIN if not text.startswith("precision=")])
def test_every_option_keeps_its_promise_in_bf16(text: str, source: ModelSource) -> None:
    variant = completed(Variant.parse(f"{text} precision=bf16"))
    assert_kept(variant, load(source, variant, "cpu", 0), source)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch\\.jit.*:DeprecationWarning")  # torch's own compiler still uses it
@pytest.mark.parametrize("text", COMPILED)
def test_compiling_keeps_its_promise(text: str, small: ModelSource) -> None:
    variant = completed(Variant.parse(text))
    compiled = load(small, variant, "cpu", 0)
    assert compiled.compiled_graphs() == 0
    assert_kept(variant, compiled, small)
    session = compiled.session(WORKLOADS["decode"])
    session.iterate()
    check_evidence(Case(WORKLOADS["decode"], small.name, variant), session.facts())


def test_the_logits_of_the_reference_are_not_trivial(source: ModelSource) -> None:
    """Otherwise every tolerance would hold by itself."""
    prefill, *_ = logits_of(engine(source, "reference"))
    assert prefill.std().item() > 0.05
    assert (prefill - logits_of(engine(source, "attn=mqa"))[0]).abs().max().item() > 1e-2


def quality_on_tiny(variant: Variant) -> dict[str, float]:
    """Perplexity and KL of a variant of the trained model on a little held-out text."""
    session = load(ModelSource("tiny"), variant, "cpu", 0).session(
        Workload.of("perplexity", batch=4, length=64, prefill=48)
    )
    quality = session.quality()
    assert 1.0 < quality["ppl"] < 6400 and 0.0 <= quality["top1_agreement"] <= 1.0
    return quality


LOSSY = [text for text in PLAIN if OPTIONS[text].numerics.kind == "lossy"]


@pytest.mark.skipif(embedded_checkpoint("tiny") is None, reason="the trained tiny model is not in this checkout")
@pytest.mark.parametrize("text", LOSSY)
def test_what_loses_keeps_its_bound_on_the_trained_model(text: str) -> None:
    quality = quality_on_tiny(completed(Variant.parse(text)))
    bound = OPTIONS[text].numerics.max_kl
    assert quality["kl"] <= (float("inf") if bound is None else bound)
    assert quality["kl"] > 0, "an option that changes nothing is not lossy"


def test_transformers_computes_the_same(source: ModelSource) -> None:
    pytest.importorskip("transformers")
    from harness.backends._transformers import load as load_twin

    for text, tolerance in (("reference", 1e-4), ("precision=bf16", 0.25)):
        twin = load_twin(source, Variant.parse(text), "cpu", 0)
        for ours, theirs in zip(logits_of(engine(source, text)), logits_of(twin), strict=True):  # type: ignore[arg-type]
            assert (ours.float() - theirs.float()).abs().max().item() <= tolerance


# --- evidence ---


PROVED = [text for text in PLAIN if OPTIONS[text].evidence is not None]


@pytest.mark.parametrize("kind", WORKLOADS)
@pytest.mark.parametrize("text", PROVED)
def test_evidence_holds_where_the_option_ran_and_fails_where_it_did_not(
    text: str, kind: str, small: ModelSource
) -> None:
    proof = OPTIONS[text].evidence
    plain = engine(small, "reference").session(WORKLOADS[kind]).facts()
    assert proof is not None and not proof(plain), "proved by the reference's own facts"
    variant = completed(Variant.parse(text))
    try:
        session = load(small, variant, "cpu", 0).session(WORKLOADS[kind])
    except Unsupported as reason:
        pytest.skip(str(reason))
    assert proof(session.facts()), f"{text} ran without evidence in {kind}"


def test_asking_for_fused_attention_is_no_evidence_of_it(small: ModelSource) -> None:
    """The explicit softmax of a cached step gives it away."""
    proof = OPTIONS["sdpa=fused"].evidence
    plain = engine(small, "reference").session(WORKLOADS["decode"]).facts()
    assert proof is not None and not proof({**plain, "attention": "fused"})


def test_every_option_that_changes_something_has_evidence() -> None:
    assert [text for text, declared in OPTIONS.items() if declared.evidence is None] == ["control=aa"]


def test_an_option_without_evidence_is_wrong_and_never_timed(small: ModelSource) -> None:
    case = Case(WORKLOADS["decode"], small.name, Variant.parse("norm=fused kv=prealloc"))
    facts = engine(small, "norm=fused").session(WORKLOADS["decode"]).facts()
    with pytest.raises(CaseFailed, match="kv=prealloc was asked for but did not run") as error:
        check_evidence(case, facts)
    assert error.value.status == "wrong"
    check_evidence(Case(WORKLOADS["decode"], small.name, Variant.parse("norm=fused")), facts)
    check_evidence(Case(WORKLOADS["decode"], small.name, REFERENCE), facts)


# --- pairs ---


def pairs() -> list[Variant]:
    """Every two choices on two axes, compile aside."""
    axes: dict[str, tuple[str, ...]] = {}
    for name, axis in registry.AXES.items():
        if name == "backend":
            axes[name] = ("torch", *sorted(set(registry.BACKENDS) & {"transformers"}))
        elif any(text.startswith(f"{name}=") for text in PLAIN):
            chosen = (text.partition("=")[2] for text in PLAIN if text.startswith(f"{name}="))
            axes[name] = (axis.reference, *chosen)
    return list(arms_of(Grid((), (), axes, "pairs")))


def is_lossy_pair(pair: Variant) -> bool:
    """Whether both options of a pair lose, and both say how much at most."""
    chosen = declared_in(pair)
    return len(chosen) == 2 and all(declared.numerics.max_kl is not None for declared in chosen)


def test_the_pairs_cover_every_two_options() -> None:
    texts = {str(variant) for variant in pairs()}
    assert {"kv=prealloc norm=fused", "attn=mqa sdpa=fused", "backend=transformers precision=bf16"} <= texts
    assert len(texts) > 400 and "reference" in texts and not any("compile" in text for text in texts)


@pytest.mark.parametrize("pair", pairs(), ids=str)
def test_every_pair_keeps_the_promises_of_both(pair: Variant, small: ModelSource) -> None:
    variant = completed(pair)
    built: Any = registry.backend_of(variant).load(small, variant, "cpu", 0)
    session = built.session(WORKLOADS["decode"])
    assert session.iterate().seconds > 0
    check_evidence(Case(WORKLOADS["decode"], small.name, variant), session.facts())
    assert session.outputs.shape == (2, 3)
    assert_kept(variant, built, small)


@pytest.mark.skipif(embedded_checkpoint("tiny") is None, reason="the trained tiny model is not in this checkout")
@pytest.mark.parametrize("pair", [pair for pair in pairs() if is_lossy_pair(pair)], ids=str)
def test_two_losses_stay_within_twice_the_sum_of_their_bounds(pair: Variant) -> None:
    """Errors of the logits add and the KL divergence is quadratic in them: (a + b)^2 <= 2 (a^2 + b^2)."""
    variant = completed(pair)
    bounds = [declared.numerics.max_kl or 0.0 for declared in declared_in(pair)]
    assert quality_on_tiny(variant)["kl"] <= 2 * sum(bounds)


def test_options_compose_whatever_the_order_in_which_they_are_written(small: ModelSource) -> None:
    words = ["attn=mha", "norm=fused", "precision=bf16", "kv=prealloc", "sdpa=fused"]
    one, other = (logits_of(engine(small, " ".join(order))) for order in (words, words[::-1]))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(one, other, strict=True))


def test_the_users_model_is_the_one_that_is_built(small: ModelSource, sources: dict[int, ModelSource]) -> None:
    assert engine(small, "attn=mqa").facts()["num_key_value_heads"] == 1
    assert engine(small, "attn=mha").config.num_key_value_heads == 4
    assert engine(sources[2], "reference").config.generation == 2
    facts = engine(small, "reference").facts()
    assert facts["trained"] and facts["num_params"] == sum(p.numel() for p in engine(small, "reference").parameters())
    assert Path(str(small.weights)).is_file()
