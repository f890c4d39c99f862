"""P-values beside the verdicts, and what a number of blocks can detect: scipy, simulation, and each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from harness.core import Better
from harness.stats import (
    Estimate,
    blocks_for,
    equivalence_p_value,
    p_value_beyond,
    p_value_within,
    paired_log_ratio,
    supported_effect,
    verdict,
)


def test_p_values_are_scipys() -> None:
    d = np.array([0.03, 0.05, 0.02, 0.06, 0.04])
    found = paired_log_ratio(np.ones(5), np.exp(d))
    shifted = d - math.log(1.01)
    greater, less = (float(scipy_stats.ttest_1samp(shifted, 0, alternative=a).pvalue) for a in ("greater", "less"))
    assert p_value_beyond(found, margin=0.01, better="lower") == pytest.approx(greater)
    assert p_value_beyond(found, margin=0.01, better="higher", side="better") == pytest.approx(greater)
    assert p_value_within(found, limit=0.01, better="lower") == pytest.approx(less)
    other = float(scipy_stats.ttest_1samp(d + math.log(1.01), 0, alternative="less").pvalue)
    assert p_value_beyond(found, margin=0.01, better="higher") == pytest.approx(other)
    assert equivalence_p_value(found, margin=0.1) == pytest.approx(
        max(
            float(scipy_stats.ttest_1samp(d - math.log(1.1), 0, alternative="less").pvalue),
            float(scipy_stats.ttest_1samp(d + math.log(1.1), 0, alternative="greater").pvalue),
        )
    )


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([2, 4, 8, 30]), st.floats(-0.1, 0.1), st.sampled_from([0.0, 1e-3, 0.03]))
def test_p_values_and_verdicts_agree(seed: int, num_blocks: int, shift: float, sd: float) -> None:
    d = np.random.default_rng(seed).normal(shift, sd, num_blocks)
    found = paired_log_ratio(np.ones(num_blocks), np.exp(d))
    sides: list[Better] = ["lower", "higher"]
    for better in sides:
        name = verdict(found, margin=0.02, better=better).name
        assert (p_value_beyond(found, margin=0.02, better=better) < 0.025) == (name == "regressed")
        assert (p_value_beyond(found, margin=0.02, better=better, side="better") < 0.025) == (name == "improved")
        assert (equivalence_p_value(found, margin=0.02) < 0.025) == (name == "equivalent")
        inside = found.high < 1.03 if better == "lower" else found.low > 1 / 1.03
        assert (p_value_within(found, limit=0.03, better=better) < 0.025) == inside


def test_what_cannot_be_tested() -> None:
    found = paired_log_ratio([1.0, 1.0], [1.2, 1.3])
    assert math.isnan(p_value_beyond(found, margin=0.01, better="neither"))
    assert math.isnan(p_value_within(found, limit=0.01, better="neither"))
    one = paired_log_ratio([1.0], [2.0])
    assert p_value_beyond(one, margin=0.01, better="lower") == 1.0 == equivalence_p_value(one, margin=0.01)


def test_numbers_without_noise_are_certain() -> None:
    same = Estimate(1.0, 1.0, 1.0, 0.95, 4, 0.0, 3.0, "t")
    more = Estimate(1.02, 1.02, 1.02, 0.95, 4, 0.0, 3.0, "t")
    assert p_value_beyond(same, margin=0.0, better="lower") == 1.0 and equivalence_p_value(same, margin=0.0) == 0.0
    assert p_value_beyond(more, margin=0.01, better="lower") == 0.0 and equivalence_p_value(more, margin=0.01) == 1.0
    assert p_value_within(more, limit=0.02, better="lower") == 0.0 and p_value_within(more, limit=0.01, better="lower")


@pytest.mark.parametrize("blocks", [2, 4, 8, 30, 400])
@pytest.mark.parametrize(("alpha", "power"), [(0.025, 0.8), (0.001, 0.95), (0.05, 0.99)])
def test_power_is_that_of_the_noncentral_t(blocks: int, alpha: float, power: float) -> None:
    effect = supported_effect(0.02, blocks, margin=0.01, alpha=alpha, power=power)
    shift = (math.log1p(effect) - math.log(1.01)) / 0.02 * math.sqrt(blocks)
    found = scipy_stats.nct.sf(scipy_stats.t.isf(alpha, blocks - 1), blocks - 1, shift)
    assert found == pytest.approx(power, abs=0.002)


def test_supported_effects_are_found_that_often() -> None:
    rng, effect = np.random.default_rng(0), supported_effect(0.02, 6, margin=0.01, alpha=0.025, power=0.9)
    d = rng.normal(math.log1p(effect), 0.02, (2000, 6))
    found = [p_value_beyond(paired_log_ratio(np.ones(6), np.exp(x)), margin=0.01, better="lower") for x in d]
    assert 0.87 < np.mean(np.array(found) < 0.025) < 0.93  # four standard errors are 2.7%


@settings(max_examples=30, deadline=None)
@given(st.floats(0.015, 0.3), st.floats(0.002, 0.1), st.sampled_from([0.0, 6.0]))
def test_blocks_for_is_the_fewest_that_support_it(effect: float, sd: float, lent: float) -> None:
    blocks = blocks_for(effect, sd, margin=0.01, alpha=0.025, power=0.8, lent=lent)
    if blocks is None:
        blocks = 10_001
    else:
        assert supported_effect(sd, blocks, margin=0.01, alpha=0.025, power=0.8, df=blocks - 1 + lent) <= effect
    if blocks > 2:
        assert supported_effect(sd, blocks - 1, margin=0.01, alpha=0.025, power=0.8, df=blocks - 2 + lent) > effect


def test_effects_that_no_number_of_blocks_shows() -> None:
    assert blocks_for(0.01, 0.02, margin=0.01, alpha=0.025, power=0.8) is None
    assert blocks_for(0.0101, 0.5, margin=0.01, alpha=0.025, power=0.8) is None
    assert supported_effect(0.02, 1, margin=0.01, alpha=0.025, power=0.8) == math.inf
    assert supported_effect(0.0, 4, margin=0.01, alpha=0.025, power=0.8) == pytest.approx(0.01)
    assert supported_effect(0.02, 1, margin=0.0, alpha=0.025, power=0.8, df=math.inf) == pytest.approx(
        math.expm1(0.02 * (1.959964 + 0.841621)), rel=1e-5
    )
    for wrong in ({"sd": -1.0}, {"margin": -0.1}, {"blocks": 0}, {"alpha": 0.0}, {"power": 1.0}):
        with pytest.raises(ValueError, match=r"no effect|alpha and power"):
            supported_effect(**{"sd": 0.02, "blocks": 4, "margin": 0.01, "alpha": 0.025, "power": 0.8} | wrong)  # type: ignore[arg-type]
