"""`harness bisect`, stopped at any moment: git's worktrees, refs and tree, and the store, are as they were."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.store import Store
from harness.worktree import sweep
from tests.commandline import new_store
from tests.scratch_repository import bisect_words, copy_of_this, finish_there, plant, start_there, state_of

pytestmark = pytest.mark.slow
Reached = Callable[[Path, Store], bool]


def worktrees(repository: Path) -> int:
    return len(list(repository.glob(".git/worktrees/*")))


def parts(store: Store) -> list[Path]:
    """Of runs that go on: a finished one has one file."""
    return list(store.path.glob("inbox/*/samples-*.parquet"))


MOMENTS: dict[str, Reached] = {
    "the first worktree is being made": lambda repository, store: worktrees(repository) == 1,
    "the second is being made": lambda repository, store: worktrees(repository) == 2,
    "a block was written": lambda repository, store: len(parts(store)) >= 4,
    "the second step is under way": lambda repository, store: len(store.runs()) > 2 and bool(parts(store)),
}
NUMBERS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four commits, the last two slower."""
    folder = copy_of_this(tmp_path_factory.mktemp("stopped") / "repository")
    for subject, factor in (("one", 1.0), ("two", 1.0), ("three", 1.08), ("four", 1.08)):
        plant(folder, subject, factor)
    return folder


def until(reached: Reached, repository: Path, store: Store, child: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not reached(repository, store):
        assert child.poll() is None, f"ended too early: {child.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number.name)
def test_a_stopped_search_leaves_everything_clean(
    number: signal.Signals, moment: str, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, store = state_of(repository), new_store(tmp_path / "results")
    child = start_there(repository, bisect_words(store.path, "--good", "HEAD~4"), tmp_path)
    until(MOMENTS[moment], repository, store, child)
    child.send_signal(number)
    code, out, err = finish_there(child)
    assert (code, out) == (NUMBERS[number], "") and "Traceback" not in err, err
    if number == signal.SIGKILL:  # it could not: the next one does; a git that it had started may still be ending
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        deadline = time.monotonic() + 20
        while (
            state_of(repository) != before or list(tmp_path.glob("minimind-bench-*-*"))
        ) and time.monotonic() < deadline:
            sweep(repository)
    assert state_of(repository) == before and list(tmp_path.glob("minimind-bench-*-*")) == []
    died = [problem for problem in store.check() if "its writer died" not in problem.reason]
    assert died == [] and (number == signal.SIGKILL or not store.check())
    assert all(run.status in ("finished", "interrupted", "running") for run in store.runs())


def test_the_next_search_removes_what_a_killed_one_left(repository: Path, tmp_path: Path) -> None:
    before, store = state_of(repository), new_store(tmp_path / "results")
    child = start_there(repository, bisect_words(store.path, "--good", "HEAD~4"), tmp_path)
    until(MOMENTS["the second is being made"], repository, store, child)
    child.kill()
    finish_there(child)
    assert worktrees(repository) >= 1
    words = bisect_words(store.path, "--good", "HEAD~4", "--bad", "HEAD~3")
    code, out, err = finish_there(start_there(repository, words, tmp_path))
    assert code == 4 and "is not worse than" in out.replace("\n", " "), err
    assert state_of(repository) == before and list(tmp_path.glob("minimind-bench-*-*")) == []


def test_two_searches_at_once_do_not_touch_each_others_worktrees(repository: Path, tmp_path: Path) -> None:
    before = state_of(repository)
    stores = [new_store(tmp_path / name) for name in ("a", "b")]
    words = ("--good", "HEAD~4", "--bad", "HEAD~1")
    children = [start_there(repository, bisect_words(store.path, *words), tmp_path) for store in stores]
    answers = [finish_there(child) for child in children]
    assert [code for code, _, _ in answers] == [0, 0], answers
    assert state_of(repository) == before
