"""Coverage: which combinations of two axes were measured, refused, failed or never tried.

    /matrix?rows=quant&columns=attn&filter=kv=prealloc model=tiny

Rows and columns are the options of two axes as they stand in the store, or the kinds of workload and the models. A cell
counts every case once per machine, by its newest run; an empty cell was never run. Nothing is drawn: it is a table, so
it needs no figure library and reads aloud.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dash import html
from dash.development.base_component import Component

from dashboard import choices
from dashboard.components import Cell, Column, controls, data_table, empty, link, page, section
from dashboard.context import Context
from dashboard.filters import Filter, parse_filter
from dashboard.inputs import select
from dashboard.rows import MatrixCell

PATH = "/matrix"
TITLE = "Coverage"
ORDER = 7
OTHERS = ("model", "workload")  # what may stand on a side beside axes
MAX_REASONS = 3


@dataclass(frozen=True, slots=True)
class State:
    """`rows`, `columns`: axes, chosen by the page where they are empty."""

    filter: str = ""
    rows: str = ""
    columns: str = ""


def layout(context: Context, state: State) -> Component:
    """The page."""
    title = context.say("Coverage")
    axes = context.query.axes()
    found = parse_filter(state.filter, axes=tuple(axes))
    offered = [*sorted(axes, key=lambda name: (-len(axes[name]), name)), *(OTHERS if axes else ())]
    row_axis = state.rows or choices.first_of((), [name for name in offered if name != state.columns])
    column_axis = state.columns or choices.first_of((), [name for name in offered if name != row_axis])
    if not row_axis or not column_axis:
        what = context.say("The store has no cases yet: nothing is covered.")
        return page(context, title, what, empty(context, what, context.command("run quickstart")))
    cells = {(cell.row, cell.column): cell for cell in context.query.matrix(row_axis, column_axis, found)}
    bar = controls(
        select(context, "rows", context.say("Rows"), [(name, name) for name in offered], row_axis),
        select(context, "columns", context.say("Columns"), [(name, name) for name in offered], column_axis),
    )
    if not cells:
        what = context.say("No case matches the filter: this combination was never run.")
        return page(context, title, what, bar, empty(context, what, context.command("run quickstart --dry-run")))
    return page(
        context,
        title,
        sentence(context, row_axis, column_axis, cells),
        bar,
        _table(context, found, row_axis, column_axis, cells),
        html.P(
            context.say(
                "✓ measured, − skipped, ✗ failed, ≠ wrong; an empty cell was never run. A case counts once per machine."
            ),
            className="legend",
        ),
        _reasons(context, row_axis, column_axis, cells),
    )


def _names(cells: Mapping[tuple[str, str], MatrixCell], place: int) -> list[str]:
    return sorted({key[place] for key in cells})


def sentence(context: Context, row_axis: str, column_axis: str, cells: Mapping[tuple[str, str], MatrixCell]) -> str:
    """How much of the product has a measurement."""
    rows, columns = _names(cells, 0), _names(cells, 1)
    total = len(rows) * len(columns)
    kinds = Counter(_state_of(cell) for cell in cells.values())
    partly = sum(1 for cell in cells.values() if cell.num_ok and cell.num_failed + cell.num_wrong)
    return context.say(
        "{rows} × {columns}, {total} combinations: {ok} measured (with a failed case in {partly} of them), {failed} "
        "failed or wrong, {skipped} skipped with a reason, {never} never run.",
        rows=row_axis, columns=column_axis, total=total, ok=kinds["ok"], partly=partly,
        failed=kinds["failed"] + kinds["wrong"], skipped=kinds["skipped"], never=total - len(cells),
    )  # fmt: skip


def _state_of(cell: MatrixCell) -> str:
    """What counts for the combination: that something was measured, else the worst that happened."""
    if cell.num_ok:
        return "ok"
    return "wrong" if cell.num_wrong else "failed" if cell.num_failed else "skipped"


def _table(
    context: Context, found: Filter, row_axis: str, column_axis: str, cells: Mapping[tuple[str, str], MatrixCell]
) -> Component:
    columns = _names(cells, 1)
    heads = [Column(f"{row_axis} \\ {column_axis}"), *(Column(name) for name in columns)]
    rows: list[list[Cell]] = []
    for row in _names(cells, 0):
        filled: list[Cell] = [row]
        for column in columns:
            cell = cells.get((row, column))
            narrowed = found.with_value(row_axis, row).with_value(column_axis, column)
            filled.append("" if cell is None else _cell(context, cell, narrowed))
        rows.append(filled)
    label = context.say("Cases by {rows} and {columns}", rows=row_axis, columns=column_axis)
    return data_table(context, heads, rows, caption=label, name="coverage")


def _cell(context: Context, cell: MatrixCell, narrowed: Filter) -> Component:
    counts = (("✓", cell.num_ok), ("−", cell.num_skipped), ("✗", cell.num_failed), ("≠", cell.num_wrong))
    words = {
        "✓": context.say("measured"),
        "−": context.say("skipped"),
        "✗": context.say("failed"),
        "≠": context.say("wrong"),
    }
    there = [(glyph, count) for glyph, count in counts if count]
    spoken = ", ".join(f"{count} {words[glyph]}" for glyph, count in there)
    return html.Span(
        link(context, " ".join(f"{glyph} {count}" for glyph, count in there), "/runs", filter=narrowed.text),
        className=f"coverage coverage-{_state_of(cell)}",
        title="; ".join([spoken, *cell.reasons[:MAX_REASONS]]),
    )


def _reasons(
    context: Context, row_axis: str, column_axis: str, cells: Mapping[tuple[str, str], MatrixCell]
) -> Component | None:
    """Every reason why something was not measured, with the combinations that gave it."""
    places: dict[str, list[str]] = {}
    for (row, column), cell in cells.items():
        for reason in cell.reasons:
            places.setdefault(reason, []).append(f"{row_axis}={row} {column_axis}={column}")
    if not places:
        return None
    columns = [
        Column(context.say("Reason")),
        Column(context.say("Combinations"), right=True),
        Column(context.say("For example")),
    ]
    ordered: Sequence[str] = sorted(places, key=lambda reason: (-len(places[reason]), reason))
    rows = [[reason, str(len(places[reason])), places[reason][0]] for reason in ordered[:100]]
    return section(context.say("Why something was not measured"), data_table(context, columns, rows))
