"""What all figures share: the Plotly dict with its caption, safe text, and axes.

    figure = assemble(data, layout, title="Speed", summary="1 of 3 cases improved", columns=["case"], rows=[["decode"]])
    figure["layout"]["meta"]["summary"]    # the caption and the table beneath the picture come with it

A figure is a plain dict (keys data and layout) that `json.dumps` takes, the same for the same input. It has no
template, background or text colour: a page's theme and `reports.drawing` give those. Refuses nothing: numbers that are
not finite become gaps, and text is escaped, since Plotly reads markup in every text.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from reports import palette
from reports.language import Language, say

Figure = dict[str, Any]
MAX_POINTS = 2000
MAX_TABLE = 400  # rows of a series' table: a page holds every cell
_DIGITS = 7  # of a number in a figure: more than a screen can show, and half the bytes
LABEL_SIZE = 12
SMALL_SIZE = 11
_END_LABEL = 18  # a name of so many characters may stand at the end of its line; longer ones go into the legend
_END_LABELS = 6


def assemble(
    data: Sequence[Mapping[str, Any]],
    layout: Mapping[str, Any],
    *,
    title: str,
    summary: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    min_width: int = 320,
) -> Figure:
    """The dict of a figure; title, summary, columns and rows are plain text (not escaped) for caption and table.

    min_width: pixels below which its texts would cover each other; a page scrolls it inside itself then.
    """
    meta: Figure = {"title": title, "summary": summary, "columns": list(columns), "rows": [list(row) for row in rows]}
    meta["min_width"] = min_width
    margin = {"l": 12, "r": 12, "t": 12, "b": 12} | dict(layout.get("margin", {}))
    common = {"autosize": True, "hovermode": "closest", "showlegend": False}
    return {
        "data": [_clean(trace) for trace in data],
        "layout": _clean({**common, **layout, "margin": margin, "meta": meta}),
    }


def empty(title: str, *, columns: Sequence[str] = (), language: Language = "en") -> Figure:
    """The figure that says that there is nothing to draw."""
    summary = say(language, "Nothing was measured that could be drawn here.")
    note = {**paper_note(safe(summary), x=0.5, y=0.5), "xanchor": "center", "yanchor": "middle"}
    hidden = {"visible": False, "range": [0, 1], "fixedrange": True}
    layout = {"xaxis": hidden, "yaxis": hidden, "annotations": [note], "height": 160}
    return assemble([], layout, title=title, summary=summary, columns=columns, rows=[])


def told(language: Language, *sentences: str) -> str:
    """Sentences in a row; Chinese ones without spaces between them, empty ones left out."""
    return ("" if language == "zh" else " ").join(sentence for sentence in sentences if sentence)


def _clean(value: Any) -> Any:
    """Copies of plain types only, numbers to _DIGITS; one that is not finite becomes None, which is drawn as a gap."""
    if isinstance(value, Mapping):
        return {str(key): _clean(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(inner) for inner in value]
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        return value
    number = finite(float(value))
    return None if number is None else float(f"{number:.{_DIGITS}g}")


def finite(value: float | None) -> float | None:
    """The number, or None where it is none."""
    return value if value is not None and math.isfinite(value) else None


def known(values: Iterable[float | None]) -> list[float]:
    """The finite ones."""
    return [value for value in values if value is not None and math.isfinite(value)]


def safe(text: str, *, length: int | None = None) -> str:
    """Text from outside as Plotly may show it: one line, markup escaped, cut in the middle to `length` characters."""
    line = "".join(character if character.isprintable() else " " for character in text)
    if length is not None and len(line) > length:
        tail = (length - 1) // 2
        line = f"{line[: length - 1 - tail]}…{line[len(line) - tail :]}"
    return html.escape(line, quote=False)


def hover(*lines: str) -> str:
    """Lines of a hover label, from outside or ours; each is escaped, empty ones are left out."""
    return "<br>".join(safe(line, length=120) for line in lines if line)


def thin(count: int, limit: int = MAX_POINTS) -> list[int]:
    """Which of `count` points to draw so that at most `limit` are: evenly spread, with the first and the last."""
    if count <= limit:
        return list(range(count))
    return [round(place * (count - 1) / (limit - 1)) for place in range(limit)]


def whiskers(values: Sequence[float | None], lows: Sequence[float | None], highs: Sequence[float | None]) -> Figure:
    """Plotly's error bar for bounds that may be missing: where one is, its whisker has no length."""

    def lengths(bounds: Sequence[float | None], sign: float) -> list[float]:
        pairs = zip(values, bounds, strict=True)
        return [max(sign * (b - v), 0.0) if known([v, b]) == [v, b] and v is not None and b is not None else 0.0
                for v, b in pairs]  # fmt: skip

    return {
        "type": "data",
        "symmetric": False,
        "array": lengths(highs, 1.0),
        "arrayminus": lengths(lows, -1.0),
        "thickness": 1.6,
        "width": 4,
    }


