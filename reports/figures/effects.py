"""Ratios and pairs as rows: a forest of effects, and bars of two sides.

    forest([Effect("decode(context=512)", 1.07, 1.05, 1.09, "improved", "higher")], limit=0.97)

Each row has its label above its mark, so that long names cost no width on a small screen. Beyond MAX_ROWS the smallest
effects stand in the table only, and the summary says how many. Refuses nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from harness.core import Better, VerdictName
from reports import palette
from reports.figures.base import Figure, assemble, empty, finite, hover, legend_on_top, safe, told, whiskers
from reports.figures.numbers import (
    better_text,
    change_text,
    headed,
    measured,
    number,
    plain_axis,
    ratio_axis,
    ratio_range,
    ratio_text,
    scale_for,
)
from reports.figures.rowed import MAX_ROWS, Rows, plan_rows, row_layout, row_number, upright
from reports.language import Language, say, verdict_word
from reports.palette import Judged

_FOREST = 27  # pixels below the label of a row; its mark lies in the middle
_BARS = 47
_THICK = 16
_VERDICTS: tuple[VerdictName, ...] = get_args(VerdictName)


@dataclass(frozen=True, slots=True)
class Effect:
    """One comparison: ratio of an arm over the baseline with its interval. A bound may be missing, 0 or infinite."""

    label: str
    ratio: float
    low: float | None
    high: float | None
    verdict: Judged
    better: Better
    note: str = ""


@dataclass(frozen=True, slots=True)
class Value:
    """A median with its interval, in the figure's unit, over n blocks (or samples)."""

    name: str
    median: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Pair:
    """The two sides of one case; a is the baseline."""

    label: str
    a: Value
    b: Value


def forest(effects: Sequence[Effect], *, limit: float | None = None, language: Language = "en") -> Figure:
    """Ratios with whiskers on a logarithmic axis, best first, a line at 1; limit: a gate's ratio, dashed."""
    title = say(language, "Effects")
    columns = [
        say(language, "case"),
        say(language, "ratio [95%]"),
        say(language, "relative change"),
        say(language, "verdict"),
        say(language, "note"),
    ]
    if not effects:
        return empty(title, columns=columns, language=language)
    ordered = sorted(effects, key=_goodness, reverse=True)
    shown = _largest(ordered)
    directions = {effect.better for effect in effects if effect.verdict != "reference"}
    direction = better_text(next(iter(directions)), language) if len(directions) == 1 else ""
    ratios = [effect.ratio for effect in shown if effect.ratio > 0]
    bounds = [bound for effect in shown for bound in (effect.low, effect.high)]
    ends = ratio_range([*ratios, *([] if limit is None else [limit])], bounds)
    heading = say(language, "ratio to the baseline (log)")
    heading = f"{heading}, {direction}" if direction else heading
    frame = plan_rows([effect.label for effect in shown], body=_FOREST)
    layout = row_layout(frame, axis=ratio_axis(ends), heading=heading)
    layout["annotations"] += [
        row_number(ratio_text(effect.ratio, effect.low, effect.high), frame.at(row, _FOREST / 2))
        for row, effect in enumerate(shown)
    ]
    rules = [upright(1.0, frame)]
    if limit is not None and limit > 0:
        rules.append(upright(limit, frame, dash="dash"))
    layout |= {"legend": legend_on_top(), "showlegend": True}
    layout["height"] += 10 * len({effect.verdict for effect in shown})  # the legend has lines on a narrow screen
    rows = [
        [
            effect.label,
            ratio_text(effect.ratio, effect.low, effect.high),
            change_text(effect.ratio) if effect.ratio > 0 else "-",
            f"{palette.VERDICT[effect.verdict].glyph} {_word(effect.verdict, language)}",
            effect.note,
        ]
        for effect in ordered
    ]
    summary = _forest_sentence(ordered, len(shown), limit, language)
    traces = [*rules, *_forest_traces(shown, frame, ends, language)]
    return assemble(traces, layout, title=title, summary=summary, columns=columns, rows=rows)


