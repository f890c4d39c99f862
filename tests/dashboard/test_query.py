"""The dashboard's questions: the harness's own numbers, to the bit, and the noise over time."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dashboard.filters import Filter, parse_filter
from dashboard.query import MAX_SAMPLES, Query
from harness.compare import measured_cases
from harness.core import Sample
from harness.schema import RunRow
from harness.store import Store
from tests.dashboard.stores import REFERENCE, arm, assert_summary_of
from tests.synthetic import store_run


@pytest.mark.parametrize("compacted", [False, True])
def test_the_summary_of_real_runs_is_the_stores(tmp_path: Path, compacted: bool) -> None:
    folder = Path(shutil.copytree(REFERENCE, tmp_path / "store"))
    if compacted:
        Store.open(folder).compact(min_age_seconds=0.0)
    assert_summary_of(Query(folder), Store.open(folder))


def test_the_summary_of_made_up_runs_is_the_stores(asked: Query, sample: Path) -> None:
    assert_summary_of(asked, Store.open(sample))


def test_compaction_changes_no_answer(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(REFERENCE, tmp_path / "store"))
    query = Query(folder)
    machine = query.machines()[0].machine_id

    def answers() -> list[Any]:
        questions = [query.runs(limit=20), query.summary(Filter()), query.matrix("norm", "kv"), query.noise(machine)]
        return [*questions, query.axes(), query.metrics(), query.models(), query.suites()]

    before = answers()
    Store.open(folder).compact(min_age_seconds=0.0)
    assert answers() == before


def test_a_summary_line_knows_what_was_measured_where(asked: Query, sample: Path) -> None:
    store = Store.open(sample)
    run = store.runs()[3]
    cases = {case.case_id: case for case in measured_cases(store, run.run_id)}
    lines = asked.summary([run.run_id])
    assert {line.case_id for line in lines} == set(cases)
    for line in lines:
        case = cases[line.case_id]
        assert (line.workload, line.model, line.variant) == (case.workload, case.model, case.variant)
        assert (line.suite, line.machine_id, line.git_sha) == (run.suite, run.machine_id, run.git_sha)
        assert line.started_at == run.started_at
        chosen = dict(pair.split("=") for pair in case.variant.split() if "=" in pair)
        assert chosen.items() <= line.axes.items() and line.axes["backend"] == chosen.get("backend", "torch")


def test_cases_without_a_number_have_a_line_with_their_status(asked: Query) -> None:
    lines = asked.summary(parse_filter("status!=ok"))
    assert lines and {line.metric for line in lines if line.status == "skipped"} == {""}
    assert all((line.n, line.median) == (0, None) for line in lines if line.metric == "")
    assert "" not in {line.metric for line in asked.summary(Filter(), ["tps"])}


def test_cases_stand_as_the_store_has_them(asked: Query, sample: Path) -> None:
    store = Store.open(sample)
    for run in store.runs()[-3:]:
        found, expected = asked.cases(run.run_id), measured_cases(store, run.run_id)
        assert [(c.case_id, c.status, c.reason) for c in found] == [(c.case_id, c.status, c.reason) for c in expected]
        assert [c.facts for c in found] == [dict(c.facts) for c in expected]
        assert all(case.group and case.suite == run.suite and case.axes for case in found)


def test_samples_are_all_of_the_series_in_time_order(asked: Query, sample: Path) -> None:
    line = next(line for line in asked.summary(Filter(), ["tps"]) if line.status == "ok")
    rows = Store.open(sample).samples(line.run_id, case_id=line.case_id, metric="tps")
    found = asked.samples(line.run_id, line.case_id, "tps")
    assert Counter(one.value for one in found) == Counter(rows["value"].to_pylist())
    assert {"warmup", "timed"} == {one.phase for one in found} and {one.unit for one in found} == {"tokens/s"}
    assert [(one.block, one.t_ns) for one in found] == sorted((one.block, one.t_ns) for one in found)


def test_of_many_samples_evenly_spaced_ones_are_shown(store: Store) -> None:
    writer = store.begin(RunRow(suite="lab"))
    case = arm().case()
    samples = [Sample(case.case_id, "tps", float(i), "1", 0, "w", 0, i, "timed", i) for i in range(5001)]
    writer.write(cases=[arm().row(0)], samples=samples)
    found = [one.value for one in Query(store.path).samples(writer.run_id, case.case_id, "tps")]
    assert len(found) == MAX_SAMPLES and (found[0], found[-1]) == (0.0, 5000.0)
    steps = {b - a for a, b in pairwise(found)}
    assert steps == {2.0, 3.0}


def test_a_series_is_one_machines_oldest_first(asked: Query, sample: Path) -> None:
    when = {run.run_id: run.started_at for run in Store.open(sample).runs()}
    one = next(line for line in asked.summary(parse_filter("suite=gate"), ["tps"]) if line.status == "ok")
    found = asked.series(one.case_id, "tps", one.machine_id)
    assert len(found) > 3 and {line.machine_id for line in found} == {one.machine_id}
    assert [line.started_at for line in found] == sorted(when[line.run_id] for line in found)


def runs_at(store: Store, levels: list[float], **run: Any) -> None:
    for number, level in enumerate(levels):
        stored = store_run(store, arm(factor=level), machine_id="m1", **run)
        store.save_run(replace(stored, started_at=datetime(2026, 11, 1, tzinfo=UTC) + timedelta(days=number)))


def test_the_noise_of_a_series_over_time_is_not_moved_by_a_step(store: Store) -> None:
    runs_at(store, [1.0, 1.01, 1.0, 1.01, 2.0, 2.02, 2.0, 2.02])
    (line,) = Query(store.path).noise("m1")
    assert (line.num_runs, line.metric, line.variant) == (8, "tps", "reference")
    assert line.run_to_run == pytest.approx(1.482602218505602 * math.log(1.01) / math.sqrt(2), rel=1e-6)
    assert line.drift is not None and line.drift > 0.8
    assert line.within == pytest.approx(0.0074, abs=2e-4)


def test_drift_is_the_change_along_a_straight_line(store: Store) -> None:
    runs_at(store, [math.exp(0.01 * number) for number in range(6)])
    (line,) = Query(store.path).noise("m1")
    assert line.drift == pytest.approx(math.expm1(0.05), rel=1e-6)


def test_two_runs_are_no_history(store: Store) -> None:
    runs_at(store, [1.0, 1.1])
    (line,) = Query(store.path).noise("m1")
    assert (line.num_runs, line.run_to_run, line.drift) == (2, None, None) and line.within is not None
    assert Query(store.path).noise("m2") == ()


def test_the_calibrated_floor_stands_beside_it(asked: Query) -> None:
    lines = [
        line for line in asked.noise("synthetic-laptop") if line.workload.startswith("decode") and line.metric == "tps"
    ]
    calibration = asked.calibration("synthetic-laptop")
    assert calibration is not None and lines
    for line in lines:
        floor = calibration.floor_for(line.workload, line.model, "tps")
        assert (line.floor, "A/A noise floor" in line.floor_source) == (
            floor.margin(line.num_blocks) if floor else None,
            floor is not None,
        )
    assert asked.calibration("no such machine") is None


def test_the_stamp_says_what_is_made_up(asked: Query, store: Store) -> None:
    stamp = asked.stamp()
    assert stamp.synthetic and stamp.schema_version == 1 and len(stamp.running) == 1 and stamp.problems == ()
    assert 0.0 < stamp.running[0].done < 1.0 and stamp.complete_as_of is not None
    store_run(store, arm())
    assert not Query(store.path).stamp().synthetic


def test_the_order_of_equal_times_is_that_of_the_ids(store: Store) -> None:
    runs = [store_run(store, arm()) for _ in range(3)]
    for run in runs:
        store.save_run(replace(run, started_at=datetime(2026, 11, 1, tzinfo=UTC)))
    ids = sorted(run.run_id for run in runs)
    query = Query(store.path)
    assert [line.run_id for line in query.runs().rows] == ids[::-1]
    assert [line.run_id for line in query.summary(Filter())] == ids
