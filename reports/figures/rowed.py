"""Rows of marks with their label above them: the frame that forests, bars, ladders and timelines share.

    rows = plan_rows(["decode(context=512)"], body=27)
    layout = row_layout(rows, axis=ratio_axis((0.9, 1.2)), heading="ratio")
    rows.at(0, 13)    # the y of a mark 13 pixels below the label of the first row

Row number i lies about y = i, the first on top. Labels stand above the marks instead of left of them, so that a long
name costs no width on a small screen, and take a second line before they are cut; numbers stand in a column of their
own on the right, where no mark can cover them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reports import palette
from reports.figures.base import LABEL_SIZE, SMALL_SIZE, Figure, below_axis, safe

MAX_ROWS = 60
PLOT_SHARE = 0.64  # of the width; the rest holds the numbers
LABEL_CHARACTERS = 52  # of a line: what a screen of 390 pixels holds
_LINE = 15  # pixels of a line of a label
_GAP = 4  # pixels between the line above a row and its label


@dataclass(frozen=True, slots=True)
class Rows:
    """Where things lie in rows that are all alike. lines: of a label. body: pixels below the label for the marks."""

    labels: Sequence[str]
    lines: int
    body: int

    @property
    def pixels(self) -> int:
        """Height of a row."""
        return _GAP + self.lines * _LINE + self.body

    def at(self, row: int, pixel: float) -> float:
        """The y of a place so many pixels below the label of a row."""
        return row - 0.5 + (_GAP + self.lines * _LINE + pixel) / self.pixels

    def thick(self, pixels: float) -> float:
        """So many pixels, as the vertical axis counts."""
        return pixels / self.pixels


def plan_rows(labels: Sequence[str], *, body: int, characters: int = LABEL_CHARACTERS) -> Rows:
    """Rows for labels from outside, in as many lines as the longest needs: one or two of `characters` each."""
    wrapped = [_wrapped(label, characters) for label in labels]
    return Rows(wrapped, max((label.count("<br>") + 1 for label in wrapped), default=1), body)


def _wrapped(text: str, characters: int) -> str:
    """At most two lines, broken at a space where there is one; the second is cut in its middle if it must be."""
    if len(text) <= characters:
        return safe(text)
    space = text.rfind(" ", characters // 2, characters + 1)
    end = space if space > 0 else characters
    return f"{safe(text[:end])}<br>{safe(text[end:].strip(), length=characters)}"


def row_layout(rows: Rows, *, axis: Mapping[str, Any], heading: str, share: float = PLOT_SHARE) -> Figure:
    """Axes, height, labels and the thin lines between rows.

    heading: of the horizontal axis. share: of the width that the marks have; the rest is for numbers.
    """
    count = len(rows.labels)
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
            *(_label(label, row - 0.5 + rows.thick(_GAP)) for row, label in enumerate(rows.labels)),
            below_axis(heading),
        ],
        "shapes": [_separator(row - 0.5) for row in range(count + 1)],
        "height": rows.pixels * count + 110,
        "margin": {"t": 46, "b": 50},
    }


def upright(x: float, rows: Rows, *, dash: str = "solid") -> Figure:
    """A line at a value of the horizontal axis, through the marks of all rows but not through their labels."""
    ends = [(rows.at(row, 2), rows.at(row, rows.body - 2)) for row in range(len(rows.labels))]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "rule",
        "x": [end for _ in ends for end in (x, x, None)],
        "y": [end for low, high in ends for end in (low, high, None)],
        "line": {"color": palette.NEUTRAL, "width": 1.5, "dash": dash},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _label(text: str, y: float) -> Figure:
    return {
        "text": text,
        "x": 0,
        "y": y,
        "xref": "paper",
        "yref": "y",
        "xanchor": "left",
        "yanchor": "top",
        "align": "left",
        "showarrow": False,
        "borderpad": 0,
        "font": {"size": LABEL_SIZE},
    }


def heading_number(text: str, row: int, rows: Rows) -> Figure:
    """A number at the right end of a row, beside the first line of its label."""
    return {**row_number(text, row - 0.5 + rows.thick(_GAP)), "yanchor": "top", "borderpad": 0}


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
