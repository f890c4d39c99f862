"""Pareto: which variants nothing else beats, and what a gain in one metric costs in another and in quality.

    /pareto?run=latest&x=tps&y=peak_bytes&workload=decode

One run on one machine. A point is a case; a curve joins the cases of one variant along the parameter that the run
sweeps (batch, context). The first picture has the reference and the three variants that are best in y; others are added
by name. The table gives every point as numbers and, at a value of x that the reader names, each curve read off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dash import html
from dash.development.base_component import Component

from dashboard import choices
from dashboard.components import (
    Cell,
    Child,
    Column,
    controls,
    data_table,
    empty,
    figure,
    page,
    section,
)
from dashboard.context import Context
from dashboard.inputs import multi, select, slider
from dashboard.rows import RunLine
from dashboard.tradeoffs import TradeOff, Wish, trade_off
from reports.figures import change_text, measured, number, pareto, read_at

PATH = "/pareto"
TITLE = "Pareto"
ORDER = 5
STEPS = 100  # of the slider


@dataclass(frozen=True, slots=True)
class State:
    """`x`, `y`: metrics; `workload`: its kind; `variants`: those drawn (none: the page's choice).

    `at`: the x at which curves are read, 0 for one where most can be; `against`: the variant they are compared with.
    """

    filter: str = ""
    machine: str = ""
    run: str = ""
    workload: str = ""
    model: str = ""
    x: str = ""
    y: str = ""
    variants: tuple[str, ...] = ()
    at: float = 0.0
    against: str = "reference"


def layout(context: Context, state: State) -> Component:
    """The page."""
    title = context.say("Pareto")
    place = choices.place_of(context, state.machine, state.filter)
    run = choices.richest_run(context, place, state.run, ("peak_bytes",)) if place else None
    if place is None or run is None:
        what = context.say("No run matches: there are no points to weigh against each other.")
        return page(context, title, what, empty(context, what, context.command("run quantization")))
    found = trade_off(context, place, run, Wish(state.workload, state.model, state.x, state.y))
    bar = _bar(context, state, place, run, found)
    shown = found.shown(state.variants)
    if not shown:
        what = context.say(
            "Run {run} has no such case with both {x} and {y}.",
            run=run.run_id,
            x=found.x.label or "?",
            y=found.y.label or "?",
        )
        return page(context, title, what, bar, empty(context, what, context.command("run quantization")))
    return page(
        context,
        title,
        sentence(context, found),
        bar,
        figure(context, pareto(shown, x=found.x, y=found.y, language=context.language), name="pareto", height=480),
        _left_out(context, found, len(shown)),
        _reading_part(context, state, found),
        _points_part(context, run, found),
    )


def _bar(context: Context, state: State, place: choices.Place, run: RunLine, found: TradeOff) -> Component:
    def same(names: Sequence[str]) -> list[tuple[str, str]]:
        return [(name, name) for name in names]

    return controls(
        choices.machine_select(context, place),
        choices.run_select(context, place, run),
        select(context, "workload", context.say("Workload"), same(found.workloads), found.workload),
        select(context, "model", context.say("Model"), same(found.models), found.model),
        select(context, "x", context.say("Across"), same(found.metrics), found.x.label),
        select(context, "y", context.say("Up"), same(found.metrics), found.y.label),
        multi(
            context,
            "variants",
            context.say("Variants drawn"),
            same([curve.name for curve in found.curves]),
            state.variants,
        ),
    )


def sentence(context: Context, found: TradeOff) -> str:
    """How many points nothing beats, and whose they are."""
    best = found.best()
    names = choices.distinct(name for name, _ in best)
    return context.say(
        "{count} of {total} points are beaten by none in {x} and {y} together: {names}.",
        count=len(best),
        total=sum(len(curve.points) for curve in found.curves),
        x=found.x.label,
        y=found.y.label,
        names=", ".join(names[:4]) + (" …" if len(names) > 4 else ""),
    )


def _left_out(context: Context, found: TradeOff, drawn: int) -> Child:
    hidden = len(found.curves) - drawn
    words = context.say("{n} more variants are in the table; name them above to draw them.", n=hidden)
    return html.P(words, className="hint") if hidden else None


def _points_part(context: Context, run: RunLine, found: TradeOff) -> Component:
    x, y = found.x, found.y
    best = {(variant, point.label) for variant, point in found.best()}
    columns = [
        Column(context.say("Variant")),
        Column(context.say("Setting")),
        Column(x.label, right=True),
        Column(y.label, right=True),
        Column(context.say("Beaten by none")),
        Column(context.say("Quality")),
    ]
    rows: list[list[Cell]] = []
    for curve in found.curves:
        cost = choices.cost(context, found.costs.get(curve.name, {}))
        for point in curve.points:
            across = measured(point.x, point.x_low, point.x_high, x.unit)
            up = measured(point.y, point.y_low, point.y_high, y.unit)
            setting = choices.whole(point.label or "–")
            yes_or_no = context.say("yes") if (curve.name, point.label) in best else context.say("no")
            rows.append([curve.name, setting, across, up, yes_or_no, cost])
    caption = context.say(
        "{workload} of {model}, {common}: medians over blocks with 95% intervals",
        workload=found.workload,
        model=found.model,
        common=found.common,
    )
    table = data_table(context, columns, rows, caption=caption)
    return section(context.say("Every point"), table, choices.source(context, run))


def _reading_part(context: Context, state: State, found: TradeOff) -> Child:
    """Each curve's y at one x, beside the chosen baseline's; a dash outside a curve. Only where there are curves."""
    x, y = found.x, found.y
    swept = [curve for curve in found.curves if len(curve.points) > 1]
    places = [point.x for curve in swept for point in curve.points]
    if not swept or min(places) == max(places):
        return None
    low, high = min(places), max(places)

    def readable(x: float) -> int:
        return sum(read_at(curve, x) is not None for curve in swept)

    place = min(max(state.at or max(sorted(places), key=readable), low), high)
    where = number(place, x.unit)
    names = [(curve.name, curve.name) for curve in swept]
    against = state.against if (state.against, state.against) in names else swept[0].name
    box = controls(
        slider(context, "at", context.say("Read at {x} =", x=x.label), low, high, place,
               step=(high - low) / STEPS, shown=where),
        select(context, "against", context.say("Against"), names, against),
    )  # fmt: skip
    values = {curve.name: read_at(curve, place) for curve in swept}
    base = values.get(against)
    columns = [
        Column(context.say("Variant")),
        Column(y.label, right=True),
        Column(context.say("against {name}", name=against), right=True),
    ]
    rows: list[list[Cell]] = [
        [
            name,
            "–" if value is None else number(value, y.unit),
            "–" if value is None or not base else change_text(value / base),
        ]
        for name, value in values.items()
    ]
    caption = context.say("Read at {x} = {value}, on straight lines between points", x=x.label, value=where)
    return section(context.say("The curves at one point"), box, data_table(context, columns, rows, caption=caption))
