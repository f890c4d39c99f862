"""What one gains and pays: curves of two metrics along a swept parameter, and the frontier of what nothing beats.

    pareto([Curve("reference", points)], x=AxisOf("tpot", "s", "lower"), y=AxisOf("tps", "tokens/s", "higher"))
    frontier([(1.0, 5.0), (2.0, 4.0)], "lower", "higher")    # [0]: the second is worse in both
    read_at(curve, 0.004)                                    # y at an x between two points; None outside

Refuses nothing: a point without a number in x or y stands in the table only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from reports import palette
from reports.figures.base import (
    MAX_POINTS,
    Figure,
    above_axis,
    assemble,
    empty,
    hover,
    known,
    legend_on_top,
    safe,
    thin,
    whiskers,
)
from reports.figures.numbers import Scale, axis_for, better_text, headed, measured, number, scale_for
from reports.language import Language, say

Direction = Literal["higher", "lower"]
_LABELS = 8


@dataclass(frozen=True, slots=True)
class ParetoPoint:
    """One case on a curve, in the units of the axes. loss: quality lost against the reference, nats per token."""

    label: str
    x: float
    y: float
    x_low: float | None = None
    x_high: float | None = None
    y_low: float | None = None
    y_high: float | None = None
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class Curve:
    """The points of one variant along the swept parameter, in that order."""

    name: str
    points: Sequence[ParetoPoint]


@dataclass(frozen=True, slots=True)
class AxisOf:
    """What an axis shows; unit as in the store (s, bytes, tokens/s)."""

    label: str
    unit: str
    better: Direction
    log: bool = False


def frontier(points: Sequence[tuple[float, float]], x_better: Direction, y_better: Direction) -> list[int]:
    """Indices of the points that no other beats in one direction without losing in the other, by x from its best.

    Equal points stand or fall together; a point with a number that is not finite is never one of them.
    """
    sign_x, sign_y = (1.0 if better == "lower" else -1.0 for better in (x_better, y_better))
    finite = [place for place, point in enumerate(points) if math.isfinite(point[0]) and math.isfinite(point[1])]
    found: list[int] = []
    for place in sorted(finite, key=lambda place: (sign_x * points[place][0], sign_y * points[place][1], place)):
        if not found or sign_y * points[place][1] < sign_y * points[found[-1]][1] or points[place] == points[found[-1]]:
            found.append(place)
    return found


def read_at(curve: Curve, x: float) -> float | None:
    """The curve's y at an x, on the straight line between its neighbours; None outside the curve."""
    points = sorted((point.x, point.y) for point in curve.points if math.isfinite(point.x) and math.isfinite(point.y))
    for point in points:
        if point[0] == x:
            return point[1]
    for before, after in itertools.pairwise(points):
        if before[0] < x < after[0]:
            return before[1] + (after[1] - before[1]) * (x - before[0]) / (after[0] - before[0])
    return None


