"""Looks and steps: published bounds, an independent oracle, and simulated error rates."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from harness.sequential import STUDENT_SHARE, Looks, Spending, decide_step
from harness.stats import VariancePrior, student_t_ppf

NORMAL = NormalDist()
SPENDINGS: tuple[Spending, ...] = ("obrien-fleming", "pocock", "early")


def normal_bounds(looks: Looks) -> list[float]:
    return [-NORMAL.inv_cdf(looks.nominal_alpha(i)) for i in range(len(looks.blocks))]


def test_the_bounds_of_lan_and_demets() -> None:
    """Five equal looks, one-sided 2.5%, as the programs of Reboussin et al. (2000) and ldbounds print them."""
    published: dict[Spending, list[float]] = {
        "obrien-fleming": [4.8769, 3.3569, 2.6803, 2.2898, 2.0310],
        "pocock": [2.4380, 2.4268, 2.4101, 2.3966, 2.3859],
    }
    for spending, bounds in published.items():
        looks = Looks((2, 4, 6, 8, 10), alpha=0.025 / STUDENT_SHARE, spending=spending)
        assert normal_bounds(looks) == pytest.approx(bounds, abs=2e-4)


@pytest.mark.parametrize("spending", SPENDINGS)
@pytest.mark.parametrize("blocks", [(4, 8), (4, 8, 16), (3, 4, 10)])
def test_what_is_spent_is_what_crosses(spending: Spending, blocks: tuple[int, ...]) -> None:
    """The chance of staying below all bounds, from scipy's multivariate normal instead of our recursion."""
    looks = Looks(blocks, alpha=0.05, spending=spending)
    bounds = normal_bounds(looks)
    covariance = [[math.sqrt(min(a, b) / max(a, b)) for a in blocks] for b in blocks]
    for look in range(1, len(blocks)):
        part = slice(0, look + 1)
        normal = scipy_stats.multivariate_normal(cov=np.array(covariance)[part, part])
        assert 1 - normal.cdf(bounds[part]) == pytest.approx(looks.spent(look), abs=2e-4)
    assert looks.spent(len(blocks) - 1) == pytest.approx(0.05 * STUDENT_SHARE)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(2, 60), min_size=1, max_size=4, unique=True).map(sorted),
    st.floats(0.001, 0.2),
    st.sampled_from(SPENDINGS),
)
def test_levels_lie_between_what_the_look_adds_and_what_is_spent(
    blocks: list[int], alpha: float, spending: Spending
) -> None:
    looks = Looks(tuple(blocks), alpha, spending)
    before = 0.0
    for look in range(len(blocks)):
        spent = looks.spent(look)
        assert spent - before - 1e-6 <= looks.nominal_alpha(look) <= spent + 1e-6 <= alpha + 2e-6
        assert looks.confidence(look) == 1 - 2 * looks.nominal_alpha(look)
        before = spent


def test_one_look_spends_everything() -> None:
    assert Looks((8,), alpha=0.025).nominal_alpha(0) == pytest.approx(0.025)
    assert Looks((8,), alpha=0.025).confidence(0) == pytest.approx(0.95)


@pytest.mark.parametrize(
    "wrong",
    [{"blocks": ()}, {"blocks": (1, 4)}, {"blocks": (8, 4)}, {"blocks": (4, 4)}, {"alpha": 0.0}, {"alpha": 0.6}],
)
def test_looks_that_make_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="looks need"):
        Looks(**wrong)  # type: ignore[arg-type]


def test_unknown_spending() -> None:
    with pytest.raises(ValueError, match="unknown spending 'all'"):
        Looks(spending="all")  # type: ignore[arg-type]


@pytest.mark.parametrize("spending", SPENDINGS)
def test_looking_three_times_with_t_keeps_the_promise(spending: Spending) -> None:
    """40,000 unchanged cases of 16 blocks: false alarms at 5%, where looking without a correction makes over 8%."""
    looks, rng, num = Looks(alpha=0.05, spending=spending), np.random.default_rng(1), 40_000
    x = rng.standard_normal((num, 16))
    red, naive = np.zeros(num, bool), np.zeros(num, bool)
    for look, count in enumerate(looks.blocks):
        t = x[:, :count].mean(axis=1) / (x[:, :count].std(axis=1, ddof=1) / math.sqrt(count))
        red |= t > student_t_ppf(1 - looks.nominal_alpha(look), count - 1)
        naive |= t > student_t_ppf(0.95, count - 1)
    assert 0.04 < red.mean() < 0.0545 and naive.mean() > 0.08  # four standard errors are 0.45%


def steps(truth: float, sd: float, *, trials: int, prior: VariancePrior | None = None) -> tuple[dict[str, int], float]:
    rng, found, blocks = np.random.default_rng(0), dict.fromkeys(("good", "bad", "more"), 0), 0
    for x in rng.normal(truth, sd, (trials, 24)):
        for count in range(3, 25):
            step = decide_step(x[:count], effect=0.05, alpha=0.05, beta=0.05, prior=prior)
            if step != "more":
                break
        found[step] += 1
        blocks += count
    return found, blocks / trials


def test_easy_steps_cost_three_or_four_blocks_and_none_goes_wrong() -> None:
    for truth, answer in ((0.0, "good"), (math.log(1.05), "bad"), (math.log(1.2), "bad"), (-0.1, "good")):
        found, cost = steps(truth, math.log(1.05) / 5, trials=150)
        assert found[answer] == 150 and cost < 3.6, (truth, found, cost)


def test_hard_steps_go_wrong_no_more_often_than_they_may() -> None:
    noise = math.log(1.05)
    for prior in (None, VariancePrior(noise**2, 8.0)):
        same, _ = steps(0.0, noise, trials=400, prior=prior)
        worse, cost = steps(math.log(1.05), noise, trials=400, prior=prior)
        assert same["bad"] <= 38 and worse["good"] <= 38, (same, worse)  # 20 expected at most, sd 4.4
        assert same["good"] > 300 and worse["bad"] > 300 and cost < 13


def test_steps_without_noise_go_to_the_nearer_end() -> None:
    for shift, answer in ((0.0, "good"), (0.02, "good"), (0.03, "bad"), (0.0488, "bad"), (0.2, "bad"), (-0.2, "good")):
        assert decide_step([shift] * 3, effect=0.05, alpha=0.01, beta=0.01) == answer
    noisy = [0.02, 0.0201, 0.0199, 0.02]
    assert decide_step(noisy, effect=0.05, alpha=0.05, beta=0.05) == "good"


def test_too_few_blocks_and_too_many() -> None:
    assert decide_step([], effect=0.05, alpha=0.05, beta=0.05) == "more"
    assert decide_step([9.0, 9.0], effect=0.05, alpha=0.05, beta=0.05) == "more"
    assert decide_step([0.5, -0.5] * 12, effect=0.01, alpha=0.01, beta=0.01) == "more"
    with pytest.raises(ValueError, match="25 of at most 24"):
        decide_step([0.0] * 25, effect=0.05, alpha=0.05, beta=0.05)
    with pytest.raises(ValueError, match="effect of 0"):
        decide_step([0.0] * 3, effect=0.0, alpha=0.05, beta=0.05)
