"""The store: nothing written is lost, nothing is counted twice, and a bad file is named instead of raised."""

from __future__ import annotations

import errno
import inspect
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
from harness.catalog import Catalog
from harness.core import Reading, Sample, StoreError, UsageError
from harness.store import CaseRow, PeakRow, RunRow, RunWriter, Store

ROOT = Path(__file__).resolve().parents[2]
WARM: dict[str, Any] = {"phase": "warmup"}


def sample(case: str = "c0", metric: str = "tpot", value: float = 1.0, **other: Any) -> Sample:
    fields: dict[str, Any] = {
        "unit": "s",
        "block": 0,
        "worker": "w",
        "turn": 0,
        "iteration": 0,
        "phase": "timed",
        "t_ns": 0,
    }
    return Sample(case, metric, value, **(fields | other))


def case(case_id: str = "c0", **other: Any) -> CaseRow:
    fields: dict[str, Any] = {"workload": "decode", "model": "tiny", "variant": "reference", "status": "ok"}
    return CaseRow(case_id, **(fields | other))


def reading(block: int = 0, **other: Any) -> Reading:
    fields: dict[str, Any] = {"source": "os", "name": "steal", "value": 0.5, "unit": "1", "t_ns": 7}
    return Reading(block, **(fields | other))


def write_block(writer: RunWriter, block: int, *, num_cases: int = 2, num_samples: int = 3) -> None:
    names = [f"c{i}" for i in range(num_cases)]
    samples = [
        sample(name, value=1 + i + block / 100 + j / 1000, block=block, iteration=j, t_ns=1000 * block + j)
        for i, name in enumerate(names)
        for j in range(num_samples)
    ]
    cases = [case(name, ordinal=i, num_blocks=block + 1) for i, name in enumerate(names)]
    writer.write(cases=cases, samples=samples, telemetry=[reading(block)])


def make_run(store: Store, *, num_blocks: int = 3, status: str | None = "finished", suite: str = "quickstart") -> str:
    writer = store.begin(RunRow(suite=suite))
    for block in range(num_blocks):
        write_block(writer, block)
    if status is not None:
        writer.finish(status)  # type: ignore[arg-type]
    return writer.run_id


def rows(table: pa.Table) -> list[str]:
    """The rows as a multiset that can be compared: order and all-null columns (another file's axes) do not count."""
    return sorted(json.dumps({k: v for k, v in row.items() if v is not None}, default=str) for row in table.to_pylist())


def content(store: Store) -> dict[str, Any]:
    """All that a reader of a store sees."""
    runs = [run.run_id for run in store.runs()]
    found: dict[str, Any] = {"summary": rows(store.summary())}
    for run_id in runs:
        found[run_id] = [rows(store.cases(run_id)), rows(store.samples(run_id)), rows(store.telemetry(run_id))]
        found[run_id].append(store.done_blocks(run_id))
    return found


def everything(store: Store) -> list[list[str]]:
    """The rows of all runs: quicker than `content`."""
    return [rows(store.catalog.read(table)) for table in schema.PART_TABLES]


def disown(store: Store, run_id: str) -> None:
    """Make a running run look as if its process had died."""
    run = store.find_run(run_id)
    store.save_run(RunRow(**{f: getattr(run, f) for f in run.__slots__} | {"pid_start": run.pid_start + 1, "pid": 1}))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "results", create=True)


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


def newer(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"schema_version": b"99"}), path)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda path: os.truncate(path, random.Random(0).randrange(8, path.stat().st_size)), "Parquet"),
    "garbage": (lambda path: path.write_bytes(random.Random(0).randbytes(5000)), "Parquet"),
    "magic only": (lambda path: path.write_bytes(b"PAR1" + b"\xff" * 100 + b"PAR1"), "Parquet"),
    "text": (lambda path: path.write_text("hello\n"), "Parquet"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "foreign": (lambda path: pd.DataFrame({"a": [1]}).to_parquet(path), "foreign"),
    "newer": (newer, "newer than"),
    "other table": (
        lambda path: pq.write_table(
            pa.table({"a": [1]}).replace_schema_metadata({"schema_version": "1", "table": "x"}), path
        ),
        "holds the table 'x'",
    ),
}


