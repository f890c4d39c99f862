"""A table as a picture: one cell per row and column, coloured by ratio, marked by status, blank where nothing was run.

    heat(["decode"], ["norm=fused"], {("decode", "norm=fused"): Cell("1.07×", 1.07, "improved")}, title="Options")

Refuses nothing: a cell whose row or column is not drawn is left out and counted in the summary.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reports import palette
from reports.figures.base import Figure, assemble, empty, hover, safe, told
from reports.figures.numbers import change_text
from reports.language import Language, say

_ROW_CHARACTERS = 26
_COLUMN_CHARACTERS = 24
_COLUMN_PIXELS = 66
_FULL = math.log(1.5)  # a ratio of 1.5 (or 1/1.5) has the full colour, if none is larger
_STRONG = 0.5  # how much of a cell the full colour covers: text of either scheme stays readable on it
_BROKEN = frozenset({"failed", "oom", "timeout", "wrong"})
_GLYPHS = {
    "improved": "▲",
    "regressed": "▼",
    "equivalent": "=",
    "inconclusive": "?",
    "invalid": "✗",
    "skipped": "–",
    "failed": "✗",
    "oom": "✗",
    "timeout": "✗",
    "wrong": "✗",
    "not_steady": "~",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """text: what stands in it. ratio: goodness for the colour (above 1 is better), None for no colour.

    status: a case's status (ok, skipped, failed, oom, timeout, wrong, not_steady) or a verdict. href: a path of our own
    pages (starting with / or ?); anything else is left out.
    """

    text: str
    ratio: float | None
    status: str
    href: str = ""


def heat(
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Mapping[tuple[str, str], Cell],
    *,
    title: str,
    language: Language = "en",
) -> Figure:
    """Cells by (row, column); blank is not measured, hatched is failed, and the glyph before the text says which."""
    headings = ["", *columns]
    if not rows or not columns:
        return empty(title, columns=headings, language=language)
    placed = [
        (column, row, cells[rows[row], columns[column]])
        for row in range(len(rows))
        for column in range(len(columns))
        if (rows[row], columns[column]) in cells
    ]
    reach = max([_FULL, *(abs(_log(cell)) for _, _, cell in placed)])
    z: list[list[float | None]] = [[None] * len(columns) for _ in rows]
    for column, row, cell in placed:
        z[row][column] = _log(cell)
    narrow = {
        "showgrid": False,
        "zeroline": False,
        "fixedrange": True,
        "automargin": True,
        "ticks": "",
        "tickfont": {"size": 11},
    }
    layout = {
        "xaxis": narrow
        | {
            "side": "top",
            "tickmode": "array",
            "tickvals": list(range(len(columns))),
            "ticktext": [safe(name, length=_COLUMN_CHARACTERS) for name in columns],
            "tickangle": 40
            if max(map(len, columns)) > 7
            else 0,  # they lean over the corner above the rows, which is free,
            "range": [-0.5, len(columns) - 0.5],
        },
        "yaxis": narrow
        | {
            "tickmode": "array",
            "tickvals": list(range(len(rows))),
            "ticktext": [safe(name, length=_ROW_CHARACTERS) for name in rows],
            "range": [len(rows) - 0.5, -0.5],
        },
        "shapes": [_frame(column, row) for column, row, _ in placed],
        "height": 34 * len(rows) + 60 + (110 if max(map(len, columns)) > 7 else 20),
    }
    traces = [_colours(z, reach), _hatch(placed), _texts(placed, rows, columns)]
    table = [
        [name, *(_plain(cells[name, column]) if (name, column) in cells else "" for column in columns)] for name in rows
    ]
    summary = _sentence(placed, rows, columns, cells, language)
    widest = min(max(map(len, rows)), _ROW_CHARACTERS)
    return assemble(
        traces,
        layout,
        title=title,
        summary=summary,
        columns=headings,
        rows=table,
        min_width=7 * widest + _COLUMN_PIXELS * len(columns) + 30,
    )


def _log(cell: Cell) -> float:
    """The logarithm of the ratio; 0, as for no difference, where there is none."""
    return math.log(cell.ratio) if cell.ratio is not None and _has_ratio(cell) else 0.0


def _has_ratio(cell: Cell) -> bool:
    return cell.ratio is not None and cell.ratio > 0 and math.isfinite(cell.ratio)


def _plain(cell: Cell) -> str:
    """Glyph and text, as they stand in the table."""
    glyph = _GLYPHS.get(cell.status, "")
    text = cell.text if cell.text or cell.status == "ok" else cell.status
    return f"{glyph} {text}" if glyph and not text.startswith(glyph) else text


def _colours(z: Sequence[Sequence[float | None]], reach: float) -> Figure:
    """Colour by the logarithm of the ratio; 1 lets the background through."""
    return {
        "type": "heatmap",
        "x": list(range(len(z[0]))),
        "y": list(range(len(z))),
        "z": z,
        "zmin": -reach,
        "zmax": reach,
        "colorscale": [
            [0.0, palette.faint(palette.WORSE, _STRONG)],
            [0.5, palette.faint(palette.NEUTRAL, 0.1)],
            [1.0, palette.faint(palette.BETTER, _STRONG)],
        ],
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
        "hoverinfo": "skip",
    }


def _frame(column: int, row: int) -> Figure:
    """A thin frame: a cell that is blank was not measured, a cell without colour was."""
    line = {"color": palette.faint(palette.NEUTRAL, 0.5), "width": 1, "dash": "solid"}
    ends = {"x0": column - 0.47, "x1": column + 0.47, "y0": row - 0.45, "y1": row + 0.45}
    return {"type": "rect", **ends, "xref": "x", "yref": "y", "layer": "between", "line": line}


def _hatch(placed: Sequence[tuple[int, int, Cell]]) -> Figure:
    """Diagonal strokes through what broke."""
    x: list[float | None] = []
    y: list[float | None] = []
    for column, row, cell in placed:
        if cell.status in _BROKEN:
            for start in (-0.47, -0.23, 0.01, 0.25):
                x += [column + start, column + start + 0.22, None]
                y += [row + 0.45, row - 0.45, None]
    line = {"color": palette.faint(palette.NEUTRAL, 0.55), "width": 1}
    return {"type": "scatter", "mode": "lines", "x": x, "y": y, "line": line, "hoverinfo": "skip", "name": "hatch"}


def _texts(placed: Sequence[tuple[int, int, Cell]], rows: Sequence[str], columns: Sequence[str]) -> Figure:
    return {
        "type": "scatter",
        "mode": "text",
        "name": "cells",
        "x": [column for column, _, _ in placed],
        "y": [row for _, row, _ in placed],
        "text": [_linked(cell) for _, _, cell in placed],
        "textposition": "middle center",
        "textfont": {"size": 11},
        "cliponaxis": False,
        "hoverinfo": "text",
        "hovertext": [
            hover(rows[row], columns[column], _plain(cell), cell.status if cell.status != "ok" else "")
            for column, row, cell in placed
        ],
        "customdata": [_path(cell.href) for _, _, cell in placed],
    }


def _linked(cell: Cell) -> str:
    text, href = safe(_plain(cell), length=16), _path(cell.href)
    return f'<a href="{html.escape(href)}" target="_self" style="color:inherit">{text}</a>' if href else text


def _path(href: str) -> str:
    """A path of our own pages, or nothing: text from a store must not lead elsewhere or run as a script."""
    inside = href.startswith(("/", "?")) and not href.startswith(("//", "/\\"))
    return href if inside and href.isprintable() else ""


def _sentence(
    placed: Sequence[tuple[int, int, Cell]],
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Mapping[tuple[str, str], Cell],
    language: Language,
) -> str:
    broken = sum(cell.status in _BROKEN for _, _, cell in placed)
    skipped = sum(cell.status == "skipped" for _, _, cell in placed)
    parts = [
        say(
            language,
            "{rows} rows by {columns} columns: {n} cells measured or tried, {blank} blank, {skipped} skipped, "
            "{failed} failed.",
            rows=len(rows),
            columns=len(columns),
            n=len(placed),
            blank=len(rows) * len(columns) - len(placed),
            skipped=skipped,
            failed=broken,
        )
    ]
    sized = [(column, row, cell.ratio) for column, row, cell in placed if cell.ratio is not None and _has_ratio(cell)]
    if sized:
        column, row, ratio = max(sized, key=lambda item: abs(math.log(item[2])))
        parts.append(
            say(
                language,
                "The largest difference is {row}, {column}: {change}.",
                row=rows[row],
                column=columns[column],
                change=change_text(ratio),
            )
        )
    if len(placed) < len(cells):
        parts.append(say(language, "{n} cells belong to no row or column.", n=len(cells) - len(placed)))
    return told(language, *parts)
