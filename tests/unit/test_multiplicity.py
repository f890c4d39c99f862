"""Holm and Benjamini-Hochberg: textbook numbers, scipy, the laws they obey, and simulated families."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from harness.multiplicity import benjamini_hochberg, holm

P_VALUES = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=30)
# The fifteen p-values of section 3.2 of Benjamini and Hochberg (1995): four rejected at 5%, three by Bonferroni.
PAPER = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590]
PAPER += [1.0000]


def test_the_example_of_benjamini_and_hochberg() -> None:
    assert sum(p <= 0.05 for p in benjamini_hochberg(PAPER)) == 4
    assert sum(p <= 0.05 for p in holm(PAPER)) == 3
    assert benjamini_hochberg(PAPER) == pytest.approx(scipy_stats.false_discovery_control(PAPER))


def test_holm_by_hand() -> None:
    # Sorted: 0.005, 0.011, 0.02, 0.04, 0.13 times 5, 4, 3, 2, 1, never falling.
    assert holm([0.13, 0.011, 0.04, 0.005, 0.02]) == pytest.approx([0.13, 0.044, 0.08, 0.025, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == [] == benjamini_hochberg([])


@settings(max_examples=80, deadline=None)
@given(P_VALUES)
def test_laws(p_values: list[float]) -> None:
    order = list(np.random.default_rng(len(p_values)).permutation(len(p_values)))
    for rule in (holm, benjamini_hochberg):
        found = rule(p_values)
        assert all(p <= a <= 1.0 for p, a in zip(p_values, found, strict=True))
        ranked = [a for _, a in sorted(zip(p_values, found, strict=True))]
        assert ranked == sorted(ranked)  # the smaller p-value never has the larger adjusted one
        assert rule([p_values[i] for i in order]) == [found[i] for i in order]
        assert [a for a in rule([*p_values, math.nan]) if not math.isnan(a)] == found
    both = zip(benjamini_hochberg(p_values), holm(p_values), strict=True)
    assert all(a <= b * (1 + 1e-12) for a, b in both)
    assert benjamini_hochberg(p_values) == pytest.approx(scipy_stats.false_discovery_control(p_values))


def test_a_test_that_was_not_made_stays_out() -> None:
    found = holm([0.02, math.nan, 0.04])
    assert found[0] == 0.04 and math.isnan(found[1]) and found[2] == 0.04
    assert all(map(math.isnan, benjamini_hochberg([math.nan, math.nan])))
    for bad in (-0.1, 1.1, math.inf):
        with pytest.raises(ValueError, match="lie in 0"):
            holm([0.5, bad])


def test_families_keep_their_promise() -> None:
    """2,000 families of 20 correlated tests: 15 without an effect, five with one."""
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((2000, 1))
    z = math.sqrt(0.3) * shared + math.sqrt(0.7) * rng.standard_normal((2000, 20))
    z[:, 15:] += 3.5
    p = scipy_stats.norm.sf(z)
    any_false = false_share = raw = 0.0
    for row in p:
        any_false += any(a <= 0.05 for a in holm(row)[:15])
        raw += any(x <= 0.05 for x in row[:15])
        red = [a <= 0.05 for a in benjamini_hochberg(row)]
        false_share += sum(red[:15]) / max(sum(red), 1)
    # Four standard errors of a share of 5% over 2,000 families are 2%.
    assert any_false / 2000 <= 0.07 and false_share / 2000 <= 0.07 and raw / 2000 > 0.25
