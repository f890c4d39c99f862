"""The store: nothing written is lost, and nothing is counted twice."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from harness import compaction, schema
from harness.core import StoreError, UsageError
from harness.store import PeakRow, RunRow, RunWriter, Store
from tests.store_rows import (
    WARM,
    case,
    disown,
    make_run,
    reading,
    rows,
    sample,
    write_block,
)


def test_open_refuses_what_is_not_a_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for name, text in (("none", "no store"), ("file", "not a folder"), ("folder", "not a store")):
        with pytest.raises(StoreError, match=text) as error:
            Store.open(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
        assert "--store" in str(error.value)
    with pytest.raises(StoreError, match="not a folder"):
        Store.open(tmp_path / "file", create=True)


def test_a_run_as_it_is_written_and_read_back(store: Store) -> None:
    writer = store.begin(RunRow(suite="kv_cache", seed=3, git_dirty=True, packages='{"numpy": "2"}', ram_bytes=1 << 40))
    assert [(run.run_id, run.status) for run in store.runs()] == [(writer.run_id, "running")]
    writer.write(
        cases=[case(axes={"kv": "cat", "norm": "native"}, params={"context": 8}, facts={"dtype": "fp32"})],
        samples=[sample(value=0.25), sample(value=9.0, **WARM)],
        telemetry=[reading()],
    )
    writer.update(plan='{"cases": []}', command="python -m harness run kv_cache")
    writer.finish("finished")
    run = store.find_run("latest")
    assert (run.status, run.seed, run.git_dirty, run.ram_bytes) == ("finished", 3, True, 1 << 40)
    assert run.command == "python -m harness run kv_cache" and run.plan == '{"cases": []}'
    assert run.started_at is not None and run.finished_at is not None and run.started_at <= run.finished_at
    assert run.run_id.startswith(f"{run.started_at:%Y%m%dT%H%M%S}-")
    [row] = store.cases(run.run_id).to_pylist()
    assert (row["axis_kv"], row["axis_norm"], json.loads(row["params"])) == ("cat", "native", {"context": 8})
    assert sorted(store.samples(run.run_id)["value"].to_pylist()) == [0.25, 9.0]
    assert store.telemetry(run.run_id).to_pylist()[0]["name"] == "steal"
    [line] = store.summary().to_pylist()
    assert (line["n"], line["median"], line["num_blocks"], line["low"]) == (1, 0.25, 1, None)
    assert not store.problems and not store.check()


def test_ids_sort_and_are_unique_within_a_second(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter(["aaaaaa", "aaaaaa", "bbbbbb"])
    monkeypatch.setattr("harness.store.secrets.token_hex", lambda _: next(drawn))
    first, second = store.begin(RunRow(suite="a")), store.begin(RunRow(suite="a"))
    assert first.run_id.endswith("aaaaaa") and second.run_id.endswith("bbbbbb")
    assert [run.run_id for run in store.runs()] == [first.run_id, second.run_id]


def test_find_run(store: Store) -> None:
    with pytest.raises(UsageError, match="no runs yet"):
        store.find_run("latest")
    ids = [make_run(store, num_blocks=0, suite=suite) for suite in ("kv_cache", "norm", "kv_cache")]
    found = {
        "latest": ids[2],
        "latest~1": ids[1],
        "latest~2": ids[0],
        "norm": ids[1],
        "kv_cache": ids[2],
        "kv_cache~1": ids[0],
        ids[1]: ids[1],
        ids[0][:-1]: ids[0],
    }
    assert {ref: store.find_run(ref).run_id for ref in found} == found
    for ref in ("latest~3", "norm~1", "", "zzz", "kv_cach", "2026~x"):
        with pytest.raises(UsageError) as error:
            store.find_run(ref)
        assert ids[2] in str(error.value)
    with pytest.raises(UsageError, match="may be any of 3 runs"):
        store.find_run(ids[0][:4])


def test_the_last_row_of_a_case_counts_in_the_order_of_the_plan(store: Store) -> None:
    writer = store.begin(RunRow(suite="a"))
    writer.write(cases=[case("x", ordinal=1), case("y", ordinal=0), case("x", ordinal=1, num_blocks=1)])
    for blocks in (2, 3):
        writer.write(cases=[case("x", ordinal=1, num_blocks=blocks)])
    expected = [("y", 0), ("x", 3)]
    for step in ("running", "finished", "compacted"):
        found = store.cases(writer.run_id)
        assert list(zip(found["case_id"].to_pylist(), found["num_blocks"].to_pylist(), strict=True)) == expected, step
        writer.finish("finished") if step == "running" else store.compact()


def test_filters_read_the_same_rows_from_parts_and_from_compacted_files(store: Store) -> None:
    ids = [make_run(store) for _ in range(3)]
    expected = rows(pa.Table.from_pylist([r for r in store.samples(ids[1]).to_pylist() if r["case_id"] == "c1"]))
    assert len(expected) == 9
    for _ in range(2):
        assert rows(store.samples(ids[1], case_id="c1")) == expected
        assert rows(store.samples(ids[1], case_id="c1", metric="tpot")) == expected
        assert store.samples(ids[1], metric="nothing").num_rows == 0
        assert store.samples("nothing").num_rows == 0
        store.compact()


def test_files_with_other_axes_and_missing_columns_still_read(store: Store) -> None:
    writer = store.begin(RunRow(suite="a"))
    writer.write(cases=[case("x", axes={"kv": "cat"})])
    writer.write(cases=[case("y", axes={"norm": "fused"})])
    folder = store.path / "inbox" / writer.run_id
    table = pq.read_table(folder / "cases-000000.parquet").drop_columns(["reason", "num_params"])
    pq.write_table(table, folder / "cases-000000.parquet")
    found = {row["case_id"]: row for row in store.cases(writer.run_id).to_pylist()}
    assert (found["x"]["axis_kv"], found["x"]["axis_norm"], found["x"]["reason"]) == ("cat", None, None)
    assert (found["y"]["axis_kv"], found["y"]["axis_norm"]) == (None, "fused")
    writer.finish("finished")
    store.compact()
    assert {row["case_id"]: row for row in store.cases(writer.run_id).to_pylist()} == found


def test_summary_figures(store: Store) -> None:
    writer = store.begin(RunRow(suite="a"))
    values = {0: [1.0, 2.0, 3.0], 1: [4.0, 5.0, 9.0], 2: [2.0, 2.0, 2.0]}
    samples = [sample(value=v, block=b) for b, found in values.items() for v in found]
    skipped = case("c1", status="skipped", reason="needs cuda")
    writer.write(cases=[case(), skipped], samples=[*samples, sample(value=99.0, **WARM)])
    measured, empty = store.summary().to_pylist()
    assert (empty["case_id"], empty["metric"], empty["n"], empty["status"]) == ("c1", "", 0, "skipped")
    assert (measured["n"], measured["num_blocks"], measured["median"]) == (9, 3, 2.0)
    flat = [v for found in values.values() for v in found]
    assert measured["p10"] == pytest.approx(np.percentile(flat, 10))
    assert measured["p90"] == pytest.approx(np.percentile(flat, 90))
    assert measured["noise"] == pytest.approx(0.741301109) and measured["low"] < 2.0 < measured["high"]


def test_not_a_number_survives(store: Store) -> None:
    writer = store.begin(RunRow(suite="a"))
    writer.write(samples=[sample(value=float("nan")), sample(value=float("inf"), block=1)])
    writer.finish("finished")
    store.compact()
    assert sorted(map(str, store.samples(writer.run_id)["value"].to_pylist())) == ["inf", "nan"]
    assert store.summary().num_rows == 1


Write = tuple[list[int], list[tuple[int, int, float]], int]
WRITES = st.lists(
    st.tuples(
        st.lists(st.integers(0, 2), max_size=3),
        st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.floats(0.1, 10)), max_size=4),
        st.integers(0, 2),
    ),
    max_size=4,
)


def replay(writer: RunWriter, writes: list[Write]) -> None:
    for cases, samples, num_readings in writes:
        writer.write(
            cases=[case(f"c{i}", ordinal=i, num_blocks=n) for n, i in enumerate(cases)],
            samples=[sample(f"c{i}", block=b, value=v) for i, b, v in samples],
            telemetry=[reading(i) for i in range(num_readings)],
        )


def seen(store: Store) -> list[Any]:
    """What a reader sees of each run, but for what differs between two stores with the same writes."""
    drop = ["run_id", "seq"]
    summary = store.summary()
    found: list[Any] = []
    for run in store.runs():
        mine = summary.filter(pc.equal(summary["run_id"], run.run_id))
        cases = store.cases(run.run_id)
        tables = (store.samples(run.run_id), store.telemetry(run.run_id), mine)
        found.append([rows(cases.drop_columns(drop)), *(rows(table.drop_columns(drop[:1])) for table in tables)])
        found[-1].append(store.done_blocks(run.run_id))
    return found


@settings(max_examples=6, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(st.lists(st.tuples(WRITES, st.booleans(), WRITES), min_size=1, max_size=3), st.integers(1, 12))
def test_compaction_changes_nothing_that_a_reader_sees(
    runs: list[tuple[list[Write], bool, list[Write]]], target: int
) -> None:
    """The same writes go to a store that merges, compacts and resumes, and to a twin that only appends."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(compaction, "TARGET_ROWS", target)
        patch.setattr(os, "fsync", lambda _: None)
        store, twin = Store.open(Path(folder) / "store", create=True), Store.open(Path(folder) / "twin", create=True)
        pairs = []
        for first, finished, more in runs:
            pairs.append((store.begin(RunRow(suite="a")), twin.begin(RunRow(suite="a")), finished, more))
            for writer in pairs[-1][:2]:
                replay(writer, first)
            if finished:
                pairs[-1][0].finish("finished")
        store.compact()
        assert seen(store) == seen(twin), "the first half"
        for writer, other, finished, more in pairs:
            again = store.reopen(writer.run_id) if finished else writer
            replay(again, more)
            replay(other, more)
            if finished:
                again.finish("interrupted")
        expected = seen(twin)
        for _ in range(2):
            assert seen(Store.open(store.path)) == expected
            store.compact()
        assert not store.problems and not store.check()


