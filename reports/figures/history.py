"""A series over the runs of a history: levels, changes between them, notes, and the tiny line for a table's cell.

    trend(points, title="tps of decode(context=512)", unit="tokens/s", band=0.012, better="higher")

Refuses nothing: a point without a value is a gap.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import Literal, TypeAlias

from harness.core import Better
from reports import palette
from reports.figures.base import (
    MAX_TABLE,
    Figure,
    above_axis,
    assemble,
    empty,
    finite,
    hover,
    known,
    rule,
    safe,
    thin,
    told,
    whiskers,
)
from reports.figures.numbers import Scale, better_text, change_text, headed, measured, number, plain_axis, scale_for
from reports.language import Language, say

Along: TypeAlias = Literal["commit", "time"]
_TICKS = 4
_REACH = 0.4  # of the distance of neighbours in order: how far a level goes beyond its last point


@dataclass(frozen=True, slots=True)
class TrendPoint:
    """One run of a series. label: its short name on the axis (a commit). A new segment breaks the line."""

    run_id: str
    label: str
    when: datetime | None
    value: float | None
    low: float | None
    high: float | None
    segment: int


@dataclass(frozen=True, slots=True)
class Change:
    """A change of level. index: the first point after it.

    before, after: the levels, in the unit; low, high: interval of their ratio.
    """

    number: int
    index: int
    before: float
    after: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Mark:
    """A note at a point, numbered as in the list beneath the figure."""

    number: int
    index: int
    text: str


def trend(
    points: Sequence[TrendPoint],
    *,
    title: str,
    unit: str,
    changes: Sequence[Change] = (),
    band: float | None = None,
    limit: float | None = None,
    marks: Sequence[Mark] = (),
    better: Better = "neither",
    along: Along = "commit",
    window: tuple[int, int] | None = None,
    language: Language = "en",
) -> Figure:
    """Values in their order with intervals, or along time where every point says when. band: relative noise about each
    level (0.012: 1.2% up and down); limit: a gate's bound in the unit, dashed. Changes are coloured only where `better`
    names a direction. window: first and last point in sight, None for all; the table has all of them."""
    columns = [say(language, "run"), say(language, "commit"), say(language, "started"), say(language, "median [95%]"),
               say(language, "remark")]  # fmt: skip
    values = [finite(point.value) for point in points]
    if not known(values):
        return empty(title, columns=columns, language=language)
    scale = scale_for(values, unit)
    drawn = thin(len(points))
    first, last = window or (0, len(points) - 1)
    inside = slice(first, last + 1)
    low, high = _value_range(points[inside], values[inside], limit, scale)
    places = _places(points, along)
    room = max(0.5, 0.02 * (last - first + 1))
    layout: Figure = {
        "xaxis": {
            "tickmode": "array",
            **_ticks(points, places, first, last, along),
            "tickfont": {"size": 11},
            "tickangle": 0,
            "range": [places[first] - room, places[last] + room],
            "zeroline": False,
            "automargin": True,
        },
        "yaxis": plain_axis() | {"range": [low, high], "fixedrange": True},  # a box drawn over it chooses runs
        "margin": {"t": 34, "r": 24},
        "annotations": [above_axis(headed("", scale, better_text(better, language)))],
        "shapes": [*_breaks(points, places)],
    }
    if limit is not None and low <= limit / scale.factor <= high:
        layout["shapes"].append(rule(limit / scale.factor, axis="y", dash="dash"))
        layout["annotations"].append(_limit_note(limit, scale, unit, language))
    level, previous = 0, -math.inf
    for change in sorted(changes, key=lambda change: change.index):
        # Numbers of changes near each other stand at different heights, so that they do not cover each other.
        x = _between(places, change.index)
        level, previous = (level + 1) % 3 if x - previous < 0.08 * (last - first + 1) else 0, x
        layout["shapes"].append(_step_line(change, x, better))
        layout["annotations"].append(_change_note(change, x, better, level))
    layout["annotations"] += [_mark_note(mark, places[mark.index]) for mark in marks if 0 <= mark.index < len(points)]
    pieces = _pieces(points, values, changes, places)
    traces = [*_bands(pieces, band, scale), *_levels(pieces, scale), _line(points, values, places, drawn, scale, unit)]
    remarks: dict[int, list[str]] = {}
    for change in changes:
        ratio = change_text(change.after / change.before if change.before else None)
        remarks.setdefault(change.index, []).append(
            say(language, "change {n}: {change}", n=change.number, change=ratio)
        )
    for mark in marks:
        remarks.setdefault(mark.index, []).append(f"[{mark.number}] {mark.text}")
    listed = sorted({*thin(len(points), MAX_TABLE), *(place for place in remarks if 0 <= place < len(points))})
    rows = [
        [
            points[place].run_id,
            points[place].label,
            _time(points[place].when),
            measured(points[place].value, points[place].low, points[place].high, unit),
            "; ".join(remarks.get(place, [])),
        ]
        for place in listed
    ]
    summary = _sentence(points, values, changes, title, unit, language)
    if num_breaks := len(_breaks(points, places)):
        apart = say(language, "Dotted: versions or settings changed ({n}); levels beside it are not compared.",
                    n=num_breaks)  # fmt: skip
        summary = told(language, summary, apart)
    if len(listed) < len(points):
        every = say(language, "The table has {shown} of the {n} runs.", shown=len(listed), n=len(points))
        summary = told(language, summary, every)
    return assemble(traces, layout, title=title, summary=summary, columns=columns, rows=rows)


def _value_range(
    points: Sequence[TrendPoint], values: Sequence[float | None], limit: float | None, scale: Scale
) -> tuple[float, float]:
    """Room for all values; intervals up to the span of the values beyond them, and a limit as near as that."""
    found = known(values)
    low, high = min(found), max(found)
    reach = max(high - low, abs(high) * 0.01)
    bounds = known([bound for point in points for bound in (point.low, point.high)])
    near = [bound for bound in [*bounds, *([] if limit is None else [limit])] if low - reach <= bound <= high + reach]
    low, high = min([low, *near]), max([high, *near])
    room = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return (low - room) / scale.factor, (high + 2.2 * room) / scale.factor  # the numbers of changes stand on top


def _places(points: Sequence[TrendPoint], along: Along) -> list[float]:
    """Where each point lies on the horizontal axis: its number, or its share of the time, on the same scale."""
    last = len(points) - 1
    moments = [point.when.timestamp() for point in points if point.when is not None and along == "time"]
    if len(moments) <= last or moments[0] == moments[-1]:
        return [float(number) for number in range(len(points))]
    return [last * (moment - moments[0]) / (moments[-1] - moments[0]) for moment in moments]


def _between(places: Sequence[float], index: int) -> float:
    """Halfway between a point and the one before it."""
    return (places[index - 1] + places[index]) / 2 if 0 < index < len(places) else index - 0.5


def _ticks(points: Sequence[TrendPoint], places: Sequence[float], first: int, last: int, along: Along) -> Figure:
    """Labels of some runs; of some times where the axis is one of time."""
    start, end = points[first].when, points[last].when
    shares = [number / (_TICKS - 1) for number in range(_TICKS)]
    if along == "commit" or start is None or end is None or start == end:
        chosen = sorted({first + round(share * (last - first)) for share in shares})
        return {
            "tickvals": [places[number] for number in chosen],
            "ticktext": [safe(points[number].label, length=9) for number in chosen],
        }
    span = (end - start).days
    form = "%m-%d %H:%M" if span < _TICKS else "%m-%d" if span < 300 else "%Y-%m"
    return {
        "tickvals": [places[first] + share * (places[last] - places[first]) for share in shares],
        "ticktext": [(start + share * (end - start)).strftime(form) for share in shares],
    }


def _breaks(points: Sequence[TrendPoint], places: Sequence[float]) -> list[Figure]:
    """A faint line between two segments."""
    colour = palette.faint(palette.NEUTRAL, 0.7)
    return [
        rule(_between(places, number), axis="x", dash="dot", colour=colour, width=1)
        for number in range(1, len(points))
        if points[number].segment != points[number - 1].segment
    ]


def _look(change: Change, better: Better) -> palette.Style:
    """Blue or orange where the direction has a meaning and the interval leaves 1 aside."""
    if better == "neither" or change.low <= 1 <= change.high:
        return palette.VERDICT["inconclusive"]
    return palette.VERDICT["improved" if (change.after > change.before) == (better == "higher") else "regressed"]


def _step_line(change: Change, x: float, better: Better) -> Figure:
    return rule(x, axis="x", colour=_look(change, better).colour, width=1.5)


def _change_note(change: Change, x: float, better: Better, level: int) -> Figure:
    """The number of a change on its line. level: how many lines of text below the top."""
    look = _look(change, better)
    return {
        "text": safe(f"{change.number} {'▲' if change.after > change.before else '▼'}"),
        "x": x,
        "y": 1,
        "xref": "x",
        "yref": "paper",
        "xanchor": "center",
        "yanchor": "top",
        "yshift": -20 * level,
        "showarrow": False,
        "bordercolor": look.colour,
        "borderwidth": 1.5,
        "borderpad": 2,
        "font": {"size": 11},
    }


def _mark_note(mark: Mark, x: float) -> Figure:
    return {
        "text": safe(f"[{mark.number}]"),
        "hovertext": hover(mark.text),
        "x": x,
        "y": 0,
        "xref": "x",
        "yref": "paper",
        "xanchor": "center",
        "yanchor": "bottom",
        "showarrow": False,
        "font": {"size": 11},
    }


def _limit_note(limit: float, scale: Scale, unit: str, language: Language) -> Figure:
    return {
        "text": safe(say(language, "limit {limit}", limit=number(limit, unit))),
        "x": 1,
        "y": limit / scale.factor,
        "xref": "paper",
        "yref": "y",
        "xanchor": "right",
        "yanchor": "bottom",
        "showarrow": False,
        "font": {"size": 11},
    }


def _pieces(
    points: Sequence[TrendPoint],
    values: Sequence[float | None],
    changes: Sequence[Change],
    places: Sequence[float],
) -> list[tuple[float, float, float]]:
    """Left end, right end and median of every stretch between changes and breaks; neighbours do not touch."""
    cuts = {change.index for change in changes} | {
        number for number in range(1, len(points)) if points[number].segment != points[number - 1].segment
    }
    edges = [0, *sorted(cut for cut in cuts if 0 < cut < len(points)), len(points)]
    found = []
    for start, end in itertools.pairwise(edges):
        inside = known(values[start:end])
        if inside:
            left = max(places[start] - _REACH, _between(places, start))
            right = min(places[end - 1] + _REACH, _between(places, end))
            found.append((left, right, median(inside)))
    return found


def _bands(pieces: Sequence[tuple[float, float, float]], band: float | None, scale: Scale) -> list[Figure]:
    """The noise about each level: one closed outline per stretch."""
    if band is None or not band > 0:
        return []
    x: list[float | None] = []
    y: list[float | None] = []
    for left, right, level in pieces:
        low, high = level * (1 - band) / scale.factor, level * (1 + band) / scale.factor
        x += [left, right, right, left, left, None]
        y += [low, low, high, high, low, None]
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "x": x,
            "y": y,
            "fill": "toself",
            "fillcolor": palette.faint(palette.NEUTRAL, 0.2),
            "line": {"width": 0, "color": palette.NEUTRAL},
            "hoverinfo": "skip",
            "name": "band",
        }
    ]


def _levels(pieces: Sequence[tuple[float, float, float]], scale: Scale) -> list[Figure]:
    x: list[float | None] = []
    y: list[float | None] = []
    for left, right, level in pieces:
        x += [left, right, None]
        y += [level / scale.factor, level / scale.factor, None]
    line = {"color": palette.NEUTRAL, "width": 1.5, "dash": "dash"}
    return [{"type": "scatter", "mode": "lines", "x": x, "y": y, "line": line, "hoverinfo": "skip", "name": "level"}]


def _line(
    points: Sequence[TrendPoint],
    values: Sequence[float | None],
    places: Sequence[float],
    drawn: Sequence[int],
    scale: Scale,
    unit: str,
) -> Figure:
    """The values; a new segment starts after a gap."""
    x: list[float | None] = []
    order: list[int | None] = []
    for place in drawn:
        previous = next((item for item in reversed(order) if item is not None), None)
        if previous is not None and points[place].segment != points[previous].segment:
            x.append(None)
            order.append(None)
        x.append(places[place])
        order.append(place)
    y = [None if place is None else scale.of(values[place]) for place in order]
    lows = [None if place is None else scale.of(points[place].low) for place in order]
    highs = [None if place is None else scale.of(points[place].high) for place in order]
    colour = palette.SERIES
    size = 7 if len(drawn) <= 80 else 4
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": "median",
        "x": x,
        "y": y,
        "line": {"color": colour, "width": 1.5},
        "marker": {"color": colour, "size": size, "symbol": "circle"},
        "error_y": whiskers(y, lows, highs) | {"color": colour, "thickness": 1, "width": 3 if size == 7 else 0},
        "connectgaps": False,
        "hoverinfo": "text",
        "hovertext": ["" if place is None else _hover(points[place], unit) for place in order],
        "customdata": ["" if place is None else points[place].run_id for place in order],
    }


def _hover(point: TrendPoint, unit: str) -> str:
    return hover(point.label, measured(point.value, point.low, point.high, unit), _time(point.when), point.run_id)


def _time(when: datetime | None) -> str:
    return "" if when is None else when.strftime("%Y-%m-%d %H:%M")


def _sentence(
    points: Sequence[TrendPoint],
    values: Sequence[float | None],
    changes: Sequence[Change],
    title: str,
    unit: str,
    language: Language,
) -> str:
    found = known(values)
    parts = [
        say(
            language,
            "{title}, runs {first} to {last} ({n}): between {low} and {high}, the latest {latest}.",
            title=title,
            n=len(points),
            first=points[0].label,
            last=points[-1].label,
            low=number(min(found), unit),
            high=number(max(found), unit),
            latest=number(found[-1], unit),
        )
    ]
    missing = len(points) - len(found)
    if missing:
        parts.append(say(language, "Runs without a value: {n}.", n=missing))
    sized = [change for change in changes if change.before]
    if not sized:
        parts.append(say(language, "No change of level was found."))
        return told(language, *parts)
    largest = max(sized, key=lambda change: abs(change.after / change.before - 1))
    parts.append(
        say(
            language,
            "Changes of level: {n}; the largest is number {number}, {change} at {label}.",
            n=len(changes),
            number=largest.number,
            change=change_text(largest.after / largest.before),
            label=points[largest.index].label if 0 <= largest.index < len(points) else "-",
        )
    )
    return told(language, *parts)
