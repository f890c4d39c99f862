"""Comparisons of synthetic runs: ratios to the digit, and no verdict where none can be had."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from harness import registry
from harness.compare import Comparison, compare_within, measured_cases
from harness.core import UsageError
from harness.sides import compare_sides, open_side
from harness.store import Store
from harness.tables import to_json
from tests.synthetic import Arm, store_run

registry.load_all()
FOUR = (100.0, 101.0, 99.0, 100.0)


def arm(variant: str = "reference", factor: float = 1.0, **changes: Any) -> Arm:
    """An arm whose four blocks run at 100 tokens/s times a factor."""
    fields: dict[str, Any] = {"timed": {"tps": [value * factor for value in FOUR]}, **changes}
    return Arm(variant, **fields)


def within(store: Store, *arms: Arm, **options: Any) -> list[Comparison]:
    return compare_within(measured_cases(store, store_run(store, *arms).run_id), **options)


def one(store: Store, *arms: Arm, **options: Any) -> Comparison:
    (found,) = within(store, *arms, **options)
    return found


# --- ratios ---


def test_a_constant_ratio_is_found_to_the_digit(store: Store) -> None:
    found = one(store, arm(), arm("kv=prealloc", 1.25))
    assert found.estimate is not None
    assert (found.estimate.ratio, found.estimate.low, found.estimate.high) == pytest.approx(
        (1.25, 1.25, 1.25), rel=1e-12
    )
    assert (found.verdict, found.better, found.unit, found.paired) == ("improved", "higher", "tokens/s", True)
    assert (found.reference_value, found.candidate_value) == (100.0, 125.0)


def test_the_ratio_is_of_block_medians_paired_by_block(store: Store) -> None:
    """Drift that both arms share cancels; only blocks that both have count; a block counts by its median."""
    reference = arm(timed={"tpot": {0: [1.0, 1.0, 50.0], 1: 2.0, 2: 4.0, 3: 8.0}})
    candidate = arm("kv=prealloc", timed={"tpot": {1: [1.9, 2.2, 2.2], 2: 4.4, 0: 1.21, 7: 99.0}})
    found = one(store, reference, candidate)
    assert found.estimate is not None and found.estimate.num_blocks == 3
    assert found.estimate.ratio == pytest.approx((1.1 * 1.1 * 1.21) ** (1 / 3), rel=1e-12)
    logs = [math.log(1.1), math.log(1.1), math.log(1.21)]
    mean = sum(logs) / 3
    sd = math.sqrt(sum((value - mean) ** 2 for value in logs) / 2)
    half = 4.302652729911275 * sd / math.sqrt(3)  # Student's t, 97.5%, 2 degrees of freedom
    assert found.estimate.low == pytest.approx(math.exp(mean - half), rel=1e-9)
    assert found.estimate.high == pytest.approx(math.exp(mean + half), rel=1e-9)


@pytest.mark.parametrize(
    ("metric", "factor", "expected"),
    [
        ("tps", 1.2, "improved"),
        ("tps", 0.8, "regressed"),
        ("tps", 1.005, "equivalent"),
        ("tpot", 1.2, "regressed"),
        ("tpot", 0.8, "improved"),
        ("tpot", 0.995, "equivalent"),
    ],
)
def test_the_better_direction_is_the_metrics(store: Store, metric: str, factor: float, expected: str) -> None:
    timed = [{metric: [value * by for value in FOUR]} for by in (1.0, factor)]
    assert one(store, arm(timed=timed[0]), arm("kv=prealloc", timed=timed[1])).verdict == expected


def test_the_margin_is_the_users(store: Store) -> None:
    run = store_run(store, arm(), arm("kv=prealloc", 1.2))
    assert [c.verdict for c in compare_within(measured_cases(store, run.run_id), margin=0.3)] == ["equivalent"]


def test_noise_makes_a_comparison_inconclusive_and_says_what_would_decide(store: Store) -> None:
    found = one(store, arm(), arm("kv=prealloc", timed={"tps": [104.0, 97.0, 103.0, 106.0]}))
    assert found.verdict == "inconclusive" and found.blocks_to_decide is not None and found.blocks_to_decide > 4
    assert found.minimum_detectable_effect is not None and 0.01 < found.minimum_detectable_effect < 1


def test_one_block_has_no_interval(store: Store) -> None:
    found = one(store, arm(timed={"tps": [100.0]}), arm("kv=prealloc", timed={"tps": [200.0]}))
    assert found.verdict == "inconclusive" and found.as_dict()["ratio"] == pytest.approx(2.0)


def test_every_arm_is_compared_with_the_first_of_its_place(store: Store) -> None:
    found = within(
        store,
        arm("kv=prealloc"),
        arm(factor=0.5),
        arm("norm=fused", factor=2.0),
        arm("kv=prealloc", 3.0, workload="generate"),
        arm("norm=fused", 3.0, workload="generate"),
        arm("kv=prealloc", 1.0, group="lab-1", model="minimind-3"),
    )
    pairs = [(c.reference.variant, c.candidate.variant, c.candidate.label.split()[0]) for c in found]
    assert pairs == [
        ("kv=prealloc", "reference", "decode"),
        ("kv=prealloc", "norm=fused", "decode"),
        ("kv=prealloc", "norm=fused", "generate"),
    ]
    assert [round(c.as_dict()["ratio"], 9) for c in found] == [0.5, 2.0, 1.0]


def test_only_the_metrics_asked_for_are_compared(store: Store) -> None:
    both = {"tps": FOUR, "step_time": FOUR}
    run = store_run(store, arm(timed=both), arm("kv=prealloc", timed=both))
    assert {c.metric for c in compare_within(measured_cases(store, run.run_id))} == {"tps", "step_time"}
    assert {c.metric for c in compare_within(measured_cases(store, run.run_id), metrics=["tps"])} == {"tps"}


# --- what is invalid ---


def test_invalid_blocks_are_dropped(store: Store) -> None:
    spoilt = arm("kv=prealloc", timed={"tps": (110.0, 1.0, 108.9, 110.0)}, invalid={1: "busy neighbour"})
    found = one(store, arm(), spoilt)
    assert found.estimate is not None and found.estimate.num_blocks == 3
    assert found.estimate.ratio == pytest.approx(1.1, rel=1e-9)
    (reference, case) = measured_cases(store, store.find_run("latest").run_id)
    assert sorted(case.series["tps"].blocks) == [0, 2, 3] and len(reference.series["tps"].blocks) == 4


def test_a_case_with_most_of_its_blocks_disturbed_has_no_verdict(store: Store) -> None:
    spoilt = arm("kv=prealloc", 1.5, invalid=dict.fromkeys((0, 1, 3), "busy neighbour"))
    found = one(store, arm(), spoilt)
    assert found.verdict == "invalid" and found.estimate is None
    assert found.reason == "kv=prealloc: 3 blocks were disturbed: busy neighbour"


def test_a_reference_with_all_its_blocks_disturbed_is_told_not_hidden(store: Store) -> None:
    solo = {"kv_bytes": 8.0}
    spoilt = arm(invalid=dict.fromkeys(range(4), "busy neighbour"), solo=solo)
    for arms in ((spoilt, arm("kv=prealloc", solo=solo)), (arm(solo=solo), arm("kv=prealloc", **vars_of(spoilt)))):
        found = {c.metric: c for c in within(store, *arms)}
        assert found["tps"].verdict == "invalid" and "4 blocks were disturbed" in found["tps"].reason


def vars_of(other: Arm) -> dict[str, Any]:
    return {name: getattr(other, name) for name in ("timed", "solo", "invalid")}


@pytest.mark.parametrize("status", ["failed", "oom", "timeout", "wrong", "skipped", "not_steady"])
def test_a_case_that_is_not_ok_has_no_verdict_and_a_reason(store: Store, status: Any) -> None:
    bad = Arm("kv=prealloc", status=status, reason="scripted", timed={"tps": FOUR} if status == "not_steady" else {})
    for arms in ((arm(), bad), (Arm(status=status, reason="scripted"), arm("kv=prealloc"))):
        found = one(store, *arms)
        assert found.verdict == "invalid" and f"{status}: scripted" in found.reason
        assert found.metric == "tps"


def test_other_held_out_text_makes_quality_incomparable(store: Store) -> None:
    def quality(variant: str, text: str) -> Arm:
        facts = {"data_fingerprint": text}
        return Arm(variant, solo={"ppl": 10.0, "kl": 0.1}, facts=facts, workload="perplexity")

    same = within(store, quality("reference", "a"), quality("norm=fused", "a"))
    assert {c.verdict for c in same} == {"equivalent"}
    other = within(store, quality("reference", "a"), quality("norm=fused", "b"))
    assert {(c.verdict, c.reason) for c in other} == {("invalid", "the two were measured on different held-out text")}


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_numbers_that_have_no_ratio_are_invalid_not_a_crash(store: Store, bad: float) -> None:
    found = one(store, arm(), arm("kv=prealloc", timed={"tps": (100.0, bad, 100.0, 100.0)}))
    assert (found.verdict, found.reason) == ("invalid", "a ratio needs finite values above zero")
    assert one(store, arm(timed={"tps": (bad,) * 4}), arm("kv=prealloc")).verdict == "invalid"


def test_arms_without_a_block_in_common_have_no_verdict(store: Store) -> None:
    found = one(store, arm(timed={"tps": {0: 1.0, 1: 1.0}}), arm("kv=prealloc", timed={"tps": {2: 1.0, 3: 1.0}}))
    assert (found.verdict, found.reason) == ("invalid", "no block was measured in both")


# --- single values ---


@pytest.mark.parametrize(
    ("metric", "values", "expected"),
    [
        ("kv_bytes", (1000.0, 1000.0), "equivalent"),
        ("kv_bytes", (1000.0, 500.0), "improved"),
        ("kv_bytes", (1000.0, 1011.0), "regressed"),
        ("kv_bytes", (1000.0, 1009.0), "equivalent"),
        ("ppl", (10.0, 10.2), "regressed"),
        ("ppl", (10.0, 9.5), "improved"),
        ("kl", (0.0, 0.0), "equivalent"),
        ("kl", (0.0, 0.001), "regressed"),
        ("kl", (0.0, 1e-14), "equivalent"),  # what rounding leaves of nothing
        ("top1_agreement", (1.0, 0.9), "regressed"),
        ("peak_bytes", (1000.0, 1000.0), "equivalent"),
        ("peak_bytes", (1000.0, 500.0), "inconclusive"),
        ("peak_bytes", (-10.0, -10.0), "equivalent"),
    ],
)
def test_single_values_are_judged_only_where_they_are_exact(
    store: Store, metric: str, values: tuple[float, float], expected: str
) -> None:
    found = one(store, Arm(solo={metric: values[0]}), Arm("kv=prealloc", solo={metric: values[1]}), metrics=[metric])
    assert (found.verdict, found.estimate) == (expected, None)
    assert found.as_dict()["method"] == "single value"


# --- two sides ---


def test_a_run_compared_with_itself_is_all_equivalent(store: Store) -> None:
    solo = {"peak_bytes": 7.0, "kv_bytes": 8.0}
    quality = Arm(workload="perplexity", solo={"ppl": 3.0, "kl": 0.0, "top1_agreement": 1.0})
    noisy = arm("kv=prealloc", timed={"tps": (50.0, 200.0, 99.0, 1.0), "tpot": FOUR}, solo=solo)
    store_run(store, arm(solo=solo), noisy, quality)
    side = open_side(store, "latest")
    found = compare_sides(side, side)
    assert len(found) == 3 + 4 + 3 and {c.verdict for c in found} == {"equivalent"}
    assert all(c.as_dict()["ratio"] in (1.0, None) for c in found)


def test_two_runs_are_not_paired(store: Store) -> None:
    store_run(store, arm())
    store_run(store, arm(timed={"tps": (200.0, 202.0, 198.0)}))
    (found,) = compare_sides(open_side(store, "latest~1"), open_side(store, "latest"))
    assert not found.paired and found.estimate is not None and found.estimate.method == "welch t"
    assert found.estimate.ratio == pytest.approx(2.0, rel=1e-3) and found.verdict == "improved"
    assert (found.as_dict()["reference_run"], found.as_dict()["candidate_run"]) == tuple(
        run.run_id for run in store.runs()
    )


def test_a_side_may_name_a_variant_of_a_run(store: Store) -> None:
    store_run(store, arm(), arm("kv=prealloc", 2.0), arm("kv=prealloc norm=fused", 3.0))

    def ratio(a: str, b: str) -> list[float]:
        return [round(c.as_dict()["ratio"], 9) for c in compare_sides(open_side(store, a), open_side(store, b))]

    assert ratio("latest/reference", "latest/kv=prealloc") == [2.0]
    assert ratio("latest/kv=cat", "latest/kv=prealloc") == [2.0]
    assert ratio("latest/kv=prealloc", "latest/norm=fused,kv=prealloc") == [1.5]
    assert ratio("latest", "latest/kv=prealloc") == [2.0], "a run without a variant stands for its reference"
    assert ratio("latest/kv=prealloc", "latest") == [0.5, 1.0, 1.5]


def test_unknown_sides_are_named(store: Store) -> None:
    run = store_run(store, arm(), arm("kv=prealloc"))
    with pytest.raises(UsageError, match="no run 'yesterday'"):
        open_side(store, "yesterday")
    with pytest.raises(UsageError, match="unknown axis 'kw'"):
        open_side(store, "latest/kw=cat")
    with pytest.raises(UsageError, match=rf"variant of run {run.run_id} 'norm=fused'.* Known: kv=prealloc, reference"):
        open_side(store, "latest/norm=fused")


def test_runs_without_a_case_in_common_have_nothing_to_compare(store: Store) -> None:
    store_run(store, arm())
    store_run(store, arm(model="minimind-3"))
    assert compare_sides(open_side(store, "latest~1"), open_side(store, "latest")) == []


# --- as data ---


def test_a_comparison_as_data_is_json_without_infinities(store: Store) -> None:
    found = within(
        store,
        arm(timed={"tps": [1.0]}),
        arm("kv=prealloc", timed={"tps": [1.0]}),
        arm("norm=fused", timed={"tps": [math.inf]}),
        Arm("attn=mqa", status="oom", reason="x"),
    )
    text = to_json([c.as_dict() for c in found])
    assert "NaN" not in text and "Infinity" not in text
    rows = json.loads(text)
    assert [row["verdict"] for row in rows] == ["inconclusive", "invalid", "invalid"]
    assert rows[0]["high"] is None and rows[0]["ratio"] == 1.0
    assert all(row.keys() == rows[0].keys() for row in rows)


def test_a_metric_of_a_plugin_that_is_not_loaded_has_no_better_direction(store: Store) -> None:
    timed = {"tps": FOUR, "furlongs": FOUR}
    double = {"tps": FOUR, "furlongs": [2 * value for value in FOUR]}
    found = {c.metric: c for c in within(store, arm(timed=timed), arm("kv=prealloc", timed=double))}
    assert (found["furlongs"].better, found["furlongs"].verdict) == ("neither", "inconclusive")
    assert "neither direction is better" in found["furlongs"].reason
