"""Each kind of report: what it says of the project's real runs, and what it asks for where the store has nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.core import UsageError
from harness.schema import PeakRow
from harness.store import Store
from reports.document import Document, Grid, Missing, Paragraph, Picture
from reports.kinds import KINDS, build
from reports.sources import Request
from tests.report_kinds.reference import ROUTE, STORE, real, unrelated_store
from tests.synthetic import Arm, store_run


def _text(document: Document) -> str:
    """Everything that stands in paragraphs, tables and what is missing."""
    found = [document.sentence]
    for section in document.sections:
        for block in section.blocks:
            if isinstance(block, Paragraph):
                found.append(block.text)
            elif isinstance(block, Missing):
                found.append(f"{block.what} -> {block.command}")
            elif isinstance(block, Grid):
                found += [" | ".join(row) for row in block.rows]
    return "\n".join(found)


def _grids(document: Document, title: str) -> list[Grid]:
    section = next(section for section in document.sections if section.title == title)
    return [block for block in section.blocks if isinstance(block, Grid)]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "comparison"])  # of nothing: a usage error
def test_an_empty_store_asks_for_a_run(kind: str, tmp_path: Path) -> None:
    document = build(Store.open(tmp_path / "empty", create=True), kind, Request())
    assert document.runs == ()
    assert [missing.command for missing in document.missing if missing.command]
    assert not document.pictures


@pytest.mark.parametrize("kind", [*ROUTE, "gate"])
def test_a_store_with_nothing_fitting_says_what_would_fill_it(kind: str, tmp_path: Path) -> None:
    document = build(unrelated_store(tmp_path / "odd"), kind, Request())
    assert document.missing
    assert any(missing.command.startswith(("python -m harness", "nsys")) for missing in document.missing)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_have_runs_behind_them(kind: str) -> None:
    document = real(kind)
    if any(isinstance(block, Picture) or (isinstance(block, Grid) and block.records)
           for section in document.sections for block in section.blocks):  # fmt: skip
        assert document.runs
        assert all(run.command for run in document.runs)


@pytest.mark.parametrize("kind", KINDS)
def test_chinese_reports_have_the_same_tables(kind: str) -> None:
    english, chinese = real(kind), real(kind, "zh")
    sizes = [[(len(block.rows), len(block.columns)) for section in document.sections for block in section.blocks
              if isinstance(block, Grid)] for document in (english, chinese)]  # fmt: skip
    assert sizes[0] == sizes[1]
    assert english.title != chinese.title or kind == "comparison"


def test_long_context_fits_time_against_context_and_explains_it() -> None:
    text = _text(real("long_context"))
    assert "least squares over 9 block values at 3 lengths, 95% intervals" in text
    assert "Each position adds 8,192 B to what a step must read" in text  # 2 x 8 layers x 2 heads x 64 x 4 bytes
    assert "upstream's attention repeats 2 KV heads to 8 at every step" in text
    assert "TTFT at several prompt lengths -> python -m harness run long_context" in text


def test_long_context_splits_the_measured_peak() -> None:
    grid = _grids(real("long_context"), "Memory against length")[0]
    for row in grid.rows:
        weights, cache, rest, peak = (float(cell.split()[0].replace(",", "")) for cell in row[1:5])
        assert weights + cache + rest == pytest.approx(peak, abs=0.2)


def test_long_context_shows_what_paging_rounds_up() -> None:
    rows = _grids(real("long_context"), "How the cache lies in memory")[0].rows
    assert ("paged", "1016", "8.0 MiB", "8,257 B", "1.008×") in rows


def test_prompts_are_explained_by_their_arithmetic(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s", create=True)
    arms = [
        Arm(workload=f"prefill(context={n})", timed={"ttft": [n * 1e-3, n * 1.01e-3, n * 0.99e-3]},
            facts={"work": [n, n * 1e7, 1e8]})
        for n in (128, 256, 512, 1024)
    ]  # fmt: skip
    store_run(store, *arms, suite="long_context", machine_id="m", command="c")
    text = _text(build(store, "long_context", Request()))
    assert "its FLOPs 8.0 times as many" in text
    assert "as the arithmetic does" in text
    assert "10 GFLOP/s at the shortest, 10 GFLOP/s at the longest" in text


def test_quantization_orders_by_size_and_names_the_smallest_that_is_close() -> None:
    document = real("quantization")
    assert document.sentence.startswith(
        "Of the formats with a KL below 0.001 the smallest is quant=int8: 2.4 MiB for 9.6"
    )
    grid = _grids(document, "Quality against size")[0]
    sizes = [float(row[1].split()[0]) for row in grid.rows]
    assert sizes == sorted(sizes, reverse=True)
    assert "no backend of this project measures MNN" in _text(document)


def test_the_profile_says_what_limits_each_phase() -> None:
    document = real("profile_report")
    assert "prefill 512 (reference) is bound by compute." in document.sentence
    assert "decode 16 @ 512 (reference) is bound by launches and dispatch." in document.sentence
    assert "aten::mul | 74" in _text(document)


def test_the_profile_has_the_times_of_operators_and_a_timeline_where_a_trace_was_recorded(tmp_path: Path) -> None:
    text = _text(real("profile_report"))
    assert "time by operator: no case of this kind has a profile -> python -m harness profile ladder" in text
    assert "a trace: the calls of one case in their order, with the gaps between them -> python -m harness" in text
    store = Store.open(tmp_path / "s", create=True)
    arm = Arm(timed={"tps": [9.0, 10.0], "step_time": [0.1, 0.1]}, facts={"work": [8, 1e9, 1e8]})
    run = store_run(store, arm, fingerprint="f")
    peaks = [PeakRow("matmul", 1e11, "FLOP/s", "fp32", 0, 2), PeakRow("read", 1e10, "B/s", "fp32", 1, 2)]
    store.save_calibration("f", peaks)
    events = [{"ph": "X", "name": "iteration", "ts": 0, "dur": 100, "pid": 1, "tid": 1, "cat": "user_annotation"},
              {"ph": "X", "name": "aten::mm", "ts": 10, "dur": 60, "pid": 1, "tid": 1, "cat": "cpu_op"}]  # fmt: skip
    folder = tmp_path / "s" / "artifacts" / run.run_id
    folder.mkdir(parents=True)
    (folder / f"{arm.case().case_id}.trace.json").write_text(json.dumps(events))
    document = build(store, "profile_report", Request())
    grid = _grids(document, "Decode")[-1]
    between = "between operators (Python, dispatch)"
    assert grid.rows == (("aten::mm", "1", "60 µs", "60.0%"), (between, "1", "40 µs", "40.0%"))
    assert "40.0% of the profiled time lies between operators." in document.sentence


def test_a_step_of_few_calls_is_not_called_dispatch_bound() -> None:
    rows = _grids(real("profile_report", "en", "engines"), "Decode")[0].rows
    one = next(row for row in rows if row[0].endswith("backend=llama_cpp quant=q4_0"))
    assert one[-1] == "kernels below both roofs"


def test_the_environment_names_machine_versions_peaks_and_sample() -> None:
    text = _text(real("environment"))
    assert "torch | 2.13.0+cpu" in text
    assert "matrix product | fp32 | 7 MB | 2 | 150.1 GFLOP/s" in text
    assert "tiny continues “" in text
    assert "tokens/s and peak memory of a training step -> python -m harness run train_step" in text


def test_serving_says_that_engines_were_measured_without_load() -> None:
    document = real("serving")
    assert "Engines measured with one request each: 5." in document.sentence
    assert "no suite serves requests yet" in _text(document)


def test_the_experiment_record_has_the_route_s_columns() -> None:
    document = real("experiment_record")
    grid = _grids(document, "Experiment record")[0]
    assert [column.name for column in grid.columns] == ["id", "change", "tokens/s", "PPL", "peak memory", "note"]
    assert len({row[0] for row in grid.rows}) == len(grid.rows)
    failed = [row for row in grid.rows if row[-1].startswith("skipped: ")]
    assert failed, "what was not measured stays in the record"


def test_the_final_report_names_the_improvement_and_what_did_not_help() -> None:
    document = real("final")
    assert document.sentence.startswith("The largest improvement at the same quality: minimind2-small: decode")
    assert "kv=int8 | tps" in _text(document)
    assert "training step, number formats (weeks 1-4) -> python -m harness run train_step" in _text(document)


def test_an_improvement_without_measured_quality_is_not_called_one(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s", create=True)
    fast, slow = [110.0, 111.0, 112.0, 111.0], [100.0, 101.0, 100.5, 101.0]
    store_run(store, Arm(timed={"tps": slow}), Arm("kv=prealloc", timed={"tps": fast}), machine_id="m", command="c")
    document = build(store, "final", Request())
    assert document.sentence.startswith("No run shows an improvement of 5% more tokens/s")
    assert any("an improvement at the same quality" in missing.what for missing in document.missing)


def test_training_compares_options_in_training_steps(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s", create=True)
    slow, fast = [1000.0, 1010.0, 1005.0, 1008.0], [1500.0, 1515.0, 1510.0, 1512.0]
    facts = {"work": [1024, 3e9, 1e8], "operations": {"aten::mm": 60}}
    solo = {"peak_bytes": 2e8}
    times = {"step_time": [1.0, 1.0, 1.0, 1.0], "mfu": [0.5, 0.5, 0.5, 0.5]}
    store_run(
        store,
        Arm(workload="train_step", timed={"train_tps": slow, **times}, solo=solo, facts=facts),
        Arm("precision=amp-bf16", workload="train_step", timed={"train_tps": fast, **times}, solo=solo, facts=facts),
        suite="train_step", machine_id="m", command="python -m harness run train_step",
    )  # fmt: skip
    document = build(store, "training_system", Request())
    assert "tiny trains at 1,0" in document.sentence
    assert "1 of 1 cases improved" in document.sentence
    assert "3e+09 FLOP, 3 GFLOP/s or 50.0% of the peak" in _text(document)
    assert [picture.name for picture in document.pictures] == ["precision-effects", "precision-rates"]


def test_other_machines_are_left_out_and_said_so(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s", create=True)
    arms = (Arm(timed={"tps": [1.0, 1.0]}), Arm(workload="prefill", timed={"ttft": [1.0, 1.0]}))
    store_run(store, *arms, suite="old", machine_id="other", command="c")
    store_run(store, *arms, suite="new", machine_id="mine", command="c")
    document = build(store, "experiment_record", Request())
    assert {run.machine_id for run in document.runs} == {"mine"}
    notes = [getattr(block, "text", "") for section in document.sections for block in section.blocks]
    assert any("Runs of other machines (other) are left out" in note for note in notes)


def test_a_run_of_many_blocks_goes_before_a_newer_one_without_intervals() -> None:
    engines = [run for run in real("final").runs if run.suite == "engines"]
    assert [run.status for run in engines] == ["interrupted"]  # three blocks; the newer one has one


GATED = {"suite": "gate", "machine_id": "m", "fingerprint": "f", "session": "s1"}


def _gated(store: Store, *, candidate: list[float], **run: Any) -> None:
    baseline = [100.0, 100.2, 99.9, 100.1, 100.0, 100.1]
    for side, values in (("baseline", baseline), ("candidate", candidate)):
        sha = ("a" if side == "baseline" else "b") * 40
        arm = Arm(timed={"tps": values}, solo={"kv_bytes": 8192.0})
        store_run(store, arm, side=side, git_sha=sha, command="python -m harness gate", **{**GATED, **run})


def test_a_gate_is_green_where_nothing_changed(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s", create=True)
    _gated(store, candidate=[100.1, 100.1, 100.0, 100.2, 99.9, 100.0])
    document = build(store, "gate", Request())
    assert document.sentence.startswith("Green: none of ")
    assert "commit:aaaaaaaaaaaa" in str(document.sections)


def test_a_gate_is_red_where_the_candidate_is_slower_and_says_that_it_was_not_confirmed(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s", create=True)
    _gated(store, candidate=[90.1, 90.3, 89.9, 90.1, 90.0, 90.2])
    document = build(store, "gate", Request())
    assert document.sentence.startswith("Red: 1 of ")
    assert "A red row counts only after a second measurement" in str(document.sections)
    run = build(store, "run", Request())
    assert "Red: 1 of " in _text(run)


@pytest.mark.parametrize(("again", "sentence"), [(90.0, "Red: 1 of 2"), (100.0, "Green: none of 2")])
def test_a_gate_report_joins_what_was_measured_again_with_its_first(
    tmp_path: Path, again: float, sentence: str
) -> None:
    """The newest session is only the red rows, on fresh blocks; the report is of the whole gate."""
    store = Store.open(tmp_path / "s", create=True)
    _gated(store, candidate=[90.1, 90.3, 89.9, 90.1, 90.0, 90.2])
    _gated(store, candidate=[again + 0.1 * k for k in (1, 1, 0, 2, -1, 0)], session="s2", seed=1)
    for request in (Request(), Request(("latest",))):
        document = build(store, "gate", request)
        assert document.sentence.startswith(sentence)
        assert len(document.runs) == 4 and "which the store lacks" not in str(document.sections)
        assert ("red twice" if again < 100 else "was red at first") in str(document.sections)


def test_a_gate_that_was_run_twice_is_not_its_own_confirmation(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s", create=True)
    for session in ("s1", "s2"):
        _gated(store, candidate=[90.1, 90.3, 89.9, 90.1, 90.0, 90.2], session=session)
    document = build(store, "gate", Request())
    assert len(document.runs) == 2 and "which the store lacks" in str(document.sections)


def test_the_report_of_a_run_that_goes_on_says_so(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s", create=True)
    run = store_run(store, Arm(timed={"tps": [1.0, 1.0]}), machine_id="m", command="python -m harness run lab")
    store.save_run(replace(store.find_run(run.run_id), status="interrupted"))
    document = build(store, "run", Request())
    assert "This run is interrupted" in str(document.sections)
    assert f"--resume {run.run_id}" in str(document.sections)


def test_names_that_do_not_exist_are_usage_errors(tmp_path: Path) -> None:
    store = Store.open(STORE)
    with pytest.raises(UsageError, match="unknown report 'speed'"):
        build(store, "speed", Request())
    with pytest.raises(UsageError, match="no run 'nothing'"):
        build(store, "long_context", Request(("nothing",)))
    with pytest.raises(UsageError, match="two sides"):
        build(store, "comparison", Request(("latest",)))
    with pytest.raises(UsageError, match="one run, not 2"):
        build(store, "run", Request(("latest", "latest~1")))


def test_a_run_of_profiles_is_no_experiment(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s", create=True)
    timed = store_run(store, Arm(timed={"tps": [9.0, 10.0]}))
    store_run(store, Arm(solo={"peak_bytes": 1e6}), suite="profile-lab")
    assert [run.run_id for run in build(store, "experiment_record", Request()).runs] == [timed.run_id]
