"""The command line on the scripted backend: what it runs, what it prints, its exit codes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from harness import execute
from harness.cli import main
from harness.store import Store
from tests.commandline import command, finish, new_store, start
from tests.synthetic import Arm, store_run

Call = Callable[..., tuple[int, str, str]]


# --- run ---


def test_a_run_finds_the_slow_option_and_prints_only_json(measured: SimpleNamespace) -> None:
    code, out, err = measured.slow
    document = json.loads(out)
    assert code == 0, err
    assert [row["variant"] for row in document["rows"]] == ["backend=fake", "backend=fake fake=slow"]
    assert [row["status"] for row in document["rows"]] == ["ok", "ok"] and document["rows"][1]["same_output"] is True
    (comparison,) = [found for found in document["comparisons"] if found["metric"] == "tps"]
    assert comparison["verdict"] == "regressed" and comparison["ratio"] == pytest.approx(1 / 1.1)
    assert comparison["num_blocks"] == 2
    run = document["run"]
    assert (
        run["status"] == "finished" and run["machine_id"] and run["fingerprint"] and run["command"].count("fake_slow")
    )
    assert "100%" in err and "100%" not in out


def test_faulty_cases_are_rows_with_reasons_and_the_run_goes_on(measured: SimpleNamespace, call: Call) -> None:
    code, out, err = measured.faults
    assert code == 0, err
    _, text, _ = call("show", "fake_faults", "-o", "json", store=measured.path)
    rows = {row["variant"].removeprefix("backend=fake").strip(): row for row in json.loads(text)["rows"]}
    told = {name: (row["status"], row["reason"]) for name, row in rows.items()}
    assert told == {
        "": ("ok", ""),
        "fake=oom": ("oom", "MemoryError: can't allocate memory: scripted"),
        "fake=raise": ("failed", "RuntimeError: scripted failure"),
        "fake=die": ("failed", "the process died of SIGSEGV"),
        "fake=unproved": ("wrong", "fake=unproved was asked for but did not run"),
        "fake=unsteady": ("ok", ""),
    }
    assert {name: row["num_blocks"] for name, row in rows.items() if row["num_blocks"]} == {"": 2, "fake=unsteady": 2}
    for name, (status, reason) in told.items():
        assert (f"{status}: decode 4 @ 8 backend=fake {name}: {reason}" in out) == (status != "ok"), name


def test_a_hanging_case_is_a_timeout_and_the_run_goes_on(tmp_path: Path, call: Call) -> None:
    store = new_store(tmp_path / "results")
    code, out, err = call("run", "fake_hang", "--timeout", "3s", "--blocks", "1", "-o", "json", store=store.path)
    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert [row["status"] for row in rows] == ["ok", "timeout"]
    assert rows[1]["reason"] == "no answer to 'solo' within 3 s" and rows[0]["num_blocks"] == 1


def test_nothing_measured_exits_3(tmp_path: Path, call: Call) -> None:
    store = new_store(tmp_path / "results")
    code, out, _ = call("run", "fake_faults", "--axis", "fake=oom,raise", "-o", "json", store=store.path)
    assert code == 3
    assert [row["status"] for row in json.loads(out)["rows"]] == ["oom", "failed"]
    assert call("show", "latest", store=store.path)[0] == 3


def test_a_dry_run_shows_the_plan_the_skips_and_the_time_and_makes_nothing(
    tmp_path: Path, call: Call, no_worker: None
) -> None:
    path = tmp_path / "results"
    code, out, err = call("run", "fake_slow", "--axis", "kv=prealloc", "--dry-run", "-o", "json", store=path)
    plan = json.loads(out)
    assert (code, err) == (0, "")
    assert [(case["variant"], case["status"], case["reason"]) for case in plan["cases"]] == [
        ("backend=fake", "planned", ""),
        ("backend=fake kv=prealloc", "skipped", "backend fake does not offer axis kv (kv=prealloc)"),
    ]
    assert plan["estimated_seconds"] > 0 and plan["blocks"] == 4 and "--axis kv=prealloc" in plan["command"]
    code, out, _ = call("run", "quickstart", "--dry-run", store=path)
    assert code == 0 and "minimind2-small" in out and "estimated time" in out and "will run" in out
    assert not path.exists()


def test_axes_given_twice_add_up(tmp_path: Path, call: Call) -> None:
    words = ("run", "fake_slow", "--axis", "fake=slow", "--axis", "fake=oom,slow", "--dry-run", "-o", "json")
    _, out, _ = call(*words, store=tmp_path / "x")
    assert [case["variant"].split()[1] for case in json.loads(out)["cases"]] == ["fake=slow", "fake=oom"]


def test_two_runs_at_once_into_one_store_are_both_whole(tmp_path: Path) -> None:
    store = new_store(tmp_path / "results")
    words = command("run", "fake_slow", "--blocks", "1", "-o", "json", store=store.path)
    children = [start([*words, "--seed", str(seed)], tmp_path) for seed in (1, 2)]
    results = [finish(child) for child in children]
    assert [code for code, _, _ in results] == [0, 0], results
    assert [run.status for run in store.runs()] == ["finished", "finished"]
    assert {json.loads(run.argv)[0] for run in store.runs()} == {"harness"}, "no folder of this machine in a record"
    for run in store.runs():
        blocks = {frozenset(found) for found in store.done_blocks(run.run_id).values()}
        assert blocks == {frozenset({-1, 0})} and len(store.done_blocks(run.run_id)) == 2
    assert not store.check()


# --- reading verbs ---


def test_every_verb_prints_only_json_when_asked(untouched: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "measured_peaks", lambda *_, **__: [])
    for words in (
        ("list",),
        ("list", "axes"),
        ("show",),
        ("show", "latest"),
        ("compare", "latest", "latest"),
        ("export", "latest"),
        ("export", "latest", "--table", "cases"),
        ("export", "latest", "--table", "telemetry"),
        ("export", "latest", "--table", "summary"),
        ("export", "latest", "--table", "runs"),
        ("doctor",),
        ("calibrate",),
        ("store", "check"),
        ("store", "compact"),
        ("run", "fake_slow", "--dry-run"),
    ):
        code, out, err = call(*words, "-o", "json", store=untouched)
        assert code == 0, (words, err)
        assert json.loads(out) is not None, words
        assert "NaN" not in out and "Infinity" not in out, words
        for fmt in ("table", "csv", "md"):
            if words[0] in ("show", "list", "compare"):
                code, out, _ = call(*words, "-o", fmt, store=untouched)
                assert code == 0 and out.strip()


def test_a_run_compared_with_itself(measured: SimpleNamespace, call: Call) -> None:
    code, out, _ = call("compare", "fake_slow", "fake_slow", "--strict", "-o", "json", store=measured.path)
    found = json.loads(out)
    assert code == 0 and {row["verdict"] for row in found} == {"equivalent"} and {row["variant"] for row in found}
    code, out, _ = call("compare", "fake_faults", "fake_faults", "--strict", store=measured.path)
    assert code == 3, "cases that failed have no verdict"


def test_variants_of_a_run_are_compared(measured: SimpleNamespace, call: Call) -> None:
    sides = ("fake_slow/backend=fake", "fake_slow/backend=fake,fake=slow")
    code, out, _ = call("compare", *sides, "--metric", "tpot", "-o", "json", store=measured.path)
    (row,) = json.loads(out)
    assert code == 0 and row["ratio"] == pytest.approx(1.1) and row["verdict"] == "regressed" and row["paired"]
    assert call("compare", *sides, "--strict", store=measured.path)[0] == 1
    assert call("compare", *reversed(sides), "--strict", "--metric", "tps", store=measured.path)[0] == 0
    assert call("compare", *sides, "--strict", "--margin", "0.2", "--metric", "tps", store=measured.path)[0] == 0


def test_strict_exit_codes(tmp_path: Path, call: Call) -> None:
    store = Store.open(tmp_path / "results", create=True)
    four = {"tps": (100.0, 101.0, 99.0, 100.0)}
    noisy = {"tps": (100.0, 150.0, 70.0, 101.0)}
    for suite, timed, status in (
        ("same", four, "ok"),
        ("slower", {"tps": tuple(value / 2 for value in four["tps"])}, "ok"),
        ("faster", {"tps": tuple(value * 2 for value in four["tps"])}, "ok"),
        ("noisy", noisy, "ok"),
        ("broken", {}, "oom"),
    ):
        store_run(store, Arm(timed=timed, status=status), suite=suite)  # type: ignore[arg-type]
    codes = {name: call("compare", "same", name, "--strict", store=store.path)[0] for name in ("slower", "faster")}
    codes |= {name: call("compare", "same", name, "--strict", store=store.path)[0] for name in ("noisy", "broken")}
    assert codes == {"slower": 1, "faster": 0, "noisy": 4, "broken": 3}
    assert call("compare", "same", "slower", store=store.path)[0] == 0, "a verdict was not asked for"


def test_show_lists_runs_or_shows_one(measured: SimpleNamespace, call: Call) -> None:
    code, out, _ = call("show", "-o", "csv", store=measured.path)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0 and [(row["suite"], row["status"]) for row in rows] == [
        ("fake_slow", "finished"),
        ("fake_faults", "finished"),
    ]
    for reference in ("fake_slow", "latest~1", rows[0]["run_id"], rows[0]["run_id"][:-2]):
        code, out, _ = call("show", reference, store=measured.path)
        assert code == 0 and "▼ regressed" in out and rows[0]["run_id"] in out and rows[0]["command"] in out
    code, out, _ = call("show", "fake_slow", "--margin", "0.2", store=measured.path)
    assert "= equivalent" in out and "±20.0%" in out


def test_exports_hold_every_row(measured: SimpleNamespace, call: Call, tmp_path: Path) -> None:
    store = Store.open(measured.path)
    run_id = store.find_run("fake_slow").run_id
    expected = {"samples": store.samples(run_id), "cases": store.cases(run_id), "telemetry": store.telemetry(run_id)}
    for name, table in expected.items():
        for ending, read in (
            (".csv", lambda path: list(csv.DictReader(path.read_text().splitlines()))),
            (".json", lambda path: json.loads(path.read_text())),
            (".parquet", lambda path: pq.read_table(path).to_pylist()),
            (".md", lambda path: path.read_text().splitlines()[4:]),
        ):
            path = tmp_path / f"{name}{ending}"
            code, out, _ = call("export", "fake_slow", "--table", name, "--to", str(path), store=measured.path)
            assert (code, out) == (0, "") and len(read(path)) == table.num_rows > 0, path  # type: ignore[no-untyped-call]
    parquet = pq.read_table(tmp_path / "samples.parquet")
    assert parquet.sort_by([(name, "ascending") for name in parquet.column_names[:9]]).equals(
        expected["samples"].sort_by([(name, "ascending") for name in parquet.column_names[:9]])
    )


def test_the_list_shows_what_is_declared(measured: SimpleNamespace, call: Call) -> None:
    _, out, _ = call("list", "-o", "json", store=measured.path)
    names = {(row["kind"], row["name"].split("(")[0].split(" ")[0]) for row in json.loads(out)}
    for expected in (
        ("suites", "quickstart"),
        ("suites", "fake_slow"),
        ("axes", "kv"),
        ("workloads", "decode"),
        ("metrics", "tps"),
        ("backends", "torch"),
        ("models", "minimind-3"),
    ):
        assert expected in names
    _, out, _ = call("list", "axes", "-o", "csv", store=measured.path)
    assert "prealloc" in out and "reference: cat" in out and "<N>" in out


def test_the_doctor_says_what_can_run(call: Call, tmp_path: Path) -> None:
    code, out, _ = call("doctor", "-o", "json", store=tmp_path / "none")
    rows = {(row["section"], row["name"]): row for row in json.loads(out)}
    assert code == 0 and rows["option", "kv=prealloc"]["level"] == "ok" and rows["backend", "torch"]["level"] == "ok"
    assert ("capability", "cuda") in rows and ("preflight", "other processes") in rows
    assert not (tmp_path / "none").exists()


def test_compact_keeps_what_is_read(untouched: Path, call: Call) -> None:
    before = [call("show", name, "-o", "json", store=untouched)[1] for name in ("fake_slow", "fake_faults")]
    code, out, _ = call("store", "compact", "-o", "json", store=untouched)
    assert code == 0 and json.loads(out)[0]["num_runs"] == 2
    assert [call("show", name, "-o", "json", store=untouched)[1] for name in ("fake_slow", "fake_faults")] == before
    assert call("store", "check", "-o", "json", store=untouched)[:2] == (0, "[]\n")


def test_help_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["run", "--help"]):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 0 and "usage: harness" in capsys.readouterr().out
