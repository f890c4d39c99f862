"""What a calibration run measures, block by block, and what the gate's rule makes of it."""

from __future__ import annotations

import math
import os
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from harness import campaign, registry, verdict_rates
from harness.calibration import Rate
from harness.core import Gate, Sampling, Suite, UsageError, Variant
from harness.plan import make_plan
from harness.schema import RunRow
from harness.store import Store
from tests.synthetic import Arm, store_run

registry.load_all()
TODAY = datetime(2026, 11, 22, 10, tzinfo=UTC)


def test_injections_are_percents_the_largest_first() -> None:
    assert campaign.injections("1,2, 3,0.5,3") == ("3", "2", "1", "0.5")
    assert campaign.injections("busy,5") == ("5", "busy") and campaign.injections("") == ()
    for word in ("three", "0", "100", "1.25", "-3", "3%"):
        with pytest.raises(UsageError, match=f"'{word}' in --inject is no slowdown"):
            campaign.injections(f"5,{word}")


def noise_plan(*injected: str) -> Any:
    """The calibration's plan of suite quickstart for the tiny model."""
    atoms = frozenset({"cpu", "bf16", "pkg:torch"})
    plan = make_plan("quickstart", device="cpu", capabilities=atoms, models=("tiny",))
    suite = campaign.noise_suite(plan, injected)
    with campaign.offered(suite):
        found = make_plan(suite.name, device="cpu", capabilities=atoms)
    assert suite.name not in registry.SUITES
    return found


def test_every_case_of_a_suite_gets_an_unchanged_and_slower_arms() -> None:
    plan = noise_plan("5", "busy")
    arms = [[str(arm) for arm in group.arms] for group in plan.groups]
    assert arms[0] == ["reference", "control=aa", "spin=5"]
    assert ["kv=prealloc", "control=aa kv=prealloc", "kv=prealloc spin=5"] in arms and len(arms) == 6
    assert {case.workload.kind for group in plan.groups for case in group.cases} == {"decode", "prefill"}
    assert plan.suite.name == "noise-quickstart" and "ppl" not in plan.suite.metrics and not plan.skips
    assert [len(group.cases) for group in campaign.pairs_only(plan).groups] == [4] * 6


def test_rounds_alternate_between_unchanged_and_slower_arms() -> None:
    plan = noise_plan("5", "3")
    plan = replace(plan, sampling=replace(plan.sampling, blocks=2), groups=plan.groups[:1])
    runner: Any = SimpleNamespace(plan=plan, live=lambda group: group.timed(), deadline=None)
    seen = [(block, cases) for _, block, cases in campaign.Campaign(("5", "3"), rounds=4)(runner)]
    partners = [next(str(case.variant) for case in cases if case.variant != Variant()) for _, cases in seen]
    assert partners == [word for word in ("control=aa", "spin=5", "control=aa", "spin=3") for _ in range(2)]
    assert [block for block, _ in seen] == list(range(8)) and all(len(cases) == 4 for _, cases in seen)


def test_a_neighbour_runs_only_beside_its_own_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    children: list[Any] = []
    start = subprocess.Popen

    def remember(*words: Any, **options: Any) -> Any:
        children.append(start(*words, **options))
        return children[-1]

    monkeypatch.setattr(campaign.subprocess, "Popen", remember)
    plan = noise_plan("busy")
    plan = replace(plan, sampling=replace(plan.sampling, blocks=2), groups=plan.groups[:1])
    runner: Any = SimpleNamespace(plan=plan, live=lambda group: group.timed(), deadline=None)
    alive = {
        block: bool(children) and children[-1].poll() is None
        for _, block, _ in campaign.Campaign(("busy",), rounds=3)(runner)
    }
    beside = [campaign.BUSY_FROM + 2, campaign.BUSY_FROM + 3]
    assert alive == {0: False, 1: False, **dict.fromkeys(beside, True), 4: False, 5: False}
    assert len(children) == 1 and children[0].poll() is not None


