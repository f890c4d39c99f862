"""Sides of a session and schedules, with scripted workers: who runs where, what pairs, when a case is closed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from harness import registry
from harness import runner as runner_module
from harness.case_state import Side, new_states
from harness.compare import block_difference
from harness.core import Case
from harness.runner import Runner
from harness.schedule import adaptive, fixed
from harness.sequential import Looks
from harness.sides import compare_sides, open_side
from harness.stats import Estimate
from harness.store import RunRow
from tests.scripted_worker import DECODE, PREFILL, Lab, Stub, asked_for, plain, play


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "WorkerProcess", Stub)
    monkeypatch.setattr(runner_module, "PAUSE_SECONDS", 0.0)
    Stub.every = []
    registry.load_all()
    play(plain)


def slower_in(root: Path, factor: float) -> Any:
    """Workers whose code lies in `root` take longer."""

    def script(worker: Stub, request: dict[str, Any]) -> dict[str, Any]:
        reply = plain(worker, request)
        if request["do"] == "slice":
            # A little noise that differs from block to block and is not the same on both sides.
            noise = 1 + 0.001 * ((worker.seed * 7 + (3 if worker.root else 0)) % 5)
            end = int(1e9 * noise * (factor if worker.root == root else 1.0))
            reply["iterations"] = [[0, end, []]]
        return reply

    return script


def session(lab: Lab, root: Path, **options: Any) -> tuple[Runner, list[str]]:
    """The lab's plan on two sides: the code in `root` against the present one."""
    plan = lab.plan.by_variant()
    sides = [
        Side(lab.store.begin(RunRow(suite="lab", session="s1", side=name)), new_states(plan), name, folder)
        for name, folder in (("baseline", root), ("candidate", None))
    ]
    runner = Runner(plan, sides, **options)
    runner.run()
    for side in sides:
        side.writer.finish("finished")
    return runner, [side.writer.run_id for side in sides]


def test_a_sides_workers_run_its_code_and_blocks_pair_across_the_two_runs(tmp_path: Path) -> None:
    lab, root = Lab(tmp_path, blocks=4), tmp_path / "old"
    play(slower_in(root, 1.25))
    _, (a, b) = session(lab, root)
    assert {worker.root for worker in Stub.every} == {root, None}
    assert all(worker.name.startswith("baseline-" if worker.root else "candidate-") for worker in Stub.every)
    timed = [c for c in compare_sides(open_side(lab.store, a), open_side(lab.store, b)) if c.metric == "tpot"]
    assert len(timed) == 2  # kv=cat and kv=prealloc, each against itself in the other code
    for found in timed:
        assert found.paired and found.reference.variant == found.candidate.variant
        assert found.estimate is not None and found.estimate.ratio == pytest.approx(1 / 1.25, rel=0.01)
        assert found.verdict == "improved"


def test_runs_of_different_sessions_are_not_paired(tmp_path: Path) -> None:
    lab = Lab(tmp_path, blocks=3)
    _, (a, _) = session(lab, tmp_path / "old")
    lab.run().writer.finish("finished")
    (found, *_) = compare_sides(open_side(lab.store, a), open_side(lab.store, lab.writer.run_id))
    assert not found.paired


def test_both_sides_sit_in_one_block_in_balanced_order(tmp_path: Path) -> None:
    order: list[tuple[str, int]] = []

    def script(worker: Stub, request: dict[str, Any]) -> dict[str, Any]:
        if request["do"] == "slice":
            order.append((worker.name.split("-")[0], int(worker.name.split("-b")[1][0])))
        return plain(worker, request)

    play(script)
    lab = Lab(tmp_path, blocks=2, axes={"kv": ("cat",)})
    session(lab, tmp_path / "old")
    turns = [[side for side, number in order if number == block] for block in (0, 1)]
    assert turns[0] == turns[0][::-1] and turns[0][0] != turns[0][1]  # ABBA
    assert turns[1][0] != turns[0][0]  # the other side begins


def test_a_commit_of_another_protocol_fails_its_cases_and_says_why(tmp_path: Path) -> None:
    class Old(Stub):
        def ready(self, timeout: float) -> dict[str, Any]:
            return {"pid": 1} if self.root else super().ready(timeout)

    runner, _ = session(Lab(tmp_path), tmp_path / "old", start=Old)
    states = list(runner.sides[0].states.values())
    assert {state.status for state in states} == {"failed"}
    assert all("protocol None" in state.reason and "compare commits" in state.reason for state in states)
    assert {state.status for state in runner.sides[1].states.values()} == {"ok"}
    assert all(not state.blocks for side in runner.sides for state in side.states.values())  # nothing to pair with


def run_adaptively(lab: Lab, decided: Any, looks: Looks, **options: Any) -> dict[str, list[int]]:
    """The blocks that each workload got."""
    runner, _ = session(lab, Path("/nowhere"), schedule=adaptive(looks, decided), **options)
    return {str(s.case.workload.kind): sorted(s.blocks) for s in runner.sides[1].states.values()}


def test_a_decided_case_gets_no_more_blocks(tmp_path: Path) -> None:
    lab = Lab(tmp_path, PREFILL, DECODE, blocks=16)
    lab.plan = lab.plan.restricted([c.case_id for c in lab.plan.groups[0].cases if not c.variant.choices])
    seen: list[tuple[str, int, float]] = []

    def decided(case: Case, estimate: Estimate) -> bool:
        seen.append((case.workload.kind, estimate.num_blocks, estimate.confidence))
        return case.workload.kind == "decode"

    looks = Looks((2, 4, 6))
    blocks = run_adaptively(lab, decided, looks)
    assert blocks == {"decode": [0, 1], "prefill": [0, 1, 2, 3, 4, 5]}
    assert [(kind, count) for kind, count, _ in seen] == [
        ("prefill", 2),
        ("decode", 2),
        ("prefill", 4),
        ("prefill", 6),
    ]
    assert [confidence for kind, _, confidence in seen if kind == "prefill"] == [looks.confidence(n) for n in range(3)]


