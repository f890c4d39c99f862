"""The way into comparisons: each axis with what is measured of it, one click to each pair of options.

    front_door(context, machine_id="")

Used by Overview and Compare. What is not measured stands there too, with the command that measures it.
"""

from __future__ import annotations

from dash import html
from dash.development.base_component import Component

from dashboard import views_cache
from dashboard.components import Cell, Column, data_table, link, machine, repeat, when
from dashboard.context import Context
from dashboard.pairs import Pair, suites_with
from harness import registry
from reports.language import say_doc

MAX_PAIRS = 8  # of one axis


def front_door(context: Context, machine_id: str = "") -> Component:
    """A table of axes; a pair is a link to its comparison."""
    rows: list[list[Cell]] = []
    for axis, pairs in views_cache.pairs(context, machine_id).items():
        doc = say_doc(context.language, registry.AXES[axis].doc) if axis in registry.AXES else ""
        name: Cell = [html.Strong(axis), html.Br(), html.Small(doc)]
        if pairs:
            newest = max(pairs, key=lambda pair: pair.run.run_id).run
            measured = [when(context, newest.started_at), html.Br(), html.Small(machine(context, newest))]
            rows.append([name, _links(context, pairs), measured])
        else:
            suites = suites_with(axis)
            command = repeat(context, context.command(f"run {suites[0]}")) if suites else "–"
            missing = html.Span(context.say("not measured yet"), className="missing")
            rows.append([name, [missing, " ", command], "–"])
    columns = [
        Column(context.say("Axis")),
        Column(context.say("Compare")),
        Column(context.say("Measured"), note=context.say("the newest run among these pairs, and its machine")),
    ]
    return html.Div(
        data_table(context, columns, rows, caption=context.say("Pairs measured side by side in one run")),
        className="front-door",
    )


def _links(context: Context, pairs: tuple[Pair, ...]) -> list[Component | str]:
    found: list[Component | str] = []
    for pair in pairs[:MAX_PAIRS]:
        text = context.say("{a} against {b}", a=pair.option_b, b=pair.option_a)
        cases = context.say("{n} cases", n=pair.num_cases) if pair.num_cases > 1 else context.say("one case")
        beside = f"{cases}, {pair.others}" if pair.others else cases
        anchor = link(context, [html.Strong(text), html.Small(beside)], "/compare", a=pair.a, b=pair.b)
        found.append(html.Span(anchor, className="pair"))
    if len(pairs) > MAX_PAIRS:
        found.append(html.Small(context.say("and {n} more", n=len(pairs) - MAX_PAIRS)))
    return found
