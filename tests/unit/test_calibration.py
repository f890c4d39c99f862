"""What is known of noise: intervals of rates, floors, staleness, storage; and what a calibration run measures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from harness import calibration, registry
from harness.calibration import (
    Bound,
    Floor,
    NoiseCalibration,
    Rate,
    clopper_pearson,
    load_noise,
    margin_for,
    noise_floor,
    save_noise,
)
from harness.store import Store

registry.load_all()
TODAY = datetime(2026, 11, 22, 10, tzinfo=UTC)
DECODE = "decode(batch=1,context=8,new_tokens=4)"


def floor(**changes: Any) -> Floor:
    found = Floor(
        workload="decode",
        model="tiny",
        metric="tps",
        sd=Bound(0.014, 0.012, 0.017),
        df=40,
        floors={4: Bound(0.02, 0.01, 0.03), 8: Bound(0.008, 0.005, 0.012), 16: Bound(0.003, 0.001, 0.005)},
        block_seconds=4.5,
        blocks=8,
        measured_at=TODAY,
        false_alarms=Rate(1, 200),
        red=Rate(0, 200),
        power={0.03: Rate(58, 60), 0.05: Rate(60, 60)},
        beside_neighbour=Rate(0, 12),
        suite="noise-gate",
        git_sha="abc",
    )
    return replace(found, **changes)


def known(*floors: Floor, fingerprint: str = "f00d", asked_for: str = "f00d") -> NoiseCalibration:
    return NoiseCalibration(fingerprint, "m1", "cpu", floors or (floor(),), {"torch": "2.13.0"}, asked_for)


# --- rates ---


@pytest.mark.parametrize("trials", [1, 7, 40, 200, 1500])
def test_intervals_of_rates_are_those_of_scipy(trials: int) -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is the reference here")
    for hits in sorted({0, 1, trials // 3, trials - 1, trials}):
        expected = stats.binomtest(hits, trials).proportion_ci(0.95, method="exact")
        assert clopper_pearson(hits, trials) == pytest.approx((expected.low, expected.high), abs=1e-10)


def test_rates_that_everybody_knows() -> None:
    low, high = clopper_pearson(0, 200)
    assert low == 0.0 and high == pytest.approx(1 - 0.025 ** (1 / 200))
    assert clopper_pearson(0, 0) == (0.0, 1.0)
    assert Rate(1, 40) + Rate(2, 60) == Rate(3, 100)
    assert Rate(3, 100).value == 0.03 and math.isnan(Rate(0, 0).value)
    for hits, trials in ((-1, 5), (6, 5)):
        with pytest.raises(ValueError, match="is no count"):
            clopper_pearson(hits, trials)


# --- floors ---


def blocks_of(rng: np.random.Generator, sd: float, *, cases: int = 6, blocks: int = 24) -> list[Any]:
    return [rng.normal(0.0, sd, blocks) for _ in range(cases)]


def alarms(cases: Sequence[Any], margin: float, blocks: int) -> float:
    """How often a t interval over so many fresh blocks of this noise lies beyond the margin."""
    scipy_stats = pytest.importorskip("scipy.stats", reason="scipy is the reference here")
    rng = np.random.default_rng(99)
    drawn = rng.normal(0.0, float(np.std(np.concatenate(cases))), (20_000, blocks))
    half = scipy_stats.t.ppf(0.975, blocks - 1) * drawn.std(axis=1, ddof=1) / math.sqrt(blocks)
    return float(np.mean(np.abs(drawn.mean(axis=1)) - half > math.log1p(margin)))


@pytest.mark.parametrize("blocks", [4, 8, 16])
def test_at_its_floor_noise_raises_at_most_the_stated_false_alarms(blocks: int) -> None:
    """Without a margin they are 5%, by the interval's own level."""
    cases = blocks_of(np.random.default_rng(blocks), 0.014)
    sd, found = noise_floor(cases, blocks)
    assert sd.low <= sd.value <= sd.high and sd.value == pytest.approx(0.014, rel=0.12)
    assert sd.low < 0.014 < sd.high
    assert alarms(cases, 0.0, blocks) == pytest.approx(0.05, abs=0.01)
    assert alarms(cases, found.value, blocks) == pytest.approx(calibration.STATED_RATE, abs=0.006)
    assert alarms(cases, found.high, blocks) <= calibration.STATED_RATE
    assert found.low <= found.value <= found.high


def test_a_floor_grows_with_the_noise_and_falls_with_the_blocks() -> None:
    calm, loud = (blocks_of(np.random.default_rng(1), sd) for sd in (0.01, 0.03))
    floors = {blocks: noise_floor(calm, blocks)[1].value for blocks in (4, 8, 16)}
    assert floors[4] > floors[8] > floors[16] > 0
    assert noise_floor(loud, 8)[1].value == pytest.approx(3 * floors[8], rel=0.05)


def test_few_blocks_make_an_uncertain_floor() -> None:
    few, many = (blocks_of(np.random.default_rng(2), 0.014, cases=2, blocks=blocks) for blocks in (5, 60))
    few_floor, many_floor = noise_floor(few, 8)[1], noise_floor(many, 8)[1]
    assert few_floor.high / few_floor.value > many_floor.high / many_floor.value


def test_differences_that_persist_raise_the_floor() -> None:
    """Two arms of one code that differ by 2% in every block: no number of blocks helps, so the margin must."""
    rng = np.random.default_rng(3)
    shifted = [rng.normal(shift, 0.005, 24) for shift in (0.02, -0.02, 0.02, -0.02)]
    assert noise_floor(shifted, 16)[1].value > 0.02
    assert noise_floor([x - x.mean() for x in shifted], 16)[1].value < 0.005


