"""`pytest suites/`: the same cases through pytest-benchmark, on the scripted backend, in processes of their own."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.store import Store
from tests.commandline import PLUGIN, ROOT, environment, new_store

Finished = subprocess.CompletedProcess[str]


def run_pytest(*words: str, folder: Path) -> Finished:
    """pytest in the repository, with nothing left behind there."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words]
    return subprocess.run(
        command, cwd=ROOT, env=environment(folder), capture_output=True, text=True, timeout=300, check=False
    )


def suites(*words: str, store: Path) -> Finished:
    """The suites with the scripted backend."""
    options = ["--plugin", PLUGIN, "--store", str(store), "--device", "cpu"]
    return run_pytest("suites/test_suites.py", *options, *words, folder=store.parent)


def test_without_the_flag_everything_is_collected_and_skipped(tmp_path: Path) -> None:
    store = tmp_path / "results"
    done = run_pytest("suites/", "-q", "--store", str(store), "--device", "cpu", folder=tmp_path)
    last = done.stdout.strip().splitlines()[-1]
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" in last and "passed" not in last and "failed" not in last
    assert int(last.split()[0]) > 30 and "give --benchmark-only to run it" in done.stdout
    assert not store.exists()


@pytest.fixture(scope="module")
def benchmarked(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """`fake_slow` through pytest-benchmark."""
    folder = tmp_path_factory.mktemp("benchmarked")
    store = new_store(folder / "results")
    report = folder / "report.json"
    words = ("--benchmark-only", "-k", "fake_slow", "--blocks", "2", f"--benchmark-json={report}")
    done = suites(*words, store=store.path)
    assert done.returncode == 0, done.stdout + done.stderr
    return SimpleNamespace(out=done.stdout, report=json.loads(report.read_text()), store=store)


def test_the_report_is_what_the_store_holds(benchmarked: SimpleNamespace) -> None:
    store: Store = benchmarked.store
    (run,) = store.runs()
    assert (run.suite, run.status) == ("fake_slow", "finished")
    cases = {row["case_id"]: row for row in store.cases(run.run_id).to_pylist()}
    found = {entry["extra_info"]["case_id"]: entry for entry in benchmarked.report["benchmarks"]}
    assert found.keys() == cases.keys() and len(found) == 2
    for case_id, entry in found.items():
        rows = store.samples(run.run_id, case_id=case_id, metric="step_time").to_pylist()
        seconds = [row["value"] for row in rows if row["phase"] == "timed"]
        assert entry["stats"]["rounds"] == len(seconds) >= 2 * 2 * 3 and entry["stats"]["iterations"] == 1
        assert entry["stats"]["mean"] == pytest.approx(statistics.mean(seconds), rel=1e-9)
        assert entry["stats"]["median"] == pytest.approx(statistics.median(seconds), rel=1e-9)
        assert sorted(entry["stats"]["data"]) == pytest.approx(sorted(seconds), rel=1e-6)
        info = entry["extra_info"]
        assert info["variant"] == cases[case_id]["variant"] and info["run_id"] == run.run_id
        assert info["kv_bytes"] == 1024 and info["peak_bytes"] >= 0 and info["status"] == "ok"
        assert info["tps"] == pytest.approx(4 / entry["stats"]["median"], rel=0.01)


def test_the_slow_option_is_slower_in_the_report(benchmarked: SimpleNamespace) -> None:
    mean = {entry["extra_info"]["variant"]: entry["stats"]["mean"] for entry in benchmarked.report["benchmarks"]}
    assert mean["backend=fake fake=slow"] / mean["backend=fake"] == pytest.approx(1.1, rel=0.01)
    groups = {entry["group"] for entry in benchmarked.report["benchmarks"]}
    assert groups == {"fake_slow: tiny decode 4 @ 8"}, "one table for what is compared"
    assert "fake_slow: tiny decode 4 @ 8" in benchmarked.out and "2 passed" in benchmarked.out
    assert benchmarked.report["machine_info"]["minimind_bench"]["machine_id"]


def test_an_axis_filters_and_faults_fail_with_their_reason(tmp_path: Path) -> None:
    """Only the option asked for and its reference; a case that broke is a failed test, and the others pass."""
    store = new_store(tmp_path / "results")
    words = ("--benchmark-only", "--axis", "fake=oom,plain", "-k", "fake_slow", "--blocks", "1", "-q")
    done = suites(*words, store=store.path)
    assert done.returncode == 1 and "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "oom: MemoryError: can't allocate memory: scripted" in done.stdout and "Traceback" not in done.stdout
    variants = {row["variant"]: row["status"] for row in store.cases(store.find_run("latest").run_id).to_pylist()}
    assert variants == {"backend=fake fake=oom": "oom", "backend=fake": "ok"}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--axis", "kv=ring"), "unknown option of axis kv 'ring'"),
        (("--device", "tpu"), "unknown device 'tpu'"),
    ],
)
def test_bad_words_are_usage_errors(words: tuple[str, ...], named: str, tmp_path: Path) -> None:
    done = suites("--collect-only", "-q", *words, store=tmp_path / "results")
    assert done.returncode in (2, 4) and named in done.stdout + done.stderr, done.stdout + done.stderr