def pareto(curves: Sequence[Curve], *, x: AxisOf, y: AxisOf, language: Language = "en") -> Figure:
    """Curves with interval crosses; the frontier of all points stands out, what it beats is faded, loss is coloured."""
    title = say(language, "{y} against {x}", x=x.label, y=y.label)
    columns = [
        say(language, "curve"),
        say(language, "point"),
        f"{x.label} [95%]",
        f"{y.label} [95%]",
        say(language, "KL (nats/token)"),
        say(language, "on the frontier"),
    ]
    everything = [(curve, point) for curve in curves for point in curve.points]
    drawable = [(curve, point) for curve, point in everything if _drawable(point, x, y)]
    if not drawable:
        return empty(title, columns=columns, language=language)
    places = frontier([(point.x, point.y) for _, point in drawable], x.better, y.better)
    best = {id(drawable[place][1]) for place in places}
    scales = scale_for([p.x for _, p in drawable], x.unit), scale_for([p.y for _, p in drawable], y.unit)
    layout = {
        "xaxis": axis_for(
            [point.x / scales[0].factor for _, point in drawable],
            headed(x.label, scales[0], better_text(x.better, language)),
            log=x.log,
        ),
        "yaxis": axis_for([point.y / scales[1].factor for _, point in drawable], log=y.log),
        "margin": {"t": 58, "r": 20},
        "annotations": [
            above_axis(headed(y.label, scales[1], better_text(y.better, language))),
            *_labels([drawable[place][1] for place in places], drawable, scales, x, y),
        ],
        "legend": legend_on_top(),
        "showlegend": True,
    }
    looks = palette.styles(curve.name for curve in curves)
    traces = [_frontier_line([drawable[place][1] for place in places], scales, x, y, language)]
    for curve in curves:
        traces += _curve(curve, looks[curve.name], scales, best, x, y)
    traces += _losses([point for _, point in drawable], scales, language)
    rows = [
        [
            curve.name,
            point.label,
            measured(point.x, point.x_low, point.x_high, x.unit),
            measured(point.y, point.y_low, point.y_high, y.unit),
            "-" if point.loss is None else f"{point.loss:.3g}",
            say(language, "yes") if id(point) in best else "",
        ]
        for curve, point in everything
    ]
    summary = _sentence([drawable[place] for place in places], drawable, len(curves), x, y, language)
    return assemble(traces, layout, title=title, summary=summary, columns=columns, rows=rows)


def _drawable(point: ParetoPoint, x: AxisOf, y: AxisOf) -> bool:
    finite = math.isfinite(point.x) and math.isfinite(point.y)
    return finite and (not x.log or point.x > 0) and (not y.log or point.y > 0)


def _frontier_line(
    points: Sequence[ParetoPoint], scales: tuple[Scale, Scale], x: AxisOf, y: AxisOf, language: Language
) -> Figure:
    """What is reachable: a step, since between two points only the worse of both is certain."""
    ordered = sorted(points, key=lambda point: point.x)
    return {
        "type": "scatter",
        "mode": "lines",
        "name": safe(say(language, "frontier")),
        "x": [scales[0].of(point.x) for point in ordered],
        "y": [scales[1].of(point.y) for point in ordered],
        "line": {
            "color": palette.faint(palette.NEUTRAL, 0.45),
            "width": 7,
            "shape": "hv" if x.better == "lower" else "vh",
        },
        "hoverinfo": "skip",
    }


def _curve(
    curve: Curve, look: palette.Style, scales: tuple[Scale, Scale], best: set[int], x: AxisOf, y: AxisOf
) -> list[Figure]:
    points = [point for point in curve.points if _drawable(point, x, y)]
    points = [points[place] for place in thin(len(points))]
    if not points:
        return []
    drawn_x, drawn_y = [scales[0].of(point.x) for point in points], [scales[1].of(point.y) for point in points]
    on_top = [id(point) in best for point in points]
    error_x, error_y = (
        whiskers(
            values,
            [scale.of(getattr(point, f"{axis}_low")) for point in points],
            [scale.of(getattr(point, f"{axis}_high")) for point in points],
        )
        | {"color": palette.faint(look.colour, 0.7), "thickness": 1, "width": 0}
        for axis, values, scale in (("x", drawn_x, scales[0]), ("y", drawn_y, scales[1]))
    )
    return [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": safe(curve.name, length=48),
            "x": drawn_x,
            "y": drawn_y,
            "line": {"color": look.colour, "width": 1.5, "dash": look.dash},
            "marker": {
                "color": look.colour,
                "symbol": look.symbol,
                "size": [11 if top else 8 for top in on_top],
                "opacity": [1.0 if top else 0.5 for top in on_top],
                "line": {"color": look.colour, "width": 1.5},
            },
            "error_x": error_x,
            "error_y": error_y,
            "hoverinfo": "text",
            "hovertext": [
                hover(
                    f"{curve.name}: {point.label}",
                    f"{x.label} {measured(point.x, point.x_low, point.x_high, x.unit)}",
                    f"{y.label} {measured(point.y, point.y_low, point.y_high, y.unit)}",
                    "" if point.loss is None else f"KL {point.loss:.3g} nats/token",
                )
                for point in points
            ],
        }
    ]