def test_a_clock_without_noise_has_a_floor_of_zero_and_one_block_none() -> None:
    assert noise_floor([np.zeros(4)], 4)[1] == Bound(0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="at least two blocks"):
        noise_floor([np.zeros(1)], 4)


def test_what_is_detectable_follows_from_noise_blocks_and_margin() -> None:
    found = floor()
    assert found.detectable(4) > found.detectable(8) > found.detectable(16) > 0.01
    assert found.detectable(8, policy=0.02) > found.detectable(8) > found.margin(8)
    assert [found.margin(blocks) for blocks in (2, 4, 7, 8, 100)] == [0.03, 0.03, 0.03, 0.012, 0.005]


# --- margins ---


def test_the_margin_is_the_larger_of_policy_and_floor_and_says_which() -> None:
    margin, source = margin_for(known(), DECODE, "tiny", "tps", 0.01)
    assert margin == 0.012
    assert source == "A/A noise floor of decode on tiny, calibrated 2026-11-22 on this machine"
    assert margin_for(known(), DECODE, "tiny", "tps", 0.02) == (0.02, "policy")
    assert margin_for(known(), DECODE, "tiny", "tps", 0.01, blocks=16) == (0.01, "policy")
    for calibrated, model in ((None, "tiny"), (known(), "other")):
        found = margin_for(calibrated, DECODE, model, "tps", 0.01)
        assert found == (0.01, "policy; no noise floor was calibrated for this family")


def test_gates_get_the_floor_of_the_comparisons_blocks() -> None:
    def comparison(blocks: int | None, model: str = "tiny") -> Any:
        estimate = None if blocks is None else SimpleNamespace(num_blocks=blocks)
        return SimpleNamespace(candidate=SimpleNamespace(workload=DECODE, model=model), metric="tps", estimate=estimate)

    found = known().floor(comparison(8))
    assert found is not None and found[0] == 0.012 and "decode on tiny" in found[1]
    assert known().floor(comparison(4))[0] == 0.03  # type: ignore[index]
    assert known().floor(comparison(None))[0] == 0.005  # type: ignore[index]
    assert known().floor(comparison(8, "other")) is None


def test_an_old_calibration_and_one_from_elsewhere_say_so() -> None:
    young = known(floor(measured_at=TODAY - timedelta(days=29)))
    old = known(floor(), floor(model="small", measured_at=TODAY - timedelta(days=31)))
    assert not young.is_old(TODAY) and old.is_old(TODAY)
    assert young.flags(TODAY) == "" and "more than 30 days ago" in old.flags(TODAY)
    other = replace(young, asked_for="beef")
    assert other.from_other_machine() and "on another machine or with other versions (m1)" in other.flags(TODAY)
    assert "other versions" in margin_for(other, DECODE, "tiny", "tps", 0.0)[1]


# --- storage ---


def test_a_calibration_is_read_as_it_was_stored(store: Store) -> None:
    whole = known(floor(), floor(metric="ttft", workload="prefill", power={}, beside_neighbour=Rate(0, 0)))
    save_noise(store, whole)
    assert load_noise(store, "f00d") == whole
    assert store.check() == [] and store.calibration("f00d") == []


def test_a_new_floor_replaces_that_of_its_family_only(store: Store) -> None:
    save_noise(store, known(floor(), floor(model="small")))
    save_noise(store, known(floor(df=99)))
    found = load_noise(store, "f00d")
    assert found is not None and {(one.model, one.df) for one in found.floors} == {("tiny", 99), ("small", 40)}


def test_without_ones_own_calibration_the_newest_of_another_machine_counts(store: Store) -> None:
    assert load_noise(store, "f00d") is None
    save_noise(store, known(floor(measured_at=TODAY - timedelta(days=2)), fingerprint="aaaa"))
    save_noise(store, known(fingerprint="bbbb"))
    found = load_noise(store, "f00d")
    assert found is not None and found.fingerprint == "bbbb" and found.from_other_machine()
    own = load_noise(store, "aaaa")
    assert own is not None and own.fingerprint == "aaaa" and not own.from_other_machine()


def test_a_damaged_calibration_is_passed_over_and_named(store: Store) -> None:
    path = save_noise(store, known())
    data = path.read_bytes()
    for damaged in (b"", b"no parquet", data[: len(data) // 2], data[:-8]):
        path.write_bytes(damaged)
        fresh = Store.open(store.path)
        assert load_noise(fresh, "f00d") is None
        assert [problem.path for problem in fresh.problems] == [path]
        assert [problem.path for problem in Store.open(store.path).check()] == [path]


def test_a_calibration_that_lacks_rows_is_passed_over_and_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = calibration._rows_of
    monkeypatch.setattr(calibration, "_rows_of", lambda known, floor: whole(known, floor)[1:])
    path = save_noise(store, known())
    assert load_noise(store, "f00d") is None
    assert "not a whole calibration" in store.problems[0].reason and store.problems[0].path == path


def test_a_fingerprint_is_never_taken_for_a_path(tmp_path: Path) -> None:
    outside, inside = (Store.open(tmp_path / name, create=True) for name in ("outside", "inside"))
    save_noise(outside, known(floor(), fingerprint="abc"))
    assert load_noise(inside, "../../outside/calibration/abc") is None
    assert inside.calibration("../../outside/calibration/abc") == []
