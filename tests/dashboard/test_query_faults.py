"""An answer whatever became of the files, and whatever text stands in them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dashboard.filters import Filter, parse_filter
from dashboard.query import Query
from harness.core import Sample, StoreError, UsageError
from harness.schema import CaseRow, RunRow, encode
from harness.store import Store
from tests.dashboard.stores import arm
from tests.synthetic import store_run

EVIL = ("'; DROP TABLE runs; --", '"', "x' OR '1'='1", "%", "\\", "?", "../../etc/passwd", "latest")


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
