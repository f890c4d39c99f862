"""`harness calibrate --noise` by the real command line, on a scripted clock with noise."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from harness import campaign
from harness.calibration import Bound, Floor, Rate, load_noise
from harness.commands import calibrate
from harness.core import UsageError
from harness.plan import Plan
from tests.commandline import new_store
from tests.e2e.conftest import Call

NOISY = ("--plugin", str(Path(__file__).resolve().parents[1] / "noisy_backend.py"))


@pytest.fixture
def soon_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rounds of two blocks are enough."""
    for name, number in (("_ENOUGH_DF", 3), ("_ENOUGH_FALSE", 4), ("_ENOUGH_POWER", 4)):
        monkeypatch.setattr(campaign, name, number)


def test_noise_is_measured_judged_stored_and_shown(call: Call, tmp_path: Path, soon_enough: None) -> None:
    store = new_store(tmp_path / "results")
    words = ("calibrate", "--noise", "noisy", *NOISY, "--inject", "50", "--blocks", "2")
    code, out, err = call(*words, "-o", "json", store=store.path)
    assert code == 0, err
    assert "A/A comparisons of 2 blocks over 2 cases" in err
    document = json.loads(out)
    families = {(found["workload"], found["metric"]): found for found in document["families"]}
    assert families.keys() == {("decode", "tps"), ("prefill", "ttft")}
    for found in families.values():
        assert found["power"] == {"0.5": {"hits": 2, "trials": 2, "rate": 1.0, **interval(2, 2)}}
        assert found["red"]["trials"] == found["false_alarms"]["trials"] == 2 and found["red"]["hits"] == 0
        assert 0.002 < found["sd"]["value"] < 0.03 and found["df"] == 3 and found["block_seconds"] > 0
        assert found["floors"].keys() == {"2", "4", "8", "16"}
        assert found["machine_id"] and found["measured_at"] and found["flags"] == ""
    assert document["components"], "the noise was not split"

    (run,) = store.runs()
    known = load_noise(store, run.fingerprint)
    assert run.command.startswith("python -m harness calibrate noisy ") and "--noise --inject 50" in run.command
    assert run.suite == "noise-noisy" and known is not None and not known.from_other_machine()
    assert known.floor_for("decode", "tiny", "tps").power == {0.5: Rate(2, 2)}  # type: ignore[union-attr]

    code, out, _ = call(*words, "--budget", "0", store=store.path)
    assert load_noise(store, run.fingerprint).floors[0].block_seconds > 0  # type: ignore[union-attr]
    assert code == 0 and len(store.runs()) == 1, "a budget of nothing measured something"
    assert "decode on tiny" in out and run.machine_id in out and "2/2 (15.8% to 100%)" in out and "+50.0% red" in out
    assert call("store", "check", store=store.path)[0] == 0


def interval(hits: int, trials: int) -> dict[str, float]:
    low, high = Rate(hits, trials).interval
    return {"low": low, "high": high}


@pytest.mark.slow
def test_a_second_calibration_adds_to_the_first(call: Call, tmp_path: Path, soon_enough: None) -> None:
    store = new_store(tmp_path / "results")
    words = ("calibrate", "--noise", "noisy", *NOISY, "--inject", "", "--blocks", "2", "-o", "json")
    counts = []
    for seed in ("0", "1"):
        code, out, err = call(*words, "--seed", seed, store=store.path)
        assert code == 0, err
        counts.append({found["red"]["trials"] for found in json.loads(out)["families"]})
    assert counts == [{2}, {4}]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nosuch", "--noise"), "unknown suite 'nosuch'"),
        (("noisy", "--noise", "--inject", "3,much"), "'much' in --inject is no slowdown"),
        (("noisy", "--noise", "--budget", "0.05s"), "is too short: the slices of two blocks of 2 cases alone take"),
        (("noisy", "--noise", "--blocks", "1"), "--blocks must be at least 2"),
        (("untimed", "--noise"), "suite 'untimed' has no timed case here"),
        (("noisy",), "for the noise of 'noisy' add --noise"),
        (("noisy", "--noise", "--axis", "kv"), "'kv' is not of the form axis=option"),
        (("noisy", "--noise", "--model", "huge"), "unknown model 'huge'"),
    ],
)
def test_bad_input_is_named_before_anything_is_measured(
    words: tuple[str, ...], message: str, call: Call, no_worker: None, tmp_path: Path
) -> None:
    code, out, err = call("calibrate", *words, *NOISY, store=tmp_path / "results")
    assert code == 2 and out == "" and message in err
    assert not (tmp_path / "results").exists()


def test_what_the_budget_cannot_hold_is_left_out_beforehand(
    call: Call, no_worker: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[list[str]] = []

    def stop(plan: Plan, *_: object) -> str:
        planned.append([str(arm) for arm in plan.groups[0].arms])
        raise UsageError("the plan was all that this test wanted")

    monkeypatch.setattr(calibrate, "forecast", stop)
    for budget in ("60s", "100h"):
        words = ("calibrate", "--noise", "noisy", *NOISY, "--budget", budget, "--blocks", "8")
        code, _, err = call(*words, store=tmp_path / "results")
        assert code == 2 and ("too little time for the injections 3, 2, 1: left out" in err) == (budget == "60s")
    base = ["backend=noisy", "backend=noisy control=aa", "backend=noisy spin=5"]
    assert planned[0] == base
    assert planned[1] == [*base, *(f"backend=noisy spin={percent}" for percent in (3, 2, 1))]


def test_without_a_stored_run_and_without_time_there_is_nothing(call: Call, no_worker: None, tmp_path: Path) -> None:
    store = new_store(tmp_path / "results")
    code, _, err = call("calibrate", "--noise", "noisy", *NOISY, "--budget", "0", store=store.path)
    assert code == 3 and "no stored run of this machine" in err


def test_an_injection_whose_first_round_was_cut_short_is_named() -> None:
    rates = {0.03: Rate(1, 2), 0.005: Rate(0, 1)}
    counted = Floor("decode", "tiny", "tps", Bound(0.01, 0.01, 0.01), 7, {}, 1.0, 8, datetime.now(UTC), power=rates)
    assert calibrate._uncounted(("3", "0.5"), [counted]) == []
    assert calibrate._uncounted(("5", "3", "busy"), [counted]) == ["+5%", "a busy neighbour"]
    assert calibrate._uncounted(("busy",), [replace(counted, beside_neighbour=Rate(0, 4))]) == []


def test_times_read_as_people_say_them() -> None:
    assert [calibrate._time(seconds) for seconds in (4.6, 600.0, 7200.0)] == ["5 s", "10 min", "2.0 h"]
