"""runs.parquet, the copies of the runs' rows: never the truth, and as good as absent wherever it is not right."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from harness import registry
from harness.catalog import COPIES_FILE
from harness.schema import TableName, decode
from harness.store import Store
from tests.synthetic import Arm, store_run

registry.load_all()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three runs, compacted."""
    found = Store.open(tmp_path / "results", create=True)
    for _ in range(3):
        store_run(found, Arm(timed={"tps": (1.0, 2.0)}))
    found.compact(min_age_seconds=0.0)
    return found


def row_file(store: Store, number: int = 0) -> Path:
    return store.path / "runs" / f"{store.runs()[number].run_id}.parquet"


def num_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many files of runs/ a reader decodes who comes anew; its list must be that of a reader without copies."""
    read: list[Path] = []

    def counted(path: Path, name: TableName) -> pa.Table:
        read.append(path)
        return decode(path, name)

    with monkeypatch.context() as patch:
        patch.setattr("harness.store.decode", counted)
        rows = Store.open(path).runs()
        copies, aside = path / COPIES_FILE, path / "aside"
        num = len(read)
        copies.rename(aside)
        assert rows == Store.open(path).runs()
        aside.rename(copies)
    return num


def test_after_compaction_no_file_of_a_run_is_decoded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert num_read(store.path, monkeypatch) == 0


def test_a_copied_or_restored_store_keeps_its_copies(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = shutil.copytree(store.path, tmp_path / "other", copy_function=shutil.copy)
    assert num_read(other, monkeypatch) == 0


def test_a_run_that_is_new_or_changed_is_read_from_its_own_file(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store_run(store, Arm(timed={"tps": (1.0, 2.0)}))
    store.save_run(replace(store.runs()[0], command="changed"))
    assert num_read(store.path, monkeypatch) == 2
    assert Store.open(store.path).runs()[0].command == "changed"


def test_a_change_that_keeps_time_and_size_of_the_file_is_seen(store: Store) -> None:
    path = row_file(store)
    before, first = path.stat(), store.runs()[0]
    store.save_run(replace(first, suite=first.suite[::-1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert Store.open(store.path).runs()[0].suite == first.suite[::-1]


def test_a_run_that_goes_on_has_no_copy(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save_run(replace(store.runs()[0], status="running"))
    store.compact()
    assert num_read(store.path, monkeypatch) == 1


def test_a_run_that_was_removed_is_not_listed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    row_file(store).unlink()
    assert num_read(store.path, monkeypatch) == 0
    assert len(Store.open(store.path).runs()) == 2


def test_a_file_under_another_runs_name_is_named(store: Store) -> None:
    path = row_file(store, 1)
    shutil.copy(row_file(store, 0), path)
    opened = Store.open(store.path)
    assert len(opened.runs()) == 2 and [problem.path for problem in opened.problems] == [path]


def test_a_run_whose_file_broke_is_named_not_taken_from_its_copy(store: Store) -> None:
    path = row_file(store)
    path.write_bytes(b"broken")
    opened = Store.open(store.path)
    assert len(opened.runs()) == 2 and [problem.path for problem in opened.problems] == [path]


@pytest.mark.parametrize("text", [b"", b"no Parquet"])
def test_copies_that_cannot_be_read_are_named_passed_over_and_made_anew(store: Store, text: bytes) -> None:
    path = store.path / COPIES_FILE
    path.write_bytes(text)
    opened = Store.open(store.path)
    assert len(opened.runs()) == 3 and [problem.path for problem in opened.problems] == [path]
    opened.compact()
    assert Store.open(store.path).check() == []


def test_copies_without_a_digest_do_not_count(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(row_file(store), store.path / COPIES_FILE)
    assert num_read(store.path, monkeypatch) == 3
