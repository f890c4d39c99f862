"""Numbers as people read them, and the ticks of ratio axes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.figures.numbers import (
    change_text,
    log_axis,
    measured,
    number,
    ratio_axis,
    ratio_range,
    ratio_text,
    ratio_ticks,
    scale_for,
)


def test_a_value_has_as_many_digits_as_its_interval_justifies() -> None:
    assert measured(0.01234, 0.0121, 0.0125, "s") == "12.34 ms [12.10, 12.50]"
    assert measured(0.01234, 0.01, 0.02, "s") == "12.3 ms [10.0, 20.0]"
    assert measured(55.123, 54.9, 55.4, "tokens/s") == "55.12 tok/s [54.90, 55.40]"
    assert measured(0.5, 0.4, 0.6, "ratio") == "50% [40, 60]"
    assert measured(3 * 2**30, 2.9 * 2**30, 3.1 * 2**30, "bytes") == "3.00 GiB [2.90, 3.10]"


@pytest.mark.parametrize("bounds", [(None, None), (math.nan, 0.02), (0.01, None), (0.01, 0.01)])
def test_without_an_interval_it_is_the_number_of_the_terminal(bounds: tuple[float | None, float | None]) -> None:
    assert measured(0.01234, *bounds, "s") == "12.34 ms"


def test_no_number_loses_its_unit() -> None:
    assert number(2.1e11, "FLOP/s") == "210 GFLOP/s"
    assert number(0.002, "J") == "2 mJ"
    assert number(3.5, "nats/token") == "3.5 nats/token"
    assert number(7, "count") == "7"
    assert number(math.inf, "s") == number(None, "s") == "-"


def test_one_scale_serves_a_whole_axis() -> None:
    scale = scale_for([0.0005, 0.02, None, math.nan], "s")
    assert (scale.unit, scale.of(0.02), scale.of(None), scale.of(math.inf)) == ("ms", 20, None, None)
    assert scale_for([], "s").unit == scale_for([0.0], "s").unit == "s"
    assert scale_for([5.0], "furlong").unit == "furlong"


def test_ratios_and_changes() -> None:
    assert ratio_text(1.1372, 1.12, 1.154) == "1.137× [1.120, 1.154]"
    assert ratio_text(1.0021, 0.999, 1.005) == "1.0021× [0.9990, 1.0050]"
    assert ratio_text(2.5, 0.0, math.inf) == "2.500× [0, ∞]"
    assert ratio_text(1.1372) == "1.14×" and ratio_text(1.0021) == "1.002×"
    assert ratio_text(None) == ratio_text(math.nan) == change_text(math.nan) == "-"
    assert (change_text(1.0742), change_text(0.95), change_text(1.0004)) == ("+7.4%", "−5.0%", "+0.04%")


@pytest.mark.parametrize(
    ("ends", "ticks"),
    [
        ((0.75, 1.3), [0.8, 0.9, 1, 1.1, 1.25]),
        ((0.4, 2.2), [0.5, 1, 2]),
        ((0.984, 1.012), [0.985, 0.99, 0.995, 1, 1.005, 1.01]),
        ((0.08, 6), [0.1, 0.2, 0.5, 1, 2, 5]),
    ],
)
def test_ticks_of_a_ratio_axis_are_round(ends: tuple[float, float], ticks: list[float]) -> None:
    assert ratio_ticks(*ends) == ticks


@given(st.floats(1e-4, 0.9999), st.floats(1.0001, 1e4))
def test_a_ratio_axis_holds_one_and_few_ticks(low: float, high: float) -> None:
    ends = ratio_range([low, high])
    axis = ratio_axis(ends)
    assert ends[0] < low < 1 < high < ends[1]
    assert 1 in axis["tickvals"] and len(axis["tickvals"]) <= 6
    assert axis["type"] == "log" and axis["ticktext"][axis["tickvals"].index(1)] == "1×"


def test_many_long_ticks_are_named_by_turns() -> None:
    axis = ratio_axis((0.984, 1.012))
    assert len(axis["tickvals"]) == 6
    assert axis["ticktext"] == ["", "0.99×", "", "1×", "", "1.01×"]


def test_a_wide_interval_does_not_squash_the_rest() -> None:
    low, high = ratio_range([0.98, 1.05], [1e-9, 1e9, None, math.inf, 0.97, 1.06])
    assert low > 0.8 and high < 1.3


@given(st.floats(1e-6, 1e6), st.floats(1.01, 1e8))
def test_a_logarithmic_axis_has_ticks_within_its_ends(low: float, factor: float) -> None:
    axis = log_axis((low, low * factor))
    assert all(low * 0.999 <= tick <= low * factor * 1.001 for tick in axis["tickvals"])
    assert len(axis["tickvals"]) <= 16
