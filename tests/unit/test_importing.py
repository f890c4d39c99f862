"""Files of other tools as runs: what is kept, what is called by which name, and what is refused."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from harness import registry
from harness.compare import measured_cases
from harness.core import SOLO_BLOCK, Case, UsageError, Variant, Workload
from harness.importing import import_report, read_report
from harness.machine import inspect_machine
from harness.sides import compare_sides, open_side
from harness.store import Store
from tests.reports import SHA, benchmark, optimum, pytest_benchmark, written


@pytest.fixture
def store(tmp_path: Path) -> Store:
    registry.load_all()
    return Store.open(tmp_path / "results", create=True)


def imported(store: Store, document: Any, name: str = "report.json", **words: Any) -> str:
    path = written(store.path.parent, document, name)
    run_id, is_new = import_report(store, read_report(path), **words)
    assert is_new
    return run_id


def cases(store: Store, run_id: str) -> dict[str, dict[str, Any]]:
    rows = store.cases(run_id).to_pylist()
    return {row["model"]: {**row, "facts": json.loads(row["facts"])} for row in rows}


def test_the_run_is_finished_and_says_where_it_comes_from(store: Store) -> None:
    run = store.find_run(imported(store, pytest_benchmark(benchmark("t.py::test_a", [0.1, 0.2]))))
    assert (run.suite, run.status, run.git_sha, run.git_dirty) == ("imported-pytest-benchmark", "finished", SHA, True)
    assert run.started_at == run.finished_at == datetime(2025, 3, 4, 5, 6, 7, 8, tzinfo=UTC)
    assert (run.cpu_model, run.cores, run.python, run.os) == ("Some Processor", 8, "3.12.4", "Linux 6.8.0")
    assert run.command == "pytest --benchmark-json=report.json  (pytest-benchmark 5.3.1, imported)"
    assert run.machine_id.startswith("imported-") and run.machine_id != inspect_machine("cpu").machine_id


def test_every_round_is_a_sample_of_one_block(store: Store) -> None:
    run_id = imported(store, pytest_benchmark(benchmark("t.py::test_a[1-x]", [0.3, 0.1, 0.2])))
    rows = store.samples(run_id).to_pylist()
    assert [(row["iteration"], row["value"]) for row in rows] == [(0, 0.3), (1, 0.1), (2, 0.2)]
    assert {(row["metric"], row["unit"], row["block"], row["phase"]) for row in rows} == {
        ("step_time", "s", 0, "timed")
    }
    (case,) = measured_cases(store, run_id)
    assert (case.model, case.status, case.label, case.headline) == (
        "t.py::test_a[1-x]",
        "ok",
        "external()",
        "step_time",
    )
    assert case.series["step_time"].median == 0.2 and not case.series["step_time"].single
    assert case.facts["evidence"] == "rounds of one process: no interval over processes"
    assert case.facts["imported"]["tool"] == "pytest-benchmark" and case.facts["stats"]["rounds"] == 3


def test_statistics_without_rounds_give_one_value_and_say_so(store: Store) -> None:
    run_id = imported(store, pytest_benchmark(benchmark("t.py::test_a", [0.3, 0.1, 0.2], data=False)))
    (row,) = store.samples(run_id).to_pylist()
    assert (row["value"], row["block"]) == (0.2, SOLO_BLOCK), "the median, not three made-up rounds"
    found = cases(store, run_id)["t.py::test_a"]
    assert found["num_blocks"] == 0 and "no rounds" in found["facts"]["evidence"]
    assert found["facts"]["stats"]["min"] == 0.1 and found["facts"]["stats"]["max"] == 0.3
    assert "1 of 1 benchmarks" in read_report(store.path.parent / "report.json").notes[0]


def test_the_same_file_twice_is_one_run_under_any_name(store: Store) -> None:
    document = pytest_benchmark(benchmark("t.py::test_a", [0.1]))
    first = imported(store, document, suite="theirs")
    copied = written(store.path.parent, document, "copied.json")
    assert import_report(store, read_report(copied)) == (first, False)
    assert [run.suite for run in store.runs()] == ["theirs"]


def test_two_imports_never_come_to_a_verdict(store: Store) -> None:
    """Twice the time in a hundred rounds of one process each: suspicious, and no more than that."""
    a = imported(store, pytest_benchmark(benchmark("t.py::test_a", [0.1] * 100)))
    b = imported(store, pytest_benchmark(benchmark("t.py::test_a", [0.2] * 100)), "later.json")
    (row,) = compare_sides(open_side(store, a), open_side(store, b))
    assert row.verdict == "inconclusive" and row.as_dict()["ratio"] == pytest.approx(2.0)


def test_a_machine_is_the_same_at_another_clock_rate_and_not_with_another_processor(store: Store) -> None:
    entry = benchmark("t.py::test_a", [0.1])
    machines = []
    for number, (key, value) in enumerate({"count": 8, "hz_actual_friendly": "3.1 GHz", "brand_raw": "Other"}.items()):
        document = copy.deepcopy(pytest_benchmark(entry))
        document["machine_info"]["cpu"][key] = value
        machines.append(store.find_run(imported(store, document, f"{number}.json")).machine_id)
    assert machines[0] == machines[1] != machines[2]


def own_entry(seconds: list[float], **extra: Any) -> tuple[Case, dict[str, Any]]:
    workload = Workload.parse("decode(batch=1,context=8,new_tokens=4)")
    case = Case(workload, "tiny", Variant.parse("kv=prealloc norm=fused"))
    name = f"suites/test_suites.py::test_case[quickstart/{case.workload}/tiny/kv=prealloc,norm=fused]"
    return case, benchmark(name, seconds, extra_info={"case_id": case.case_id, **extra})


def test_a_test_of_our_own_suites_keeps_its_identity_and_its_metrics(store: Store) -> None:
    case, entry = own_entry([0.4, 0.5], tps=9.0, tpot=0.1, kv_bytes=1024, status="ok", mbu=0.5)
    run_id = imported(store, pytest_benchmark(entry))
    (found,) = measured_cases(store, run_id)
    assert (found.case_id, found.workload, found.model) == (case.case_id, str(case.workload), "tiny")
    assert found.variant == "kv=prealloc norm=fused" and found.headline == "tps"
    rows = store.samples(run_id, metric="tps").to_pylist()
    assert [row["value"] for row in rows] == pytest.approx([10.0, 8.0]), "of each round, by the metric's definition"
    assert found.series["kv_bytes"].single and found.series["kv_bytes"].median == 1024
    assert "mbu" not in found.series, "the duration alone does not give it"


def test_a_name_that_only_looks_like_ours_stays_foreign(store: Store) -> None:
    _, entry = own_entry([0.4], kv_bytes=1024)
    entry["extra_info"]["case_id"] = "0123456789ab"
    (found,) = measured_cases(store, imported(store, pytest_benchmark(entry)))
    assert found.workload == "external()" and found.model == entry["fullname"] and set(found.series) == {"step_time"}


def test_optimum_targets_are_cases_with_their_sizes(store: Store) -> None:
    run_id = imported(store, optimum())
    found = {case.model.rpartition(": ")[2]: case for case in measured_cases(store, run_id)}
    assert set(found) == {"load_model", "prefill", "decode"}, "per_token counts iterations again"
    assert found["decode"].workload == "external(batch_size=1,max_new_tokens=10,sequence_length=128)"
    assert found["decode"].model == "llama: some/model: decode"
    tps = [row["value"] for row in store.samples(run_id, case_id=found["decode"].case_id, metric="tps").to_pylist()]
    assert tps == pytest.approx([9 / 1.8, 9 / 2.0, 9 / 1.9])
    assert found["prefill"].series["ttft"].median == 0.071
    run = store.find_run(run_id)
    assert (run.torch, run.cores, run.ram_bytes, run.device) == ("2.13.0", 2, 24_000_000_000, "cpu")
    assert json.loads(run.packages) == {"optimum_benchmark": "0.6.0"} and run.machine_id.startswith("imported-")


def test_memory_of_another_meaning_gets_no_name_of_ours(store: Store) -> None:
    """The whole process's RAM is not our peak_bytes; what CUDA's allocator gave out is."""
    on_cpu = measured_cases(store, imported(store, optimum()))[1]
    assert on_cpu.series["max_ram"].median == 5e8 and "peak_bytes" not in on_cpu.series
    on_cuda = measured_cases(store, imported(store, optimum(device="cuda"), "cuda.json"))[1]
    assert (on_cuda.series["peak_bytes"].median, on_cuda.series["reserved_bytes"].median) == (1e8, 2e8)


def test_optimum_notes_name_what_is_left_out_and_what_to_distrust(tmp_path: Path) -> None:
    notes = " ".join(read_report(written(tmp_path, optimum(launcher="process"))).notes)
    assert "per_token was left out" in notes and "keeps a core busy" in notes
    assert "keeps a core busy" not in " ".join(read_report(written(tmp_path, optimum())).notes)


def test_a_report_without_its_configuration_takes_its_name_from_the_folder(tmp_path: Path) -> None:
    path = written(tmp_path, optimum()["report"], "benchmark_report.json")
    assert read_report(path).cases[0].name == f"{tmp_path.name}: model: load_model"


def damaged(change: Any, document: dict[str, Any] | None = None) -> dict[str, Any]:
    """A good document with one thing made bad."""
    found = copy.deepcopy(document or pytest_benchmark(benchmark("t.py::a", [0.1, 0.2]), benchmark("t.py::b", [0.1])))
    change(found)
    return found


def first_stats(document: dict[str, Any], key: str, value: Any) -> None:
    document["benchmarks"][0]["stats"][key] = value


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ("", "is not JSON"),
        ('{"machine_info": ', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ([1, 2], "neither pytest-benchmark's"),
        ({"context": {}, "benchmarks": [{"name": "BM_x", "real_time": 1.0}]}, "neither pytest-benchmark's"),
        (pytest_benchmark(), "it holds no benchmarks"),
        (damaged(lambda d: first_stats(d, "data", [0.1, "0.2"])), 'benchmarks[0].stats.data[1] is "0.2"'),
        (damaged(lambda d: first_stats(d, "data", [0.1, float("nan")])), "benchmarks[0].stats.data[1] is NaN"),
        (damaged(lambda d: first_stats(d, "data", [-0.1])), "is -0.1, not a finite number of at least 0"),
        (damaged(lambda d: first_stats(d, "data", [0.0])), "is 0: a round takes time"),
        (damaged(lambda d: first_stats(d, "data", 0.1)), "is not a list of numbers"),
        (damaged(lambda d: first_stats(d, "median", float("inf"))), "benchmarks[0].stats.median is Infinity"),
        (damaged(lambda d: d["benchmarks"][0].pop("stats")), "benchmarks[0] (t.py::a) has no stats"),
        (damaged(lambda d: d["benchmarks"].insert(0, "x")), "benchmarks[0] has no name"),
        (damaged(lambda d: d["benchmarks"].append(d["benchmarks"][0])), "benchmark 't.py::a' is in it twice"),
        (damaged(lambda d: d["benchmarks"][0].update(stats={"mean": 0.1})), "has neither rounds nor a median"),
        (damaged(lambda d: d["report"]["decode"]["latency"].update(unit="ms"), optimum()), "decode.latency is in 'ms'"),
        (damaged(lambda d: d["report"]["prefill"]["latency"].update(values=[]), optimum()), "values is empty"),
        ({"per_token": optimum()["report"]["per_token"]}, "no latencies but per_token's"),
    ],
)
def test_what_cannot_be_imported_is_named(document: Any, named: str, tmp_path: Path) -> None:
    path = written(tmp_path, document)
    with pytest.raises(UsageError) as caught:
        read_report(path)
    assert named in str(caught.value) and str(path) in str(caught.value)


def test_a_file_that_is_not_there_and_one_of_bytes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.json' cannot be read: No such file"):
        read_report(tmp_path / "absent.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(UsageError, match="is not JSON"):
        read_report(tmp_path / "bytes.json")
