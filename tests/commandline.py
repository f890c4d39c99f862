"""The real command line for tests: in this process or in a child, on the scripted backend, into a store of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.execute import usable_cpus
from harness.machine import fingerprint, inspect_machine, versions
from harness.schema import PeakRow
from harness.store import Store

ROOT = Path(__file__).resolve().parents[1]
PLUGIN = str(ROOT / "tests" / "fake_backend.py")


def new_store(path: Path) -> Store:
    """An empty store that already knows this machine's peaks (made up), so that a run need not measure them."""
    store = Store.open(path, create=True)
    threads = len(usable_cpus())
    key = fingerprint(inspect_machine("cpu"), versions(), "cpu", threads=threads)
    peaks = [PeakRow("matmul", 1e11, "FLOP/s", "fp32", 0, threads), PeakRow("read", 1e10, "B/s", "fp32", 1, threads)]
    store.save_calibration(key, peaks)
    return store


def command(*words: str, store: Path) -> list[str]:
    """The words of a command with the scripted backend."""
    device = ["--device", "cpu"] if words[0] in ("run", "doctor", "calibrate") and "--device" not in words else []
    return [*words, "--store", str(store), "--plugin", PLUGIN, *device]


def environment(folder: Path) -> dict[str, str]:
    """This environment with a temporary folder of its own: the lock of the machine lies there.

    Without pytest-xdist's variables: pytest-benchmark takes a child with them for one of its workers.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    return {**inherited, "TMPDIR": str(folder), "COLUMNS": "150"}


def start(words: Sequence[str], folder: Path) -> subprocess.Popen[str]:
    """A child process that runs the command."""
    return subprocess.Popen(
        [sys.executable, "-m", "harness", *words],
        cwd=ROOT,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(child: subprocess.Popen[str], seconds: float = 120.0) -> tuple[int, str, str]:
    """Wait for the child; its exit code, stdout and stderr."""
    try:
        out, err = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        raise
    return child.returncode, out, err
