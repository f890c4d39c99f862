"""Sides as text: every form finds its run, and what is unknown is refused with the names that there are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from harness import registry
from harness.baselines import set_baseline
from harness.calibration import Bound, Floor, NoiseCalibration, save_noise
from harness.cli import main
from harness.core import UsageError
from harness.schema import RunRow
from harness.sides import calibrated_margin, compare_sides, find_side, known_sides, open_side, variants_of
from harness.store import Store
from tests.scratch_repository import commit, git, new_repository
from tests.synthetic import Arm, store_run

registry.load_all()
FIRST, SECOND = "1111aaaa" + "0" * 32, "1122bbbb" + "0" * 32


def arms(factor: float = 1.0, *others: str) -> list[Arm]:
    timed = {"tps": [value * factor for value in (100.0, 101.0, 99.0, 100.0)]}
    return [Arm(timed=timed), *(Arm(variant, timed) for variant in others)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Five runs: gate and norm of two commits on two machines, and one that was interrupted."""
    found = Store.open(tmp_path / "results", create=True)
    store_run(found, *arms(), suite="gate", git_sha=FIRST, machine_id="aa11")
    store_run(found, *arms(1.1, "norm=fused"), suite="norm", git_sha=FIRST, machine_id="aa11")
    store_run(found, *arms(1.2), suite="gate", git_sha=SECOND, machine_id="aa11")
    store_run(found, *arms(1.3), suite="gate", git_sha=SECOND, machine_id="aa11", git_dirty=True)
    store_run(found, *arms(1.4, "kv=prealloc"), suite="gate", git_sha=SECOND, machine_id="bb22")
    last = store_run(found, *arms(9.0), suite="gate", git_sha=SECOND, machine_id="bb22")
    found.save_run(replace(last, status="interrupted"))
    return found


def factor(store: Store, text: str) -> float:
    """Which run a side means: its reference runs at 100 tokens/s times this."""
    side = open_side(store, text)
    return round(side.cases[0].series["tps"].median / 100.0, 6)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("latest", 9.0),
        ("latest~1", 1.4),
        ("norm", 1.1),
        ("gate~4", 1.0),
        (f"commit:{FIRST}", 1.1),
        ("commit:1111aaaa", 1.1),
        ("commit:1111@gate", 1.0),
        ("commit:1122", 1.4),
        ("machine:aa11", 1.3),
        ("machine:aa", 1.3),
        ("machine:bb22", 1.4),
        ("machine:aa11@norm", 1.1),
        ("machine:bb22@gate", 1.4),
    ],
)
def test_every_form_means_the_newest_finished_run_of_its_kind(store: Store, text: str, expected: float) -> None:
    assert factor(store, text) == expected


def test_a_commit_means_its_clean_runs_before_those_of_changed_files(store: Store) -> None:
    for run in store.runs():
        if run.machine_id == "bb22":
            store.save_run(replace(run, git_sha=""))
    assert factor(store, "commit:1122") == 1.2
    store.save_run(replace(store.find_run("gate~3"), git_sha=""))
    assert factor(store, "commit:1122") == 1.3  # only that of changed files is left


def test_a_tag_means_its_run_and_with_a_suite_the_one_beside_it(store: Store) -> None:
    set_baseline(store, "release-1", store.find_run("gate~4"))
    assert factor(store, "tag:release-1") == 1.0
    assert factor(store, "tag:release-1@gate") == 1.0
    assert factor(store, "tag:release-1@norm") == 1.1


@pytest.mark.parametrize(
    ("text", "variant"),
    [
        ("norm/norm=fused", "norm=fused"),
        ("commit:1111@norm/norm=fused", "norm=fused"),
        ("machine:aa11@norm/reference", "reference"),
        ("machine:bb22/kv=prealloc", "kv=prealloc"),
        ("norm/norm=fused,kv=cat", "norm=fused"),  # a reference option more is the same variant
    ],
)
def test_a_variant_may_follow_every_form(store: Store, text: str, variant: str) -> None:
    assert open_side(store, text).variant == variant


def test_an_engine_is_a_variant(store: Store) -> None:
    store_run(store, *arms(1.0, "backend=onnxruntime"), suite="engines")
    assert open_side(store, "engines/backend=onnxruntime").variant == "backend=onnxruntime"