@dataclass(frozen=True)
class Template:
    """A store to copy and damage: its good run, the run whose file is hit, what a reader sees while all is well."""

    path: Path
    good: str
    bad: str
    expected: dict[str, Any]


@pytest.fixture(scope="module", params=["runs", "part", "merged", "compacted", "summary", "calibration"])
def template(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Template:
    store = Store.open(tmp_path_factory.mktemp(request.param) / "results", create=True)
    store.save_calibration("m", [PeakRow("flops", 1e12, "flop/s")])
    good, bad = make_run(store), make_run(store, status=None if request.param == "part" else "finished")
    expected = content(store)
    if request.param in ("compacted", "summary"):
        store.compact()
    path = {
        "runs": f"runs/{bad}.parquet",
        "part": f"inbox/{bad}/samples-000001.parquet",
        "merged": f"inbox/{bad}/samples.parquet",
        "compacted": "compacted/samples/part-000001.parquet",
        "summary": "summary.parquet",
        "calibration": "calibration/m.parquet",
    }[request.param]
    return Template(store.path / path, good, bad, expected)


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_bad_file_is_named_and_passed_over(template: Template, kind: str, tmp_path: Path) -> None:
    root = next(parent for parent in template.path.parents if parent.name == "results")
    path = shutil.copytree(root, tmp_path / "results") / template.path.relative_to(root)
    place = template.path.relative_to(root).parts[0]
    damage, reason = DAMAGE[kind]
    damage(path)
    store = Store.open(tmp_path / "results")
    found = content(store)
    assert [path] == [p for p, _ in store.check()][:1]
    [problem] = [why for p, why in store.problems if p == path]
    assert reason in problem
    if place == "runs":
        assert [run.run_id for run in store.runs()] == [template.good]
    if template.path.name == "samples-000001.parquet":
        assert found[template.bad][3] == {"c0": {0, 2}, "c1": {0, 2}}
    if place == "summary.parquet":
        assert found == template.expected, "the summary is computed again"
    if place == "calibration":
        assert store.calibration("m") == []
    if place != "compacted":
        assert found[template.good] == template.expected[template.good]
    if kind == "truncated":
        store.compact(min_age_seconds=0)
        assert path.exists(), "a bad file is not removed"
        assert bool(Store.open(store.path).check()) == (place != "summary.parquet"), "but the summary is made anew"


def test_a_damaged_copy_falls_back_to_the_parts(store: Store) -> None:
    run_id = make_run(store, status=None)
    parts = store.path / "inbox" / run_id
    shutil.copytree(parts, store.path / "kept")
    expected = content(store)
    compaction.merge(store.catalog, run_id)
    for path in (store.path / "kept").iterdir():
        shutil.copy(path, parts)
    assert content(store) == expected, "parts beside the merged file are ignored"
    data = bytearray((parts / "samples.parquet").read_bytes())
    data[40] ^= 0xFF  # in a data page: the footer stays good
    (parts / "samples.parquet").write_bytes(data)
    assert content(store) == expected, "and used when it is bad"
    assert [path.name for path, _ in store.problems] == ["samples.parquet"]


def test_no_flipped_bit_goes_unseen(store: Store) -> None:
    run_id = make_run(store, num_blocks=1)
    path = store.path / "inbox" / run_id / "samples.parquet"
    data, expected = path.read_bytes(), rows(store.samples(run_id))
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    for seed in range(80):
        position = random.Random(seed).randrange(4, footer)
        path.write_bytes(data[:position] + bytes([data[position] ^ (1 << seed % 8)]) + data[position + 1 :])
        fresh = Store.open(store.path)
        assert rows(fresh.samples(run_id)) == expected or [p for p, _ in fresh.problems] == [path], position


def test_every_truncation_is_seen(store: Store) -> None:
    run_id = make_run(store, num_blocks=1)
    path = store.path / "inbox" / run_id / "samples.parquet"
    data = path.read_bytes()
    for size in range(0, len(data), 37):
        path.write_bytes(data[:size])
        fresh = Store.open(store.path)
        assert fresh.samples(run_id).num_rows == 0
        assert [p for p, _ in fresh.problems] == [path]


def test_strays_are_named_and_leftovers_are_not(store: Store) -> None:
    run_id = make_run(store)
    strays = [store.path / "a.parquet", store.path / "inbox" / "b.parquet", store.path / "inbox" / run_id / "c.parquet"]
    strays += [store.path / "runs" / "copy.parquet"]
    for path in strays:
        shutil.copy(store.path / "runs" / f"{run_id}.parquet", path)
    (store.path / "inbox" / run_id / ".samples-000009.parquet.1.tmp").write_bytes(b"x")
    (store.path / "inbox" / run_id / "notes.txt").write_text("x")
    store.samples(run_id)
    assert {run.run_id for run in store.runs()} == {run_id}
    assert {path for path, _ in store.problems} == set(strays)


CHILD = """
from __future__ import annotations
import sys
from typing import Any
sys.path.insert(0, {root!r})
from harness.core import Reading, Sample
from harness.store import CaseRow, RunRow, RunWriter, Store
{functions}
store = Store.open(sys.argv[1])
writer = store.begin(RunRow(suite=sys.argv[2]))
for block in range(int(sys.argv[3])):
    write_block(writer, block)
    print(writer.run_id, block, flush=True)
writer.finish("finished")
"""


def start_child(store: Store, suite: str, num_blocks: int) -> subprocess.Popen[str]:
    functions = "\n".join(inspect.getsource(function) for function in (sample, case, reading, write_block))
    program = CHILD.format(root=str(ROOT), functions=functions)
    argv = [sys.executable, "-c", program, str(store.path), suite, str(num_blocks)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)


def test_kill_9_keeps_every_block_that_was_written(store: Store) -> None:
    child = start_child(store, "killed", 100_000)
    assert child.stdout is not None
    reported = [child.stdout.readline().split() for _ in range(5)]
    assert store.is_live(store.find_run("killed"))
    assert store.compact(min_age_seconds=0).skipped, "a live run is left alone"
    child.send_signal(signal.SIGKILL)
    child.wait()
    rest = child.stdout.read()
    child.stdout.close()
    written = 5 + rest.count("\n")
    run_id = reported[0][0]
    run = store.find_run("killed")
    assert run.run_id == run_id and run.status == "running" and not store.is_live(run)
    done = store.done_blocks(run_id)
    assert set(range(written)) <= done["c0"] <= set(range(written + 1))
    assert store.samples(run_id).num_rows % 6 == 0
    assert not store.problems
    writer = store.reopen(run_id)
    write_block(writer, 200_000)
    writer.finish("finished")
    assert store.done_blocks(run_id)["c0"] == done["c0"] | {200_000}
    store.compact()
    assert store.done_blocks(run_id)["c0"] == done["c0"] | {200_000} and not store.check()


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


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.mark.parametrize("what", ["merge", "compact"])
def test_a_kill_at_any_step_of_merging_and_compaction_loses_nothing(tmp_path: Path, what: str) -> None:
    source = Store.open(tmp_path / "source", create=True)
    first = make_run(source)
    source.compact()
    again = source.reopen(first)
    write_block(again, 3)
    again.finish("finished")
    last = make_run(source, status=None)
    disown(source, last)
    expected = everything(source)
    for step in range(200):
        store = Store.open(shutil.copytree(tmp_path / "source", tmp_path / f"{what}{step}"))
        with pytest.MonkeyPatch.context() as patch:
            left = [step]

            def dying(call: Callable[..., Any], left: list[int] = left) -> Callable[..., Any]:
                def wrapper(*args: Any) -> Any:
                    if left[0] == 0:
                        raise Killed
                    left[0] -= 1
                    return call(*args)

                return wrapper

            for name in ("replace", "unlink", "rmdir"):
                patch.setattr(os, name, dying(getattr(os, name)))
            try:
                compaction.merge(store.catalog, last) if what == "merge" else store.compact(min_age_seconds=0)
                survived = True
            except Killed:
                survived = False
        assert everything(Store.open(store.path)) == expected, step
        if step % 4 == 0 or survived:
            store.compact(min_age_seconds=0)
            assert everything(Store.open(store.path)) == expected, step
            assert [p for p, _ in Store.open(store.path).check()] == [store.path / "runs" / f"{last}.parquet"]
        if survived:
            break
    assert survived and step >= (10 if what == "merge" else 15), "the steps were really interrupted"


def test_two_writers_a_reader_and_a_compaction_at_once(store: Store) -> None:
    children = [start_child(store, f"suite{i}", 12) for i in range(2)]
    reads = 0
    while any(child.poll() is None for child in children):
        for run in store.runs():
            done = store.done_blocks(run.run_id)
            assert all(blocks == set(range(len(blocks))) for blocks in done.values())
            assert store.samples(run.run_id).num_rows % 6 == 0
            reads += 1
        store.compact(min_age_seconds=0)
    for child in children:
        assert child.stdout is not None
        child.stdout.close()
    assert [child.returncode for child in children] == [0, 0]
    assert reads > 0
    for suite in ("suite0", "suite1"):
        run = store.find_run(suite)
        assert run.status == "finished" and store.samples(run.run_id).num_rows == 12 * 6
        assert store.done_blocks(run.run_id) == {"c0": set(range(12)), "c1": set(range(12))}
    assert not store.problems and not store.check()


def test_a_run_that_begins_during_a_compaction_keeps_its_folder(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever look at the store the run's folder and row, and then its first block, come before."""
    make_run(store)
    other = Store.open(store.path)
    steps: list[Callable[[], None]] = []
    begun: list[RunWriter] = []
    removed: list[Path] = []
    real_rmdir = os.rmdir

    def hooked(look: Callable[..., Any]) -> Callable[..., Any]:
        def looking(catalog: Catalog, *args: Any) -> Any:
            if catalog is store.catalog and steps:
                steps.pop(0)()
            return look(catalog, *args)

        return looking

    def rmdir(path: Path) -> None:
        removed.append(path)
        real_rmdir(path)

    for look in ("names", "inbox_runs"):
        monkeypatch.setattr(Catalog, look, hooked(getattr(Catalog, look)))
    monkeypatch.setattr(os, "rmdir", rmdir)
    for late in range(100):
        steps[:] = [
            *[lambda: None] * late,
            lambda: begun.append(other.begin(RunRow(suite="kv_cache"))),
            lambda: write_block(begun[-1], 0),
        ]
        store.compact(min_age_seconds=0)
        if steps:
            break
        assert store.path / "inbox" / begun[-1].run_id not in removed, late
        write_block(begun[-1], 1)
        begun[-1].finish("finished")
        assert store.done_blocks(begun[-1].run_id)["c0"] == {0, 1}
    assert late > 10, "the run really began at different moments"


def test_a_reader_survives_a_compaction_under_its_feet(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = make_run(store)
    expected = rows(store.samples(run_id))
    reader = Store.open(store.path)
    real, calls = schema.decode, []

    def decode(*args: Any) -> pa.Table:
        calls.append(args)
        if len(calls) == 1:
            store.compact()
        return real(*args)

    monkeypatch.setattr("harness.catalog.decode", decode)
    assert rows(reader.samples(run_id)) == expected
    assert not reader.problems


@pytest.fixture(params=[errno.ENOSPC, errno.EROFS])
def failing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """A disk that refuses renames while the switch is on (root may write to read-only folders, so chmod is no test)."""
    switch = {"on": False}
    real = os.replace

    def replace(source: Any, target: Any) -> None:
        if switch["on"]:
            raise OSError(request.param, os.strerror(request.param), str(target))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    return switch


def test_a_disk_that_fails_during_a_run_loses_nothing(store: Store, failing: dict[str, bool]) -> None:
    writer = store.begin(RunRow(suite="a"))
    write_block(writer, 0)
    failing["on"] = True
    for block in (1, 2):
        with pytest.raises(StoreError, match="MB free") as error:
            write_block(writer, block)
        assert str(store.path) in str(error.value)
    with pytest.raises(StoreError):
        writer.finish("finished")
    for refused in (
        store.check_writable,
        lambda: store.begin(RunRow(suite="b")),
        lambda: store.save_calibration("m", []),
    ):
        with pytest.raises(StoreError):
            refused()
    assert store.done_blocks(writer.run_id)["c0"] == {0}
    assert not [path for path in (store.path / "inbox" / writer.run_id).iterdir() if path.name.endswith(".tmp")]
    failing["on"] = False
    writer.write()
    assert store.done_blocks(writer.run_id)["c0"] == {0, 1, 2} and store.samples(writer.run_id).num_rows == 18
    failing["on"] = True
    with pytest.raises(StoreError):
        store.compact(min_age_seconds=0)
    failing["on"] = False
    writer.finish("finished")
    store.check_writable()
    store.compact()
    assert store.samples(writer.run_id).num_rows == 18 and not store.check()


def test_a_run_that_cannot_be_merged_is_finished_all_the_same(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = store.begin(RunRow(suite="a"))
    write_block(writer, 0)

    def refuse(*_: Any) -> None:
        raise StoreError("disk full")

    monkeypatch.setattr(compaction, "write_file", refuse)
    writer.finish("finished")
    assert store.find_run("latest").status == "finished" and store.samples(writer.run_id).num_rows == 6
    assert "left unmerged: disk full" in store.problems[0].reason


def test_too_little_space_is_refused_before_anything_is_measured(store: Store) -> None:
    with pytest.raises(StoreError, match=r"has \d+ bytes free, results need 1152921504606846976"):
        store.check_writable(min_free_bytes=1 << 60)
    store.check_writable()
    assert [path for path in store.path.rglob("*") if path.is_file()] == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"mounting a small file system is not permitted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def write_until_refused(writer: RunWriter) -> int:
    for block in range(1000):
        try:
            write_block(writer, block)
        except StoreError:
            return block
    pytest.fail("the disk never filled up")


def test_a_really_full_and_a_really_read_only_disk(small_disk: Path) -> None:
    store = Store.open(small_disk, create=True)
    with pytest.raises(StoreError, match="bytes free"):
        store.check_writable()
    store.check_writable(min_free_bytes=1)
    writer = store.begin(RunRow(suite="a"))
    filler = small_disk / "filler"
    filler.write_bytes(bytes(100_000))
    blocks = write_until_refused(writer)
    with pytest.raises(StoreError, match="No space left"):
        writer.write()
    assert store.done_blocks(writer.run_id)["c0"] >= set(range(blocks))
    with pytest.raises(StoreError):
        store.check_writable(min_free_bytes=1)
    filler.unlink()
    writer.write()
    assert store.done_blocks(writer.run_id)["c0"] == set(range(blocks + 1))
    assert store.samples(writer.run_id).num_rows == 6 * (blocks + 1)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for refused in (
        lambda: store.check_writable(min_free_bytes=1),
        lambda: write_block(writer, blocks + 1),
        store.compact,
    ):
        with pytest.raises(StoreError, match="Read-only"):
            refused()
    reader = Store.open(small_disk)
    assert reader.samples(writer.run_id).num_rows == 6 * (blocks + 1) and not reader.problems
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    writer.finish("finished")
    assert store.done_blocks(writer.run_id)["c0"] == set(range(blocks + 2)) and not store.check()


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
