"""Trends, scaling, losses, samples: gaps, levels, fitted lines and what stands in their captions."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from xml.etree import ElementTree

import pytest
from scipy import stats

from reports import palette
from reports.figures import (
    Change,
    Figure,
    LossCurve,
    Mark,
    RawSeries,
    ScalingLine,
    TrendPoint,
    ecdf,
    fit_line,
    losses,
    scaling,
    sparkline,
    strip,
    trend,
)
from tests.example_figures import trend_points


def trace(figure: Figure, name: str) -> Figure:
    """The first trace of a name."""
    return next(found for found in figure["data"] if found["name"] == name)


def test_a_new_segment_starts_after_a_gap() -> None:
    points = [replace(point, segment=number // 3) for number, point in enumerate(trend_points(6))]
    figure = trend(points, title="tps", unit="tokens/s")
    median = trace(figure, "median")
    assert median["x"] == [0, 1, 2, None, 3, 4, 5]
    assert median["y"][3] is None and median["connectgaps"] is False
    assert [shape["x0"] for shape in figure["layout"]["shapes"]] == [2.5]
    assert "versions or settings changed (1)" in figure["layout"]["meta"]["summary"]
    assert "Dotted" not in trend(trend_points(6), title="tps", unit="tokens/s")["layout"]["meta"]["summary"]


def test_a_point_without_a_value_is_a_gap_and_is_counted() -> None:
    points = trend_points(5)
    points[2] = replace(points[2], value=math.nan)
    figure = trend(points, title="tps", unit="tokens/s")
    assert trace(figure, "median")["y"] == [50.0, 51.0, None, 45.0, 46.0]
    meta = figure["layout"]["meta"]
    assert "Runs without a value: 1." in meta["summary"]
    assert meta["rows"][2][3] == "-"


def test_changes_are_numbered_lines_whose_colour_needs_a_direction() -> None:
    change = Change(1, 3, 51.0, 45.0, 0.85, 0.92)
    found = {
        better: trend(trend_points(6), title="tps", unit="tokens/s", changes=[change], better=better)
        for better in ("higher", "lower", "neither")
    }
    colours = {better: figure["layout"]["shapes"][-1]["line"]["color"] for better, figure in found.items()}
    assert colours == {"higher": palette.WORSE, "lower": palette.BETTER, "neither": palette.NEUTRAL}
    layout = found["higher"]["layout"]
    assert layout["shapes"][-1]["x0"] == 2.5
    assert any(note["text"] == "1 ▼" for note in layout["annotations"])
    assert "the largest is number 1, −11.8% at c000003" in layout["meta"]["summary"]
    assert layout["meta"]["rows"][3][4] == "change 1: −11.8%"


def test_neighbouring_changes_do_not_cover_each_other() -> None:
    changes = [Change(k, 10 + k, 1.0, 2.0, 1.5, 2.5) for k in range(3)]
    notes = trend(trend_points(60), title="t", unit="s", changes=changes)["layout"]["annotations"]
    assert [note["yshift"] for note in notes if note["text"].endswith("▲")] == [0, -20, -40]


def test_the_band_lies_about_every_level() -> None:
    figure = trend(trend_points(6), title="tps", unit="tokens/s", band=0.1, changes=[Change(1, 3, 51, 46, 0.8, 0.95)])
    band = trace(figure, "band")
    assert band["y"][0] == pytest.approx(51 * 0.9) and band["y"][2] == pytest.approx(51 * 1.1)
    assert band["y"][6] == pytest.approx(46 * 0.9)
    assert band["x"].count(None) == 2


def test_a_limit_is_dashed_where_it_is_near_and_left_out_where_it_would_squash_the_rest() -> None:
    near = trend(trend_points(6), title="tps", unit="tokens/s", limit=44)["layout"]
    assert [shape["line"]["dash"] for shape in near["shapes"]] == ["dash"]
    assert any(note["text"] == "limit 44.0 tok/s" for note in near["annotations"])
    assert trend(trend_points(6), title="tps", unit="tokens/s", limit=1)["layout"]["shapes"] == []


def test_along_time_runs_stand_where_they_were_measured() -> None:
    start = datetime(2026, 11, 1, 12, tzinfo=UTC)
    days = (0, 1, 8, 10)
    points = [replace(point, when=start + timedelta(days=days[number])) for number, point in enumerate(trend_points(4))]
    figure = trend(points, title="tps", unit="tokens/s", along="time", changes=[Change(1, 2, 51, 45, 0.85, 0.92)])
    assert trace(figure, "median")["x"] == pytest.approx([0, 0.3, 2.4, 3])
    assert figure["layout"]["shapes"][-1]["x0"] == pytest.approx(1.35)
    axis = figure["layout"]["xaxis"]
    assert axis["tickvals"] == pytest.approx([0, 1, 2, 3])
    assert axis["ticktext"][0::3] == ["11-01", "11-11"]
    assert trace(trend(points, title="tps", unit="tokens/s"), "median")["x"] == [0, 1, 2, 3]


def test_a_window_shows_some_runs_at_their_own_scale() -> None:
    layout = trend(trend_points(60), title="tps", unit="tokens/s", window=(10, 14))["layout"]
    assert layout["xaxis"]["range"] == [9.5, 14.5]
    assert layout["xaxis"]["tickvals"] == [10, 11, 13, 14]
    assert len(layout["meta"]["rows"]) == 60


def test_marks_are_numbered_and_told_in_the_table() -> None:
    figure = trend(trend_points(6), title="tps", unit="tokens/s", marks=[Mark(4, 2, "new driver")])
    (note,) = [note for note in figure["layout"]["annotations"] if note["text"] == "[4]"]
    assert (note["x"], note["hovertext"]) == (2, "new driver")
    assert figure["layout"]["meta"]["rows"][2][4] == "[4] new driver"


def test_a_history_of_ten_thousand_runs_is_thinned_and_keeps_its_ends() -> None:
    points = [TrendPoint(f"r{k}", f"c{k}", None, 1.0 + k, None, None, 0) for k in range(10_000)]
    figure = trend(points, title="t", unit="s")
    x = trace(figure, "median")["x"]
    assert (len(x), x[0], x[-1]) == (2000, 0, 9999)
    assert figure["layout"]["xaxis"]["ticktext"][-1] == "c9999"


def test_a_long_table_is_thinned_but_keeps_what_is_remarked() -> None:
    points = trend_points(3000)
    figure = trend(points, title="t", unit="s", changes=[Change(1, 1501, 50, 45, 0.88, 0.92)])
    meta = figure["layout"]["meta"]
    assert len(meta["rows"]) in (400, 401)
    assert [row[0] for row in meta["rows"] if row[4]] == ["run1501"]
    assert meta["summary"].endswith(f"The table has {len(meta['rows'])} of the 3000 runs.")


def test_a_fitted_line_is_that_of_scipy() -> None:
    xs, ys = [128.0, 512.0, 1024.0, 2048.0, 4096.0], [0.0103, 0.0111, 0.0119, 0.0147, 0.0189]
    fit, expected = fit_line(xs, ys), stats.linregress(xs, ys)
    t = stats.t.ppf(0.975, 3)
    assert fit is not None
    assert (fit.slope, fit.intercept) == (pytest.approx(expected.slope), pytest.approx(expected.intercept))
    assert fit.r2 == pytest.approx(expected.rvalue**2)
    assert fit.slope_high == pytest.approx(expected.slope + t * expected.stderr, rel=1e-6)
    assert fit.intercept_low == pytest.approx(expected.intercept - t * expected.intercept_stderr, rel=1e-6)


@pytest.mark.parametrize("xs", [[], [1.0, 2.0], [3.0, 3.0, 3.0], [1.0, 2.0, math.nan]])
def test_two_points_make_no_fitted_line(xs: list[float]) -> None:
    assert fit_line(xs, [1.0] * len(xs)) is None


def test_a_level_line_is_fitted_exactly() -> None:
    fit = fit_line([1, 2, 3], [5, 5, 5])
    assert fit is not None and (fit.slope, fit.intercept, fit.r2) == (0, 5, 1)


def test_whiskers_stay_inside_the_picture() -> None:
    line = ScalingLine("a", ((1.0, 10.0, 2.0, 11.0), (2.0, 60.0, 43.0, 75.0)))
    low, high = scaling([line], x_label="x", y_label="y", unit="%")["layout"]["yaxis"]["range"]
    assert low <= 2.0 and high >= 75.0


def test_scaling_shows_points_with_the_line_and_tells_the_fit() -> None:
    xs, ys = (128.0, 512.0, 2048.0), (0.0103, 0.0111, 0.0147)
    line = ScalingLine("ref", [(x, y, y * 0.99, None) for x, y in zip(xs, ys, strict=True)], fit_line(xs, ys))
    figure = scaling(
        [line, ScalingLine("bare", [(128.0, 0.02, None, None)])], x_label="context", y_label="tpot", unit="s"
    )
    points, fitted = figure["data"][0], figure["data"][1]
    assert points["mode"] == "markers" and points["error_y"]["array"] == [0, 0, 0]
    assert fitted["mode"] == "lines" and fitted["x"] == [128.0, 2048.0]
    rows = figure["layout"]["meta"]["rows"]
    assert re.match(r"9\.97 ms \[.*\] \+ 2\.31 µs \[.*\] per context, r² 1\.000", rows[0][3])
    assert rows[1][3] == "" and rows[3][3] == "no fitted line"
    names = [note["text"] for note in figure["layout"]["annotations"][1:]]
    assert sorted(names) == ["bare", "ref"] and figure["layout"]["showlegend"] is False


def test_long_names_go_into_a_legend() -> None:
    lines = [ScalingLine(f"backend=onnxruntime precision={p}", [(1, 1, None, None), (2, 2, None, None)]) for p in "ab"]
    assert scaling(lines, x_label="x", y_label="y", unit="s")["layout"]["showlegend"] is True


def test_a_loss_that_is_not_finite_is_a_gap_and_is_counted() -> None:
    figure = losses(
        [LossCurve("fp16", range(4), [4.0, math.nan, 3.0, None]), LossCurve("bf16", range(4), [5, 4, 3, 2])]
    )
    assert figure["data"][0]["y"] == [4.0, None, 3.0, None]
    meta = figure["layout"]["meta"]
    assert meta["summary"].endswith("2 values are not finite.")
    assert meta["rows"][0] == ["fp16", "4", "4", "3", "3", "2"]
    assert "between 2 (bf16) and 3 (fp16)" in meta["summary"]


def test_a_long_loss_curve_has_its_running_mean() -> None:
    figure = losses([LossCurve("fp32", range(1000), [2.0 + k % 2 for k in range(1000)])])
    raw, mean = figure["data"]
    assert set(raw["y"]) == {2.0, 3.0} and raw["showlegend"] is False
    assert all(2.4 < value < 2.6 for value in mean["y"][20:-20])


def test_warm_up_is_grey_in_the_strip_and_left_out_of_the_distribution() -> None:
    series = [RawSeries("A", [9.0, 1.0, 2.0, 3.0], [True, False, False, False]), RawSeries("B", [1.8] * 3, [False] * 3)]
    warm, timed, line = strip(series, unit="s")["data"][:3]
    assert warm["name"] == "A: warm-up" and warm["x"] == [0]
    assert timed["x"] == [1, 2, 3] and line["y"] == [2.0, 2.0]
    figure = ecdf(series, unit="s")
    assert figure["data"][0]["x"] == [1.0, 2.0, 3.0]
    assert figure["data"][0]["y"] == pytest.approx([100 / 3, 200 / 3, 100])
    meta = figure["layout"]["meta"]
    assert meta["rows"][0] == ["A", "3", "1", "1.000 s", "2.000 s", "3.000 s"]
    assert meta["summary"].endswith("B against A: −10.0%.")


def test_no_line_runs_through_the_name_of_a_distribution() -> None:
    series = [RawSeries("slow", [3.0, 3.1, 3.2], []), RawSeries("fast", [1.0, 1.1, 1.2], [])]
    sides = {note["text"]: note["xanchor"] for note in ecdf(series, unit="s")["layout"]["annotations"][1:]}
    assert sides == {"fast": "right", "slow": "left"}


def test_a_series_of_warm_up_only_says_so() -> None:
    figure = strip([RawSeries("A", [1.0, 2.0], [True, True])], unit="s")
    assert figure["layout"]["meta"]["summary"] == "Warm-up only: nothing was timed."


def test_a_sparkline_is_a_small_svg_with_gaps() -> None:
    svg = sparkline([1.0, None, 2.0, math.nan, 3.0], colour='"><script>')
    root = ElementTree.fromstring(svg)
    assert root.attrib["width"] == "72"
    assert root[0].attrib["d"].count("M") == 3
    assert "<script" not in svg
    assert sparkline([1.0]) == sparkline([]) == sparkline([None, math.nan]) == ""
    assert len(sparkline([float(k) for k in range(10_000)])) < 1500