def test_compaction_sorts_and_leaves_few_files(store: Store) -> None:
    for _ in range(4):
        make_run(store)
    report = store.compact()
    assert (report.num_runs, report.num_files_before, report.num_files_after, report.skipped) == (4, 12, 3, ())
    assert list((store.path / "inbox").iterdir()) == []
    [path] = (store.path / "compacted" / "samples").iterdir()
    keys = [tuple(row.values()) for row in pq.read_table(path, columns=["run_id", "case_id", "metric"]).to_pylist()]
    assert keys == sorted(keys) and len(keys) == 4 * 18
    make_run(store)
    store.compact()  # a small compacted file is rewritten together with the new run
    assert len(list((store.path / "compacted" / "samples").iterdir())) == 1
    before = (path := next((store.path / "compacted" / "samples").iterdir())).stat().st_mtime_ns
    store.compact()
    assert path.stat().st_mtime_ns == before, "nothing new, nothing rewritten"


def test_compaction_leaves_running_and_young_runs(store: Store) -> None:
    live, dead, other = (store.begin(RunRow(suite="a")) for _ in range(3))
    for writer in (live, dead, other):
        write_block(writer, 0)
    disown(store, dead.run_id)
    store.save_run(RunRow(suite="a", run_id=other.run_id, host="elsewhere", pid=1))
    assert set(dict(store.compact().skipped)) == {live.run_id, dead.run_id, other.run_id}
    skipped = dict(store.compact(min_age_seconds=0).skipped)
    assert set(skipped) == {live.run_id, other.run_id} and "process 1 on elsewhere" in skipped[other.run_id]
    write_block(live, 1)
    live.finish("finished")
    assert set(store.done_blocks(live.run_id)["c0"]) == {0, 1}


