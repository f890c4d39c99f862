"""Lines over a length or over steps: how a metric scales, with its fitted line, and losses of training.

    fit = fit_line([128, 512, 2048], [0.011, 0.012, 0.016])    # None under three points
    scaling([ScalingLine("reference", points, fit)], x_label="context (tokens)", y_label="tpot", unit="s")

Refuses nothing: a point without a number in x or y is left out, a loss that is not finite is a gap and is counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.stats import student_t_ppf
from reports import palette
from reports.figures.base import (
    Figure,
    above_axis,
    assemble,
    axis_title,
    empty,
    end_margin,
    finite,
    hover,
    known,
    legend_on_top,
    named_ends,
    safe,
    thin,
    told,
    whiskers,
)
from reports.figures.numbers import Scale, change_text, headed, measured, number, plain_axis, scale_for
from reports.language import Language, say

_LONG = 200  # steps from which on a loss curve has its running mean
_DRAWN = 800  # of them are drawn: what lies between is noise that the mean holds
_WINDOWS = 80  # the mean reaches so many parts of the curve to either side


@dataclass(frozen=True, slots=True)
class Fit:
    """y = intercept + slope * x, intervals of both, in the units of x and y; r2: share of variance explained."""

    intercept: float
    slope: float
    intercept_low: float
    intercept_high: float
    slope_low: float
    slope_high: float
    r2: float


@dataclass(frozen=True, slots=True)
class ScalingLine:
    """One variant: points of (x, y, low, high), y in the figure's unit, and its fitted line where there is one."""

    name: str
    points: Sequence[tuple[float, float, float | None, float | None]]
    fit: Fit | None = None


@dataclass(frozen=True, slots=True)
class LossCurve:
    """A loss per step of training (or of anything that goes down)."""

    name: str
    steps: Sequence[int]
    values: Sequence[float | None]


def fit_line(xs: Sequence[float], ys: Sequence[float], *, confidence: float = 0.95) -> Fit | None:
    """Least squares with Student's t intervals; None for fewer than three points or all at one x.

    Units: those of xs and ys. Pairs with a number that is not finite are left out. Raises ValueError for lengths that
    differ. Source: any text on regression, e.g. Draper and Smith (1998), sections 1.3 and 1.4.
    """
    pairs = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(x) and math.isfinite(y)]
    count = len(pairs)
    mean_x = math.fsum(x for x, _ in pairs) / max(count, 1)
    spread = math.fsum((x - mean_x) ** 2 for x, _ in pairs)
    if count < 3 or not spread > 0:
        return None
    mean_y = math.fsum(y for _, y in pairs) / count
    slope = math.fsum((x - mean_x) * (y - mean_y) for x, y in pairs) / spread
    intercept = mean_y - slope * mean_x
    residual = math.fsum((y - intercept - slope * x) ** 2 for x, y in pairs)
    total = math.fsum((y - mean_y) ** 2 for _, y in pairs)
    sd = math.sqrt(residual / (count - 2))
    t = float(student_t_ppf(0.5 + confidence / 2, count - 2))
    reach_slope = t * sd / math.sqrt(spread)
    reach_intercept = t * sd * math.sqrt(1 / count + mean_x**2 / spread)
    return Fit(
        intercept=intercept,
        slope=slope,
        intercept_low=intercept - reach_intercept,
        intercept_high=intercept + reach_intercept,
        slope_low=slope - reach_slope,
        slope_high=slope + reach_slope,
        r2=1 - residual / total if total > 0 else 1.0,
    )


def scaling(
    lines: Sequence[ScalingLine], *, x_label: str, y_label: str, unit: str, language: Language = "en"
) -> Figure:
    """Points with intervals joined per variant, the fitted lines dashed; the table has the fits."""
    title = say(language, "{y} against {x}", y=y_label, x=x_label)
    columns = [say(language, "curve"), x_label, f"{y_label} [95%]", say(language, "fitted line")]
    drawn = {line.name: _drawable(line) for line in lines}
    if not any(drawn.values()):
        return empty(title, columns=columns, language=language)
    scale = scale_for([point[1] for points in drawn.values() for point in points], unit)
    looks = palette.styles(drawn)
    traces: list[Figure] = []
    for line in lines:
        traces += _scaling_traces(line, drawn[line.name], looks[line.name], scale, unit)
    ends = {name: (points[-1][0], points[-1][1] / scale.factor) for name, points in drawn.items() if points}
    layout = _lines_layout(ends, traces, heading=headed(y_label, scale), x_label=x_label)
    rows = [
        [
            line.name,
            f"{x:,.6g}",
            measured(y, low, high, unit),
            _fit_text(line.fit, unit, x_label, language) if place == 0 else "",
        ]
        for line in lines
        for place, (x, y, low, high) in enumerate(line.points)
    ]
    summary = _scaling_sentence(lines, drawn, x_label, y_label, unit, language)
    return assemble(traces, layout, title=title, summary=summary, columns=columns, rows=rows)


