"""`--harness-gate`: suites against a variant, a stored run and a file; foreign pytest-benchmark tests against one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.store import Store
from tests.commandline import PLUGIN, ROOT, environment, new_store

Finished = subprocess.CompletedProcess[str]


def run_pytest(*words: str, folder: Path, cwd: Path = ROOT) -> Finished:
    """pytest in a process of its own, with nothing left behind in the repository."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *words]
    env = {**environment(folder), "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False)


def gated(*words: str, store: Store) -> Finished:
    """The scripted suites, 4 blocks, with the gate."""
    options = ["--plugin", PLUGIN, "--store", str(store.path), "--device", "cpu", "--blocks", "4"]
    return run_pytest(
        "suites/test_suites.py", "--benchmark-only", "--harness-gate", *options, *words, folder=store.path.parent
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path / "results")


def test_what_got_worse_fails_with_the_evidence_and_the_rest_passes(store: Store) -> None:
    done = gated("-k", "fake_slow", "--harness-against", "variant:backend=fake", store=store)
    assert done.returncode == 1 and "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("harness gate: ")]
    for part in (
        "decode 4 @ 8",
        "regressed: tps -9.09% [",
        "detectable",
        "margin 1.0% (policy)",
        "limit 3.0%",
        "red twice",
    ):
        assert part in line, line
    assert "Traceback" not in done.stdout and "1 regressed" in done.stdout


def test_an_unchanged_case_passes_against_a_stored_run(store: Store) -> None:
    words = ("-k", "fake_slow and not slow]")
    first = gated(*words, "--harness-against", "variant:backend=fake", store=store)
    assert first.returncode == 1 and "1 skipped" in first.stdout, "a case beside itself alone is judged by nothing"
    done = gated(*words, "--harness-against", "run:latest", store=store)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr
    last, before = store.runs()[-1], store.runs()[0]
    assert last.run_id != before.run_id and last.suite == "fake_slow" and last.status == "finished"


def slower(document: Any, factor: float) -> Any:
    """The report with every time multiplied."""
    for entry in document["benchmarks"]:
        stats = entry["stats"]
        for key in ("min", "max", "mean", "median", "stddev"):
            stats[key] *= factor
        stats["data"] = [value * factor for value in stats["data"]]
    return document


def test_a_pytest_benchmark_file_of_the_suites_is_a_baseline(store: Store, tmp_path: Path) -> None:
    """Against itself it passes, against one that was a fifth faster the case fails, and both are runs of the store."""
    report = tmp_path / "report.json"
    options = ("--plugin", PLUGIN, "--store", str(store.path), "--device", "cpu", "--blocks", "2")
    select = ("suites/test_suites.py", "--benchmark-only", "-k", "fake_slow and not slow]")
    made = run_pytest(*select, *options, f"--benchmark-json={report}", folder=tmp_path)
    assert made.returncode == 0, made.stdout + made.stderr
    words = ("-k", "fake_slow and not slow]", "--harness-baseline")
    same = gated(*words, str(report), store=store)
    assert same.returncode == 0, same.stdout + same.stderr
    faster = tmp_path / "faster.json"
    faster.write_text(json.dumps(slower(json.loads(report.read_text()), 0.8)))
    done = gated(*words, str(faster), store=store)
    assert done.returncode == 1, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("harness gate: ")]
    # The scripted clock differs by up to 0.4% between blocks, and how many rounds each has is the real clock's matter.
    assert (
        re.search(r"[+]2[45]\.\d%; limit 10\.0% \(default\)", line) and "Weak evidence: rounds of one process" in line
    )
    suites = [run.suite for run in store.runs()]
    assert suites.count("imported-pytest-benchmark") == 2 and suites.count("fake_slow") == 3


FOREIGN = """
import pytest

class Clock:
    now = 0.0
    def __call__(self):
        return self.now

clock = Clock()

def work(seconds):
    clock.now += seconds

@pytest.mark.benchmark(timer=clock)
def test_plain(benchmark):
    benchmark.pedantic(work, args=({plain},), rounds=5)

@pytest.mark.harness_gate({marker})
@pytest.mark.benchmark(timer=clock)
def test_marked(benchmark):
    benchmark.pedantic(work, args=({marked},), rounds=5)

def test_without_a_benchmark():
    pass
"""