def _losses(points: Sequence[ParetoPoint], scales: tuple[Scale, Scale], language: Language) -> list[Figure]:
    """Quality lost, as colour inside the points, with its scale: the one third dimension that has a colour."""
    scored = [point for point in points if point.loss is not None and math.isfinite(point.loss)][:MAX_POINTS]
    highest = max(known(point.loss for point in scored), default=0.0)
    if not highest > 0:
        return []
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": safe(say(language, "quality loss")),
            "x": [scales[0].of(point.x) for point in scored],
            "y": [scales[1].of(point.y) for point in scored],
            "showlegend": False,
            "hoverinfo": "skip",
            "marker": {
                "color": [point.loss for point in scored],
                "colorscale": [list(stop) for stop in palette.SEQUENTIAL],
                "cmin": 0,
                "cmax": highest,
                "size": 7,
                "symbol": "circle",
                "line": {"width": 0},
                "showscale": True,
                "colorbar": {
                    "title": {"text": safe(say(language, "KL (nats/token)")), "side": "top", "font": {"size": 11}},
                    "orientation": "v",
                    "thickness": 10,
                    "len": 0.7,
                    "outlinewidth": 0,
                    "nticks": 4,
                    "tickfont": {"size": 11},
                },
            },
        }
    ]


def _labels(
    best: Sequence[ParetoPoint],
    drawable: Sequence[tuple[Curve, ParetoPoint]],
    scales: tuple[Scale, Scale],
    x: AxisOf,
    y: AxisOf,
) -> list[Figure]:
    """Names of points on the frontier, from the best on, as many as stand clear of each other."""

    def place(point: ParetoPoint) -> tuple[float, float]:
        return (math.log10(point.x / scales[0].factor) if x.log else point.x / scales[0].factor,
                math.log10(point.y / scales[1].factor) if y.log else point.y / scales[1].factor)  # fmt: skip

    every = [place(point) for _, point in drawable]
    spans = [max(p[axis] for p in every) - min(p[axis] for p in every) or 1.0 for axis in (0, 1)]
    put: list[tuple[float, float]] = []
    notes: list[Figure] = []
    for point in best:
        at = place(point)
        clear = all(abs(at[0] - other[0]) > 0.2 * spans[0] or abs(at[1] - other[1]) > 0.08 * spans[1] for other in put)
        if not point.label or not clear or len(put) == _LABELS:
            continue
        put.append(at)
        notes.append(
            {
                "text": safe(point.label, length=18),
                "x": at[0],
                "y": at[1],
                "xref": "x",
                "yref": "y",
                "xanchor": "left" if at[0] < max(p[0] for p in every) - 0.3 * spans[0] else "right",
                "yanchor": "bottom",
                "xshift": 5 if at[0] < max(p[0] for p in every) - 0.3 * spans[0] else -5,
                "yshift": 6,
                "showarrow": False,
                "font": {"size": 11},
            }
        )
    return notes


def _sentence(
    best: Sequence[tuple[Curve, ParetoPoint]],
    drawable: Sequence[tuple[Curve, ParetoPoint]],
    num_curves: int,
    x: AxisOf,
    y: AxisOf,
    language: Language,
) -> str:
    by_x, by_y = best[0], best[-1]
    return say(
        language,
        "{n} points of {curves} curves, {best} of them on the frontier: the best {x} is {x_value} ({x_name}), "
        "the best {y} {y_value} ({y_name}).",
        n=len(drawable),
        curves=num_curves,
        best=len(best),
        x=x.label,
        x_value=number(by_x[1].x, x.unit),
        x_name=f"{by_x[0].name} {by_x[1].label}".strip(),
        y=y.label,
        y_value=number(by_y[1].y, y.unit),
        y_name=f"{by_y[0].name} {by_y[1].label}".strip(),
    )