def _drawable(line: ScalingLine) -> list[tuple[float, float, float | None, float | None]]:
    return sorted(
        (point for point in line.points if math.isfinite(point[0]) and math.isfinite(point[1])),
        key=lambda point: point[0],
    )


def _reach(traces: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """The lowest and the highest of points and whiskers."""
    heights: list[float] = []
    for trace in traces:
        bars, values = trace.get("error_y", {}), trace["y"]
        for sign, side in ((1.0, "array"), (-1.0, "arrayminus")):
            lengths = bars.get(side) or [0.0] * len(values)
            heights += known([None if y is None else y + sign * w for y, w in zip(values, lengths, strict=True)])
    return min(heights), max(heights)


def _lines_layout(
    ends: Mapping[str, tuple[float, float]], traces: Sequence[Mapping[str, Any]], *, heading: str, x_label: str
) -> Figure:
    """Names at the ends of the lines where they are short, else in a legend; the vertical axis starts at 0 if near."""
    low, high = _reach(traces)
    room = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    bottom = 0.0 if 0 <= low <= 0.6 * high else low - room
    names = named_ends(ends, span=(bottom, high)) if len(ends) > 1 else []
    xs = known([value for trace in traces for value in trace["x"]])
    side = 0.03 * (max(xs) - min(xs)) or 1.0
    return {
        "xaxis": plain_axis() | {"title": axis_title(x_label), "range": [min(xs) - side, max(xs) + side]},
        "yaxis": plain_axis() | {"range": [bottom, high + room]},
        "margin": {"t": 34 if names is not None else 58, "r": max(end_margin(names), 20)},
        "annotations": [above_axis(heading), *(names or [])],
        "legend": legend_on_top(),
        "showlegend": names is None,
    }


def _scaling_traces(
    line: ScalingLine,
    points: Sequence[tuple[float, float, float | None, float | None]],
    look: palette.Style,
    scale: Scale,
    unit: str,
) -> list[Figure]:
    if not points:
        return []
    kept = [points[place] for place in thin(len(points))]
    values = [scale.of(point[1]) for point in kept]
    error = whiskers(values, [scale.of(point[2]) for point in kept], [scale.of(point[3]) for point in kept])
    name = safe(line.name, length=48)
    found: list[Figure] = [
        {
            "type": "scatter",
            "mode": "markers" if line.fit else "lines+markers",
            "name": name,
            "legendgroup": name,
            "x": [point[0] for point in kept],
            "y": values,
            "line": {"color": look.colour, "width": 1.5, "dash": look.dash},
            "marker": {
                "color": look.colour,
                "symbol": look.symbol,
                "size": 8,
                "line": {"width": 1.5, "color": look.colour},
            },
            "error_y": error | {"color": look.colour},
            "hoverinfo": "text",
            "hovertext": [hover(line.name, f"{p[0]:,.6g}", measured(p[1], p[2], p[3], unit)) for p in kept],
        }
    ]
    if line.fit:
        ends = [kept[0][0], kept[-1][0]]
        found.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": name,
                "legendgroup": name,
                "showlegend": False,
                "x": ends,
                "y": [scale.of(line.fit.intercept + line.fit.slope * x) for x in ends],
                "line": {"color": look.colour, "width": 1.5, "dash": look.dash},
                "hoverinfo": "skip",
            }
        )
    return found


def _fit_text(fit: Fit | None, unit: str, x_label: str, language: Language) -> str:
    """`4.10 ms + 2.30 µs per context, r² 0.998`, both with their intervals."""
    if fit is None:
        return say(language, "no fitted line")
    return say(
        language,
        "{intercept} + {slope} per {x}, r² {r2}",
        intercept=measured(fit.intercept, fit.intercept_low, fit.intercept_high, unit),
        slope=measured(fit.slope, fit.slope_low, fit.slope_high, unit),
        x=x_label,
        r2=f"{fit.r2:.3f}",
    )


def _scaling_sentence(
    lines: Sequence[ScalingLine],
    drawn: Mapping[str, Sequence[tuple[float, float, float | None, float | None]]],
    x_label: str,
    y_label: str,
    unit: str,
    language: Language,
) -> str:
    spans = [(name, points[0], points[-1]) for name, points in drawn.items() if points]
    ratios = [(name, first, last, last[1] / first[1]) for name, first, last in spans if first[1]]
    xs = [point[0] for points in drawn.values() for point in points]
    text = say(
        language,
        "{y} of {n} curves for {x} {low} to {high}.",
        y=y_label,
        n=len(lines),
        x=x_label,
        low=f"{min(xs):,.6g}",
        high=f"{max(xs):,.6g}",
    )
    if not ratios:
        return text
    name, first, last, ratio = max(ratios, key=lambda item: abs(item[3] - 1))
    change = say(
        language,
        "The largest change along a curve is {name}: {first} to {last} ({change}).",
        name=name,
        first=number(first[1], unit),
        last=number(last[1], unit),
        change=change_text(ratio),
    )
    return told(language, text, change)


