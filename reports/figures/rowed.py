"""Rows of marks with their label above them: the frame that forests, bars, ladders and timelines share.

    layout = row_layout(["decode(context=512)"], pixels=44, axis=ratio_axis((0.9, 1.2), title="ratio"))

Row number i lies at y = i, the first on top. Labels stand above the marks instead of left of them, so that a long name
costs no width on a small screen; numbers stand in a column of their own on the right, where no mark can cover them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reports import palette
from reports.figures.base import LABEL_SIZE, SMALL_SIZE, Figure, below_axis, safe

MAX_ROWS = 60
PLOT_SHARE = 0.64  # of the width; the rest holds the numbers
LABEL_CHARACTERS = 52


def row_layout(
    labels: Sequence[str],
    *,
    pixels: int,
    axis: Mapping[str, Any],
    heading: str,
    label_at: float = -0.27,
    characters: int = LABEL_CHARACTERS,
    share: float = PLOT_SHARE,
) -> Figure:
    """Axes, height, labels and the thin lines between rows.

    pixels: height of a row. heading: of the horizontal axis. label_at: where a row's label lies, from its y.
    characters: to which the labels are cut. share: of the width that the marks have; the rest is for numbers.
    """
    count = len(labels)
    return {
        "xaxis": {**axis, "domain": [0, share], "showgrid": False},  # lines would cross the labels
        "yaxis": {
            "visible": False,
            "showgrid": False,
            "zeroline": False,
            "fixedrange": True,
            "range": [count - 0.5, -0.5],
        },
        "annotations": [
            *(_label(label, number + label_at, characters) for number, label in enumerate(labels)),
            below_axis(heading),
        ],
        "shapes": [_separator(number - 0.5) for number in range(count + 1)],
        "height": pixels * count + 110,
        "margin": {"t": 46, "b": 50},
    }


def upright(x: float, count: int, *, dash: str = "solid") -> Figure:
    """A line at a value of the horizontal axis, through the marks of all rows but not through their labels."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "rule",
        "x": [end for _ in range(count) for end in (x, x, None)],
        "y": [end for row in range(count) for end in (row - 0.06, row + 0.46, None)],
        "line": {"color": palette.NEUTRAL, "width": 1.5, "dash": dash},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _label(text: str, y: float, characters: int) -> Figure:
    return {
        "text": safe(text, length=characters),
        "x": 0,
        "y": y,
        "xref": "paper",
        "yref": "y",
        "xanchor": "left",
        "yanchor": "middle",
        "align": "left",
        "showarrow": False,
        "font": {"size": LABEL_SIZE},
    }


def row_number(text: str, y: float) -> Figure:
    """A number at the right end of a row."""
    return {
        "text": safe(text),
        "x": 1,
        "y": y,
        "xref": "paper",
        "yref": "y",
        "xanchor": "right",
        "yanchor": "middle",
        "align": "right",
        "showarrow": False,
        "font": {"size": SMALL_SIZE},
    }


def _separator(y: float) -> Figure:
    return {
        "type": "line",
        "x0": 0,
        "x1": 1,
        "y0": y,
        "y1": y,
        "xref": "paper",
        "yref": "y",
        "layer": "between",
        "line": {"color": palette.faint(palette.NEUTRAL, 0.25), "width": 1, "dash": "solid"},
    }
