"""Raw samples of a series: in the order of time, and as a distribution.

    strip([RawSeries("A", values, warmup)], unit="s")
    ecdf([RawSeries("A", values, warmup), RawSeries("B", others, more)], unit="s")

Refuses nothing: warm-up is drawn grey in the strip and left out of the distribution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

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
    safe,
    thin,
    told,
)
from reports.figures.numbers import Scale, change_text, headed, number, plain_axis, scale_for
from reports.language import Language, say


@dataclass(frozen=True, slots=True)
class RawSeries:
    """Samples in the order of time; warmup: for each whether it belongs to the warm-up."""

    name: str
    values: Sequence[float]
    warmup: Sequence[bool]


def strip(series: Sequence[RawSeries], *, unit: str, language: Language = "en") -> Figure:
    """Every sample in order, warm-up in grey, a line at the median of the timed ones."""
    title = say(language, "Samples in order")
    columns = _columns(language)
    everything = known(value for one in series for value in one.values)
    if not everything:
        return empty(title, columns=columns, language=language)
    scale = scale_for(everything, unit)
    looks = palette.styles(one.name for one in series)
    traces = []
    for one in series:
        traces += _strip_traces(one, looks[one.name], scale, unit, language)
    layout = {
        "xaxis": plain_axis() | {"title": axis_title(say(language, "sample, in the order of time"))},
        "yaxis": plain_axis(),
        "margin": {"t": 58, "r": 16},
        "annotations": [above_axis(headed("", scale))],
        "legend": legend_on_top(),
        "showlegend": True,
    }
    return assemble(traces, layout, title=title, summary=_sentence(series, unit, language), columns=columns,
                    rows=_rows(series, unit))  # fmt: skip


def _strip_traces(one: RawSeries, look: palette.Style, scale: Scale, unit: str, language: Language) -> list[Figure]:
    """Timed samples, warm-up, and the line of the median; the two kinds of sample share the limit of points."""
    kept = thin(len(one.values))
    warm = [place for place in kept if place < len(one.warmup) and one.warmup[place]]
    timed = [place for place in kept if place not in set(warm)]
    name = safe(one.name, length=40)
    found: list[Figure] = []
    for places, colour, size, label in (
        (warm, palette.faint(palette.NEUTRAL, 0.6), 5, f"{name}: {safe(say(language, 'warm-up'))}"),
        (timed, look.colour, 6, name),
    ):
        if places:
            found.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": label,
                    "x": places,
                    "y": [scale.of(one.values[place]) for place in places],
                    "marker": {"color": colour, "symbol": look.symbol, "size": size, "line": {"width": 0}},
                    "hoverinfo": "text",
                    "hovertext": [hover(one.name, f"#{place}", number(one.values[place], unit)) for place in places],
                }
            )
    inside = _timed(one)
    if inside:
        level = median(inside) / scale.factor
        found.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": name,
                "showlegend": False,
                "x": [timed[0] if timed else 0, len(one.values) - 1],
                "y": [level, level],
                "line": {"color": look.colour, "width": 1.5, "dash": look.dash},
                "hoverinfo": "skip",
            }
        )
    return found


def _timed(one: RawSeries) -> list[float]:
    """The finite samples that are not warm-up."""
    return known(value for place, value in enumerate(one.values) if not (place < len(one.warmup) and one.warmup[place]))


def ecdf(series: Sequence[RawSeries], *, unit: str, language: Language = "en") -> Figure:
    """The share of timed samples at or below each value."""
    title = say(language, "Distribution")
    columns = _columns(language)
    timed = {one.name: sorted(_timed(one)) for one in series}
    if not any(timed.values()):
        return empty(title, columns=columns, language=language)
    scale = scale_for((value for values in timed.values() for value in values), unit)
    looks = palette.styles(timed)
    ends = scale.of(min(map(min, filter(None, timed.values())))), scale.of(max(map(max, filter(None, timed.values()))))
    low, high = ends[0] or 0.0, ends[1] or 0.0
    room = 0.04 * (high - low) or 0.05 * abs(high) or 1.0
    layout = {
        "xaxis": plain_axis(headed("", scale)) | {"nticks": 5, "range": [low - room, high + room]},
        "yaxis": plain_axis() | {"range": [-3, 103], "ticksuffix": "%"},
        "margin": {"t": 58, "r": 16},
        "annotations": [above_axis(say(language, "share of samples at or below")), *_ecdf_names(timed, scale)],
        "legend": legend_on_top(),
        "showlegend": True,
    }
    traces = [_ecdf_trace(name, values, looks, scale, unit) for name, values in timed.items() if values]
    return assemble(traces, layout, title=title, summary=_sentence(series, unit, language), columns=columns,
                    rows=_rows(series, unit))  # fmt: skip


def _ecdf_trace(
    name: str, values: Sequence[float], looks: Mapping[str, palette.Style], scale: Scale, unit: str
) -> Figure:
    kept = thin(len(values))
    shares = [100 * (place + 1) / len(values) for place in kept]
    return {
        "type": "scatter",
        "mode": "lines" if len(kept) > 1 else "markers",
        "name": safe(name, length=40),
        "x": [scale.of(values[place]) for place in kept],
        "y": shares,
        "line": {"color": looks[name].colour, "width": 2, "shape": "hv"},
        "marker": {"color": looks[name].colour, "symbol": looks[name].symbol, "size": 8},
        "hoverinfo": "text",
        "hovertext": [
            hover(name, number(values[place], unit), f"{share:.1f}%") for place, share in zip(kept, shares, strict=True)
        ],
    }


def _ecdf_names(timed: Mapping[str, Sequence[float]], scale: Scale) -> list[Figure]:
    """Each name beside its own line, the next one lower: dashes would be lost in the small steps.

    On the left of the line that is leftmost there, on the right of the others: so that no line runs through a name.
    """
    notes = []
    drawn = {name: values for name, values in timed.items() if values}
    for order, name in enumerate(drawn):
        share = max(0.85 - 0.12 * order, 0.05)
        at = {other: ordered[min(int(share * len(ordered)), len(ordered) - 1)] for other, ordered in drawn.items()}
        leftmost = at[name] <= min(at.values())
        notes.append(
            {
                "text": safe(name, length=24),
                "x": scale.of(at[name]),
                "y": 100 * share,
                "xref": "x",
                "yref": "y",
                "xanchor": "right" if leftmost else "left",
                "yanchor": "bottom" if leftmost else "top",
                "xshift": -6 if leftmost else 6,
                "showarrow": False,
                "font": {"size": 11},
            }
        )
    return notes


def _columns(language: Language) -> list[str]:
    return [
        say(language, "series"),
        say(language, "samples"),
        say(language, "warm-up"),
        say(language, "lowest"),
        say(language, "median"),
        say(language, "highest"),
    ]


def _rows(series: Sequence[RawSeries], unit: str) -> list[list[str]]:
    rows = []
    for one in series:
        inside = _timed(one)
        levels = (min(inside), median(inside), max(inside)) if inside else (None, None, None)
        num_warmup = sum(bool(warm) for warm in one.warmup[: len(one.values)])
        rows.append([one.name, f"{len(inside):,}", f"{num_warmup:,}", *(number(level, unit) for level in levels)])
    return rows


def _sentence(series: Sequence[RawSeries], unit: str, language: Language) -> str:
    medians = [(one.name, median(inside), len(inside)) for one in series if (inside := _timed(one))]
    parts = [
        say(language, "{name}: {n} samples, median {median}.", name=name, n=n, median=number(middle, unit))
        for name, middle, n in medians
    ]
    if len(medians) == 2 and finite(medians[0][1]):
        ratio = change_text(medians[1][1] / medians[0][1])
        parts.append(say(language, "{b} against {a}: {change}.", a=medians[0][0], b=medians[1][0], change=ratio))
    return told(language, *parts) or say(language, "Warm-up only: nothing was timed.")
