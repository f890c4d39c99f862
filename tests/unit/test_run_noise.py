"""A baseline that was not interleaved: how far runs of the same code lie apart decides what may be red."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from harness.calibration import STATED_RATE
from harness.compare import compare_pairs, measured_cases
from harness.core import Gate
from harness.distributions import student_t_ppf
from harness.gates import GateRow, evaluate, red
from harness.run_noise import RunNoise, RunSpread
from harness.schema import RunRow
from harness.store import Store
from tests.synthetic import Arm, store_run

GATES = (Gate("tps"), Gate("kv_bytes", kind="exact"))
HERE = {"fingerprint": "here", "suite": "lab"}


def run_at(store: Store, tps: float, *, commit: str, **other: object) -> RunRow:
    """A run of four blocks around a speed, and of a cache that grows as the speed falls."""
    blocks = [tps * (1 + 0.001 * step) for step in (-1, 0, 1, 0)]
    fields = {**HERE, "git_sha": commit, **other}
    return store_run(store, Arm(timed={"tps": blocks}, solo={"kv_bytes": 1e6 / tps}), **fields)  # type: ignore[arg-type]


def rows_of(store: Store, baseline: RunRow, candidate: RunRow) -> dict[str, GateRow]:
    pairs = list(zip(measured_cases(store, baseline.run_id), measured_cases(store, candidate.run_id), strict=True))
    floors = RunNoise.of(store, baseline, None)
    found = evaluate(GATES, compare_pairs(pairs, metrics=None), calibration=floors, policy=0.01)
    return {row.metric: floors.proved(row) for row in found}


def test_a_slower_run_alone_is_no_proof_and_the_row_says_what_would_be(store: Store) -> None:
    baseline = run_at(store, 100, commit="a" * 40)
    rows = rows_of(store, baseline, run_at(store, 90, commit="b" * 40))
    assert rows["tps"].decision == "inconclusive"
    assert "beyond the margin of 1.0%" in rows["tps"].reason and "--against commit:aaaaaaaaa" in rows["tps"].reason
    assert red(tuple(rows.values())) == (), "it would not be measured again for nothing"
    assert rows["kv_bytes"].decision == "regressed", "what has no noise needs no second run"


def test_three_runs_of_one_commit_give_the_margin(store: Store) -> None:
    levels = (100.0, 101.0, 99.0)
    baseline, *_ = [run_at(store, tps, commit="a" * 40) for tps in levels]
    sd = float(np.std(np.log(levels), ddof=1))
    margin = math.expm1(student_t_ppf(1 - STATED_RATE, 2) * math.sqrt(2) * sd)
    near = rows_of(store, baseline, run_at(store, 97, commit="b" * 40))["tps"]
    assert near.margin == pytest.approx(margin, rel=1e-6) and "2 degrees of freedom" in near.margin_source
    assert near.decision != "regressed"
    far = rows_of(store, baseline, run_at(store, 80, commit="c" * 40))["tps"]
    assert far.decision == "regressed" and far.margin == near.margin


@pytest.mark.parametrize(
    "other",
    [
        {"fingerprint": "elsewhere"},
        {"suite": "other"},
        {"git_dirty": True},
        {"session": "s1"},
        {"suite_version": 7},
    ],
)
def test_what_does_not_count_as_another_run_of_the_same_code(store: Store, other: dict[str, object]) -> None:
    """Another machine, suite or version, a tree with changes, and the other side of one session."""
    baseline = run_at(store, 100, commit="a" * 40, session=other.get("session", ""))
    for tps in (101, 99):
        run_at(store, tps, commit="a" * 40, **other)
    assert RunNoise.of(store, baseline, None).spreads == {}


def test_all_cases_of_a_run_count_as_one_degree_of_freedom(store: Store) -> None:
    runs = [
        store_run(
            store,
            *(Arm(timed={"tps": [tps, tps]}, variant=f"kv={kind}") for kind in ("cat", "prealloc")),
            git_sha="a" * 40,
            **HERE,
        )
        for tps in (100.0, 102.0, 98.0)
    ]
    [spread] = RunNoise.of(store, runs[0], None).spreads.values()
    assert spread.df == 2 and spread.sd == pytest.approx(float(np.std(np.log([100, 102, 98]), ddof=1)))


def test_a_wider_calibrated_floor_stays(store: Store) -> None:
    class Known:
        def floor(self, comparison: object) -> tuple[float, str]:
            return 0.5, "calibrated"

    baseline, *_ = [run_at(store, tps, commit="a" * 40) for tps in (100, 101, 99)]
    noise = RunNoise.of(store, baseline, Known())
    pairs = [(case, case) for case in measured_cases(store, baseline.run_id)]
    [comparison] = compare_pairs(pairs, metrics={"tps"})
    assert noise.floor(comparison) == (0.5, "calibrated")
    narrow = replace(noise, calibration=None).floor(comparison)
    assert narrow is not None and narrow[0] < 0.5


def test_the_margin_is_seldom_exceeded_by_unchanged_code() -> None:
    """Simulated: three runs tell the spread, a fourth is compared with one of another day."""
    rng = np.random.default_rng(5)
    levels = rng.normal(0.0, 0.02, (20_000, 5))
    sds = levels[:, :3].std(axis=1, ddof=1)
    margins = np.log1p([RunSpread(float(sd), 2).margin for sd in sds])
    assert np.mean(levels[:, 3] - levels[:, 4] > margins) == pytest.approx(STATED_RATE, abs=0.003)