def _goodness(effect: Effect) -> tuple[bool, float]:
    """By size in the good direction; what has no ratio comes last."""
    if not (effect.ratio > 0 and math.isfinite(effect.ratio)):
        return False, 0.0
    return True, -math.log(effect.ratio) if effect.better == "lower" else math.log(effect.ratio)


def _largest(ordered: Sequence[Effect]) -> list[Effect]:
    """At most MAX_ROWS, in their order: those with a verdict of change first, then by size."""
    weight = [
        (effect.verdict in ("improved", "regressed"), abs(_goodness(effect)[1]), -place)
        for place, effect in enumerate(ordered)
    ]
    kept = sorted(range(len(ordered)), key=weight.__getitem__, reverse=True)[:MAX_ROWS]
    return [ordered[place] for place in sorted(kept)]


def _word(verdict: Judged, language: Language) -> str:
    return say(language, "reference") if verdict == "reference" else verdict_word(language, verdict)


def _forest_traces(shown: Sequence[Effect], frame: Rows, ends: tuple[float, float], language: Language) -> list[Figure]:
    """One trace per verdict, so that the legend explains each symbol and counts it."""
    traces = []
    for verdict, style in palette.VERDICT.items():
        places = [row for row, effect in enumerate(shown) if effect.verdict == verdict and effect.ratio > 0]
        if not places:
            continue
        ratios = [shown[row].ratio for row in places]
        # An open interval goes on to the edge of the picture: a logarithmic axis has neither 0 nor infinity.
        lows = [ends[0] if low is not None and low <= 0 else low for low in (shown[row].low for row in places)]
        highs = [ends[1] if high == math.inf else high for high in (shown[row].high for row in places)]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": safe(f"{_word(verdict, language)} ({len(places)})"),
                "x": ratios,
                "y": [frame.at(row, _FOREST / 2) for row in places],
                "marker": {
                    "color": style.colour,
                    "symbol": style.symbol,
                    "size": 11,
                    "line": {"width": 1.5, "color": style.colour},
                },
                "error_x": whiskers(ratios, lows, highs) | {"color": style.colour},
                "hoverinfo": "text",
                "hovertext": [
                    hover(
                        effect.label,
                        ratio_text(effect.ratio, effect.low, effect.high),
                        f"{change_text(effect.ratio)} {style.glyph} {_word(verdict, language)}",
                        effect.note,
                    )
                    for effect in (shown[row] for row in places)
                ],
            }
        )
    return traces


def _forest_sentence(ordered: Sequence[Effect], num_shown: int, limit: float | None, language: Language) -> str:
    judged = [effect for effect in ordered if effect.verdict != "reference"]
    counts = [
        f"{sum(effect.verdict == name for effect in judged)} {verdict_word(language, name)}"
        for name in _VERDICTS
        if any(effect.verdict == name for effect in judged)
    ]
    parts = [say(language, "{counts}; {n} in all.", n=len(judged), counts=say(language, ", ").join(counts) or "-")]
    measurable = [effect for effect in judged if _goodness(effect)[0]]
    if measurable:
        largest = max(measurable, key=lambda effect: abs(_goodness(effect)[1]))
        parts.append(
            say(
                language,
                "Largest change: {label} {change} ({ratio}, {verdict}).",
                label=largest.label,
                change=change_text(largest.ratio),
                ratio=ratio_text(largest.ratio, largest.low, largest.high),
                verdict=_word(largest.verdict, language),
            )
        )
    if limit is not None:
        parts.append(say(language, "Dashed: the limit {limit}.", limit=ratio_text(limit)))
    if num_shown < len(ordered):
        parts.append(say(language, "{n} more stand in the table.", n=len(ordered) - num_shown))
    return told(language, *parts)