def test_two_compactions_at_once_are_refused(store: Store) -> None:
    make_run(store)
    with store.catalog.lock(wait=False), pytest.raises(StoreError, match="another process"):
        Store.open(store.path).compact()
    assert store.compact().num_runs == 1


def test_a_deleted_run_leaves_the_summary(store: Store) -> None:
    keep, gone = make_run(store), make_run(store)
    for folder in (store.path / "inbox" / gone,):
        shutil.rmtree(folder)
    (store.path / "runs" / f"{gone}.parquet").unlink()
    store.compact()
    assert set(store.summary()["run_id"].to_pylist()) == {keep}


def test_reopen_continues_the_numbers_and_removes_leftovers(store: Store) -> None:
    run_id = make_run(store, num_blocks=2, status=None)
    with pytest.raises(StoreError, match=f"process {os.getpid()}"):
        store.reopen(run_id)
    disown(store, run_id)
    leftover = store.path / "inbox" / run_id / ".samples-000002.parquet.99.tmp"
    leftover.write_bytes(b"half")
    assert not store.problems and store.samples(run_id).num_rows == 12
    assert store.done_blocks(run_id) == {"c0": {0, 1}, "c1": {0, 1}}
    assert any("its writer died" in reason for _, reason in store.check())
    writer = store.reopen(run_id[:-2])
    assert not leftover.exists()
    write_block(writer, 2)
    writer.finish("finished")
    store.compact()
    again = store.reopen(run_id)
    write_block(again, 3)
    again.finish("finished")
    expected = {"c0": {0, 1, 2, 3}, "c1": {0, 1, 2, 3}}
    assert store.done_blocks(run_id) == expected
    assert store.cases(run_id)["num_blocks"].to_pylist() == [4, 4]
    store.compact()
    assert store.done_blocks(run_id) == expected and store.samples(run_id).num_rows == 24


