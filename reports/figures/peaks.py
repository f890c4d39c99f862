"""What the arithmetic and the memory of a machine allow: a roofline of measured ceilings with what was achieved below.

    roofline([Ceiling("DRAM read", "bandwidth", 2.1e10, "calibration")], [RoofPoint("decode", 0.5, 8e9, "analytic")])

Refuses nothing: without ceilings and points the figure says that there is nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from reports import palette
from reports.figures.base import Figure, above_axis, assemble, empty, finite, hover, legend_on_top, safe, thin
from reports.figures.numbers import Scale, headed, log_axis, number, scale_for
from reports.language import Language, say

_LABELLED = 14


@dataclass(frozen=True, slots=True)
class Ceiling:
    """A peak: bytes/s of a memory or FLOP/s of an arithmetic. source: measured how, or which data sheet."""

    name: str
    kind: Literal["bandwidth", "compute"]
    value: float
    source: str


@dataclass(frozen=True, slots=True)
class RoofPoint:
    """A kernel or step: FLOP per byte, FLOP/s achieved. bounds: names of the ceilings that hold for it; none: all."""

    name: str
    intensity: float
    rate: float
    source: str
    bounds: tuple[str, ...] = ()


def roof_of(point: RoofPoint, ceilings: Sequence[Ceiling]) -> tuple[float, Ceiling] | None:
    """FLOP/s that the ceilings allow at the point's intensity, and the one that binds; None without ceilings.

    Of several bandwidths the highest counts, and of several arithmetics: the outermost roof (Williams et al. 2009).
    """
    holding = [
        ceiling for ceiling in ceilings if ceiling.value > 0 and (ceiling.name in point.bounds or not point.bounds)
    ]
    highest: dict[str, tuple[float, Ceiling]] = {}
    for ceiling in holding:
        allowed = ceiling.value * (point.intensity if ceiling.kind == "bandwidth" else 1.0)
        if ceiling.kind not in highest or allowed > highest[ceiling.kind][0]:
            highest[ceiling.kind] = (allowed, ceiling)
    return min(highest.values(), key=lambda item: item[0]) if highest else None


def roofline(ceilings: Sequence[Ceiling], points: Sequence[RoofPoint], *, language: Language = "en") -> Figure:
    """Intensity against achieved FLOP/s, both logarithmic, below the ceilings; the table says how much of its roof."""
    title = say(language, "Roofline")
    columns = [
        say(language, "kernel or step"),
        say(language, "FLOP per byte"),
        say(language, "achieved"),
        say(language, "of its roof"),
        say(language, "bound by"),
        say(language, "source"),
    ]
    roofs = [ceiling for ceiling in ceilings if ceiling.value > 0 and math.isfinite(ceiling.value)]
    shown = [point for point in points if point.intensity > 0 and point.rate > 0 and math.isfinite(point.rate)]
    if not roofs and not shown:
        return empty(title, columns=columns, language=language)
    ends = _intensities(roofs, shown)
    scale = scale_for([*(point.rate for point in shown), *_rates(roofs, ends)], "FLOP/s")
    rates = [*(point.rate for point in shown), *_rates(roofs, ends)]
    layout = {
        "xaxis": log_axis(ends, say(language, "FLOP per byte, logarithmic")),
        "yaxis": log_axis((min(rates) / scale.factor / 1.8, max(rates) / scale.factor * 2.2)),
        "margin": {"t": 58, "r": 20},
        "annotations": [above_axis(headed("", scale)), *_point_names(shown, scale, ends)],
        "legend": legend_on_top(),
        "showlegend": True,
    }
    traces = [_roof(ceiling, order, roofs, ends, scale) for order, ceiling in enumerate(roofs)]
    traces.append(_roof_points(shown, roofs, scale, language))
    rows = [
        [
            point.name,
            f"{point.intensity:.3g}",
            number(point.rate, "FLOP/s"),
            _share(point, roofs),
            roof[1].name if (roof := roof_of(point, roofs)) else "-",
            point.source,
        ]
        for point in points
    ]
    rows += [
        [ceiling.name, "", number(ceiling.value, _unit(ceiling)), "", say(language, "ceiling"), ceiling.source]
        for ceiling in ceilings
    ]
    return assemble(traces, layout, title=title, summary=_roof_sentence(roofs, shown, language), columns=columns,
                    rows=rows)  # fmt: skip


def _unit(ceiling: Ceiling) -> str:
    return "bytes/s" if ceiling.kind == "bandwidth" else "FLOP/s"


def _intensities(roofs: Sequence[Ceiling], points: Sequence[RoofPoint]) -> tuple[float, float]:
    """The ends of the horizontal axis: all points, and the ridges where memory and arithmetic meet."""
    bandwidths = [ceiling.value for ceiling in roofs if ceiling.kind == "bandwidth"]
    computes = [ceiling.value for ceiling in roofs if ceiling.kind == "compute"]
    ridges = [compute / bandwidth for compute in computes for bandwidth in bandwidths]
    inside = [*(point.intensity for point in points), *ridges] or [1.0]
    return min(inside) / 3, max(inside) * 3


def _rates(roofs: Sequence[Ceiling], ends: tuple[float, float]) -> list[float]:
    """The FLOP/s between which the ceilings run, for the vertical axis."""
    flat = [ceiling.value for ceiling in roofs if ceiling.kind == "compute"]
    slopes = [ceiling.value * ends[0] for ceiling in roofs if ceiling.kind == "bandwidth"]
    return [*flat, *slopes] if flat else [*slopes, *(slope * ends[1] / ends[0] for slope in slopes)]


def _roof(ceiling: Ceiling, order: int, roofs: Sequence[Ceiling], ends: tuple[float, float], scale: Scale) -> Figure:
    """One ceiling, as far as it is the one that binds: a slope for a memory, level for an arithmetic."""
    computes = [other.value for other in roofs if other.kind == "compute"]
    bandwidths = [other.value for other in roofs if other.kind == "bandwidth"]
    if ceiling.kind == "bandwidth":
        end = min(ends[1], max(computes) / ceiling.value) if computes else ends[1]
        x, y = [ends[0], end], [ceiling.value * ends[0], ceiling.value * end]
    else:
        start = max(ends[0], ceiling.value / max(bandwidths)) if bandwidths else ends[0]
        x, y = [start, ends[1]], [ceiling.value, ceiling.value]
    text = f"{ceiling.name} {number(ceiling.value, _unit(ceiling))}"
    look = palette.ENTITY_COLOURS[order % len(palette.ENTITY_COLOURS)]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": safe(text, length=48),
        "x": x,
        "y": [value / scale.factor for value in y],
        "line": {"color": look, "width": 2, "dash": palette.ENTITY_DASHES[order % len(palette.ENTITY_DASHES)]},
        "hoverinfo": "text",
        "hovertext": [hover(text, ceiling.source)] * 2,
    }


def _roof_points(points: Sequence[RoofPoint], roofs: Sequence[Ceiling], scale: Scale, language: Language) -> Figure:
    kept = [points[place] for place in thin(len(points))]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": safe(say(language, "measured points")),
        "x": [point.intensity for point in kept],
        "y": [scale.of(point.rate) for point in kept],
        "marker": {"color": palette.SERIES, "symbol": "circle", "size": 9, "line": {"width": 0}},
        "hoverinfo": "text",
        "hovertext": [
            hover(
                point.name,
                f"{number(point.rate, 'FLOP/s')}, {point.intensity:.3g} FLOP/byte",
                say(language, "{share} of {roof}", share=_share(point, roofs), roof=roof[1].name)
                if (roof := roof_of(point, roofs))
                else "",
                point.source,
            )
            for point in kept
        ],
    }


def _share(point: RoofPoint, roofs: Sequence[Ceiling]) -> str:
    roof = roof_of(point, roofs)
    rate = finite(point.rate)
    return "-" if roof is None or rate is None or not roof[0] > 0 else f"{rate / roof[0]:.1%}"


def _point_names(points: Sequence[RoofPoint], scale: Scale, ends: tuple[float, float]) -> list[Figure]:
    """Names beside their points, as far as they stand clear of each other."""
    span = math.log10(ends[1] / ends[0])
    put: list[tuple[float, float]] = []
    notes: list[Figure] = []
    for point in sorted(points, key=lambda point: point.rate, reverse=True)[: 4 * _LABELLED]:
        at = math.log10(point.intensity), math.log10(point.rate / scale.factor)
        if len(put) == _LABELLED or any(abs(at[0] - x) < 0.3 * span and abs(at[1] - y) < 0.16 for x, y in put):
            continue
        put.append(at)
        left = at[0] > math.log10(ends[0]) + 0.6 * span
        notes.append(
            {
                "text": safe(point.name, length=30),
                "x": at[0],
                "y": at[1],
                "xref": "x",
                "yref": "y",
                "xanchor": "right" if left else "left",
                "yanchor": "middle",
                "xshift": -9 if left else 9,
                "showarrow": False,
                "font": {"size": 11},
            }
        )
    return notes


def _roof_sentence(roofs: Sequence[Ceiling], points: Sequence[RoofPoint], language: Language) -> str:
    shares = [
        (point.rate / roof[0], point, roof[1]) for point in points if (roof := roof_of(point, roofs)) and roof[0] > 0
    ]
    if not shares:
        return say(
            language, "{n} points and {k} ceilings; no share of a roof can be stated.", n=len(points), k=len(roofs)
        )
    best, worst = max(shares, key=lambda item: item[0]), min(shares, key=lambda item: item[0])
    return say(
        language,
        "{n} points reach from {low} of their roof ({low_name}) to {high} ({high_name}, bound by {roof}).",
        n=len(shares),
        low=f"{worst[0]:.1%}",
        low_name=worst[1].name,
        high=f"{best[0]:.1%}",
        high_name=best[1].name,
        roof=best[2].name,
    )