def bars(pairs: Sequence[Pair], *, unit: str, language: Language = "en") -> Figure:
    """Two bars per case with their intervals, from zero; values in `unit` of the store (s, bytes, tokens/s)."""
    title = say(language, "Both sides")
    names = [_common([getattr(pair, side).name for pair in pairs], side.upper()) for side in ("a", "b")]
    columns = [say(language, "case"), *names, f"{names[1]} / {names[0]}", "n"]
    if not pairs:
        return empty(title, columns=columns, language=language)
    shown = pairs[:MAX_ROWS]
    scale = scale_for([value for pair in shown for value in (pair.a.median, pair.b.median)], unit)
    colours = (palette.NEUTRAL, palette.styles([names[1]])[names[1]].colour)
    axis = plain_axis(from_zero=True) | {"fixedrange": True, "nticks": 5}
    frame = plan_rows([pair.label for pair in shown], body=_BARS)
    layout = row_layout(frame, axis=axis, heading=headed("", scale))
    layout |= {"barmode": "overlay", "bargap": 0, "legend": legend_on_top(), "showlegend": True}
    traces = []
    for side, name, colour, place in zip(("a", "b"), names, colours, (12, 33), strict=True):
        values: list[Value] = [getattr(pair, side) for pair in shown]
        drawn = [scale.of(value.median) for value in values]
        texts = [measured(value.median, value.low, value.high, unit) for value in values]
        layout["annotations"] += [row_number(text, frame.at(row, place)) for row, text in enumerate(texts)]
        lows, highs = [scale.of(value.low) for value in values], [scale.of(value.high) for value in values]
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": safe(name, length=48),
                "x": drawn,
                "y": [frame.at(row, place) for row in range(len(shown))],
                "width": frame.thick(_THICK),
                # The baseline is hollow, so that the two differ without their colour too.
                "marker": {
                    "color": palette.faint(colour, 0.18) if side == "a" else colour,
                    "line": {"color": colour, "width": 1.5},
                },
                "error_x": whiskers(drawn, lows, highs),
                "hoverinfo": "text",
                "hovertext": [
                    hover(pair.label, f"{value.name}: {text}", f"n = {value.n}")
                    for pair, value, text in zip(shown, values, texts, strict=True)
                ],
            }
        )
    rows = [
        [
            pair.label,
            measured(pair.a.median, pair.a.low, pair.a.high, unit),
            measured(pair.b.median, pair.b.low, pair.b.high, unit),
            ratio_text(_ratio(pair)),
            f"{pair.a.n} / {pair.b.n}",
        ]
        for pair in pairs
    ]
    summary = _bars_sentence(pairs, unit, len(shown), language)
    return assemble(traces, layout, title=title, summary=summary, columns=columns, rows=rows)


def _common(names: Sequence[str], otherwise: str) -> str:
    """The name that all rows share, or the letter of the side."""
    return names[0] if names and len(set(names)) == 1 else otherwise


def _ratio(pair: Pair) -> float | None:
    a, b = finite(pair.a.median), finite(pair.b.median)
    return None if a is None or b is None or a == 0 else b / a


def _bars_sentence(pairs: Sequence[Pair], unit: str, num_shown: int, language: Language) -> str:
    ratios = [(pair, ratio) for pair in pairs if (ratio := _ratio(pair)) is not None and ratio > 0]
    if not ratios:
        return say(language, "Cases: {n}; no ratio can be stated.", n=len(pairs))
    pair, ratio = max(ratios, key=lambda item: abs(math.log(item[1])))
    text = say(
        language,
        "Cases: {n}; the largest difference is {label}: {a} against {b} ({change}).",
        n=len(pairs),
        label=pair.label,
        a=number(pair.a.median, unit),
        b=number(pair.b.median, unit),
        change=change_text(ratio),
    )
    more = say(language, "{n} more stand in the table.", n=len(pairs) - num_shown) if num_shown < len(pairs) else ""
    return told(language, text, more)