def losses(curves: Sequence[LossCurve], *, language: Language = "en") -> Figure:
    """Losses over steps on one axis; a value that is not finite is a gap and is named."""
    title = say(language, "Loss")
    columns = [
        say(language, "curve"),
        say(language, "steps"),
        say(language, "first"),
        say(language, "lowest"),
        say(language, "last"),
        say(language, "not finite"),
    ]
    known_of = {curve.name: known(curve.values) for curve in curves}
    if not any(known_of.values()):
        return empty(title, columns=columns, language=language)
    looks = palette.styles(known_of)
    traces = [trace for curve in curves if known_of[curve.name] for trace in _loss_traces(curve, looks[curve.name])]
    ends = {}
    for curve in curves:
        last = [
            (step, value) for step, value in zip(curve.steps, curve.values, strict=False) if finite(value) is not None
        ]
        if last and last[-1][1] is not None:
            ends[curve.name] = (float(last[-1][0]), last[-1][1])
    layout = _lines_layout(ends, traces, heading=say(language, "loss"), x_label=say(language, "step"))
    rows = [
        [
            curve.name,
            f"{len(curve.steps):,}",
            *(f"{value:.4g}" for value in (found[0], min(found), found[-1])),
            str(len(curve.values) - len(found) or ""),
        ]
        if (found := known_of[curve.name])
        else [curve.name, f"{len(curve.steps):,}", "-", "-", "-", str(len(curve.values))]
        for curve in curves
    ]
    finals = {name: found[-1] for name, found in known_of.items() if found}
    best, worst = min(finals, key=finals.__getitem__), max(finals, key=finals.__getitem__)
    summary = say(
        language,
        "{n} loss curves; the last values lie between {low} ({best}) and {high} ({worst}).",
        n=len(curves),
        low=f"{finals[best]:.4g}",
        best=best,
        high=f"{finals[worst]:.4g}",
        worst=worst,
    )
    broken = sum(len(curve.values) - len(known_of[curve.name]) for curve in curves)
    if broken:
        summary = told(language, summary, say(language, "{n} values are not finite.", n=broken))
    return assemble(traces, layout, title=title, summary=summary, columns=columns, rows=rows)


def _loss_traces(curve: LossCurve, look: palette.Style) -> list[Figure]:
    """A short curve as it is; a long one faint beneath its running mean, since steps differ by their batches."""
    pairs = list(zip(curve.steps, curve.values, strict=False))
    kept = thin(len(pairs), _DRAWN)
    trace = _loss_trace(curve.name, [pairs[place] for place in kept], look)
    if len(pairs) < _LONG:
        return [trace]
    mean = _running_mean([value for _, value in pairs], len(pairs) // _WINDOWS)
    smooth = _loss_trace(curve.name, [(pairs[place][0], mean[place]) for place in kept], look)
    raw = {"line": {"color": palette.faint(look.colour, 0.35), "width": 1}, "showlegend": False, "hoverinfo": "skip"}
    return [trace | raw, smooth]


def _running_mean(values: Sequence[float | None], reach: int) -> list[float | None]:
    """The mean of the finite values up to `reach` before and after each; a gap stays a gap."""
    sums, counts = [0.0], [0]
    for value in values:
        number_here = finite(value)
        sums.append(sums[-1] + (number_here or 0.0))
        counts.append(counts[-1] + (number_here is not None))
    found: list[float | None] = []
    for place, value in enumerate(values):
        start, end = max(place - reach, 0), min(place + reach + 1, len(values))
        found.append(None if finite(value) is None else (sums[end] - sums[start]) / (counts[end] - counts[start]))
    return found


def _loss_trace(name: str, kept: Sequence[tuple[int, float | None]], look: palette.Style) -> Figure:
    return {
        "type": "scatter",
        "mode": "lines" if len(kept) > 1 else "markers",
        "name": safe(name, length=48),
        "x": [step for step, _ in kept],
        "y": [finite(value) for _, value in kept],
        "line": {"color": look.colour, "width": 1.8, "dash": look.dash},
        "marker": {"color": look.colour, "symbol": look.symbol, "size": 8},
        "connectgaps": False,
        "hoverinfo": "text",
        "hovertext": [hover(name, f"{step:,}: {value:.4g}" if value is not None else "") for step, value in kept],
    }
