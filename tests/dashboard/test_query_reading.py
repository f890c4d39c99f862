"""How much the dashboard reads, and what it sees of a store that changes under it."""

from __future__ import annotations

import shutil
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dashboard.filters import Filter, parse_filter
from dashboard.query import Query
from harness.core import Sample
from harness.schema import CaseRow, RunRow
from harness.store import Store
from tests.dashboard.stores import REFERENCE, arm, assert_summary_of
from tests.synthetic import store_run


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
