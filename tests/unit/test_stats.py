"""The statistics, against scipy, textbook tables, and machines whose truth is known because we made them up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import special
from scipy import stats as scipy_stats

from harness.stats import (
    BCA_MIN_BLOCKS,
    Estimate,
    VariancePrior,
    bca_interval,
    independent_log_ratio,
    median,
    minimum_detectable_effect,
    noise,
    paired_log_ratio,
    quantile,
    sign_flip_p_value,
    student_t_cdf,
    student_t_ppf,
    typical_interval,
    variance_prior,
    verdict,
)

Array = NDArray[np.float64]
POSITIVE = st.floats(1e-6, 1e6)


def estimate(
    ratio: float, low: float, high: float, *, sd: float = 0.01, df: float = 5.0, num_blocks: int = 6
) -> Estimate:
    return Estimate(ratio, low, high, 0.95, num_blocks, sd, df, "t")


# t with 97.5% and 99.5% below it, from the tables in any textbook.
TABLE: dict[float, tuple[float, float]] = {
    1: (12.706, 63.657),
    2: (4.303, 9.925),
    3: (3.182, 5.841),
    5: (2.571, 4.032),
    10: (2.228, 3.169),
}
TABLE |= {30: (2.042, 2.750), 120: (1.980, 2.617), math.inf: (1.960, 2.576)}


@pytest.mark.parametrize("df", TABLE)
def test_t_agrees_with_the_tables(df: float) -> None:
    assert [round(student_t_ppf(p, df), 3) for p in (0.975, 0.995)] == list(TABLE[df])


DFS = [0.3, 1.0, 1.5, 2.0, 3.0, 4.7, 7.0, 13.0, 29.0, 79.0, 81.0, 500.0, 1e4, 1e6, 1.1e6, 1e9]


@pytest.mark.parametrize("df", DFS)
def test_t_agrees_with_scipy(df: float) -> None:
    for p in (1e-9, 1e-4, 0.005, 0.025, 0.1, 0.3, 0.49, 0.5, 0.51, 0.8, 0.975, 0.9995):
        assert student_t_ppf(p, df) == pytest.approx(special.stdtrit(df, p), rel=1e-9, abs=1e-12)
    for t in (-300.0, -8.0, -2.5, -1.0, -1e-3, 0.0, 1e-6, 0.2, 1.0, 1.9, 4.0, 37.0):
        assert student_t_cdf(t, df) == pytest.approx(float(scipy_stats.t.cdf(t, df)), rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.floats(0.001, 0.999), st.floats(0.5, 1e6))
def test_t_quantile_inverts_the_distribution(p: float, df: float) -> None:
    t = student_t_ppf(p, df)
    assert student_t_cdf(t, df) == pytest.approx(p, rel=1e-9)
    assert student_t_ppf(1 - p, df) == pytest.approx(-t, rel=1e-8, abs=1e-11)


def test_t_refuses_what_has_no_meaning() -> None:
    for p, df in ((0.0, 3.0), (1.0, 3.0), (0.5, 0.0)):
        with pytest.raises(ValueError):
            student_t_ppf(p, df)
    with pytest.raises(ValueError):
        student_t_cdf(0.0, -1)
    with pytest.raises(ValueError):
        student_t_cdf(0.0, math.nan)


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=30), st.floats(0, 1))
def test_quantile_is_numpys(values: list[float], q: float) -> None:
    assert quantile(values, q) == pytest.approx(float(np.quantile(values, q)), rel=1e-12, abs=1e-6)
    assert median(values) == pytest.approx(float(np.median(values)), rel=1e-12, abs=1e-6)


def test_quantile_of_odd_values() -> None:
    assert quantile([1, 2, 3, 4], 0.5) == 2.5 and quantile([1, 2, 3, 4], 0.9) == pytest.approx(3.7)
    assert quantile([math.inf, math.inf], 0.3) == math.inf and math.isnan(quantile([1.0, math.nan], 0.0))
    for values, q in (([], 0.5), ([1.0], 1.5)):
        with pytest.raises(ValueError):
            quantile(values, q)


def test_noise_is_robust_and_relative() -> None:
    values = np.random.default_rng(0).normal(50.0, 1.0, 20_000)
    assert noise(values) == pytest.approx(0.02, rel=0.03)
    values[:2000] *= 10
    assert noise(values) == pytest.approx(0.02, rel=0.2)
    assert noise([3.0, 3.0]) == 0.0 and math.isnan(noise([0.0, 0.0])) and math.isnan(noise([math.inf]))


def test_typical_interval() -> None:
    values = [1.0, 1.1, 0.9, 1.05]
    logs = scipy_stats.t.interval(0.95, 3, np.mean(np.log(values)), scipy_stats.sem(np.log(values)))
    assert typical_interval(values) == pytest.approx(np.exp(logs))
    assert typical_interval([-1.0, 1.0, 2.0]) == pytest.approx(
        scipy_stats.t.interval(0.95, 2, 2 / 3, scipy_stats.sem([-1, 1, 2]))
    )
    assert typical_interval([2.0, 2.0]) == (2.0, 2.0)
    assert all(map(math.isnan, typical_interval([1.0]))) and all(map(math.isnan, typical_interval([1.0, math.inf])))
    skewed = [1.0] * 90 + [100.0] * 60
    low, high = typical_interval(skewed)
    assert low <= median(skewed) <= high


def test_paired_ratio_is_the_t_interval_of_the_logs() -> None:
    a, b = [1.0, 1.1, 0.95, 1.02], [1.2, 1.25, 1.18, 1.21]
    d = np.log(np.array(b) / np.array(a))
    found = paired_log_ratio(a, b, confidence=0.9)
    low, high = scipy_stats.ttest_1samp(d, 0).confidence_interval(0.9)
    assert (found.ratio, found.low, found.high) == pytest.approx((math.exp(d.mean()), math.exp(low), math.exp(high)))
    assert (found.num_blocks, found.df, found.method) == (4, 3, "t") and found.sd == pytest.approx(d.std(ddof=1))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(POSITIVE, POSITIVE), min_size=2, max_size=8), st.floats(0.01, 100))
def test_swapping_the_arms_inverts_and_units_do_not_matter(pairs: list[tuple[float, float]], unit: float) -> None:
    a, b = [p[0] for p in pairs], [p[1] for p in pairs]
    one, other = paired_log_ratio(a, b), paired_log_ratio([x * unit for x in b], [x * unit for x in a])
    logs = [math.log(x) if x > 0 else x for x in (one.ratio, one.low, one.high)]
    swapped = [-math.log(x) if x > 0 else -x for x in (other.ratio, other.high, other.low)]
    assert one.low <= one.ratio <= one.high
    if all(map(math.isfinite, logs)) and one.low > 0 and other.low > 0 and one.high < 1e300 and other.high < 1e300:
        assert logs == pytest.approx(swapped, rel=1e-6, abs=1e-9)


def test_one_block_and_no_noise() -> None:
    one = paired_log_ratio([2.0], [3.0])
    assert (
        one.ratio == pytest.approx(1.5) and (one.low, one.high, one.df) == (0.0, math.inf, 0.0) and math.isnan(one.sd)
    )
    helped = paired_log_ratio([2.0], [3.0], prior=VariancePrior(0.01**2, 10.0))
    assert math.log(helped.high / helped.ratio) == pytest.approx(scipy_stats.t.ppf(0.975, 10) * 0.01)
    for prior in (None, VariancePrior(0.01, 10.0)):
        same = paired_log_ratio([3.0, 7.0], [1.5, 3.5], prior=prior)
        assert (same.ratio, same.low, same.high, same.sd) == (0.5, 0.5, 0.5, 0.0)


def test_values_that_have_no_ratio_are_named() -> None:
    for bad, text in ((0.0, "0"), (-1.0, "-1"), (math.nan, "nan"), (math.inf, "inf")):
        with pytest.raises(ValueError, match=rf"candidate\[1\] = {text}"):
            paired_log_ratio([1.0, 1.0], [1.0, bad])
        with pytest.raises(ValueError, match=rf"reference\[0\] = {text}"):
            independent_log_ratio([bad, 1.0], [1.0])
    with pytest.raises(ValueError, match="2 of the reference, 1 of the candidate"):
        paired_log_ratio([1.0, 1.0], [1.0])
    with pytest.raises(ValueError, match="candidate has none"):
        paired_log_ratio([], [])


def test_independent_ratio_is_welchs() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.lognormal(0, 0.02, 6), rng.lognormal(0.1, 0.08, 9)
    found = independent_log_ratio(a, b)
    test = scipy_stats.ttest_ind(np.log(b), np.log(a), equal_var=False)
    low, high = test.confidence_interval(0.95)
    assert (found.low, found.high, found.df) == pytest.approx((math.exp(low), math.exp(high), test.df))
    half = student_t_ppf(0.975, found.df) * found.sd / math.sqrt(found.num_blocks)
    assert half == pytest.approx(math.log(found.high / found.ratio))
    assert independent_log_ratio([1.0], [2.0, 2.1]).high == math.inf
    same = independent_log_ratio([4.0, 4.0], [4.0, 4.0, 4.0])
    assert (same.low, same.ratio, same.high) == (1.0, 1.0, 1.0)


def test_prior_finds_the_distribution_that_variances_came_from() -> None:
    rng = np.random.default_rng(0)
    truth = 0.02**2 * 6 / rng.chisquare(6, 5000)
    sampled = truth * rng.chisquare(5, 5000) / 5
    prior = variance_prior(sampled.tolist(), [5.0] * 5000)
    assert (
        prior is not None
        and prior.df == pytest.approx(6.0, rel=0.1)
        and prior.variance == pytest.approx(4e-4, rel=0.05)
    )
    alike = variance_prior((4e-4 * rng.chisquare(5, 5000) / 5).tolist(), [5.0] * 5000)
    assert alike is not None and alike.df == 10.0 and alike.variance == pytest.approx(4e-4, rel=0.05)


def test_prior_needs_three_noisy_cases() -> None:
    assert variance_prior([], []) is None
    assert variance_prior([1.0, 2.0, 0.0, math.nan, 3.0], [3.0, 3.0, 3.0, 3.0, 0.0]) is None
    equal = variance_prior([2.0, 2.0, 2.0, 0.0], [3.0] * 4)
    assert equal is not None and equal.df == 6.0 and math.isfinite(equal.variance)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1e-9, 1e3), min_size=3, max_size=12), st.floats(1.0, 30.0))
def test_prior_is_finite_and_positive(variances: list[float], df: float) -> None:
    prior = variance_prior(variances, [df] * len(variances))
    assert prior is not None and 0 < prior.df <= 2 * df and 0 < prior.variance < math.inf


def test_a_prior_widens_a_lucky_case_and_never_shrinks_a_noisy_one() -> None:
    reference, prior = [1.0] * 5, VariancePrior(0.01**2, 8.0)
    lucky = [1.0001, 1.0, 0.9999, 1.0, 1.0001]
    noisy = [1.0, 1.08, 0.95, 1.1, 0.9]
    alone, helped = paired_log_ratio(reference, lucky), paired_log_ratio(reference, lucky, prior=prior)
    assert helped.high / helped.low > alone.high / alone.low and helped.method == "moderated t" and helped.df == 12.0
    assert paired_log_ratio(reference, noisy, prior=prior) == paired_log_ratio(reference, noisy)


def test_bca_agrees_with_scipy() -> None:
    for seed, n in ((1, 25), (2, 40), (3, 120)):
        x = np.random.default_rng(seed).exponential(1.0, n)
        wide: Any = {"n_resamples": 40_000, "method": "BCa", "rng": np.random.default_rng(0)}
        expected = scipy_stats.bootstrap((x,), np.mean, vectorized=True, batch=4000, **wide).confidence_interval
        assert bca_interval(x, num_resamples=40_000) == pytest.approx((expected.low, expected.high), rel=0.01)
    assert bca_interval(x, seed=1) == bca_interval(x, seed=1) != bca_interval(x, seed=2)
    assert bca_interval([2.0, 2.0, 2.0]) == (2.0, 2.0)


def test_many_blocks_are_bootstrapped() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.lognormal(0, 0.02, (2, BCA_MIN_BLOCKS))
    assert paired_log_ratio(a, b).method == "bca" and paired_log_ratio(a[1:], b[1:]).method == "t"
    both = paired_log_ratio(a, b), paired_log_ratio(a, b, method="t")
    limits = bca_interval(np.log(b / a), expand=True)
    assert (both[0].low, both[0].high) == pytest.approx(tuple(map(math.exp, limits)), rel=1e-12)
    assert both[0].low == pytest.approx(both[1].low, rel=0.01) and both[0].high == pytest.approx(both[1].high, rel=0.01)


def test_bootstrapped_intervals_cover() -> None:
    rng, hits, trials = np.random.default_rng(0), {True: 0, False: 0}, 800
    for _ in range(trials):
        x = rng.normal(0.0, 1.0, 20)
        for expand in hits:
            low, high = bca_interval(x, expand=expand, num_resamples=999)
            hits[expand] += low <= 0.0 <= high
    assert hits[True] / trials > 0.935 > hits[False] / trials, hits  # the plain one is what `expand` is for


def test_sign_flip() -> None:
    assert sign_flip_p_value([1.0, 1.0, 1.0, 1.0, 1.0, 1.0]) == 2 / 64
    assert sign_flip_p_value([1.0, -1.0]) == 1.0
    x = np.random.default_rng(1).normal(0.5, 1.0, 14)
    wide: Any = {"permutation_type": "samples", "n_resamples": 2**14, "vectorized": True}
    expected = scipy_stats.permutation_test((x,), lambda x, axis: np.mean(x, axis=axis), **wide).pvalue
    assert sign_flip_p_value(x) == pytest.approx(expected)
    y = np.random.default_rng(1).normal(0.4, 1.0, 30)
    assert sign_flip_p_value(y) == pytest.approx(float(scipy_stats.ttest_1samp(y, 0).pvalue), abs=0.01)


@pytest.mark.parametrize(
    ("ratio", "low", "high", "higher", "lower"),
    [
        (1.05, 1.02, 1.08, "improved", "regressed"),
        (0.95, 0.93, 0.98, "regressed", "improved"),
        (1.0, 0.995, 1.005, "equivalent", "equivalent"),
        (1.0, 1.0, 1.0, "equivalent", "equivalent"),
        (1.02, 1.005, 1.03, "inconclusive", "inconclusive"),
        (1.0, 0.9, 1.1, "inconclusive", "inconclusive"),
        (1.005, 1.0, 1.0099, "equivalent", "equivalent"),
        (1.0, 0.0, math.inf, "inconclusive", "inconclusive"),
    ],
)
def test_verdicts(ratio: float, low: float, high: float, higher: str, lower: str) -> None:
    found = estimate(ratio, low, high)
    assert verdict(found, margin=0.01, better="higher").name == higher
    assert verdict(found, margin=0.01, better="lower").name == lower
    neither = verdict(found, margin=0.01, better="neither")
    assert neither.name == ("equivalent" if higher == "equivalent" else "inconclusive")
    assert f"{ratio:.4g}" in neither.reason


def test_a_margin_of_zero_is_for_exact_numbers() -> None:
    assert verdict(estimate(1.0, 1.0, 1.0, sd=0.0), margin=0.0, better="lower").name == "equivalent"
    assert verdict(estimate(1.0001, 1.0001, 1.0001, sd=0.0), margin=0.0, better="lower").name == "regressed"


def test_invalid() -> None:
    assert verdict(None, margin=0.01, better="lower").reason == "nothing was measured"
    found = verdict(estimate(2.0, 1.9, 2.1), margin=0.01, better="lower", invalid="a busy neighbour")
    assert (found.name, found.reason) == ("invalid", "a busy neighbour")
    assert verdict(estimate(math.nan, 1, 1), margin=0.01, better="lower").name == "invalid"


def test_one_block_decides_nothing() -> None:
    found = verdict(paired_log_ratio([1.0], [9.0]), margin=0.01, better="lower")
    assert (found.name, found.minimum_detectable_effect, found.blocks_to_decide) == ("inconclusive", math.inf, None)
    assert "one block" in found.reason


@settings(max_examples=80, deadline=None)
@given(st.floats(-0.2, 0.2), st.floats(0.001, 0.1), st.integers(2, 12), st.sampled_from([0.0, 6.0]))
def test_blocks_to_decide_is_the_fewest_that_would(shift: float, sd: float, num_blocks: int, lent: float) -> None:
    def of(blocks: int) -> Estimate:
        half = student_t_ppf(0.975, blocks - 1 + lent) * sd / math.sqrt(blocks)
        return estimate(
            *map(math.exp, (shift, shift - half, shift + half)), sd=sd, df=blocks - 1 + lent, num_blocks=blocks
        )

    found = verdict(of(num_blocks), margin=0.01, better="lower")
    if found.name == "inconclusive" and found.blocks_to_decide is not None:
        assert found.blocks_to_decide > num_blocks and str(found.blocks_to_decide) in found.reason
        assert verdict(of(found.blocks_to_decide), margin=0.01, better="lower").name != "inconclusive"
        if found.blocks_to_decide > num_blocks + 1:
            assert verdict(of(found.blocks_to_decide - 1), margin=0.01, better="lower").name == "inconclusive"


def arms(
    rng: np.random.Generator, shape: tuple[int, ...], *, process_sd: float, effect: float = 1.0
) -> tuple[Array, Array]:
    """Block medians of a reference and a candidate `effect` times it, as MEASURING section 3 assumes.

    Two turns per arm and block (ABBA) of ten iterations each; a fresh process each with its own speed; drift of 0.6%
    from turn to turn (a random walk that ABBA cancels only in part); iterations of 1%, one in twenty 10 to 50% slow.
    """
    process = rng.normal(0.0, process_sd, (2, *shape, 1, 1))
    drift = np.cumsum(rng.normal(0.0, 0.006, (*shape, 4)), axis=-1)
    turns = np.stack([drift[..., [0, 3]], drift[..., [1, 2]]])[..., None]
    noise_ = rng.normal(0.0, 0.01, (2, *shape, 2, 10))
    slow = (rng.random(noise_.shape) < 0.05) * rng.uniform(0.1, 0.5, noise_.shape)
    y = (process + turns + noise_ + slow).reshape(2, *shape, 20)
    medians = np.exp(np.median(y, axis=-1))
    return medians[0], medians[1] * effect


def rates(a: Array, b: Array, *, effect: float = 1.0, moderated: bool = False) -> dict[str, float]:
    """Shares of verdicts and of intervals that hold the truth; `a`, `b` are suites x cases x blocks."""
    count = dict.fromkeys(("improved", "regressed", "equivalent", "inconclusive", "covered"), 0)
    for suite_a, suite_b in zip(a, b, strict=True):
        prior = None
        if moderated:
            d = np.log(suite_b / suite_a)
            prior = variance_prior(d.var(axis=1, ddof=1).tolist(), [d.shape[1] - 1.0] * len(d))
        for case_a, case_b in zip(suite_a, suite_b, strict=True):
            found = paired_log_ratio(case_a, case_b, prior=prior)
            count[verdict(found, margin=0.01, better="lower").name] += 1
            count["covered"] += found.low <= effect <= found.high
    return {name: value / (a.shape[0] * a.shape[1]) for name, value in count.items()}


@pytest.mark.parametrize("moderated", [False, True])
@pytest.mark.parametrize("num_blocks", [4, 6, 8])
def test_unchanged_code_stays_green_and_a_slowdown_shows(num_blocks: int, moderated: bool) -> None:
    rng = np.random.default_rng(num_blocks)
    shape = (125, 8, num_blocks)
    same = rates(*arms(rng, shape, process_sd=0.008), moderated=moderated)
    assert same["improved"] + same["regressed"] < 0.01, same
    assert 0.93 <= same["covered"] <= (0.99 if moderated else 0.97), same  # 1000 trials: 95% +- 1.7%
    slower = rates(*arms(rng, (50, 8, num_blocks), process_sd=0.008, effect=1.05), effect=1.05, moderated=moderated)
    least = {4: 0.75, 6: 0.99, 8: 0.99}[num_blocks]
    assert slower["regressed"] > least and slower["improved"] == 0.0, slower


@pytest.mark.parametrize("moderated", [False, True])
def test_a_noisy_machine_raises_no_more_false_alarms_than_it_may(moderated: bool) -> None:
    rng = np.random.default_rng(0)
    same = rates(*arms(rng, (125, 8, 6), process_sd=0.03), moderated=moderated)
    assert same["improved"] + same["regressed"] < 0.05 and same["covered"] > 0.935, same


def test_one_noisy_case_among_quiet_ones_keeps_its_own_interval() -> None:
    rng = np.random.default_rng(0)
    quiet, noisy = arms(rng, (400, 9, 6), process_sd=0.008), arms(rng, (400, 1, 6), process_sd=0.05)
    a, b = (np.concatenate(pair, axis=1) for pair in zip(quiet, noisy, strict=True))
    alarms = covered = 0
    for suite_a, suite_b in zip(a, b, strict=True):
        d = np.log(suite_b / suite_a)
        prior = variance_prior(d.var(axis=1, ddof=1).tolist(), [5.0] * 10)
        found = paired_log_ratio(suite_a[9], suite_b[9], prior=prior)
        covered += found.low <= 1.0 <= found.high
        alarms += verdict(found, margin=0.01, better="lower").name in ("improved", "regressed")
    assert covered >= 0.92 * 400 and alarms <= 0.06 * 400, (covered, alarms)


def test_minimum_detectable_effect_is_detected_four_times_in_five() -> None:
    rng, num_blocks, sd = np.random.default_rng(0), 6, 0.012
    effect = minimum_detectable_effect(estimate(1, 1, 1, sd=sd, df=5, num_blocks=6), margin=0.01)
    d: Sequence[Array] = rng.normal(math.log1p(effect), sd, (2000, num_blocks))  # type: ignore[assignment]
    found = [paired_log_ratio(np.ones(num_blocks), np.exp(x)) for x in d]
    shown = sum(verdict(x, margin=0.01, better="lower").name == "regressed" for x in found) / 2000
    assert 0.74 < shown < 0.86, shown