def test_a_damaged_part_does_not_lend_its_number(store: Store) -> None:
    run_id = make_run(store, num_blocks=2, status=None)
    disown(store, run_id)
    bad = [store.path / "inbox" / run_id / f"{table}-000001.parquet" for table in ("cases", "samples", "telemetry")]
    for path in bad:
        path.write_bytes(b"")
    writer = store.reopen(run_id)
    write_block(writer, 1)
    writer.finish("finished")
    assert store.done_blocks(run_id) == {"c0": {0, 1}, "c1": {0, 1}}
    assert store.cases(run_id)["num_blocks"].to_pylist() == [2, 2] and store.telemetry(run_id).num_rows == 2
    assert [path for path, _ in store.problems] == bad and all(path.stat().st_size == 0 for path in bad)


@pytest.mark.parametrize(
    ("session", "command", "completion"),
    [
        ("", "python -m harness run lab --seed 0", "python -m harness run --resume r1"),
        ("s", "python -m harness gate lab", "python -m harness gate lab"),
        ("", "python -m harness calibrate lab --noise", "python -m harness calibrate lab --noise"),
    ],
)
def test_what_completes_a_run_that_did_not_end(session: str, command: str, completion: str) -> None:
    assert RunRow("lab", "r1", session=session, command=command).completion == completion


def test_calibration_keeps_the_newest_of_each_kind(store: Store) -> None:
    assert store.calibration("m") == []
    store.save_calibration("m", [PeakRow("flops", 1.0, "flop/s", dtype="fp32"), PeakRow("copy", 2.0, "B/s")])
    store.save_calibration("m", [PeakRow("flops", 3.0, "flop/s", dtype="fp32", versions='{"torch": "2"}')])
    assert {(row.kind, row.value) for row in store.calibration("m")} == {("flops", 3.0), ("copy", 2.0)}
    assert store.calibration("other") == []


def sql(query: str) -> list[tuple[Any, ...]]:
    found = duckdb.sql(query)
    assert found is not None
    return found.fetchall()


def test_plain_tools_read_the_files(store: Store) -> None:
    running = store.begin(RunRow(suite="a"))
    running.write(cases=[case(axes={"kv": "cat"})], samples=[sample(), sample(block=1)])
    finished = store.begin(RunRow(suite="a"))
    finished.write(cases=[case(axes={"norm": "fused"})], samples=[sample()])
    finished.finish("finished")
    query = "select run_id, count(*) from read_parquet('{}/inbox/*/{}*.parquet', union_by_name=true) group by all"
    found = dict(sql(query.format(store.path, "samples")))
    assert found == {running.run_id: 2, finished.run_id: 1}
    assert len(sql(query.format(store.path, "cases"))) == 2
    query = "select distinct value from parquet_kv_metadata('{}/runs/*.parquet') where key = 'schema_version'"
    assert sql(query.format(store.path)) == [(b"1",)]
    frame = pd.read_parquet(store.path / "inbox" / finished.run_id / "samples.parquet")
    assert list(frame.columns) == schema.SCHEMAS["samples"].names and frame["value"].tolist() == [1.0]
    assert (
        pq.read_metadata(store.path / "inbox" / finished.run_id / "samples.parquet").row_group(0).column(0).compression
        == "ZSTD"
    )


def test_a_store_of_many_runs_opens_quickly(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    for _ in range(30):
        make_run(store, num_blocks=1)
    store.compact()
    fresh = Store.open(store.path)
    monkeypatch.setattr(compaction, "summarise_run", lambda *_: pytest.fail("the stored summary was not used"))
    start = time.process_time()
    assert fresh.summary().num_rows == 60 and len(fresh.runs()) == 30
    assert time.process_time() - start < 1.0
