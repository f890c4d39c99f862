"""Gates: what a file may say, which gate judges which row, and red, green or undecided to the digit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import registry
from harness.compare import Comparison, Measured, Series, compare_pairs
from harness.core import Gate, UsageError, Workload
from harness.gates import GateRow, confirmed, describe, evaluate, exit_code, gates_of, load_gates, red, unmatched

registry.load_all()
DECODE, PREFILL, QUALITY = (
    str(registry.resolve_workload(Workload.parse(text)))
    for text in ("decode(context=8,new_tokens=4)", "prefill(context=8)", "perplexity")
)
TPS = Gate("tps")


def case(
    blocks: Mapping[str, Sequence[float]] | None = None,
    solo: Mapping[str, float] | None = None,
    *,
    run: str = "base",
    name: str = "a",
    workload: str = DECODE,
    status: str = "ok",
    **facts: Any,
) -> Measured:
    """A case as the store would give it: one turn a block; `solo` are single values."""
    series = {metric: Series({-1: value}, "1", True) for metric, value in (solo or {}).items()}
    for metric, values in (blocks or {}).items():
        numbered = dict(enumerate(values))
        series[metric] = Series(numbered, "1", False, {block: {0: value} for block, value in numbered.items()})
    reason = "scripted" if status != "ok" else ""
    return Measured(run, name, workload, "tiny", "reference", status, reason, "g", facts, series, "session")


def timed(factor: float, sd: float = 0.01, *, num_blocks: int = 8, metric: str = "tps", name: str = "a") -> Comparison:
    """Blocks whose log ratios have exactly this mean and standard deviation."""
    shape = np.linspace(-1.0, 1.0, num_blocks)
    logs = math.log(factor) + sd * shape / np.std(shape, ddof=1) if num_blocks > 1 else np.array([math.log(factor)])
    workload = DECODE if metric == "tps" else PREFILL
    a = case({metric: [100.0] * num_blocks}, name=name, workload=workload)
    b = case({metric: list(100.0 * np.exp(logs))}, run="new", name=name, workload=workload)
    (found,) = compare_pairs([(a, b)], metrics=[metric])
    return found


def single(metric: str, a: float, b: float, workload: str = DECODE) -> Comparison:
    pair = case(None, {metric: a}, workload=workload), case(None, {metric: b}, run="new", workload=workload)
    (found,) = compare_pairs([pair], metrics=[metric])
    return found


def one(gate: Gate, *comparisons: Comparison, **options: Any) -> GateRow:
    (row,) = evaluate([gate], comparisons, **options)
    return row


# --- statistical gates ---


@pytest.mark.parametrize(
    ("gate", "factor", "sd", "expected"),
    [
        (TPS, 0.90, 0.01, "regressed"),
        (TPS, 1.10, 0.01, "improved"),
        (TPS, 1.00, 0.01, "passed"),
        (TPS, 0.985, 0.001, "passed"),
        (TPS, 0.975, 0.04, "passed"),  # so noisy that only more could be seen, and the row says so
        (Gate("ttft"), 1.10, 0.01, "regressed"),
        (Gate("ttft"), 0.90, 0.01, "improved"),
        (replace(TPS, fails="better"), 1.10, 0.01, "regressed"),
        (replace(TPS, fails="better"), 0.90, 0.01, "improved"),
        (replace(TPS, fails="change"), 1.10, 0.01, "regressed"),
        (replace(TPS, fails="change"), 0.90, 0.01, "regressed"),
        (replace(TPS, fails="change"), 1.00, 0.01, "passed"),
        (replace(TPS, margin=0.2), 0.90, 0.001, "passed"),
        (replace(TPS, margin=0.0), 0.995, 0.001, "regressed"),
    ],
)
def test_a_statistical_gate_judges_the_whole_interval(gate: Gate, factor: float, sd: float, expected: str) -> None:
    row = one(gate, timed(factor, sd, metric=gate.metric), policy=0.02)
    assert row.decision == expected, row.reason
    assert row.reason and row.minimum_detectable_effect is not None and row.margin_source == "policy"


def test_a_margin_is_symmetric_in_speed_and_time() -> None:
    """A rate divided by 1.05 and a time multiplied by 1.05 are the same harm."""
    rate, time = one(TPS, timed(1 / 1.05)), one(Gate("ttft"), timed(1.05, metric="ttft"))
    assert rate.p_value == pytest.approx(time.p_value)
    assert (rate.decision, rate.limit) == (time.decision, pytest.approx(time.limit))


def test_a_passing_row_says_which_limit_it_kept() -> None:
    quiet, noisy = one(TPS, timed(1.0, 0.002)), one(TPS, timed(1.0, 0.05))
    assert (quiet.limit, quiet.limit_source, quiet.decision) == (0.03, "policy", "passed")
    assert noisy.decision == "passed" and noisy.limit is not None and noisy.limit > 0.05
    assert noisy.limit_source == "what 8 blocks support here"
    assert f"{noisy.limit:.1%}" in noisy.reason


@pytest.mark.parametrize("num_blocks", [2, 3])
def test_what_excludes_nothing_does_not_pass(num_blocks: int) -> None:
    """Two blocks of a loud machine would pass a limit of several hundred percent."""
    row = one(TPS, timed(1.0, 0.2, num_blocks=num_blocks))
    assert (row.decision, row.limit) == ("inconclusive", 0.03)
    assert "about" in row.reason and "blocks would decide" in row.reason


def test_the_values_of_a_row_never_contradict_its_change() -> None:
    """Medians of either side may come from different blocks: here 100 became 104 while the pairs say -9%."""
    a, b = case({"tps": [100.0, 100.0, 200.0]}), case({"tps": [96.0, 104.0, 150.0]}, run="new")
    (comparison,) = compare_pairs([(a, b)], metrics=["tps"])
    assert (comparison.reference_value, comparison.candidate_value) == (100.0, 104.0)
    row = one(TPS, comparison)
    assert row.baseline_value is not None and row.candidate_value is not None and row.effect is not None
    assert row.candidate_value / row.baseline_value - 1 == pytest.approx(row.effect) == pytest.approx(-0.092, abs=0.001)
    assert row.baseline_value * row.candidate_value == pytest.approx(100.0 * 104.0)


def test_a_wide_margin_without_a_limit_moves_the_limit_along() -> None:
    assert one(replace(TPS, margin=0.1), timed(1.0, 0.001)).limit == pytest.approx(0.1, abs=0.01)


def test_one_block_is_undecided_not_green() -> None:
    row = one(TPS, timed(0.5, num_blocks=1))
    assert (row.decision, row.p_value) == ("inconclusive", None)
    assert "more (--blocks" in row.reason


def test_equal_blocks_of_a_scripted_clock_need_no_noise() -> None:
    assert one(TPS, timed(0.95, 0.0)).decision == "regressed"
    assert one(TPS, timed(1.0, 0.0)).decision == "passed"


def test_the_noise_floor_widens_the_margin_and_is_named() -> None:
    class Known:
        def floor(self, comparison: Comparison) -> tuple[float, str] | None:
            return (0.06, "A/A noise floor, calibrated today") if comparison.metric == "tps" else None

    assert one(TPS, timed(0.96, 0.005)).decision == "regressed"
    row = one(TPS, timed(0.96, 0.005), calibration=Known())
    assert (row.decision, row.margin, row.margin_source) == ("passed", 0.06, "A/A noise floor, calibrated today")
    wide = one(replace(TPS, margin=0.08), timed(0.96, 0.005), calibration=Known())
    assert (wide.margin, wide.margin_source) == (0.08, "policy")
    assert one(Gate("ttft"), timed(1.06, 0.005, metric="ttft"), calibration=Known()).margin_source == "policy"


def test_holm_corrects_what_both_measurements_say_for_the_number_of_statistical_rows() -> None:
    """A p-value of about 0.013 twice over is 0.013 squared; where a stored baseline is in both, only 0.013."""
    weak = timed(0.975, 0.0155)
    fresh = replace(weak, reference=replace(weak.reference, run_id="fresh"))
    alone = one(TPS, weak)
    assert alone.p_value is not None and 0.01 < alone.p_value < 0.025 and alone.decision == "regressed"
    exact = [timed(1.0, name=f"exact{i}", metric="ttft") for i in range(9)]

    def among(others: int, again: Comparison) -> GateRow:
        crowd = [timed(1.0, name=f"case{i}") for i in range(others)]
        first = evaluate([TPS, Gate("kv_bytes", "exact")], [weak, *crowd, *exact])
        return confirmed(first, evaluate([TPS], [again]))[0]

    row = among(9, fresh)
    assert (row.decision, row.adjusted_p) == ("regressed", pytest.approx(10 * alone.p_value**2))
    row = among(999, fresh)
    assert (row.decision, row.adjusted_p) == ("inconclusive", pytest.approx(1000 * alone.p_value**2))
    assert "may be chance" in row.reason
    row = among(9, weak)
    assert (row.decision, row.adjusted_p) == ("inconclusive", pytest.approx(10 * alone.p_value))


def test_disturbed_cases_are_invalid_never_red() -> None:
    a = case({"tps": [100.0] * 4})
    b = case(None, run="new", invalid_blocks={str(k): "a busy neighbour" for k in range(4)})
    row = one(TPS, *compare_pairs([(a, b)], metrics=None))
    assert row.decision == "invalid" and "disturbed" in row.reason
    assert exit_code([row]) == 4
    other = one(Gate("step_time"), *compare_pairs([(a, b)], metrics=None))  # not the metric that is shown first
    assert other.decision == "invalid" and exit_code([other]) == 4


def test_exact_rows_are_judged_beside_a_busy_neighbour() -> None:
    busy = {"invalid_blocks": {"0": "busy", "1": "busy"}}
    pair = case(None, {"kv_bytes": 5.0}, **busy), case(None, {"kv_bytes": 6.0}, run="new", **busy)
    row = one(Gate("kv_bytes", "exact"), *compare_pairs([pair], metrics=None))
    assert row.decision == "regressed"


# --- exact and bound gates ---


@pytest.mark.parametrize(
    ("gate", "a", "b", "expected"),
    [
        (Gate("kv_bytes", "exact"), 100, 100, "passed"),
        (Gate("kv_bytes", "exact"), 100, 101, "regressed"),
        (Gate("kv_bytes", "exact"), 100, 99, "improved"),
        (Gate("kv_bytes", "exact"), 0, 1, "regressed"),
        (Gate("kv_bytes", "exact", margin=0.02), 100, 102, "passed"),
        (Gate("kv_bytes", "exact", margin=0.02), 100, 103, "regressed"),
        (Gate("kv_bytes", "exact", fails="change"), 100, 99, "regressed"),
        (Gate("kv_bytes", "exact", fails="better"), 100, 99, "regressed"),
        (Gate("kv_bytes", "exact"), 100, math.nan, "regressed"),
        (Gate("ppl", "bound", margin=0.005), 10.0, 10.04, "passed"),
        (Gate("ppl", "bound", margin=0.005), 10.0, 10.06, "regressed"),
        (Gate("ppl", "bound", margin=0.005), 10.0, 1.0, "passed"),
        (Gate("ppl", "bound", margin=0.005), 10.0, math.inf, "regressed"),
        (Gate("ppl", "bound", margin=0.005), math.nan, 10.0, "invalid"),
        (Gate("kl", "bound", limit=1e-3), 0.0, 9e-4, "passed"),
        (Gate("kl", "bound", limit=1e-3), 0.0, 2e-3, "regressed"),
        (Gate("kl", "bound", margin=0.1), 0.0, 1e-9, "regressed"),
        (Gate("top1_agreement", "bound", limit=0.99), 1.0, 0.98, "regressed"),
        (Gate("top1_agreement", "bound", limit=0.99), 1.0, 0.995, "passed"),
        (Gate("ppl", "bound", margin=0.5, limit=11.0), 10.0, 12.0, "regressed"),
    ],
)
def test_gates_without_noise_compare_numbers(gate: Gate, a: float, b: float, expected: str) -> None:
    workload = DECODE if gate.metric == "kv_bytes" else QUALITY
    row = one(gate, single(gate.metric, a, b, workload))
    assert row.decision == expected, row.reason
    assert row.p_value is None and row.minimum_detectable_effect in (0.0, None)


def test_a_bound_names_what_it_has() -> None:
    only_limit = one(Gate("kl", "bound", limit=1e-3), single("kl", 0.0, 0.0, QUALITY))
    assert (only_limit.margin_source, only_limit.limit_source, only_limit.limit) == ("", "policy", 1e-3)
    only_margin = one(Gate("ppl", "bound", margin=0.1), single("ppl", 2.0, 2.0, QUALITY))
    assert (only_margin.margin_source, only_margin.margin, only_margin.limit) == ("policy", 0.1, None)


def test_a_quality_gate_across_different_text_is_invalid() -> None:
    a = case(None, {"ppl": 10.0}, workload=QUALITY, data_fingerprint="x")
    b = case(None, {"ppl": 10.0}, run="new", workload=QUALITY, data_fingerprint="y")
    row = one(Gate("ppl", "bound", margin=0.1), *compare_pairs([(a, b)], metrics=None))
    assert row.decision == "invalid" and "different held-out text" in row.reason


def test_a_metric_that_the_candidate_lost_is_invalid_not_gone() -> None:
    a = case({"tps": [1.0, 1.0]}, {"kv_bytes": 5.0})
    b = case({"tps": [1.0, 1.0]}, run="new")
    row = one(Gate("kv_bytes", "exact"), *compare_pairs([(a, b)], metrics=None))
    assert (row.decision, row.reason) == ("invalid", "not recorded on both sides")


# --- cases that did not run ---


@pytest.mark.parametrize(
    ("before", "after", "expected", "code"),
    [
        ("ok", "failed", "regressed", 1),
        ("ok", "oom", "regressed", 1),
        ("ok", "wrong", "regressed", 1),
        ("ok", "timeout", "regressed", 1),
        ("ok", "skipped", "invalid", 3),
        ("skipped", "skipped", "skipped", 3),
        ("failed", "ok", "skipped", 3),
        ("failed", "failed", "invalid", 3),
    ],
)
def test_a_case_that_broke_is_one_row(before: str, after: str, expected: str, code: int) -> None:
    pair = case(None, {"kv_bytes": 5.0}, status=before), case(None, {"kv_bytes": 5.0}, run="new", status=after)
    gates = [TPS, Gate("kv_bytes", "exact")]
    (row,) = evaluate(gates, compare_pairs([pair], metrics=None))
    assert (row.decision, row.metric, exit_code([row])) == (expected, "status", code)
    assert "scripted" in row.reason


def test_cases_of_one_side_only_are_named() -> None:
    old, new = case({"tps": [1.0]}, name="old"), case({"tps": [1.0]}, name="new")
    rows = evaluate([TPS], [], missing=[old], new=[new, case({"ttft": [1.0]}, workload=PREFILL)])
    assert [(row.case.case_id, row.decision) for row in rows] == [("old", "invalid"), ("new", "skipped")]


# --- which gate, and what comes of all rows ---


def test_the_first_gate_that_matches_judges() -> None:
    gates = [Gate("tps", workload="decode 4*", margin=0.2), Gate("tps", model="other", margin=0.3), TPS]
    assert one(gates[0], timed(1.0)).margin == 0.2  # the label of the workload, as tables show it
    assert [row.margin for row in evaluate(gates, [timed(1.0)])] == [0.2]
    assert [row.margin for row in evaluate(gates[1:], [timed(1.0)])] == [0.01]
    assert evaluate([Gate("tps", variant="kv=*")], [timed(1.0)]) == ()


def test_gates_that_judge_nothing_are_found() -> None:
    gates = [TPS, Gate("launches_per_step", "exact"), Gate("tps", model="huge")]
    assert unmatched(gates, evaluate(gates, [timed(1.0)])) == (gates[1], gates[2])
    assert describe(gates[2]) == "statistical tps of model huge"


def test_exit_codes() -> None:
    passed, slower, unsure = one(TPS, timed(1.0)), one(TPS, timed(0.9)), one(TPS, timed(1.0, num_blocks=1))
    assert exit_code([]) == 3
    assert exit_code([passed]) == 0
    assert exit_code([passed, unsure]) == 4
    assert exit_code([passed, unsure, slower]) == 1


def test_a_red_row_fails_only_if_it_is_red_again() -> None:
    first = evaluate([TPS], [timed(0.9), timed(0.9, name="b"), timed(1.0, name="c")])
    assert [row.case.case_id for row in red(first)] == ["a", "b"]
    again = evaluate([TPS], [timed(0.92), timed(1.0, name="b")])
    rows = confirmed(first, again)
    assert [row.decision for row in rows] == ["regressed", "passed", "passed"]
    assert rows[0].first is first[0] and rows[1].first is first[1] and rows[2].first is None
    assert "red twice" in rows[0].reason and "red at first" in rows[1].reason
    assert red(rows) == ()


def test_a_red_row_that_cannot_be_measured_again_is_undecided() -> None:
    first = evaluate([TPS], [timed(0.9)])
    (row,) = confirmed(first, [])
    assert row.decision == "inconclusive" and "not measured again" in row.reason


def test_a_red_row_is_not_taken_back_by_few_noisy_blocks() -> None:
    """What these exclude is more than the limit that was declared, so that they say nothing against the first."""
    first = evaluate([TPS], [timed(0.94)])
    (row,) = confirmed(first, evaluate([TPS], [timed(0.95, 0.15)]))
    assert row.decision == "inconclusive" and row.first is first[0]
    assert "red at first; on fresh blocks" in row.reason and "does not exclude the declared limit" in row.reason


def test_a_case_that_breaks_when_measured_again_is_red() -> None:
    first = evaluate([TPS], [timed(0.9)])
    broken = compare_pairs([(case(status="ok"), case(run="new", status="oom"))], metrics=None)
    (row,) = confirmed(first, evaluate([TPS], broken))
    assert row.decision == "regressed" and "oom" in row.reason


def test_ten_thousand_rows_take_seconds() -> None:
    """Not a timing: what is quadratic in the rows would not end before the test's patience does."""
    base = timed(1.0)
    many = [
        replace(
            base, reference=replace(base.reference, case_id=str(i)), candidate=replace(base.candidate, case_id=str(i))
        )
        for i in range(10_000)
    ]
    rows = evaluate([Gate("ttft"), TPS], many)
    assert len(rows) == 10_000 and {row.decision for row in rows} == {"passed"}
    assert len(confirmed(rows, rows)) == 10_000


