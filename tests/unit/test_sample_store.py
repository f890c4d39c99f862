"""The made-up store: whole by the store's own check, equal for equal seeds, with everything that pages must show."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import median

import pyarrow.compute as pc
import pytest

from harness.baselines import list_baselines
from harness.calibration import load_noise
from harness.cli import main
from harness.compaction import summarise_run
from harness.compare import compare_within, measured_cases
from harness.core import UsageError
from harness.sample_store import HOST, write_sample_store
from harness.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("sample") / "store"
    write_sample_store(folder, samples=30_000)
    return Store.open(folder)


def test_the_store_finds_nothing_wrong_with_it(store: Store) -> None:
    running = [run.run_id for run in store.runs() if run.status == "running"]
    assert store.check() == [] and len(running) == 1
    assert store.catalog.inbox_runs() == running  # the rest is compacted
    compacted = store.compact(min_age_seconds=3600.0)
    assert (compacted.num_runs, len(compacted.skipped)) == (0, 1)


def test_everything_says_that_it_is_made_up(store: Store) -> None:
    runs = store.runs()
    assert {run.host for run in runs} == {HOST}
    assert all(run.machine_id.startswith("synthetic-") and run.device_name.startswith("synthetic") for run in runs)


def test_the_summary_is_that_of_the_samples(store: Store) -> None:
    stored = store.summary()
    for run in store.runs()[:4]:
        again = summarise_run(run.run_id, store.cases(run.run_id), store.samples(run.run_id))
        mine = stored.filter(pc.equal(stored["run_id"], run.run_id))
        order = [("case_id", "ascending"), ("metric", "ascending")]
        assert str(mine.sort_by(order).to_pylist()) == str(
            again.sort_by(order).to_pylist()
        )  # NaN is no equal of itself


def test_it_holds_several_machines_suites_commits_and_every_kind_of_trouble(store: Store) -> None:
    runs = store.runs()
    assert len({run.machine_id for run in runs}) == 3 and len({run.git_sha for run in runs}) >= 8
    assert {"gate", "kv_cache", "quantization", "engines", "norm"} <= {run.suite for run in runs}
    assert {"finished", "running"} < {run.status for run in runs}
    rows = [row for run in runs for row in store.cases(run.run_id).to_pylist()]
    found = Counter(row["status"] for row in rows)
    assert found["ok"] > found["skipped"] > 0 and found["ok"] < len(rows) - found["skipped"]
    assert all(row["reason"] for row in rows if row["status"] != "ok")
    sessions = Counter(run.session for run in runs if run.session)
    assert sessions and set(sessions.values()) == {2}


def test_its_history_has_an_improvement_and_a_regression(store: Store) -> None:
    """Reference arms of one suite on one machine: prefill became faster, decode slower, by more than the noise."""
    rows = [row for row in store.summary().to_pylist() if row["metric"] == "step_time"]
    summary = {(row["run_id"], row["case_id"]): row["median"] for row in rows}
    wanted = ("gate", "synthetic-laptop", "finished")
    gates = [run for run in store.runs() if (run.suite, run.machine_id, run.status) == wanted]
    first, last = gates[0], gates[-1]
    change: dict[str, list[float]] = {"prefill": [], "decode": []}
    for row in store.cases(first.run_id).to_pylist():
        kind = row["workload"].partition("(")[0]
        pair = [summary.get((run.run_id, row["case_id"])) for run in (first, last)]
        if kind in change and pair[0] and pair[1]:
            change[kind].append(pair[1] / pair[0])
    assert median(change["prefill"]) < 0.96 and median(change["decode"]) > 1.03


def test_its_variants_differ_from_their_reference_as_real_ones_do(store: Store) -> None:
    run = next(run for run in store.runs()[::-1] if run.suite == "kv_cache" and run.status == "finished")
    verdicts = {
        c.candidate.variant: c.verdict for c in compare_within(measured_cases(store, run.run_id), metrics=["tps"])
    }
    assert verdicts["kv=prealloc"] == "improved"
    assert all(case.headline is not None for case in measured_cases(store, run.run_id) if case.status == "ok")


def test_it_has_baselines_and_noise_calibrations(store: Store) -> None:
    assert [named.name for named in list_baselines(store)] == ["release-1", "release-2"]
    newest = [run for run in store.runs() if run.machine_id == "synthetic-laptop"][-1]
    assert newest.torch == "2.13.0" and len(store.calibration(newest.fingerprint)) > 2
    found = load_noise(store, newest.fingerprint)
    assert found is not None and not found.from_other_machine() and found.floor_for("decode", "tiny", "tps") is not None
    assert all(store.calibration(run.fingerprint) for run in store.runs() if run.torch == "2.13.0")


def test_equal_seeds_give_equal_stores_and_others_do_not(tmp_path: Path) -> None:
    def files(seed: int, name: str) -> dict[str, bytes]:
        write_sample_store(tmp_path / name, samples=1, seed=seed)
        return {
            str(path.relative_to(tmp_path / name)): path.read_bytes()
            for path in sorted((tmp_path / name).rglob("*"))
            if path.is_file() and not path.name.startswith(".")
        }

    first = files(1, "a")
    assert first == files(1, "b")
    assert first["summary.parquet"] != files(2, "c")["summary.parquet"]


def test_a_folder_that_holds_something_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds something already"):
        write_sample_store(tmp_path)
    assert main(["sample-store", str(tmp_path)]) == 2
    assert "name a new or an empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_verb_says_what_it_wrote_and_how_to_look_at_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample-store", str(tmp_path / "new"), "--samples", "1"]) == 0
    out = capsys.readouterr().out
    assert "all synthetic" in out and f"--store {tmp_path / 'new'}" in out
    assert main(["show", "latest", "--store", str(tmp_path / "new")]) == 0
    assert "synthetic CPU" in capsys.readouterr().out
