"""What fits: memory over a length or a batch, predicted by its parts and measured, up to the limit of the device.

    memory([MemoryPoint(512, 1.0e8, 4e6, 2e6, 1.1e8)], x_label="context (tokens)", limit=8e9)

Refuses nothing: without points the figure says that there is nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from reports import palette
from reports.figures.base import (
    Figure,
    above_axis,
    assemble,
    axis_title,
    empty,
    finite,
    hover,
    known,
    legend_on_top,
    rule,
    safe,
    thin,
    told,
)
from reports.figures.numbers import Scale, change_text, number, plain_axis, scale_for
from reports.language import Language, say

_FAR = 2.5  # a limit beyond so many times the largest value would squash the picture: it is told instead


@dataclass(frozen=True, slots=True)
class MemoryPoint:
    """Bytes at one x (context or batch): predicted parts, and the measured peak where there is one.

    activations: they and whatever else a peak has beyond weights and cache.
    """

    x: float
    weights: float
    kv: float
    activations: float
    measured: float | None


def memory(
    points: Sequence[MemoryPoint], *, x_label: str, limit: float | None = None, language: Language = "en"
) -> Figure:
    """Predicted bytes as stacked areas, measured peaks as points; limit: bytes of the device, dashed."""
    title = say(language, "Memory")
    parts = [say(language, "weights"), say(language, "KV cache"), say(language, "activations and the rest")]
    columns = [x_label, *parts, say(language, "predicted"), say(language, "measured peak"), say(language, "residual")]
    shown = sorted((point for point in points if math.isfinite(point.x)), key=lambda point: point.x)
    if not shown:
        return empty(title, columns=columns, language=language)
    kept = [shown[place] for place in thin(len(shown))]
    heights = [total for point in kept for total in (_predicted(point), point.measured)]
    scale = scale_for(heights, "bytes")
    highest = max(known(heights), default=0.0)
    near = limit is not None and limit <= _FAR * highest
    top = max(highest, limit if near and limit is not None else 0.0) * 1.1 / scale.factor or 1.0
    layout: Figure = {
        "xaxis": plain_axis() | {"title": axis_title(x_label)},
        "yaxis": plain_axis() | {"range": [0, top]},
        "margin": {"t": 58, "r": 20},
        "annotations": [above_axis(scale.unit)],
        "shapes": [],
        "legend": legend_on_top(),
        "showlegend": True,
    }
    if near and limit is not None:
        layout["shapes"] = [rule(limit / scale.factor, axis="y", dash="dash")]
        layout["annotations"] += [_limit_note(limit, scale, language)]
    traces = [*_areas(kept, parts, scale), *_peaks(kept, scale, language)]
    rows = [
        [
            f"{point.x:,.6g}",
            *(number(part, "bytes") for part in (point.weights, point.kv, point.activations)),
            number(_predicted(point), "bytes"),
            number(point.measured, "bytes"),
            _residual(point),
        ]
        for point in shown
    ]
    summary = _memory_sentence(shown, x_label, limit, language)
    return assemble(traces, layout, title=title, summary=summary, columns=columns, rows=rows)


def _predicted(point: MemoryPoint) -> float:
    return sum(known((point.weights, point.kv, point.activations)))


def _residual(point: MemoryPoint) -> str:
    """What was measured beyond the prediction."""
    peak = finite(point.measured)
    if peak is None:
        return "-"
    difference = number(abs(peak - _predicted(point)), "bytes")
    sign = "+" if peak >= _predicted(point) else "−"
    return f"{sign}{difference} ({change_text(peak / _predicted(point)) if _predicted(point) else '-'})"


def _areas(points: Sequence[MemoryPoint], names: Sequence[str], scale: Scale) -> list[Figure]:
    """The parts on top of each other, each with its own pattern; drawn as sums, told as parts."""
    below = [0.0] * len(points)
    traces = []
    for order, field in enumerate(("weights", "kv", "activations")):
        values = [finite(getattr(point, field)) or 0.0 for point in points]
        below = [base + value for base, value in zip(below, values, strict=True)]
        colour = palette.ENTITY_COLOURS[order]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": safe(names[order]),
                "x": [point.x for point in points],
                "y": [value / scale.factor for value in below],
                "fill": "tozeroy" if order == 0 else "tonexty",
                "fillcolor": palette.faint(colour, 0.4),
                "fillpattern": {
                    "shape": palette.AREA_PATTERNS[order],
                    "size": 7,
                    "solidity": 0.25,
                    "fgcolor": colour,
                    "fillmode": "overlay",
                },
                "line": {"color": colour, "width": 1.5, "dash": palette.ENTITY_DASHES[order]},
                "hoverinfo": "text",
                "hovertext": [hover(f"{names[order]}: {number(value, 'bytes')}") for value in values],
            }
        )
    return traces


def _peaks(points: Sequence[MemoryPoint], scale: Scale, language: Language) -> list[Figure]:
    """Measured peaks; a thin line to the prediction is the residual."""
    found = [point for point in points if finite(point.measured) is not None]
    if not found:
        return []
    gaps = [(point.measured or 0.0) - _predicted(point) for point in found]
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": safe(say(language, "measured peak")),
            "x": [point.x for point in found],
            "y": [scale.of(point.measured) for point in found],
            "marker": {"color": palette.NEUTRAL, "symbol": "diamond", "size": 10, "line": {"width": 0}},
            "error_y": {
                "type": "data",
                "symmetric": False,
                "array": [max(-gap, 0.0) / scale.factor for gap in gaps],
                "arrayminus": [max(gap, 0.0) / scale.factor for gap in gaps],
                "thickness": 1.5,
                "width": 0,
                "color": palette.NEUTRAL,
            },
            "hoverinfo": "text",
            "hovertext": [
                hover(
                    number(point.measured, "bytes"),
                    say(language, "residual {residual}", residual=_residual(point)),
                )
                for point in found
            ],
        }
    ]


def _limit_note(limit: float, scale: Scale, language: Language) -> Figure:
    return {
        "text": safe(say(language, "limit {limit}", limit=number(limit, "bytes"))),
        "x": 0,
        "y": limit / scale.factor,
        "xref": "paper",
        "yref": "y",
        "xanchor": "left",
        "yanchor": "bottom",
        "xshift": 6,
        "showarrow": False,
        "font": {"size": 11},
    }


def _memory_sentence(points: Sequence[MemoryPoint], x_label: str, limit: float | None, language: Language) -> str:
    first, last = points[0], points[-1]
    text = say(
        language,
        "Predicted {first} to {last} for {x_label} {low} to {high}.",
        first=number(_predicted(first), "bytes"),
        last=number(_predicted(last), "bytes"),
        x_label=x_label,
        low=f"{first.x:,.6g}",
        high=f"{last.x:,.6g}",
    )
    residual = met = ""
    residuals = [point for point in points if finite(point.measured) is not None]
    if residuals:
        worst = max(residuals, key=lambda point: abs((point.measured or 0.0) - _predicted(point)))
        residual = say(
            language,
            "The largest residual of {n} measured peaks is {residual} at {x}.",
            n=len(residuals),
            residual=_residual(worst),
            x=f"{worst.x:,.6g}",
        )
    met_at = reach(points, limit)
    if limit is not None and met_at is not None:
        met = say(
            language,
            "By the prediction the limit of {limit} is reached at {x}.",
            limit=number(limit, "bytes"),
            x=f"{float(f'{met_at:.3g}'):,.0f}",  # a prediction is known no better
        )
    return told(language, text, residual, met)


def reach(points: Sequence[MemoryPoint], limit: float | None) -> float | None:
    """The x at which the prediction meets the limit, carried on along its last two points; None where it never does."""
    if limit is None or len(points) < 2:
        return None
    before, after = points[-2:]
    for lower, upper in itertools.pairwise(points):
        if _predicted(lower) <= limit <= _predicted(upper):
            before, after = lower, upper
            break
    rise = (_predicted(after) - _predicted(before)) / (after.x - before.x) if after.x > before.x else 0.0
    return after.x + (limit - _predicted(after)) / rise if rise > 0 and limit >= _predicted(points[0]) else None
