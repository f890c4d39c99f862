"""The frontier against its definition, reading a curve, and what the picture of a trade-off shows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.figures import AxisOf, Curve, ParetoPoint, frontier, pareto, read_at
from tests.example_figures import X, Y, curve

COORDINATES = st.integers(0, 8).map(float)
DIRECTIONS = st.sampled_from(["higher", "lower"])


def beats(one: tuple[float, float], other: tuple[float, float], signs: tuple[int, int]) -> bool:
    """Better in one direction and not worse in the other."""
    gains = [sign * (a - b) for sign, a, b in zip(signs, one, other, strict=True)]
    return min(gains) >= 0 and max(gains) > 0


@given(st.lists(st.tuples(COORDINATES, COORDINATES), max_size=20), DIRECTIONS, DIRECTIONS)
def test_the_frontier_is_what_nothing_beats(points: list[tuple[float, float]], x: str, y: str) -> None:
    signs = (1 if x == "higher" else -1, 1 if y == "higher" else -1)
    expected = {k for k, point in enumerate(points) if not any(beats(other, point, signs) for other in points)}
    found = frontier(points, x, y)  # type: ignore[arg-type]
    assert set(found) == expected and len(found) == len(expected)
    assert [signs[0] * points[k][0] for k in found] == sorted((signs[0] * points[k][0] for k in found), reverse=True)


def test_a_point_that_is_no_number_is_never_on_the_frontier() -> None:
    assert frontier([(math.nan, 1.0), (1.0, math.inf), (2.0, 2.0)], "higher", "higher") == [2]
    assert frontier([], "higher", "lower") == []


def test_a_curve_is_read_between_its_points_only() -> None:
    points = Curve("a", [ParetoPoint("", x, y) for x, y in ((3.0, 30.0), (1.0, 10.0), (2.0, 12.0), (math.nan, 1.0))])
    for x in (1.0, 1.25, 2.0, 2.9, 3.0):
        assert read_at(points, x) == pytest.approx(float(np.interp(x, [1, 2, 3], [10, 12, 30])))
    assert read_at(points, 0.99) is None and read_at(points, 3.01) is None
    assert read_at(Curve("none", []), 1.0) is None


def test_the_frontier_stands_out_and_the_rest_is_faded() -> None:
    figure = pareto([curve("slow", 1.0, None), curve("fast", 0.5, None)], x=X, y=Y)
    shown = {trace["name"]: trace for trace in figure["data"]}
    assert set(shown) == {"frontier", "slow", "fast"}
    assert set(shown["fast"]["marker"]["opacity"]) == {1.0}
    assert set(shown["slow"]["marker"]["opacity"]) == {0.5}
    assert shown["frontier"]["line"]["shape"] == "hv"
    assert shown["fast"]["line"]["dash"] != shown["slow"]["line"]["dash"]
    meta = figure["layout"]["meta"]
    assert "4 of them on the frontier" in meta["summary"]
    assert [row[5] for row in meta["rows"]] == [""] * 4 + ["yes"] * 4


def test_quality_lost_is_the_one_third_dimension() -> None:
    figure = pareto([curve("reference", 1.0, 0.0), curve("quant=int4", 0.5, 0.08)], x=X, y=Y)
    inner = figure["data"][-1]
    assert inner["marker"]["showscale"] and inner["marker"]["cmax"] == 0.08
    assert inner["marker"]["color"] == [0.0] * 4 + [0.08] * 4
    assert figure["layout"]["meta"]["rows"][-1][4] == "0.08"
    assert not any("colorbar" in trace.get("marker", {}) for trace in pareto([curve("a", 1, None)], x=X, y=Y)["data"])


def test_logarithmic_axes_leave_out_what_has_no_logarithm() -> None:
    points = [ParetoPoint("none", 0.0, 1.0), ParetoPoint("one", 1.0, 1.0), ParetoPoint("two", 10.0, 5.0)]
    figure = pareto([Curve("a", points)], x=AxisOf("x", "", "lower", log=True), y=AxisOf("y", "", "higher", log=True))
    assert figure["data"][1]["x"] == [1.0, 10.0]
    assert figure["layout"]["xaxis"]["type"] == "log" and 1.0 in figure["layout"]["xaxis"]["tickvals"]
    assert len(figure["layout"]["meta"]["rows"]) == 3


def test_names_on_the_frontier_keep_their_distance() -> None:
    figure = pareto([curve("a", 1.0, None, count=10)], x=X, y=Y)
    notes = figure["layout"]["annotations"][1:]
    assert 2 <= len(notes) <= 8 and notes[0]["text"] == "batch=1"
