"""The store with bad files: each is named and passed over, never raised."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness import compaction
from harness.store import PeakRow, Store
from tests.store_rows import (
    content,
    make_run,
    rows,
)


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