def test_each_variant_of_a_session_stops_for_itself(tmp_path: Path) -> None:
    """Two groups of one suite, one per variant: what closes one leaves the other going."""
    runner, _ = session(
        Lab(tmp_path, blocks=16),
        Path("/nowhere"),
        schedule=adaptive(Looks((2, 4)), lambda case, estimate: not case.variant.choices),
    )
    assert len({group.name for group in runner.plan.groups}) == len(runner.plan.groups) == 2
    states = runner.sides[0].states.values()
    assert {str(s.case.variant): len(s.blocks) for s in states} == {"reference": 2, "kv=prealloc": 4}


def test_the_deadline_ends_it_after_the_two_blocks_that_an_interval_needs(tmp_path: Path) -> None:
    lab = Lab(tmp_path, blocks=16, axes={"kv": ("cat",)})
    blocks = run_adaptively(lab, lambda case, estimate: False, Looks((4, 8)), deadline=0.0)
    assert blocks == {"decode": [0, 1]}


def test_looks_beyond_the_number_of_blocks_asked_for_are_not_taken(tmp_path: Path) -> None:
    lab = Lab(tmp_path, blocks=3, axes={"kv": ("cat",)})
    assert run_adaptively(lab, lambda case, estimate: False, Looks((2, 4, 8))) == {"decode": [0, 1, 2]}


def test_what_ends_between_two_looks_is_judged_as_a_look_of_its_own() -> None:
    looks = Looks((4, 8, 16), spending="pocock")
    assert looks.confidence_after(4) == looks.confidence(0)
    assert looks.confidence_after(16) == looks.confidence(2)
    assert Looks((2,)).confidence_after(1) == Looks((2,)).confidence(0)
    assert looks.confidence_after(6) == Looks((4, 6, 16), spending="pocock").confidence(1)


def test_where_the_deadline_ends_it_the_last_look_spends_what_is_left() -> None:
    looks = Looks((4, 8, 16))
    assert looks.until(9) == Looks((4, 8, 9)) and looks.until(8) == Looks((4, 8))
    assert looks.until(16) == looks == looks.until(20)
    assert looks.until(1) == Looks((2,))
    assert looks.until(9).confidence_after(9) < looks.confidence_after(9)


def test_a_block_difference_cancels_drift_and_ignores_a_pass_that_was_hit() -> None:
    """ABBA with a linear drift of 1% a turn: A has turns 0, 3, 4, 7..., B 1, 2, 5, 6..."""
    turns = {turn: 1.01**turn for turn in range(24)}
    a = {turn: value for turn, value in turns.items() if turn % 4 in (0, 3)}
    b = {turn: 1.05 * value for turn, value in turns.items() if turn % 4 in (1, 2)}
    assert block_difference(a, b) == pytest.approx(0.04879, abs=1e-4)
    hit = {**b, 5: 9.0, 6: 9.0}
    assert block_difference(a, hit) == pytest.approx(0.04879, abs=1e-4)
    few = {turn: value for turn, value in hit.items() if turn < 8}
    assert block_difference({t: v for t, v in a.items() if t < 8}, few) > 0.5  # of two passes the mean counts


def test_short_slices_share_controls_and_are_judged_as_one_window(tmp_path: Path) -> None:
    """Of 0.03 s slices every eighth turn of an arm carries a control; one busy slice alone condemns nothing."""
    lab = Lab(tmp_path, axes={"kv": ("cat", "prealloc")})
    sampling = replace(lab.plan.sampling, blocks=1, passes=8, slice_seconds=0.03)
    lab.plan = replace(lab.plan, sampling=sampling)
    busy = {"other_cpu": [1000.0, "cores"], "wall": [0.03, "s"]}

    def script(worker: Stub, request: dict[str, Any]) -> dict[str, Any]:
        reply = plain(worker, request)
        if request["do"] == "slice":
            reply |= {"telemetry": busy, "control": {"tiny": 1e-3} if request["control"] else {}, "cpu_ns": [1, 2]}
        return reply

    play(script)
    lab.run(schedule=fixed)
    asked = [request for worker in Stub.every for request in worker.asked if asked_for(request, "slice")]
    assert len(asked) == 2 * 16 and sum(request["control"] for request in asked) == 2 * 2
    assert {state.status for state in lab.states.values()} == {"ok"}
    busy_slices = [why for state in lab.states.values() for why in state.invalid_blocks.values() if "1000" in why]
    assert not busy_slices


def test_controls_are_taken_only_where_hands_change_and_as_often_for_each_arm(tmp_path: Path) -> None:
    """A control leaves caches cold: before an arm's second turn in a row it made that arm slower, by 1.25% here."""
    lab = Lab(tmp_path, axes={"kv": ("cat", "prealloc")})
    lab.plan = replace(lab.plan, sampling=replace(lab.plan.sampling, blocks=1, passes=25, slice_seconds=0.03))
    ran: list[tuple[str, bool]] = []

    def script(worker: Stub, request: dict[str, Any]) -> dict[str, Any]:
        if asked_for(request, "slice"):
            ran.append((request["variant"], request["control"]))
        return plain(worker, request)

    play(script)
    lab.run(schedule=fixed)
    second = [control for (before, _), (arm, control) in pairwise(ran) if before == arm]
    assert len(second) > 40 and not any(second)
    taken = Counter(arm for arm, control in ran if control)
    assert len(taken) == 2 and len(set(taken.values())) == 1 and min(taken.values()) >= 3
