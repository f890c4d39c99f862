"""The dashboard's questions: the harness's own numbers, few files read, and an answer whatever became of the files."""

from __future__ import annotations

import math
import shutil
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, astuple, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dashboard.filters import Filter, parse_filter
from dashboard.query import MAX_SAMPLES, Query, SummaryLine
from dashboard.sql import SORTS
from harness.compare import measured_cases
from harness.core import Sample, StoreError, UsageError
from harness.sample_store import write_sample_store
from harness.schema import CaseRow, RunRow, encode
from harness.store import Store
from tests.synthetic import Arm, store_run

REFERENCE = Path(__file__).resolve().parents[2] / "results" / "reference"
EVIL = ("'; DROP TABLE runs; --", '"', "x' OR '1'='1", "%", "\\", "?", "../../etc/passwd", "latest")
FOUR = (100.0, 101.0, 99.0, 100.0)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up compacted store with a run that goes on. Not to be changed."""
    folder = tmp_path_factory.mktemp("sample") / "store"
    write_sample_store(folder, samples=1)
    return folder


@pytest.fixture(scope="module")
def asked(sample: Path) -> Query:
    return Query(sample)


@pytest.fixture
def own(sample: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(sample, tmp_path / "store"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "results", create=True)


def arm(variant: str = "reference", factor: float = 1.0, **changes: Any) -> Arm:
    return Arm(variant, **{"timed": {"tps": [value * factor for value in FOUR]}, **changes})


# --- the harness's own numbers ---


def stored_rows(store: Store) -> dict[tuple[str, str, str], dict[str, Any]]:
    known = {run.run_id for run in store.runs()}
    rows = [row for row in store.summary().to_pylist() if row["run_id"] in known]
    return {(row["run_id"], row["case_id"], row["metric"]): row for row in rows}


def same(mine: float | None, stored: float | None) -> bool:
    """Equal to the bit; what is not finite is shown as missing."""
    return mine == (stored if stored is not None and math.isfinite(stored) else None)


def assert_summary_of(query: Query, store: Store) -> None:
    stored, lines = stored_rows(store), query.summary(Filter())
    assert len(lines) == len(stored) > 0
    for line in lines:
        row = stored[line.run_id, line.case_id, line.metric]
        assert (line.unit, line.status, line.n, line.num_blocks) == tuple(
            row[k] for k in ("unit", "status", "n", "num_blocks")
        )
        assert all(same(getattr(line, name), row[name]) for name in ("median", "low", "high", "noise"))


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


# --- lists ---


def test_the_list_of_runs_counts_cases_by_status(asked: Query, sample: Path) -> None:
    store = Store.open(sample)
    page = asked.runs(limit=500)
    assert [line.run_id for line in page.rows] == [run.run_id for run in store.runs()[::-1]]
    assert page.total == len(page.rows)
    for line in page.rows:
        status = Counter(row["status"] for row in store.cases(line.run_id).to_pylist())
        assert (line.num_ok, line.num_skipped) == (status["ok"], status["skipped"])
        assert line.num_failed == status.total() - status["ok"] - status["skipped"]
        run = store.find_run(line.run_id)
        assert (line.command, line.suite, line.status, line.session, line.side) == (
            run.command, run.suite, run.status, run.session, run.side,
        )  # fmt: skip
        assert "synthetic" in line.subject


@pytest.mark.parametrize("sort", sorted(SORTS))
def test_every_column_sorts_both_ways_and_pages_fit_together(asked: Query, sort: str) -> None:
    baseline = asked.runs(parse_filter("suite=gate"), limit=1).rows[0].run_id
    for descending in (False, True):
        whole = asked.runs(sort=sort, descending=descending, limit=500, baseline=baseline)
        pages = [
            asked.runs(sort=sort, descending=descending, offset=start, limit=7, baseline=baseline).rows
            for start in range(0, whole.total, 7)
        ]
        assert [line for page in pages for line in page] == list(whole.rows)
        values = [getattr(line, sort) for line in whole.rows]
        present = [value for value in values if value is not None]
        assert present == sorted(present, reverse=descending) and values[len(present) :] == [None] * (
            len(values) - len(present)
        )


def test_a_page_beyond_the_end_is_empty_and_still_knows_the_total(asked: Query) -> None:
    page = asked.runs(offset=10_000)
    assert page.rows == () and page.total > 40
    assert asked.runs(offset=-5, limit=-1).rows == ()


def test_the_geometric_mean_is_over_the_headline_of_the_cases_in_common(asked: Query) -> None:
    gates = asked.runs(parse_filter("suite=gate machine=synthetic-laptop run_status=finished"), limit=500).rows
    newest, oldest = gates[0].run_id, gates[-1].run_id
    (found,) = (line for line in asked.runs(baseline=oldest, limit=500).rows if line.run_id == newest)
    headline = {"decode": ("tps", 1), "prefill": ("ttft", -1)}
    medians: dict[str, dict[str, SummaryLine]] = {newest: {}, oldest: {}}
    for line in asked.summary([newest, oldest], ["tps", "ttft"]):
        if line.status == "ok" and headline.get(line.workload.partition("(")[0], ("",))[0] == line.metric:
            medians[line.run_id][line.case_id] = line
    logs = []
    for case_id in medians[newest].keys() & medians[oldest].keys():
        a, b = medians[oldest][case_id], medians[newest][case_id]
        assert a.median and b.median
        logs.append(headline[a.workload.partition("(")[0]][1] * math.log(b.median / a.median))
    assert found.geomean == pytest.approx(math.exp(sum(logs) / len(logs)), rel=1e-12)
    assert found.geomean_low is not None and found.geomean_high is not None
    assert found.geomean_low < found.geomean < found.geomean_high
    assert found.geomean_high / found.geomean == pytest.approx(found.geomean / found.geomean_low)


def test_a_run_is_as_good_as_itself_and_other_machines_are_not_compared(asked: Query) -> None:
    first = asked.runs(parse_filter("suite=gate machine=synthetic-laptop"), limit=1).rows[0]
    lines = asked.runs(baseline=first.run_id, limit=500).rows
    assert next(line.geomean for line in lines if line.run_id == first.run_id) == 1.0
    assert {line.geomean for line in lines if line.machine_id != first.machine_id} == {None}
    assert {line.geomean for line in lines if line.suite == "quantization"} == {None}
    assert {line.geomean for line in asked.runs(limit=500).rows} == {None}
    assert {line.geomean for line in asked.runs(baseline="no such run", limit=500).rows} == {None}


def test_one_block_gives_a_mean_without_an_interval(store: Store) -> None:
    first = store_run(store, arm(timed={"tps": {0: 100.0}}))
    store_run(store, arm(timed={"tps": {0: 150.0}}))
    newest = Query(store.path).runs(baseline=first.run_id).rows[0]
    assert newest.geomean == pytest.approx(1.5) and newest.geomean_low is None and newest.geomean_high is None


@pytest.mark.parametrize(
    ("text", "keep"),
    [
        ("suite=gate", lambda line: line.suite == "gate"),
        ("suite!=gate", lambda line: line.suite != "gate"),
        ("suite=gate,norm", lambda line: line.suite in ("gate", "norm")),
        ("machine=synthetic-l", lambda line: line.machine_id == "synthetic-laptop"),
        ("model=mini*", lambda line: line.model.startswith("mini")),
        ("workload=decode", lambda line: line.workload.startswith("decode(")),
        ("norm=fused", lambda line: line.axes["norm"] == "fused"),
        ("norm!=native", lambda line: line.axes["norm"] != "native"),
        ("kv=cat norm=native", lambda line: (line.axes["kv"], line.axes["norm"]) == ("cat", "native")),
        (
            "context>=500",
            lambda line: int(line.workload.partition("context=")[2].partition(",")[0].rstrip(")") or 0) >= 500,
        ),
        ("variant=reference", lambda line: line.variant == "reference"),
        ("variant='kv=prealloc sdpa=fused'", lambda line: line.variant == "kv=prealloc sdpa=fused"),
        ("status=skipped", lambda line: line.status == "skipped"),
        ("metric=ppl,kl", lambda line: line.metric in ("ppl", "kl")),
        ("run_status=running", lambda line: line.run_id == "RUNNING"),
    ],
)
def test_a_filter_keeps_what_it_says(asked: Query, text: str, keep: Any) -> None:
    running = asked.stamp().running[0].run_id
    every = asked.summary(Filter())
    expected = [line for line in every if keep(replace(line, run_id="RUNNING") if line.run_id == running else line)]
    assert expected and list(asked.summary(parse_filter(text))) == expected
    runs = asked.runs(parse_filter(text), limit=500)
    assert {line.run_id for line in runs.rows} == {line.run_id for line in expected} and runs.total == len(runs.rows)


def test_a_whole_machine_id_means_that_machine_alone(store: Store) -> None:
    for machine_id in ("ab12", "ab12cd", "ab34"):
        store_run(store, arm(), machine_id=machine_id)

    def found(text: str) -> set[str]:
        return {line.machine_id for line in Query(store.path).runs(parse_filter(text)).rows}

    assert found("machine=ab") == {"ab12", "ab12cd", "ab34"} and found("machine=ab12") == {"ab12"}
    assert found("machine!=ab12") == {"ab12cd", "ab34"} and found("machine=ab12c,ab3") == {"ab12cd", "ab34"}
    assert found("machine=ab12*") == {"ab12", "ab12cd"}


def test_filters_by_time_and_by_changed_files(asked: Query) -> None:
    middle = asked.runs(limit=500).rows[20].started_at
    assert middle is not None
    later = asked.runs(parse_filter(f"started>={middle:%Y-%m-%dT%H:%M:%S}"), limit=500)
    assert later.total == 21 and all(line.started_at >= middle for line in later.rows if line.started_at)
    assert {line.git_dirty for line in asked.runs(parse_filter("dirty=yes"), limit=500).rows} == {True}


def test_the_matrix_counts_every_case_once_per_machine(asked: Query) -> None:
    cells = {(cell.row, cell.column): cell for cell in asked.matrix("quant", "kv")}
    newest: dict[tuple[str, str], SummaryLine] = {}
    for line in asked.summary(Filter()):
        newest[line.case_id, line.machine_id] = line
    expected = Counter((line.axes["quant"], line.axes["kv"]) for line in newest.values())
    got = {key: c.num_ok + c.num_skipped + c.num_failed + c.num_wrong for key, c in cells.items()}
    assert got == dict(expected)
    assert all(cell.reasons for cell in cells.values() if cell.num_skipped or cell.num_failed or cell.num_wrong)


def test_the_matrix_takes_parameters_in_order_of_size_and_a_filter(asked: Query) -> None:
    cells = asked.matrix("context", "model", parse_filter("suite=kv_cache machine=synthetic-laptop"))
    assert [cell.row for cell in cells] == ["128", "512", "1000"]
    with pytest.raises(UsageError, match=r"unknown axis of a matrix 'nrom'\. Did you mean 'norm'"):
        asked.matrix("nrom", "kv")


def test_a_wrong_case_is_no_failed_one(store: Store) -> None:
    store_run(store, arm(), arm("norm=fused", timed={}, status="wrong", reason="no fused norm ran"))
    store_run(store, arm("kv=prealloc", timed={}, status="oom", reason="26 GB"))
    cells = {(cell.row, cell.column): cell for cell in Query(store.path).matrix("norm", "kv")}
    assert astuple(cells["fused", "cat"])[2:] == (0, 0, 0, 1, ("no fused norm ran",))
    assert astuple(cells["native", "prealloc"])[2:] == (0, 0, 1, 0, ("26 GB",))


def test_pickers_offer_what_the_store_has(asked: Query) -> None:
    assert [m.machine_id for m in asked.machines()] == ["synthetic-laptop", "synthetic-server", "synthetic-workstation"]
    assert {m.device for m in asked.machines()} == {"cpu", "cuda"}
    assert {"gate", "norm"} <= set(asked.suites()) and {"tiny", "minimind2-small"} <= set(asked.models())
    assert {"tps", "ppl", "peak_bytes"} <= set(asked.metrics()) and "" not in asked.metrics()
    assert asked.axes()["kv"][0] == "cat" and "prealloc" in asked.axes()["kv"]


# --- noise ---


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


# --- how much is read ---


def pages(query: Query) -> list[Any]:
    """What the pages ask, but for the drawers."""
    machine = query.machines()[0].machine_id
    baseline = query.runs(limit=1).rows[0].run_id
    line = query.summary(Filter(), ["tps"])[0]
    return [
        query.stamp(),
        query.runs(parse_filter("norm=fused"), sort="geomean", baseline=baseline),
        query.summary(parse_filter("suite=gate"), ["tps"]),
        query.series(line.case_id, line.metric, line.machine_id),
        query.matrix("norm", "kv"),
        query.noise(machine),
        query.metrics(),
        query.axes(),
    ]


def test_pages_of_a_compacted_store_read_the_summary_and_the_cases_once_and_no_samples(own: Path) -> None:
    for run_id in Store.open(own).catalog.inbox_runs():
        shutil.rmtree(own / "inbox" / run_id)
        (own / "runs" / f"{run_id}.parquet").unlink()
    query = Query(own)
    first = pages(query)
    assert query.num_files_read == 2
    for path in (own / "compacted").glob("*/*.parquet"):
        path.write_bytes(b"not a file any more")
    assert pages(query) == first and query.num_files_read == 2


def test_a_run_more_reads_its_own_files_only(own: Path) -> None:
    query = Query(own)
    pages(query)
    before = query.num_files_read
    store_run(Store.open(own), arm(), arm("kv=prealloc", 1.2))
    assert query.runs(limit=1).rows[0].num_ok == 2
    pages(query)
    assert query.num_files_read == before + 2


def test_nothing_is_read_again_when_nothing_changed(own: Path) -> None:
    query = Query(own)
    generation = query.generation()
    pages(query)
    before = query.num_files_read
    for _ in range(3):
        pages(query)
    assert (query.generation(), query.num_files_read) == (generation, before)


# --- a run that goes on ---


def test_a_run_that_is_being_written_grows(store: Store) -> None:
    store_run(store, arm())
    query = Query(store.path)
    generations = [query.generation()]
    writer = store.begin(RunRow(suite="lab", plan='{"blocks": 4}'))
    case = arm().row(0)
    for block in range(4):
        samples = [Sample(case.case_id, "tps", 100.0 + block, "tokens/s", block, "w", 0, 0, "timed", block)]
        writer.write(cases=[replace(case, num_blocks=block + 1)], samples=samples)
        (running,) = query.stamp().running
        assert (running.run_id, running.suite, running.done) == (writer.run_id, "lab", (block + 1) / 4)
        (line,) = query.summary([writer.run_id])
        assert (line.n, line.num_blocks) == (block + 1, block + 1)
        generations.append(query.generation())
    assert len(set(generations)) == 5
    writer.finish("finished")
    stamp = query.stamp()
    assert stamp.running == () and stamp.num_runs == 2 and stamp.complete_as_of == query.run(writer.run_id).finished_at  # type: ignore[union-attr]
    assert_summary_of(query, store)


def test_a_run_without_any_row_yet_is_in_the_list(store: Store) -> None:
    writer = store.begin(RunRow(suite="lab"))
    query = Query(store.path)
    (line,) = query.runs().rows
    assert (line.run_id, line.num_ok, line.noise) == (writer.run_id, 0, None)
    assert query.stamp().running[0].done == 0.0 and query.cases(writer.run_id) == ()


def test_a_run_whose_writer_died_is_a_problem_with_a_way_out(store: Store) -> None:
    run = store_run(store, arm(), command="python -m harness run lab")
    store.save_run(replace(run, status="running", pid=2**22 + 1))
    stamp = Query(store.path).stamp()
    assert stamp.running == ()
    (problem,) = stamp.problems
    assert f"--resume {run.run_id}" in problem.reason


def test_a_run_that_is_written_to_again_after_compaction_counts_its_last_rows(store: Store) -> None:
    run = store_run(store, arm())
    store.save_run(replace(run, status="interrupted"))
    store.compact(min_age_seconds=0.0)
    query = Query(store.path)
    assert query.runs().rows[0].num_ok == 1
    writer = store.reopen(run.run_id)
    failed = CaseRow(**{**asdict(arm().row(0)), "status": "failed", "reason": "broke later"})
    writer.write(cases=[failed])
    assert (query.runs().rows[0].num_ok, query.runs().rows[0].num_failed) == (0, 1)
    writer.finish("failed")
    store.compact(min_age_seconds=0.0)
    assert (query.runs().rows[0].num_ok, query.runs().rows[0].num_failed) == (0, 1)
    assert_summary_of(query, store)


def test_copies_that_a_kill_left_count_once(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(REFERENCE, tmp_path / "store"))
    before = Query(folder).summary(Filter())
    Store.open(folder).compact(min_age_seconds=0.0)
    shutil.copytree(REFERENCE / "inbox", folder / "inbox", dirs_exist_ok=True)
    query = Query(folder)
    assert query.summary(Filter()) == before
    assert query.runs().total == 7


# --- damage ---


def damaged(path: Path, *, at: float = 1 / 3) -> None:
    """Sixty-four bytes of a file become zero."""
    data = bytearray(path.read_bytes())
    start = 16 + int(at * len(data))
    data[start : start + 64] = bytes(64)
    path.write_bytes(bytes(data))


def newer(path: Path) -> None:
    read = pq.read_table(path)
    metadata = {**read.schema.metadata, b"schema_version": b"99"}
    pq.write_table(read.replace_schema_metadata(metadata), path)


def named(query: Query) -> Mapping[str, str]:
    return {problem.path.name: problem.reason for problem in query.stamp().problems}


def test_a_damaged_summary_is_named_and_computed_anew(own: Path) -> None:
    before = Query(own).summary(Filter())
    damaged(own / "summary.parquet")
    query = Query(own)
    assert str(query.summary(Filter())) == str(before)
    assert "not readable" in named(query)["summary.parquet"]


def test_a_truncated_file_of_cases_leaves_the_rest(own: Path) -> None:
    store_run(Store.open(own), arm())
    path = next((own / "compacted" / "cases").iterdir())
    path.write_bytes(path.read_bytes()[:-20])
    query = Query(own)
    assert path.name in named(query) and query.stamp().num_runs > 40
    assert query.runs(limit=1).rows[0].num_ok == 1
    assert len(query.runs(limit=500).rows) == query.stamp().num_runs


def test_a_file_of_cases_with_bad_pages_is_named(own: Path) -> None:
    path = next((own / "compacted" / "cases").iterdir())
    damaged(path, at=0.0)
    query = Query(own)
    assert query.runs(limit=500).total > 40
    assert "not readable" in named(query)[path.name]


def test_newer_and_foreign_files_are_named(own: Path) -> None:
    newer(next((own / "compacted" / "samples").iterdir()))
    pq.write_table(pa.table({"a": [1]}), own / "runs" / "foreign.parquet")
    query = Query(own)
    assert query.runs(limit=500).total > 40
    reasons = named(query)
    assert "newer than" in reasons["part-000001.parquet"] and "foreign" in reasons["foreign.parquet"]
    (readable,) = {line.run_id for line in query.summary(Filter(), ["tps"])}
    assert readable == query.stamp().running[0].run_id


def test_rows_without_a_run_are_named_and_not_shown(own: Path) -> None:
    run = Store.open(own).runs()[5]
    (own / "runs" / f"{run.run_id}.parquet").unlink()
    query = Query(own)
    assert query.run(run.run_id) is None and query.summary([run.run_id]) == ()
    assert "rows of the run are there" in named(query)[f"{run.run_id}.parquet"]


def test_what_is_deleted_while_it_is_looked_at_gives_empty_answers(own: Path) -> None:
    query = Query(own)
    line = query.summary(Filter(), ["tps"])[0]
    for path in [*(own / "runs").iterdir(), *(own / "compacted").glob("*/*")]:
        path.unlink()
    assert query.run(line.run_id) is None and query.cases(line.run_id) == ()
    assert query.samples(line.run_id, line.case_id, "tps") == ()
    assert query.runs().total == 0 and query.summary([line.run_id]) == ()
    shutil.rmtree(own)
    assert query.stamp().num_runs == 0 and query.machines() == () and query.matrix("norm", "kv") == ()


def test_an_empty_store_and_no_store(store: Store, tmp_path: Path) -> None:
    query = Query(store.path)
    stamp = query.stamp()
    assert (stamp.num_runs, stamp.complete_as_of, stamp.problems, stamp.running, stamp.synthetic) == (
        0,
        None,
        (),
        (),
        False,
    )
    assert (
        query.runs().rows == () and query.summary(Filter()) == () and query.metrics() == () and query.noise("x") == ()
    )
    with pytest.raises(StoreError, match="there is no store"):
        Query(tmp_path / "nowhere")


# --- text from elsewhere ---


@pytest.mark.parametrize("evil", EVIL)
def test_evil_text_is_only_text(asked: Query, evil: str) -> None:
    total = asked.runs().total
    quoted = "'" + evil.replace("'", "'\"'\"'") + "'"
    assert asked.run(evil) is None and asked.summary([evil]) == () and asked.cases(evil) == ()
    assert asked.series(evil, evil, evil) == () and asked.samples(evil, evil, evil) == () and asked.noise(evil) == ()
    for field in ("model", "machine", "norm", "suite", "metric"):
        assert asked.runs(parse_filter(f"{field}={quoted}")).total == 0
    assert asked.runs(baseline=evil, limit=1).rows
    for wrong in (lambda: asked.runs(sort=evil), lambda: asked.matrix(evil, "kv"), lambda: asked.matrix("kv", evil)):
        with pytest.raises(UsageError):
            wrong()
    assert asked.runs().total == total


def test_evil_text_in_files_is_only_text(store: Store) -> None:
    run = store_run(store, arm(), suite='x"; DROP TABLE runs; --', git_sha="--output=/tmp/x", machine_id="' OR 1=1")
    path = store.path / "inbox" / run.run_id / "cases.parquet"
    rows = pq.read_table(path)
    evil = pa.array(["'); DROP TABLE cases; --"])
    rows = rows.append_column('axis_a" FROM runs; DROP TABLE cases; --', evil).append_column("axis_odd one", evil)
    path.write_bytes(encode(rows, "cases", {run.run_id: 1}))
    for _ in range(2):
        query = Query(store.path)
        assert query.runs().rows[0].suite == 'x"; DROP TABLE runs; --' and query.runs().rows[0].subject == ""
        assert query.axes()["odd one"] == ("'); DROP TABLE cases; --",)
        assert query.machines()[0].machine_id == "' OR 1=1" and len(query.summary(Filter())) == 1
        assert query.matrix("odd one", 'a" FROM runs; DROP TABLE cases; --')[0].num_ok == 1
        store.compact(min_age_seconds=0.0)


def test_sql_reaches_no_file(asked: Query, tmp_path: Path) -> None:
    import duckdb

    for sql in (f"COPY runs TO '{tmp_path / 'x'}'", "SELECT * FROM read_csv('/etc/hostname')", "INSTALL httpfs"):
        with pytest.raises(duckdb.Error):
            asked._database.ask(sql)


def test_imported_texts_that_are_no_workload_are_kept(store: Store) -> None:
    writer = store.begin(RunRow(suite="imported", machine_id="m1"))
    row = CaseRow("0123456789ab", "bench [a/b] odd", "their model: x", "no variant", "ok")
    samples = [
        Sample(row.case_id, "latency", v, "s", b, "w", 0, i, "timed", i)
        for b in range(2)
        for i, v in enumerate((1.0, 2.0))
    ]
    writer.write(cases=[row], samples=samples)
    writer.finish("finished")
    query = Query(store.path)
    (line,) = query.summary(Filter())
    assert (line.workload, line.variant, line.metric) == ("bench [a/b] odd", "no variant", "latency")
    assert query.runs(baseline=writer.run_id).rows[0].geomean is None and query.noise("m1")[0].num_runs == 1


# --- many at once ---


def test_threads_ask_while_a_run_is_written(store: Store) -> None:
    store_run(store, arm(), arm("kv=prealloc", 1.1))
    query = Query(store.path)
    failures: list[BaseException] = []
    ended = threading.Event()

    def ask() -> None:
        try:
            while not ended.is_set():
                assert query.runs(limit=5).total >= 1
                assert all(line.n for line in query.summary(Filter(), ["tps"]))
                assert query.matrix("kv", "norm") and query.stamp().num_runs
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(6):
        store_run(store, arm(), arm("norm=fused", 1.2))
        store.compact(min_age_seconds=0.0)
    ended.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert query.runs().total == 7


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