def test_a_campaign_ends_at_its_deadline_and_when_enough_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = noise_plan("5")
    plan = replace(plan, groups=plan.groups[:1])
    runner: Any = SimpleNamespace(plan=plan, live=lambda group: group.timed(), deadline=0.0)
    assert len(list(campaign.Campaign(("5",))(runner))) == 1, "one block is measured whatever the time"
    for name in ("_ENOUGH_DF", "_ENOUGH_FALSE", "_ENOUGH_POWER"):
        monkeypatch.setattr(campaign, name, 4)
    runner.deadline = None
    seen = list(campaign.Campaign(("5",))(runner))
    assert len(seen) == 2 * 2 * plan.sampling.blocks, "two cycles of two cases make four comparisons each"


def test_a_suite_without_timed_cases_has_no_noise() -> None:
    plan = make_plan("quickstart", device="cpu", capabilities=frozenset({"cpu", "pkg:torch"}), models=("tiny",))
    plan = replace(plan, groups=tuple(group for group in plan.groups if not group.timed()))
    with pytest.raises(UsageError, match="suite 'quickstart' has no timed case here"):
        campaign.noise_suite(plan, ("3",))


def test_a_neighbour_dies_with_whoever_started_it() -> None:
    with campaign.busy_neighbour(0.1):
        pass
    child = subprocess.Popen([campaign.sys.executable, "-c", campaign._SPINNING, "0.1", str(os.getpid() + 1)])
    assert child.wait(timeout=20) == 0


# --- judging ---

GATES = (Gate("tps"),)
LAB = Suite("noise-lab", "x", {}, ("tps",), Sampling(looks=(2, 4, 8)), gates=GATES)


def stored_rounds(store: Store, *, shift: float, rounds: int = 3, noise: float = 0.004) -> verdict_rates.Rounds:
    """A run with four places: rounds of four blocks of A/A, then as many of spin=5 that is slower by `shift`."""
    rng = np.random.default_rng(7)
    arms = []
    for context in (8, 16, 32, 64):
        workload = f"decode(context={context},new_tokens=4)"
        blocks = range(8 * rounds)
        base = {block: 100.0 * math.exp(rng.normal(0, 0.05)) for block in blocks}

        def slower(of_blocks: range, by: float, base: Any = base) -> dict[int, float]:
            return {block: base[block] * math.exp(rng.normal(-by, noise)) for block in of_blocks}

        arms += [
            Arm(timed={"tps": base}, workload=workload),
            Arm("control=aa", timed={"tps": slower(range(4 * rounds), 0.0)}, workload=workload),
            Arm("spin=5", timed={"tps": slower(range(4 * rounds, 8 * rounds), shift)}, workload=workload),
        ]
    run = store_run(store, *arms, suite="noise-lab", fingerprint="f00d", plan='{"blocks": 4}')
    runs = verdict_rates.calibration_runs(store, LAB, 4, "f00d")
    assert [found.run_id for found in runs] == [run.run_id]
    assert (
        verdict_rates.calibration_runs(store, LAB, 8, "f00d")
        == verdict_rates.calibration_runs(store, LAB, 4, "beef")
        == []
    )
    return verdict_rates.rounds_of(store, runs, 4, GATES)


def test_rounds_are_judged_by_the_gates_rule(store: Store) -> None:
    rounds = stored_rounds(store, shift=0.05)
    floors = rounds.floors({("decode", "tiny"): 2.5}, RunRow(suite="noise-lab", git_sha="abc", started_at=TODAY))
    (found,) = verdict_rates.judged(rounds, floors, LAB)
    assert found.measured_at == TODAY and found.git_sha == "abc"
    assert found.family == "decode on tiny" and found.blocks == 4 and found.block_seconds == 2.5
    assert found.sd.value == pytest.approx(0.004, rel=0.3) and found.df == 4 * 11
    seen = found.power[0.05]
    assert seen.hits == seen.trials and 12 < seen.trials <= 20, "what is decided after two blocks takes two"
    assert found.red.hits == 0 and 12 <= found.red.trials <= 20 and found.false_alarms.trials == found.red.trials


