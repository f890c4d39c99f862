"""What the tests of the command line share: a way to call it, and a store with two runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness import execute, runner
from harness.cli import main
from tests.commandline import command, finish, new_store, start

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """Run a command in this process: exit code, stdout, stderr."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def run(*words: str, store: Path) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main(command(*words, store=store))
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A store with a run of `fake_slow` and one of `fake_faults`, made by child processes, and what these printed."""
    folder = tmp_path_factory.mktemp("measured")
    store = new_store(folder / "results")
    slow = finish(start(command("run", "fake_slow", "--blocks", "2", "-o", "json", store=store.path), folder))
    faults = finish(start(command("run", "fake_faults", store=store.path), folder))
    return SimpleNamespace(path=store.path, slow=slow, faults=faults)


@pytest.fixture
def untouched(measured: SimpleNamespace, tmp_path: Path) -> Path:
    """A copy of that store, to be damaged."""
    shutil.copytree(measured.path, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be measured."""

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr(runner, "WorkerProcess", forbidden)
    monkeypatch.setattr(execute, "WorkerProcess", forbidden)
