"""Every option on a CPU: its numbers against the reference as it declares, its evidence, and every pair of options.

Options come from the registry, so that a new one is tested by being declared. Small random models of both generations;
bounds on the KL divergence hold on the trained tiny model.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import registry
from harness.backends import _torch
from harness.backends._torch import MiniMindEngine, load
from harness.capability import capabilities
from harness.core import REFERENCE, Case, CaseFailed, Grid, ModelSource, Variant, Workload
from harness.plan import arms_of
from harness.registry import Option, resolve_workload, why_unsupported
from harness.worker import check_evidence
from minimind import MiniMindConfig, MiniMindForCausalLM, save_weights
from minimind.assets import embedded_checkpoint

registry.load_all()
OPTIONS = {
    f"{axis}={'2' if declared.pattern else name}": declared
    for (axis, name), declared in registry.OPTIONS.items()
    if "torch" in declared.backends
}
PLAIN = [text for text in OPTIONS if not text.startswith("compile=")]
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
def one_thread() -> Iterator[None]:
    """Models this small are slower on two threads, and far slower beside a busy neighbour: here `all` is one."""
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_torch, "usable_cpus", lambda: {0})
        yield
    torch.set_num_threads(before)


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


def assert_within(declared: Option, dtype: str, found: MiniMindEngine, reference: MiniMindEngine) -> None:
    """The option's own promise, piece by piece; a lossy one promises finite numbers of the same shape here."""
    for ours, theirs in zip(logits_of(found), logits_of(reference), strict=True):
        assert ours.shape == theirs.shape and bool(torch.isfinite(ours).all())
        if declared.numerics.kind == "exact":
            assert torch.equal(ours, theirs)
        elif declared.numerics.kind == "close":
            assert (ours.float() - theirs.float()).abs().max().item() <= declared.numerics.tolerance[dtype]


# --- numbers ---


@pytest.mark.parametrize("text", PLAIN)
def test_every_option_keeps_its_promise(text: str, source: ModelSource) -> None:
    assert_within(OPTIONS[text], "fp32", engine(source, text), engine(source, "reference"))


@pytest.mark.parametrize("text", [text for text in PLAIN if not text.startswith("precision=")])
def test_every_option_keeps_its_promise_in_bf16(text: str, source: ModelSource) -> None:
    both = engine(source, f"{text} precision=bf16")
    assert_within(OPTIONS[text], "bf16", both, engine(source, "precision=bf16"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch\\.jit.*:DeprecationWarning")  # torch's own compiler still uses it
def test_compiling_keeps_its_promise(small: ModelSource) -> None:
    if (reason := why_unsupported(Variant.parse("compile=default"), capabilities("cpu"))) is not None:
        pytest.skip(reason)
    compiled = engine(small, "compile=default")
    assert compiled.compiled_graphs() == 0
    assert_within(OPTIONS["compile=default"], "fp32", compiled, engine(small, "reference"))
    facts = compiled.session(WORKLOADS["decode"]).facts()
    assert registry.OPTIONS["compile", "default"].evidence(facts)  # type: ignore[misc]


def test_the_logits_of_the_reference_are_not_trivial(source: ModelSource) -> None:
    """Otherwise every tolerance would hold by itself."""
    prefill, *_ = logits_of(engine(source, "reference"))
    assert prefill.std().item() > 0.05
    assert (prefill - logits_of(engine(source, "attn=mqa"))[0]).abs().max().item() > 1e-2


LOSSY = [text for text in PLAIN if OPTIONS[text].numerics.kind == "lossy"]


@pytest.mark.skipif(embedded_checkpoint("tiny") is None, reason="the trained tiny model is not in this checkout")
@pytest.mark.parametrize("text", LOSSY)
def test_what_loses_keeps_its_bound_on_the_trained_model(text: str) -> None:
    session = engine(ModelSource("tiny"), text).session(Workload.of("perplexity", batch=4, length=64, prefill=48))
    quality = session.quality()
    assert 1.0 < quality["ppl"] < 6400 and 0.0 <= quality["top1_agreement"] <= 1.0
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
def test_evidence_holds_where_the_option_ran_and_fails_where_it_did_not(kind: str, small: ModelSource) -> None:
    plain = engine(small, "reference").session(WORKLOADS[kind]).facts()
    for text in PROVED:
        proof = OPTIONS[text].evidence
        assert proof is not None and not proof(plain), f"{text} is proved by the reference's own facts"
        assert proof(engine(small, text).session(WORKLOADS[kind]).facts()), f"{text} ran without evidence in {kind}"


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


def test_the_pairs_cover_every_two_options() -> None:
    texts = {str(variant) for variant in pairs()}
    assert {"kv=prealloc norm=fused", "attn=mqa sdpa=fused", "backend=transformers precision=bf16"} <= texts
    assert len(texts) > 40 and "reference" in texts and not any("compile" in text for text in texts)


@pytest.mark.parametrize("variant", pairs(), ids=str)
def test_every_pair_runs_or_says_why_not(variant: Variant, small: ModelSource) -> None:
    reason = why_unsupported(variant, capabilities("cpu"))
    backend = registry.backend_of(variant)
    if reason is not None:
        assert backend.name != "torch", f"torch on a CPU runs every pair, but: {reason}"
        pytest.skip(reason)
    built: Any = backend.load(small, variant, "cpu", 0)
    session = built.session(WORKLOADS["decode"])
    assert session.iterate().seconds > 0
    check_evidence(Case(WORKLOADS["decode"], small.name, variant), session.facts())
    assert session.outputs.shape == (2, 3)


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