def test_no_block_counts_for_two_first_measurements(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = stored_rounds(store, shift=0.05)
    taken: list[tuple[str, int]] = []
    judge = verdict_rates.Judge.run

    def noted(self: verdict_rates.Judge, pairs: Sequence[verdict_rates.Pair]) -> Any:
        rows, num_blocks = judge(self, pairs)
        for (_, candidate), count in zip(pairs, num_blocks, strict=True):
            blocks = sorted(candidate.series["tps"].turns)[:count]
            taken.extend((candidate.case_id, block) for block in blocks if candidate.variant == "control=aa")
        return rows, num_blocks

    monkeypatch.setattr(verdict_rates.Judge, "run", noted)
    rounds.pairs = {"aa": rounds.pairs["aa"]}
    verdict_rates.judged(rounds, rounds.floors({}, RunRow(suite="noise-lab")), LAB)
    assert len(taken) == len(set(taken)) > 4 * 8


def test_what_is_not_slower_is_not_seen(store: Store) -> None:
    rounds = stored_rounds(store, shift=0.0)
    (found,) = verdict_rates.judged(rounds, rounds.floors({}, RunRow(suite="noise-lab")), LAB)
    assert found.power[0.05].hits == 0 and math.isnan(found.block_seconds)


def test_runs_of_last_month_tell_nothing_of_today(store: Store) -> None:
    run = store_run(store, Arm(timed={"tps": [1.0, 2.0]}), suite="noise-lab", fingerprint="f", plan='{"blocks": 2}')
    assert verdict_rates.calibration_runs(store, LAB, 2, "f") == [store.find_run(run.run_id)]
    assert run.started_at is not None
    store.save_run(replace(store.find_run(run.run_id), started_at=run.started_at - timedelta(days=31)))
    assert verdict_rates.calibration_runs(store, LAB, 2, "f") == []


def test_unfinished_rounds_count_for_the_noise_but_not_for_the_rates(store: Store) -> None:
    values = {block: 100.0 + block for block in range(6)}
    twice = {block: value * (1.001 if block % 2 else 0.999) for block, value in values.items()}
    store_run(
        store,
        Arm(timed={"tps": values}),
        Arm("control=aa", timed={"tps": twice}),
        suite="noise-lab",
        fingerprint="f00d",
        plan='{"blocks": 4}',
    )
    rounds = verdict_rates.rounds_of(store, store.runs(), 4, GATES)
    assert len(rounds.pairs["aa"]) == 1
    (found,) = verdict_rates.judged(rounds, rounds.floors({}, RunRow(suite="noise-lab")), LAB)
    assert found.df == 5 and found.false_alarms.trials == 1


def test_a_round_of_which_one_block_is_left_has_no_verdict(store: Store) -> None:
    values = {block: 100.0 + block for block in range(4)}
    store_run(
        store,
        Arm(timed={"tps": values}),
        Arm("control=aa", timed={"tps": values}, invalid={1: "busy neighbour"}),
        suite="noise-lab",
        fingerprint="f00d",
        plan='{"blocks": 2}',
    )
    rounds = verdict_rates.rounds_of(store, store.runs(), 2, GATES)
    (found,) = verdict_rates.judged(rounds, rounds.floors({}, RunRow(suite="noise-lab")), LAB)
    assert found.false_alarms.hits == 0 and found.df == 2


def test_blocks_beside_a_neighbour_are_no_noise_and_invalid_ones_never_red(store: Store) -> None:
    busy = range(campaign.BUSY_FROM + 4, campaign.BUSY_FROM + 8)
    calm = {block: 100.0 + block % 3 for block in range(4)}
    ours, theirs = {**calm, **dict.fromkeys(busy, 100.0)}, {**calm, **dict.fromkeys(busy, 50.0)}
    store_run(
        store,
        Arm(timed={"tps": ours}),
        Arm("control=aa", timed={"tps": theirs}, invalid=dict.fromkeys(busy, "busy neighbour")),
        suite="noise-lab",
        fingerprint="f00d",
        plan='{"blocks": 4}',
    )
    rounds = verdict_rates.rounds_of(store, store.runs(), 4, GATES)
    (found,) = verdict_rates.judged(rounds, rounds.floors({}, RunRow(suite="noise-lab")), LAB)
    assert found.sd.value == 0.0 and found.beside_neighbour == Rate(0, 1)
