"""The injected slowdown is as long as it says, lies inside the timed region and changes no number."""

from __future__ import annotations

import itertools

import pytest
import torch

from harness import registry
from harness.backends._torch import load
from harness.core import Case, CaseFailed, ModelSource, Unsupported, UsageError, Variant, Workload
from harness.options.spin import Spin, added_share
from harness.registry import resolve_variant, resolve_workload, why_unsupported
from harness.worker import check_evidence
from minimind import MiniMindConfig, MiniMindForCausalLM, save_weights

pytestmark = pytest.mark.usefixtures("one_thread")

registry.load_all()
DECODE = resolve_workload(Workload.of("decode", context=8, new_tokens=5))
PREFILL = resolve_workload(Workload.of("prefill", context=8))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    folder = tmp_path_factory.mktemp("model")
    (folder / "text.txt").write_text("def main(arguments):\n    return len(arguments)\n" * 40)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = MiniMindConfig.from_dict({"generation": 3, "vocab_size": 6400, **shape})
    save_weights(folder / "small.safetensors", config, MiniMindForCausalLM(config).state_dict())
    return ModelSource("small", weights=str(folder / "small.safetensors"), data=str(folder / "text.txt"))


@pytest.mark.parametrize("percent", [0.5, 3, 99.9])
def test_the_wait_is_the_asked_share_of_the_forward_to_a_tick_of_the_clock(percent: float) -> None:
    """A clock that moves by 100 ns whenever it is read; a forward of 1 ms."""
    tick = 100
    lengthening = Spin(percent)
    for start in (0, 5_000_000):
        reads = itertools.count(start + 1_000_000, tick)
        lengthening.wait(start, lambda reads=reads: next(reads))  # type: ignore[misc]
    counts = lengthening.counts
    assert counts["forwards"] == 2 and counts["own_ns"] == 2_000_000
    assert 0 <= counts["added_ns"] - 20_000 * percent <= 2 * tick
    assert added_share(lengthening.facts()) == pytest.approx(percent / 100, rel=0.02)


@pytest.mark.parametrize("workload", [DECODE, PREFILL], ids=lambda workload: workload.kind)
def test_every_forward_of_a_timed_iteration_is_longer(workload: Workload, source: ModelSource) -> None:
    variant = Variant.parse("spin=50")
    engine = load(source, variant, "cpu", 0)
    session = engine.session(workload)
    before = dict(engine.facts()["spin"])
    iteration = session.iterate()
    after = engine.facts()["spin"]
    done = {name: after[name] - before[name] for name in before}
    assert done["forwards"] == (5 if workload.kind == "decode" else 1)
    assert done["added_ns"] >= 0.5 * done["own_ns"] > 0
    assert iteration.end_ns - iteration.start_ns >= done["own_ns"] + done["added_ns"], "the wait was not timed"
    check_evidence(Case(workload, source.name, variant), session.facts())


def test_numbers_stay_as_they_are(source: ModelSource) -> None:
    tokens = []
    for text in ("reference", "spin=20"):
        session = load(source, Variant.parse(text), "cpu", 0).session(DECODE)
        session.iterate()
        tokens.append(session.outputs)
    assert torch.equal(tokens[0], tokens[1])


def test_a_wait_that_was_too_short_is_no_evidence(source: ModelSource) -> None:
    case = Case(DECODE, source.name, Variant.parse("spin=3"))
    facts = load(source, case.variant, "cpu", 0).session(DECODE).facts()
    check_evidence(case, facts)
    for counts in ({"own_ns": 1000, "added_ns": 29}, {"own_ns": 0, "added_ns": 0}):
        with pytest.raises(CaseFailed, match="spin=3 was asked for but did not run"):
            check_evidence(case, {**facts, "spin": counts})


def test_what_cannot_be_lengthened_is_refused(source: ModelSource) -> None:
    engine = load(source, Variant.parse("spin=3"), "cpu", 0)
    with pytest.raises(Unsupported, match="spin=3 lengthens the forwards of inference only"):
        engine.session(resolve_workload(Workload.of("train_step")))
    atoms = frozenset({"cpu", "cxx", "pkg:torch"})
    assert why_unsupported(Variant.parse("kv=prealloc spin=3 step=cpp"), atoms) == "spin=3 excludes step=cpp"
    assert "needs cpu" in str(why_unsupported(Variant.parse("spin=3"), frozenset({"cuda", "pkg:torch"})))
    for text in ("spin=0", "spin=100", "spin=03", "spin=1.25", "spin=3pct"):
        with pytest.raises(UsageError, match="unknown option of axis spin"):
            resolve_variant(Variant.parse(text))
