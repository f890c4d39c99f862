"""Change points: what is planted is found where it is, nothing is found where nothing is; ruptures as an oracle."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.change_points import _partition, change_points, history_noise


def steps(rng: np.random.Generator, *levels: tuple[int, float], sd: float = 0.02) -> list[float]:
    return [math.exp(level + rng.normal(0, sd)) for count, level in levels for _ in range(count)]


def test_planted_changes_are_found() -> None:
    history = steps(np.random.default_rng(0), (30, 0.0), (25, 0.2), (12, 0.1))
    found = change_points(history)
    assert [x.index for x in found] == [30, 55]
    for change, ratio in zip(found, (math.exp(0.2), math.exp(-0.1)), strict=True):
        assert change.low < ratio < change.high and change.ratio == pytest.approx(ratio, rel=0.02)
        assert change.index_low <= change.index <= change.index_high < change.index_low + 4


def test_a_small_change_has_a_wide_range() -> None:
    wide = change_points(steps(np.random.default_rng(3), (40, 0.0), (40, 0.03)))
    narrow = change_points(steps(np.random.default_rng(3), (40, 0.0), (40, 0.3)))
    assert [len(wide), len(narrow)] == [1, 1]
    assert wide[0].index_high - wide[0].index_low >= 2 and narrow[0].index_low == 40 == narrow[0].index_high


def test_single_outliers_are_no_change_and_stay_in_the_size() -> None:
    history = steps(np.random.default_rng(1), (20, 0.0), (20, 0.15))
    history[5], history[-1] = 3.0, 0.2
    found = change_points(history)
    assert [x.index for x in found] == [20] and found[0].high / found[0].low > 1.2
    assert change_points([*steps(np.random.default_rng(2), (30, 0.0)), 5.0]) == []


def test_numbers_without_noise() -> None:
    assert change_points([7.0] * 50) == [] and change_points([]) == [] and change_points([1.0, 2.0]) == []
    only = change_points([1.0] * 5 + [1.01] * 6)
    assert [(x.index_low, x.index, x.index_high) for x in only] == [(5, 5, 5)]
    assert (only[0].low, only[0].ratio, only[0].high) == pytest.approx((1.01, 1.01, 1.01))
    assert history_noise([3.0]) == 0.0


def test_known_noise_is_used() -> None:
    history = steps(np.random.default_rng(0), (20, 0.0), (20, 0.1))
    assert len(change_points(history, noise=0.02)) == 1 and change_points(history, noise=0.2) == []


def test_levels_last_as_long_as_asked() -> None:
    history = steps(np.random.default_rng(0), (20, 0.0), (6, 0.3), (20, 0.0))
    assert [x.index for x in change_points(history)] == [20, 26]
    longer = [0, *(x.index for x in change_points(history, min_segment=10)), 46]
    assert all(b - a >= 10 for a, b in itertools.pairwise(longer))


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_what_has_no_logarithm_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="positive, finite"):
        change_points([1.0] * 9 + [bad])
    with pytest.raises(ValueError, match="min_segment"):
        change_points([1.0] * 9, min_segment=1)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.001, 1000.0), st.integers(2, 5))
def test_laws(seed: int, unit: float, min_segment: int) -> None:
    rng = np.random.default_rng(seed)
    history = np.array(steps(rng, (int(rng.integers(4, 20)), 0.0), (int(rng.integers(4, 20)), 0.15), sd=0.03))
    found = change_points(history, min_segment=min_segment)
    edges = [0, *(x.index for x in found), len(history)]
    assert all(b - a >= min_segment for a, b in itertools.pairwise(edges)) or not found
    assert all(x.index_low <= x.index <= x.index_high and x.low <= x.ratio <= x.high for x in found)
    assert [x.index for x in change_points(history * unit, min_segment=min_segment)] == edges[1:-1]
    assert [len(history) - x.index for x in change_points(history[::-1], min_segment=min_segment)] == edges[1:-1][::-1]


def test_unchanged_histories_stay_quiet() -> None:
    rng = np.random.default_rng(0)
    alarms = {n: sum(bool(change_points(np.exp(rng.normal(0, 0.02, n)))) for _ in range(400)) for n in (8, 30, 100)}
    assert all(count <= 12 for count in alarms.values()), alarms  # 1% of 400 is 4, sd 2


def test_changes_of_four_noises_are_found_after_five_runs() -> None:
    rng, found, place, size = np.random.default_rng(0), 0, 0, 0
    for _ in range(200):
        changes = change_points(steps(rng, (40, 0.0), (5, 0.08)))
        if len(changes) == 1:
            found += 1
            place += changes[0].index_low <= 40 <= changes[0].index_high
            size += changes[0].low <= math.exp(0.08) <= changes[0].high
    assert found >= 160 and place >= 0.9 * found and size >= 0.85 * found, (found, place, size)


def test_agrees_with_ruptures() -> None:
    """Its exact search for the best segmentation with as many changes as ours finds ours."""
    ruptures = pytest.importorskip("ruptures", reason="ruptures, the oracle for segmentations, is not installed")
    compared = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        x = np.concatenate([rng.normal(rng.normal(0, 3), 1.0, int(n)) for n in rng.integers(4, 14, 4)])
        found = _partition(x, 8.0, 3)
        if found:
            exact = ruptures.Dynp(model="l2", min_size=3, jump=1).fit(x)
            assert found == exact.predict(n_bkps=len(found))[:-1]
            compared += 1
    assert compared >= 8
