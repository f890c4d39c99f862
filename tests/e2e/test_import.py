"""`harness import` and what reads an imported run: show, compare, export; with a file that pytest-benchmark wrote."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.store import Store
from tests.commandline import environment
from tests.e2e.conftest import Call
from tests.reports import benchmark, optimum, pytest_benchmark, written

THEIRS = """
def test_sum(benchmark):
    benchmark.pedantic(sum, args=(range(1000),), rounds=7, iterations=3)
"""


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two files that pytest-benchmark makes of one test: the whole report, and the saved one."""
    folder = tmp_path_factory.mktemp("theirs")
    (folder / "test_sum.py").write_text(THEIRS)
    words = ["--benchmark-json=whole.json", "--benchmark-autosave", "--benchmark-storage=saved", "--rootdir=."]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *words, "test_sum.py"]
    done = subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_a_file_that_pytest_benchmark_wrote_is_shown_and_exported(real: Path, call: Call, tmp_path: Path) -> None:
    store = tmp_path / "results"
    code, out, err = call("import", str(real / "whole.json"), "-o", "json", store=store)
    assert code == 0, err
    document = json.loads(out)
    assert document["run"]["suite"] == "imported-pytest-benchmark" and document["run"]["status"] == "finished"
    assert document["rows"][0]["model"] == "test_sum.py::test_sum" and document["rows"][0]["num_blocks"] == 1
    assert "rounds of one process: no interval over processes" in err
    code, out, _ = call("export", "latest", "-o", "json", store=store)
    theirs = json.loads((real / "whole.json").read_text())["benchmarks"][0]["stats"]["data"]
    assert code == 0 and [row["value"] for row in json.loads(out)] == theirs
    code, out, _ = call("show", "latest", store=store)
    assert code == 0 and "test_sum.py::test_sum" in out and "step_time" in out


def test_a_saved_file_is_its_statistics_and_says_that_it_has_no_rounds(real: Path, call: Call, tmp_path: Path) -> None:
    (saved,) = (real / "saved").rglob("*.json")
    code, out, err = call("import", str(saved), "-o", "json", "--suite", "history", store=tmp_path / "results")
    assert code == 0 and "1 of 1 benchmarks: the file holds statistics but no rounds" in err
    document = json.loads(out)
    stats = json.loads(saved.read_text())["benchmarks"][0]["stats"]
    assert document["run"]["suite"] == "history"
    assert document["rows"][0]["metrics"]["step_time"]["value"] == stats["median"]


def test_the_same_file_again_writes_nothing_and_says_so(call: Call, tmp_path: Path) -> None:
    store, path = tmp_path / "results", written(tmp_path, optimum())
    assert call("import", str(path), store=store)[0] == 0
    code, out, err = call("import", str(path), store=store)
    assert code == 0 and "was imported before" in err and "nothing was written" in err
    assert len(Store.open(store).runs()) == 1 and "some/model: decode" in out


def test_two_imports_compare_without_a_verdict_even_when_asked_for_one(call: Call, tmp_path: Path) -> None:
    store = tmp_path / "results"
    for name, seconds in (("a.json", 0.1), ("b.json", 0.2)):
        path = written(tmp_path, pytest_benchmark(benchmark("t.py::test_a", [seconds] * 50)), name)
        assert call("import", str(path), store=store)[0] == 0
    first, second = (run.run_id for run in Store.open(store).runs())
    code, out, _ = call("compare", first, second, "--strict", "-o", "json", store=store)
    (row,) = json.loads(out)
    assert code == 4 and row["verdict"] == "inconclusive" and row["num_blocks"] == 1


@pytest.mark.parametrize("content", ["", "{", "[]", '{"benchmarks": []}', '{"machine_info": {}, "benchmarks": []}'])
def test_what_is_no_report_is_a_usage_error_and_makes_no_store(content: str, call: Call, tmp_path: Path) -> None:
    store = tmp_path / "results"
    code, out, err = call("import", str(written(tmp_path, content)), store=store)
    assert (code, out) == (2, "") and "report.json" in err and len(err.splitlines()) == 1
    assert not store.exists()


def test_an_imported_run_survives_compaction(call: Call, tmp_path: Path) -> None:
    store, path = tmp_path / "results", written(tmp_path, optimum())
    assert call("import", str(path), store=store)[0] == 0
    before = call("export", "latest", "-o", "json", store=store)[1]
    assert call("store", "compact", store=store)[0] == 0 and call("store", "check", store=store)[0] == 0
    assert call("export", "latest", "-o", "json", store=store)[1] == before
