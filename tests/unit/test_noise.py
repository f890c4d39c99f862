"""Variance components are recovered from blocks made with known ones; the model makes more of the same."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path

import numpy as np
import pytest

from harness.aa_blocks import Block, blocks_from_store, synthetic_blocks
from harness.compare import location
from harness.core import Case, Sample, UsageError, Variant, Workload
from harness.noise import (
    Components,
    NoiseModel,
    fit_noise,
    fit_noise_from_store,
    pair_differences,
    supported_effect_for_budget,
    variance_components,
)
from harness.registry import load_all, resolve_workload
from harness.schema import CaseRow, RunRow
from harness.store import Store

load_all()
KNOWN = {"run": 0.05, "block": 0.03, "process": 0.02, "turn": 0.05, "iteration": 0.04, "switch": 0.2}


def made(seed: int = 1, **parts: float) -> list[Block]:
    return synthetic_blocks(np.random.default_rng(seed), runs=20, blocks=12, passes=10, iterations=3, **parts)


@functools.cache
def known() -> Components:
    return variance_components(made(**KNOWN))


@pytest.mark.parametrize("name", ["block", "process", "turn", "iteration", "switch"])
def test_each_component_is_recovered(name: str) -> None:
    found = known()
    assert getattr(found, name) == pytest.approx(KNOWN[name], rel=0.15)


def test_the_run_component_is_recovered_within_what_twenty_runs_allow() -> None:
    found = known()
    assert found.run == pytest.approx(KNOWN["run"], rel=0.35)
    assert (found.num_runs, found.num_blocks, found.num_turns) == (20, 240, 9600)


def test_the_difference_of_equal_arms_holds_two_processes_and_the_error_of_the_passes() -> None:
    found = variance_components(made(process=0.02))
    assert found.difference == pytest.approx(0.02 * math.sqrt(2), rel=0.15)
    assert max(found.turn, found.iteration, abs(found.switch)) < 0.005


def test_absent_components_are_found_absent() -> None:
    found = variance_components(made(turn=0.05, iteration=0.01))
    assert found.process < 0.006 and found.block < 0.006 and abs(found.switch) < 0.002
    assert (found.slow, found.slow_share, found.flips) == (0.0, 0.0, 0.0)


def test_two_speeds_are_told_from_one() -> None:
    found = variance_components(made(turn=0.02, slow=0.2, flips=0.2))
    assert found.slow == pytest.approx(0.2, rel=0.1)
    assert found.flips == pytest.approx(0.2, rel=0.1)
    assert found.slow_share == pytest.approx(0.5, abs=0.1)


def test_one_run_and_one_block_leave_the_levels_above_unknown() -> None:
    found = variance_components(synthetic_blocks(np.random.default_rng(0), blocks=1, turn=0.1))
    assert math.isnan(found.run) and math.isnan(found.block) and math.isnan(found.difference)


@pytest.mark.parametrize(
    "blocks",
    [[], [Block("r", (0, 0), ((1.0,), (1.0,)))], [Block("r", (0, 1), ((1.0,),))], [Block("r", (0, 1), ((1.0,), ()))]],
)
def test_data_without_two_arms_taking_turns_are_refused(blocks: list[Block]) -> None:
    with pytest.raises(UsageError):
        variance_components(blocks)


def test_a_linear_drift_cancels_in_a_mirrored_pass_and_a_difference_does_not() -> None:
    arms = (0, 1, 1, 0) * 3
    logs = 0.01 * np.arange(12.0) + 0.5 * np.array(arms)
    assert pair_differences(logs, arms) == pytest.approx([0.51, 0.49] * 3)
    with pytest.raises(ValueError, match="one turn of each"):
        pair_differences(np.zeros(4), (0, 0, 0, 1))


def test_a_model_survives_json_and_makes_noise_like_that_it_was_fitted_to() -> None:
    blocks = synthetic_blocks(np.random.default_rng(5), blocks=60, process=0.01, turn=0.08, block=0.05, switch=0.15)
    model = fit_noise("decode", blocks)
    assert NoiseModel.from_json(model.to_json()) == model
    arms = (0, 1, 1, 0) * 25
    logs = model.log_turns(np.random.default_rng(6), arms, num=40, blocks=50)
    assert logs.shape == (40, 50, 100)
    measured = variance_components(blocks)
    assert float(location(pair_differences(logs, arms)).std()) == pytest.approx(measured.difference, rel=0.15)
    assert float(np.median(logs, axis=2).std()) == pytest.approx(0.05, rel=0.15)
    assert float(np.median(logs[:, :, 1::2]) - np.median(logs[:, :, 2::2])) == pytest.approx(0.15, rel=0.1)


def test_effects_shift_an_arm_and_the_same_seed_gives_the_same_turns() -> None:
    model = fit_noise("x", synthetic_blocks(np.random.default_rng(0), turn=0.05, process=0.01))
    arms = (0, 1, 1, 0) * 6
    plain, slower = (
        model.log_turns(np.random.default_rng(3), arms, num=5, blocks=4, effects=(0.0, e)) for e in (0.0, 0.03)
    )
    assert slower - plain == pytest.approx(np.broadcast_to(0.03 * np.array(arms), (5, 4, 24)))


def test_a_tool_with_one_process_has_one_process_in_all_blocks() -> None:
    model = dataclasses.replace(fit_noise("x", synthetic_blocks(np.random.default_rng(0), turn=0.01)), process=0.5)
    logs = model.log_turns(np.random.default_rng(1), (0,) * 20, num=3, blocks=6, effects=(0.0,), processes=2)
    level = np.median(logs, axis=2)
    assert np.ptp(level[:, :3], axis=1).max() < 0.03 and np.ptp(level[:, 3:], axis=1).max() < 0.03
    assert np.abs(level[:, 0] - level[:, 5]).min() > 0.03


def test_iterations_scatter_about_their_turn_and_leave_its_median() -> None:
    blocks = synthetic_blocks(np.random.default_rng(2), iterations=5, iteration=0.03)
    model = fit_noise("x", blocks)
    turns = np.log(np.array([[0.02, 0.03]]))
    seconds = model.iterate(np.random.default_rng(0), turns)
    assert seconds.shape == (1, 2, 5)
    assert np.median(seconds, axis=-1) == pytest.approx(np.exp(turns))
    many = np.log(model.iterate(np.random.default_rng(0), np.zeros(2000), iterations=101))
    assert float(many.std()) == pytest.approx(0.03, rel=0.2)


def test_levels_of_neighbouring_blocks_are_as_alike_as_the_model_says() -> None:
    plain = fit_noise("x", synthetic_blocks(np.random.default_rng(0)))
    model = dataclasses.replace(plain, block=0.1, correlation=0.8)
    levels = model.levels(np.random.default_rng(0), num=4000, blocks=5)
    assert levels.std(axis=0) == pytest.approx([0.1] * 5, rel=0.05)
    assert np.corrcoef(levels[:, 1], levels[:, 2])[0, 1] == pytest.approx(0.8, abs=0.02)


def test_what_a_budget_can_detect_is_known_beforehand() -> None:
    parts = dataclasses.replace(known(), difference=0.0141)
    effects = [
        supported_effect_for_budget(parts, seconds_per_block=4.0, budget=budget, margin=0.01)
        for budget in (7.0, 16.0, 64.0, 6400.0)
    ]
    assert effects[0] == math.inf
    assert effects[1] > effects[2] > effects[3] > 0.01
    # 16 blocks of an sd of 1.41%: 1% and (t(0.975, 15) + t(0.95, 15)) x 1.41% / 4 are 2.4%
    assert effects[2] == pytest.approx(0.0238, abs=0.0015)


def stored(store: Store, *sides: tuple[str, Variant, int], blocks: int = 3, session: str = "") -> list[str]:
    """A/A runs in the store: one run that holds all the arms, or one run a side where a session is named."""
    workload = resolve_workload(Workload.parse("decode"))
    runs: list[str] = []
    opened = {}
    for ordinal, (side, variant, arm) in enumerate(sides):
        if side not in opened:
            opened[side] = store.begin(RunRow(suite="lab", session=session, side=side))
            runs.append(opened[side].run_id)
        case = Case(workload, "tiny", variant)
        samples = [
            Sample(case.case_id, "step_time", 0.02, "s", block, "w", turn, n, "timed", 0)
            for block in range(blocks)
            for turn in range(4)
            for n in range(2)
            if (turn in (1, 2)) == (arm == 1)
        ]
        facts = {"invalid_blocks": {"2": "a busy neighbour"}} if arm == 1 else {}
        row = CaseRow(case.case_id, str(workload), "tiny", str(variant), "ok", "", ordinal=ordinal, facts=facts)
        opened[side].write(cases=[row], samples=samples)
    for writer in opened.values():
        writer.finish("finished")
    return runs


def test_equal_arms_are_found_within_a_run_and_across_a_session(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    within = stored(store, ("", Variant(), 0), ("", Variant.parse("control=aa"), 1))
    across = stored(store, ("baseline", Variant(), 0), ("candidate", Variant(), 1), session="s1")
    for runs in (within, across):
        ((family, blocks),) = blocks_from_store(store, runs).items()
        assert family.startswith("tiny ")
        assert [block.arms for block in blocks] == [(0, 1, 1, 0)] * 2  # the disturbed third block is left out
        assert blocks[0].seconds == ((0.02, 0.02),) * 4
    (model,) = fit_noise_from_store(store, across).values()
    assert (model.seconds, model.iterations, model.process) == (pytest.approx(0.02), 2, 0.0)


def test_runs_of_different_variants_are_no_equal_arms(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    runs = stored(store, ("", Variant(), 0), ("", Variant.parse("kv=prealloc"), 1))
    with pytest.raises(UsageError, match="control=aa"):
        fit_noise_from_store(store, runs)


def test_cases_of_different_speed_do_not_pass_for_a_machine_that_moves() -> None:
    blocks = synthetic_blocks(np.random.default_rng(3), blocks=20, block=0.03, turn=0.05)
    slower = [
        dataclasses.replace(b, case="fused", seconds=tuple(tuple(1.5 * v for v in turn) for turn in b.seconds))
        for b in blocks[10:]
    ]
    mixed = [*blocks[:10], *slower]
    assert variance_components(mixed).block == pytest.approx(0.03, rel=0.5)
    assert fit_noise("decode", mixed).block == pytest.approx(0.03, rel=0.5)