def foreign(folder: Path, *words: str, plain: float = 1.0, marked: float = 1.0, marker: str = "limit=0.05") -> Finished:
    """A project of someone else, with the plugin in its conftest; `plain` and `marked` are what its rounds take."""
    (folder / "conftest.py").write_text('pytest_plugins = ["harness.pytest_gate"]\n')
    (folder / "test_theirs.py").write_text(FOREIGN.format(plain=plain, marked=marked, marker=marker))
    return run_pytest("test_theirs.py", "--strict-markers", "--rootdir", ".", *words, folder=folder, cwd=folder)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Their history: one second for either test."""
    done = foreign(tmp_path, "--benchmark-json=saved.json")
    assert done.returncode == 0 and "3 passed" in done.stdout, done.stdout + done.stderr
    return tmp_path


GATE = ("--harness-gate", "--harness-baseline", "saved.json")


def test_the_gate_of_a_foreign_project_is_green_on_unchanged_code(saved: Path) -> None:
    done = foreign(saved, *GATE)
    assert done.returncode == 0 and "2 passed" in done.stdout.split("harness gate")[1], done.stdout + done.stderr


def test_a_markers_limit_is_that_tests_own(saved: Path) -> None:
    """7% slower: beyond the marker's 5%, within the 10% of those without a marker."""
    done = foreign(saved, *GATE, plain=1.07, marked=1.07)
    assert done.returncode == 1 and "1 failed, 2 passed" in done.stdout, done.stdout + done.stderr
    assert (
        "1 s became 1.07 s, +7.0%; limit 5.0% (marker)" in done.stdout
        and "FAILED test_theirs.py::test_marked" in done.stdout
    )
    wide = foreign(saved, *GATE, plain=1.0, marked=1.4, marker="limit=0.5")
    assert wide.returncode == 0, wide.stdout
    faster = foreign(saved, *GATE, marked=0.5)
    assert faster.returncode == 0, "faster is not worse"


def test_another_machine_decides_nothing_and_nothing_judged_is_not_green(saved: Path) -> None:
    document = json.loads((saved / "saved.json").read_text())
    document["machine_info"]["node"] = "another"
    (saved / "saved.json").write_text(json.dumps(slower(document, 0.1)))
    done = foreign(saved, *GATE)
    assert done.returncode == 1 and "3 passed" in done.stdout and "failed" not in done.stdout, done.stdout
    assert "measured on another machine, which decides nothing" in done.stdout and "2 invalid" in done.stdout


def test_a_benchmark_that_the_file_lacks_is_named(saved: Path) -> None:
    document = json.loads((saved / "saved.json").read_text())
    document["benchmarks"] = document["benchmarks"][:1]
    (saved / "saved.json").write_text(json.dumps(document))
    done = foreign(saved, *GATE)
    assert done.returncode == 0 and "has no benchmark 'test_theirs.py::test_marked'" in done.stdout, done.stdout


@pytest.mark.parametrize(
    ("words", "marker", "named"),
    [
        (("--harness-baseline", "saved.json"), "", "--harness-baseline needs --harness-gate"),
        (("--harness-gate", "--harness-baseline", "absent.json"), "", "'absent.json' cannot be read"),
        ((*GATE, "--harness-against", "HEAD"), "", "are two baselines"),
        (GATE, "limits=0.1", "harness_gate: unknown word 'limits'. Known: metric, kind, margin, limit, fails"),
        (GATE, "0.1", "harness_gate: it takes names only"),
    ],
)
def test_bad_words_are_usage_errors(words: tuple[str, ...], marker: str, named: str, saved: Path) -> None:
    done = foreign(saved, *words, marker=marker)
    assert done.returncode == 4 and named in done.stdout + done.stderr, done.stdout + done.stderr