def test_a_git_revision_is_resolved_where_the_store_does_not_know_it(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = new_repository(tmp_path / "code")
    monkeypatch.setattr("harness.sides.own_repository", lambda: repository)
    sha = commit(repository, "one", file="text")
    git(repository, "branch", "some/branch")
    store_run(store, *arms(1.5, "kv=prealloc"), suite="gate", git_sha=sha)
    assert factor(store, "commit:HEAD") == factor(store, "commit:some/branch") == 1.5
    assert open_side(store, "commit:some/branch/kv=prealloc").variant == "kv=prealloc"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("commit:ffff1234", ["no run of commit 'ffff1234'", "Known: 1122bbbb0, 1111aaaa0"]),
        ("commit:11", ["no run of commit '11'", "Known: 1122bbbb0"]),
        (
            "commit:1111@engines",
            ["no finished run of suite 'engines' of commit 1111aaaa0", "Suites that it has: gate, norm"],
        ),
        ("tag:release-9", ["unknown tag 'release-9'", "Known: none"]),
        ("machine:cc33", ["unknown machine 'cc33'", "Known: aa11, bb22"]),
        ("machine:aa11@engines", ["no finished run of suite 'engines' of machine aa11", "gate, norm"]),
        ("machine:", ["'machine:' names no machine", "machine:ab12"]),
        ("commit:--output=x", ["no run of commit '--output=x'"]),
        ("latest/norm=fused", ["unknown variant of run", "'norm=fused'", "Known: reference"]),
        ("machine:aa11@norm/norm=triton", ["unknown variant", "Known: norm=fused, reference"]),
        ("latest/kw=cat", ["unknown axis 'kw'"]),
        ("branch:main", ["no run 'branch:main'"]),
    ],
)
def test_what_is_unknown_is_refused_with_the_names_that_there_are(
    store: Store, text: str, words: Sequence[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        open_side(store, text)
    for word in words:
        assert word in str(caught.value)


def test_a_start_that_several_commits_share_is_refused(store: Store) -> None:
    store_run(store, *arms(), git_sha="1122cccc" + "0" * 32)
    with pytest.raises(UsageError, match="'1122' may be any of the commits 1122cccc0, 1122bbbb0"):
        find_side(store, "commit:1122")
    store_run(store, *arms(), machine_id="aa12")
    with pytest.raises(UsageError, match="'aa1' may be any of the machines aa11, aa12"):
        find_side(store, "machine:aa1")


def test_a_tag_whose_run_is_gone_says_so(store: Store) -> None:
    run = store.find_run("gate~4")
    set_baseline(store, "old", run)
    (store.path / "runs" / f"{run.run_id}.parquet").unlink()
    with pytest.raises(UsageError, match="no longer in store"):
        find_side(store, "tag:old")


def test_known_sides_are_all_accepted_and_mean_the_run_that_they_show(store: Store) -> None:
    set_baseline(store, "release-1", store.find_run("norm"))
    known = known_sides(store)
    assert {one.kind for one in known} == {"tag", "machine", "commit", "run"}
    assert all(find_side(store, one.text).run_id == one.run.run_id for one in known if one.kind != "commit")
    assert [one.text for one in known if one.kind == "machine"] == ["machine:bb22", "machine:aa11"]
    commits = {one.text: one.run for one in known if one.kind == "commit"}
    assert {find_side(store, text).git_sha for text in commits} == {FIRST, SECOND}
    assert "interrupted" not in {one.run.status for one in known}


def test_the_variants_of_a_run_stand_in_the_order_of_its_plan(store: Store) -> None:
    assert variants_of(store, store.find_run("norm")) == ("reference", "norm=fused")


def test_a_calibrated_floor_widens_the_margin(store: Store) -> None:
    run = replace(store.find_run("norm"), fingerprint="f1")
    bound = Bound(0.05, 0.04, 0.06)
    floor = Floor("decode", "tiny", "tps", bound, 20, {4: bound}, 1.0, 4, datetime.now(UTC))
    assert calibrated_margin(store, run, 0.01)(open_side(store, "norm").cases[0], "tps")[0] == 0.01
    save_noise(store, NoiseCalibration("f1", "aa11", "cpu", (floor,)))
    margin, source = calibrated_margin(store, run, 0.01)(open_side(store, "norm").cases[0], "tps")
    assert margin == 0.06 and "A/A noise floor of decode on tiny" in source
    elsewhere = calibrated_margin(store, replace(run, fingerprint="f2"), 0.01)(open_side(store, "norm").cases[0], "tps")
    assert elsewhere[0] == 0.01  # another machine's floor is not this one's


# --- the verb ---


def compared(store: Store, *words: str, capsys: pytest.CaptureFixture[str]) -> Any:
    assert main(["compare", *words, "--store", str(store.path), "-o", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_verb_takes_every_form(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = compared(store, "commit:1111@gate", "machine:aa11@gate", capsys=capsys)
    assert row["ratio"] == pytest.approx(1.3) and row["verdict"] == "improved" and not row["paired"]
    (row,) = compared(store, "machine:aa11@norm/reference", "machine:aa11@norm/norm=fused", capsys=capsys)
    assert row["ratio"] == pytest.approx(1.0) and row["paired"]


def notes_of(store: Store, a: str, b: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["compare", a, b, "--store", str(store.path)]) == 0
    return capsys.readouterr().out


def test_the_table_says_how_far_two_runs_may_be_compared(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert "not interleaved" in notes_of(store, "gate~4", "gate~3", capsys)
    store.save_run(replace(store.find_run("gate~3"), fingerprint="other"))
    assert "different machines or versions" in notes_of(store, "gate~4", "gate~3", capsys)
    for name in ("gate~4", "gate~3"):
        store.save_run(replace(store.find_run(name), session="s1"))
    shown = notes_of(store, "gate~4", "gate~3", capsys)
    assert "one session, interleaved" in shown and "not interleaved" not in shown


def test_a_side_of_its_own_is_equivalent_to_itself(store: Store) -> None:
    side = open_side(store, "norm")
    assert {found.verdict for found in compare_sides(side, side)} == {"equivalent"}
    assert isinstance(side.run, RunRow)
