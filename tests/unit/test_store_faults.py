"""The store killed at every step, used by several at once, on disks that are full or read-only."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from harness import compaction, schema
from harness.catalog import Catalog
from harness.core import StoreError
from harness.store import RunRow, RunWriter, Store
from tests.store_rows import (
    disown,
    everything,
    make_run,
    rows,
    write_block,
)

ROOT = Path(__file__).resolve().parents[2]


CHILD = """
import sys
sys.path.insert(0, {root!r})
from harness.store import RunRow, Store
from tests.store_rows import write_block
store = Store.open(sys.argv[1])
writer = store.begin(RunRow(suite=sys.argv[2]))
for block in range(int(sys.argv[3])):
    write_block(writer, block)
    print(writer.run_id, block, flush=True)
writer.finish("finished")
"""


def start_child(store: Store, suite: str, num_blocks: int) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", CHILD.format(root=str(ROOT)), str(store.path), suite, str(num_blocks)]
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
        pytest.skip("there is no mount command")  # a disk can be filled for real only where one can be mounted
    if done.returncode:
        # Needs root; the two errors are raised artificially in the tests above, on any machine.
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
