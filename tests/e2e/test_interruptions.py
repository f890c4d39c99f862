"""Runs that are stopped midway: the store stays readable, finished blocks stay, `--resume` does only the rest."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.store import Store
from tests.commandline import command, finish, new_store, start

Call = Callable[..., tuple[int, str, str]]
BLOCKS = 5
SUITE = ("run", "fake_long", "--blocks", str(BLOCKS))


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """A shell's job in the background ignores Ctrl-C, and hands that on to what these tests start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def wait_for_blocks(store: Store, child: subprocess.Popen[str], blocks: int) -> None:
    """Until the solo passes of both cases and so many blocks are on disk."""
    deadline = time.monotonic() + 120
    while len(list(store.path.glob("inbox/*/samples-*.parquet"))) < 2 + blocks:
        assert child.poll() is None, f"ended too early: {child.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def samples_of(store: Store) -> list[dict[str, Any]]:
    return store.samples(store.find_run("latest").run_id).to_pylist()


@pytest.mark.parametrize(
    ("number", "code", "status"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "interrupted"),
        (signal.SIGKILL, -signal.SIGKILL, "running"),
    ],
    ids=["SIGINT", "SIGTERM", "SIGKILL"],
)
def test_a_stopped_run_keeps_its_blocks_and_resumes(
    number: signal.Signals, code: int, status: str, tmp_path: Path, call: Call
) -> None:
    store = new_store(tmp_path / "results")
    child = start(command(*SUITE, "-o", "json", store=store.path), tmp_path)
    wait_for_blocks(store, child, 2)
    child.send_signal(number)
    found, out, err = finish(child)
    assert (found, out) == (code, "") and "Traceback" not in err, err
    run = store.find_run("latest")
    assert run.status == status and not store.is_live(run) and not store.problems
    before = samples_of(store)
    blocks = {row["block"] for row in before}
    assert {-1, 0, 1} <= blocks and len(blocks) < 1 + BLOCKS, "two blocks were finished, not all"

    code, out, err = call("show", "latest", "-o", "json", store=store.path)
    assert code == 0 and json.loads(out)["run"]["status"] == status, err
    assert [row["num_blocks"] for row in json.loads(out)["rows"]] == [len(blocks) - 1] * 2
    _, out, _ = call("show", "latest", store=store.path)
    assert f"complete it with: python -m harness run --resume {run.run_id}" in out

    code, out, err = call("run", "--resume", run.run_id[:15], "-o", "json", store=store.path)
    assert code == 0, err
    assert [(row["status"], row["num_blocks"]) for row in json.loads(out)["rows"]] == [("ok", BLOCKS)] * 2
    assert store.find_run("latest").status == "finished" and len(store.runs()) == 1
    after = samples_of(store)
    key = ("case_id", "metric", "block", "turn", "iteration", "phase", "worker")
    counts = Counter(tuple(row[name] for name in key) for row in after)
    assert set(counts.values()) == {1}, "no block is there twice"
    assert {block for case, metric, block, *_ in counts if metric == "tps"} == set(range(BLOCKS))
    turns = Counter((row["case_id"], row["block"], row["turn"]) for row in after if row["turn"] or row["block"] >= 0)
    assert {block for _, block, _ in turns} == set(range(BLOCKS))
    earlier = [row for row in after if row["block"] in blocks]
    assert sorted(map(str, before)) == sorted(map(str, earlier)), "what was there is unchanged"
    assert not store.check()


def test_a_run_that_goes_on_is_not_resumed_and_not_compacted(tmp_path: Path, call: Call) -> None:
    store = new_store(tmp_path / "results")
    child = start(command("run", "fake_long", store=store.path), tmp_path)
    try:
        wait_for_blocks(store, child, 1)
        code, _, err = call("run", "--resume", "latest", store=store.path)
        assert code == 2 and f"still going on (process {child.pid})" in err
        code, out, _ = call("store", "compact", "-o", "json", store=store.path)
        assert code == 0 and json.loads(out)[0]["num_runs"] == 0
        code, out, _ = call("show", "latest", "-o", "json", store=store.path)
        assert code == 0 and json.loads(out)["run"]["status"] == "running"
    finally:
        child.send_signal(signal.SIGTERM)
    assert finish(child)[0] == 143


def test_the_workers_of_a_killed_run_end_with_it(tmp_path: Path) -> None:
    """It could do nothing about them itself: they end because nobody is left to ask."""
    store = new_store(tmp_path / "results")
    child = start(command("run", "fake_long", store=store.path), tmp_path)
    wait_for_blocks(store, child, 1)
    deadline = time.monotonic() + 60
    while not (workers := children_of(child.pid)):  # there are none between two blocks
        assert time.monotonic() < deadline
    child.kill()
    finish(child)
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children_of(pid: int) -> list[int]:
    """The processes whose parent this is."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def alive(pid: int) -> bool:
    """Whether it still runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
