"""Quantiles of iterations paired over blocks: what they take, what they find, how often their intervals hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from harness.quantiles import least_samples, quantile_ratio
from harness.stats import VariancePrior, paired_log_ratio


def blocks(rng: np.random.Generator, num: int, size: int, *, tail: float = 0.5) -> list[NDArray[np.float64]]:
    """A process's own speed of 2%, iterations of 3%, one in ten slow by up to `tail`."""
    body = rng.normal(0, 0.03, (num, size)) + rng.normal(0, 0.02, (num, 1))
    return list(np.exp(body + (rng.random((num, size)) < 0.1) * rng.uniform(0, tail, (num, size))))


def test_how_many_samples_a_quantile_takes() -> None:
    assert [least_samples(q) for q in (0.5, 0.9, 0.95, 0.99, 0.999)] == [5, 29, 59, 299, 2995]
    assert least_samples(0.01) == 299 and 0.99**299 < 0.05 < 0.99**298
    for wrong in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="between 0 and 1"):
            least_samples(wrong)


def test_too_few_samples_are_refused_by_name() -> None:
    rng = np.random.default_rng(0)
    enough, few = blocks(rng, 4, 75), [*blocks(rng, 3, 75), np.ones(73)]
    assert quantile_ratio(enough, enough, 0.99).ratio == 1.0
    with pytest.raises(ValueError, match="takes 299 iterations; the candidate has 298"):
        quantile_ratio(enough, few, 0.99)
    with pytest.raises(ValueError, match="takes 299 iterations; the reference has 298"):
        quantile_ratio(few, enough, 0.99)
    with pytest.raises(ValueError, match="do not pair: 4 of the reference, 3"):
        quantile_ratio(enough, enough[:3], 0.9)


def test_it_is_the_paired_ratio_of_each_blocks_quantile() -> None:
    rng = np.random.default_rng(1)
    a, b = blocks(rng, 6, 30), blocks(rng, 6, 17)
    for prior in (None, VariancePrior(0.03**2, 5.0)):
        found = quantile_ratio(a, b, 0.9, confidence=0.9, prior=prior)
        each = [[float(np.quantile(x, 0.9)) for x in arm] for arm in (a, b)]
        wanted = paired_log_ratio(each[0], each[1], confidence=0.9, prior=prior)
        assert (found.low, found.ratio, found.high) == pytest.approx((wanted.low, wanted.ratio, wanted.high))
        assert (found.df, found.method, found.confidence) == (wanted.df, wanted.method, 0.9)


def test_a_change_of_speed_moves_every_quantile_by_the_same() -> None:
    arm = blocks(np.random.default_rng(2), 5, 80)
    for q in (0.1, 0.5, 0.9, 0.99):
        found = quantile_ratio(arm, [1.05 * x for x in arm], q)
        assert (found.low, found.ratio, found.high) == pytest.approx((1.05, 1.05, 1.05))


def test_a_longer_tail_shows_in_p90_and_not_in_the_median() -> None:
    rng = np.random.default_rng(3)
    a = [np.exp(rng.normal(0, 0.03, 200)) for _ in range(8)]
    b = [np.exp(rng.normal(0, 0.03, 200)) * np.where(np.arange(200) < 30, 1.5, 1.0) for _ in range(8)]
    assert quantile_ratio(a, b, 0.9).low > 1.2 and quantile_ratio(a, b, 0.5).high < 1.05


@pytest.mark.parametrize(("q", "num", "size"), [(0.9, 4, 10), (0.9, 8, 20), (0.99, 8, 40)])
def test_intervals_cover(q: float, num: int, size: int) -> None:
    rng, trials = np.random.default_rng(4), 1000
    found = [
        quantile_ratio(blocks(rng, num, size), [1.05 * x for x in blocks(rng, num, size)], q) for _ in range(trials)
    ]
    assert 0.92 <= sum(x.low <= 1.05 <= x.high for x in found) / trials <= 0.98  # four standard errors are 2.8%