def paper_note(text: str, *, x: float, y: float, size: int = SMALL_SIZE) -> Figure:
    """Text (escaped by the caller) at a place of the plotting area, 0 to 1; its lower left corner lies there."""
    return {
        "text": text,
        "x": x,
        "y": y,
        "xref": "paper",
        "yref": "paper",
        "xanchor": "left",
        "yanchor": "bottom",
        "showarrow": False,
        "align": "left",
        "font": {"size": size},
    }


def above_axis(text: str) -> Figure:
    """The heading of the vertical axis, level above it: it costs no width and nobody must tilt their head."""
    return {**paper_note(safe(text, length=60), x=0, y=1, size=LABEL_SIZE), "yshift": 5}


def below_axis(text: str) -> Figure:
    """The heading of the horizontal axis, from the left edge on: centred below a short axis it would be cut off."""
    return {**paper_note(safe(text, length=60), x=0, y=0, size=LABEL_SIZE), "yanchor": "top", "yshift": -20}


def axis_title(text: str) -> Figure:
    """The heading of the horizontal axis."""
    return {"text": safe(text, length=80), "standoff": 8, "font": {"size": LABEL_SIZE}}


def rule(value: float, *, axis: str, dash: str = "solid", colour: str = palette.NEUTRAL, width: float = 1.5) -> Figure:
    """A straight line through the whole plot at a value of the axis x or y."""
    ends: Figure = {"x0": value, "x1": value, "y0": 0, "y1": 1, "xref": "x", "yref": "paper"}
    if axis == "y":
        ends = {"x0": 0, "x1": 1, "y0": value, "y1": value, "xref": "paper", "yref": "y"}
    return {"type": "line", **ends, "layer": "between", "line": {"color": colour, "width": width, "dash": dash}}


def legend_on_top() -> Figure:
    """The layout of a legend above the plot that wraps on narrow screens and never covers data."""
    return {
        "orientation": "h",
        "xref": "container",
        "yref": "container",
        "x": 0.01,
        "y": 1,
        "xanchor": "left",
        "yanchor": "top",
        "traceorder": "normal",
        "maxheight": 0.6,
        # A frame that is not seen: it keeps the heading of the vertical axis, right below, out of the legend.
        "borderwidth": 9,
        "bordercolor": "rgba(0,0,0,0)",
        "bgcolor": "rgba(0,0,0,0)",
        "font": {"size": LABEL_SIZE},
    }


def named_ends(ends: Mapping[str, tuple[float, float]], *, span: tuple[float, float]) -> list[Figure] | None:
    """Names beside the right ends of their lines, moved apart where they would overlap; None where they are too long.

    ends: per name the last x and y (as the axis counts: logarithms on a logarithmic one). span: lowest and highest y.
    """
    if not ends or len(ends) > _END_LABELS or any(len(name) > _END_LABEL for name in ends):
        return None
    low, high = span
    step = (high - low or 1.0) * 0.055
    order = sorted(ends, key=lambda name: ends[name][1])
    places = [ends[name][1] for name in order]
    for number in range(1, len(places)):
        places[number] = max(places[number], places[number - 1] + step)
    excess = max(places[-1] - max(high, ends[order[-1]][1]), 0.0)
    places = [place - excess for place in places]
    note = {"xref": "paper", "x": 1, "xanchor": "left", "yref": "y", "yanchor": "middle", "xshift": 4}
    return [
        {"text": safe(name), "y": place, "showarrow": False, "align": "left", "font": {"size": LABEL_SIZE}, **note}
        for name, place in zip(order, places, strict=True)
    ]


def end_margin(notes: Sequence[Mapping[str, Any]] | None) -> int:
    """Pixels on the right that names at the ends of lines need."""
    return 12 if not notes else 14 + round(6.8 * max(len(html.unescape(note["text"])) for note in notes))
