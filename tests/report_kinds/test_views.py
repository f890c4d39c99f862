"""Comparisons and runs for pages and reports: the same numbers as the command line, and what surrounds them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.cli import main
from harness.core import UsageError
from harness.store import Store
from harness.tables import to_json
from reports.views import comparison_view, run_view
from reports.wording import short_names
from tests.report_kinds.reference import AB, STORE
from tests.synthetic import Arm, store_run

SLOW, FAST = [100.0, 101.0, 100.5, 101.0], [110.0, 111.0, 112.0, 111.0]


def _printed(capsys: pytest.CaptureFixture[str], *words: str) -> object:
    main([*words, "-o", "json", "--store", str(STORE)])
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        AB,
        ("engines~1", "engines"),
        ("engines/reference", "engines/backend=transformers"),
        ("kv_cache/sdpa=fused", "kv_cache/kv=prealloc sdpa=fused"),
        ("norm", "norm"),
    ],
)
def test_a_comparison_has_the_numbers_of_the_command_line(a: str, b: str, capsys: pytest.CaptureFixture[str]) -> None:
    view = comparison_view(Store.open(STORE), a, b)
    assert json.loads(to_json([c.as_dict() for c in view.comparisons])) == _printed(capsys, "compare", a, b)


def test_a_margin_and_metrics_are_those_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    view = comparison_view(Store.open(STORE), *AB, metrics=["tps"], margin=0.2)
    printed = _printed(capsys, "compare", *AB, "--metric", "tps", "--margin", "0.2")
    assert json.loads(to_json([c.as_dict() for c in view.comparisons])) == printed


@pytest.mark.parametrize("suite", ["engines", "ladder", "kv_cache", "norm"])
def test_a_run_has_the_numbers_of_the_command_line(suite: str, capsys: pytest.CaptureFixture[str]) -> None:
    view = run_view(Store.open(STORE), suite)
    printed = _printed(capsys, "show", suite)
    assert isinstance(printed, dict)
    assert json.loads(to_json([c.as_dict() for c in view.comparisons])) == printed["comparisons"]
    assert view.margin == printed["margin"]
    rows = {row["case_id"]: row for row in printed["rows"]}
    for item in view.cases:
        if item.case.case_id in rows and item.quality is not None:
            assert item.quality.kl == rows[item.case.case_id]["metrics"]["kl"]["value"]
            assert item.same_output == rows[item.case.case_id]["same_output"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store", create=True)


def test_the_sentence_names_the_largest_change_and_counts_the_rest(store: Store) -> None:
    arms = (
        Arm(timed={"tps": SLOW}),
        Arm("kv=prealloc", timed={"tps": FAST}),
        Arm("norm=fused", timed={"tps": SLOW}),
        Arm("quant=int8", status="skipped", reason="no such thing"),
    )
    store_run(store, *arms)
    sentence = run_view(store, "latest").sentence("en")
    assert sentence.startswith("1 of 3 cases improved (most: tiny: decode 32 @ 128 kv=prealloc tps +10")
    assert sentence.endswith("; 1 unchanged; 1 not measured.")
    assert run_view(store, "latest").sentence("zh").startswith("3 个用例中 1 个改善")


def test_no_change_says_what_would_have_shown(store: Store) -> None:
    store_run(store, Arm(timed={"tps": SLOW}), Arm("kv=prealloc", timed={"tps": [100.2, 101.0, 100.4, 101.1]}))
    sentence = run_view(store, "latest").sentence("en")
    assert sentence.startswith("No significant change in 1 cases; the smallest change that would have shown is ")


def test_what_only_one_side_has_is_listed(store: Store) -> None:
    store_run(store, Arm(timed={"tps": SLOW}), Arm("kv=prealloc", timed={"tps": SLOW}), machine_id="m1")
    store_run(store, Arm(timed={"tps": FAST}), Arm("norm=fused", timed={"tps": FAST}), machine_id="m1")
    view = comparison_view(store, "latest~1", "latest")
    assert [case.variant for case in view.only_in_a] == ["kv=prealloc"]
    assert [case.variant for case in view.only_in_b] == ["norm=fused"]
    assert view.counts == {"regressed": 0, "improved": 1, "inconclusive": 0, "invalid": 0, "equivalent": 0}
    assert not view.interleaved


def test_several_kinds_of_difference_are_a_warning(store: Store) -> None:
    store_run(store, Arm(timed={"tps": SLOW}), machine_id="m1", git_sha="a" * 40, torch="2.12", packages='{"x": "1"}')
    store_run(store, Arm(timed={"tps": FAST}), machine_id="m2", git_sha="b" * 40, torch="2.13", packages='{"x": "2"}')
    view = comparison_view(store, "latest~1", "latest")
    assert {(d.kind, d.what) for d in view.differences} == {
        ("commit", "git_sha"),
        ("versions", "torch"),
        ("versions", "x"),
        ("machine", "machine_id"),
    }
    warnings = view.warnings("en")
    assert warnings[0].startswith("More than one thing differs between A and B (commit, versions, machine)")
    assert "The two sides come from different machines." in warnings


def test_one_difference_within_a_run_is_no_warning(store: Store) -> None:
    store_run(store, Arm(timed={"tps": SLOW}), Arm("kv=prealloc", timed={"tps": FAST}))
    view = comparison_view(store, "latest/reference", "latest/kv=prealloc")
    assert view.interleaved
    assert view.warnings("en") == []
    assert [(d.kind, d.b) for d in view.differences] == [("variant", "kv=prealloc")]


def test_a_comparison_repeats_by_run_id(store: Store) -> None:
    run = store_run(store, Arm(timed={"tps": SLOW}), Arm("kv=prealloc norm=fused", timed={"tps": FAST}))
    view = comparison_view(store, "latest/reference", "latest/norm=fused kv=prealloc")
    assert view.command == (f"python -m harness compare {run.run_id}/reference '{run.run_id}/kv=prealloc norm=fused'")


def test_quality_stands_beside_the_speed_of_the_same_variant(store: Store) -> None:
    facts = {"trained": True, "data_fingerprint": "t"}
    store_run(
        store,
        Arm(timed={"tps": SLOW}, model="minimind2-small"),
        Arm("quant=int8", timed={"tps": FAST}, model="minimind2-small"),
        Arm(solo={"ppl": 9.0, "kl": 0.0}, workload="perplexity", facts=facts),
        Arm("quant=int8", solo={"ppl": 9.5, "kl": 0.01}, workload="perplexity", facts=facts),
    )
    items = run_view(store, "latest").cases
    quality = items[1].quality
    assert quality is not None
    assert (quality.model, quality.borrowed, quality.ppl, quality.kl) == ("tiny", True, 9.5, 0.01)
    own = items[3].quality
    assert own is not None
    assert not own.borrowed


def test_the_perplexity_of_random_weights_is_not_shown(store: Store) -> None:
    store_run(store, Arm(solo={"ppl": 6400.0, "kl": 0.0}, workload="perplexity", facts={"trained": False}))
    quality = run_view(store, "latest").cases[0].quality
    assert quality is not None
    assert (quality.ppl, quality.kl) == (None, 0.0)


def test_unknown_names_are_usage_errors(store: Store) -> None:
    store_run(store, Arm(timed={"tps": SLOW}))
    with pytest.raises(UsageError, match="no run 'nothing'"):
        run_view(store, "nothing")
    with pytest.raises(UsageError, match="unknown metric 'speed'"):
        comparison_view(store, "latest", "latest", metrics=["speed"])
    with pytest.raises(UsageError, match="variant of run"):
        comparison_view(store, "latest", "latest/kv=paged")


def test_names_in_a_figure_leave_out_what_follows_and_put_rare_words_first(store: Store) -> None:
    ours = "kv=prealloc logits=last norm=fused sdpa=fused step=cpp"
    store_run(
        store,
        Arm(timed={"tps": SLOW}, model="minimind2-small"),
        Arm(ours, timed={"tps": FAST}, model="minimind2-small"),
        Arm(f"{ours} quant=int8", timed={"tps": FAST}, model="minimind2-small"),
        Arm("kv=prealloc", timed={"tps": FAST}, model="minimind2-small"),
    )
    names = short_names(run_view(store, "latest").headline)
    assert names[1] == "decode 32 @ 128 quant=int8 logits=last norm=fused sdpa=fused step=cpp kv=prealloc"
    assert names[2] == "decode 32 @ 128 kv=prealloc"


def test_names_in_a_figure_keep_the_model_where_the_work_does_not_tell_it(store: Store) -> None:
    arms = [Arm(variant, timed={"tps": SLOW}, model=model, group=model)
            for model in ("tiny", "minimind2-small") for variant in ("reference", "kv=prealloc")]  # fmt: skip
    store_run(store, *arms)
    names = short_names(run_view(store, "latest").headline)
    assert names == ["tiny: decode 32 @ 128 kv=prealloc", "minimind2-small: decode 32 @ 128 kv=prealloc"]