# --- gates.toml ---

GOOD = """
suite = "gate"
budget = "5m"
margin = 0.02
[[gate]]
metric = "tps"
workload = "decode*"
[[gate]]
metric = "ttft"
margin = 0.05
limit = 0.08
fails = "change"
[[gate]]
metric = "kl"
kind = "bound"
limit = 1e-3
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "gates.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_of_gates_is_read(tmp_path: Path) -> None:
    found = load_gates(written(tmp_path, GOOD))
    assert (found.suite, found.budget_seconds) == ("gate", 300.0)
    assert found.gates == (
        Gate("tps", workload="decode*", margin=0.02),
        Gate("ttft", margin=0.05, limit=0.08, fails="change"),
        Gate("kl", kind="bound", limit=1e-3),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ["no [[gate]] table", "nothing to gate"]),
        ("gate = 3", ["[[gate]]"]),
        ("suite = [", ["not TOML"]),
        ('suit = "gate"\n[[gate]]\nmetric="tps"', ["'suit'", "Did you mean 'suite'"]),
        ('suite = "nope"\n[[gate]]\nmetric="tps"', ["'nope'", "quickstart"]),
        ('suite = 3\n[[gate]]\nmetric="tps"', ["suite = 3", "in quotes"]),
        ('budget = "soon"\n[[gate]]\nmetric="tps"', ["'soon'", "10m"]),
        ('budget = 0\n[[gate]]\nmetric="tps"', ["budget = 0"]),
        ('budget = true\n[[gate]]\nmetric="tps"', ["budget = True"]),
        ('margin = "1%"\n[[gate]]\nmetric="tps"', ["margin = '1%'", "a number"]),
        ("[[gate]]\nkind='exact'", ["gate 1", "no metric"]),
        ("[[gate]]\nmetric='tps'\n[[gate]]\nmetric='tsp'", ["gate 2", "'tsp'", "Did you mean"]),
        ("[[gate]]\nmetric='tps'\nmargins=1", ["gate 1", "'margins'", "Did you mean 'margin'"]),
        ("[[gate]]\nmetric='tps'\nkind='fuzzy'", ["gate 1", "'fuzzy'", "statistical"]),
        ("[[gate]]\nmetric='tps'\nfails='slower'", ["gate 1", "'slower'", "worse"]),
        ("[[gate]]\nmetric='tps'\nmodel=5", ["gate 1", "model = 5"]),
        ("[[gate]]\nmetric='tps'\nworkload=''", ["gate 1", "workload = ''"]),
        ("[[gate]]\nmetric='tps'\nmargin=-0.01", ["gate 1", "-0.01", "negative"]),
        ("[[gate]]\nmetric='tps'\nmargin=nan", ["gate 1", "nan"]),
        ("[[gate]]\nmetric='tps'\nmargin=true", ["gate 1", "True"]),
        ("[[gate]]\nmetric='tps'\nmargin=0.05\nlimit=0.03", ["gate 1", "0.03", "below the margin 0.05"]),
        ("[[gate]]\nmetric='tps'\nkind='exact'", ["gate 1", "'tps' has noise", "kv_bytes"]),
        ("[[gate]]\nmetric='kv_bytes'", ["gate 1", "'kv_bytes' is one value"]),
        ("[[gate]]\nmetric='tps'\nkind='bound'\nlimit=1", ["gate 1", "'tps' is timed"]),
        ("[[gate]]\nmetric='ppl'\nkind='bound'", ["gate 1", "a margin", "a limit"]),
        ("[[gate]]\nmetric='ppl'\nkind='bound'\nlimit=3\nfails='better'", ["gate 1", "'better'"]),
        ("[[gate]]\nmetric='kv_bytes'\nkind='exact'\nlimit=3", ["gate 1", "no limit (3)"]),
    ],
)
def test_a_bad_file_is_refused_with_its_place_and_value(tmp_path: Path, text: str, said: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        load_gates(written(tmp_path, text))
    for word in ("gates.toml", *said):
        assert word in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.toml"):
        load_gates(tmp_path / "nowhere.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"binary\.toml.*UTF-8"):
        load_gates(tmp_path / "binary.toml")


def test_the_gates_of_a_suite_are_checked_too() -> None:
    with pytest.raises(UsageError, match=r"suite x: gate 1: .*has noise"):
        gates_of([Gate("tps", kind="exact")], "suite x")
    with pytest.raises(UsageError, match="declares no gates"):
        gates_of([], "suite x")
    assert gates_of(registry.SUITES["gate"].gates, "suite gate")
