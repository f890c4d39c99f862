"""Everything behind one row of a comparison: the raw samples of both sides, in order and as a distribution.

    samples_drawer(context, found, comparison, fields="case,on")

Closing it removes the named fields from the address. Reads the samples of two series, at most 2,000 of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dash_mantine_components as dmc
from dash import html
from dash.development.base_component import Component

from dashboard.compare_table import arm_text, full_digits, quality_cell
from dashboard.comparing import Compared
from dashboard.components import Cell, Child, Column, data_table, empty, figure, link, ratio, repeat, section, verdict
from dashboard.context import Context
from harness.compare import Comparison, Measured
from harness.schema import RunRow
from harness.tables import quantity
from reports.figures import RawSeries, ecdf, strip
from reports.wording import machine_line, ratio_of

_TOLD = ("stderr", "stderr_tail", "warnings")  # facts that are told as text


def samples_drawer(context: Context, found: Compared, c: Comparison, *, fields: str) -> Component:
    """The drawer of one comparison, open. `fields`: the address's fields that hold it open, with commas between."""
    title = f"{c.candidate.model}: {c.candidate.label}, {c.metric}"
    drawn: Component = dmc.Drawer(
        [
            html.P([arm_text(c), " ", verdict(context, c.verdict)]),
            _figures(context, found, c),
            _numbers(context, found, c),
            _blocks(context, c),
            _told(context, c),
            _environment(context, found),
        ],
        id={"type": "drawer", "name": fields},
        opened=True,
        position="right",
        size="min(60rem, 100vw)",
        title=title,
        closeButtonProps={"aria-label": context.say("Close")},
        transitionProps={"duration": 0},
        lockScroll=False,
    )
    return drawn


def _series(context: Context, run: RunRow, case: Measured, metric: str, name: str) -> tuple[RawSeries, str]:
    lines = [line for line in context.query.samples(run.run_id, case.case_id, metric) if line.block >= 0]
    unit = lines[0].unit if lines else ""
    return RawSeries(name, [line.value for line in lines], [line.phase == "warmup" for line in lines]), unit


def _figures(context: Context, found: Compared, c: Comparison) -> Component:
    first, unit = _series(context, found.run_a, c.reference, c.metric, f"A {c.reference.variant}")
    second, other = _series(context, found.run_b, c.candidate, c.metric, f"B {c.candidate.variant}")
    series = [one for one in (first, second) if one.values]
    if not series:
        return empty(
            context, context.say("There are no timed samples of this metric: it was measured once, or not at all.")
        )
    unit = unit or other
    return html.Div(
        [
            figure(context, strip(series, unit=unit, language=context.language), name="samples-in-order", height=320),
            figure(
                context, ecdf(series, unit=unit, language=context.language), name="samples-distribution", height=320
            ),
        ]
    )


def _numbers(context: Context, found: Compared, c: Comparison) -> Component:
    estimate = c.estimate
    rows: list[list[Cell]] = [
        ["A", quantity(c.reference_value, c.unit)],
        ["B", quantity(c.candidate_value, c.unit)],
        [
            context.say("B/A [95%]"),
            [
                ratio(context, ratio_of(c), estimate.low if estimate else None, estimate.high if estimate else None),
                html.Br(),
                html.Small(full_digits(c)),
            ],
        ],
        [context.say("How compared"), _method(context, c)],
        [context.say("Margin"), f"{c.margin:.2%} ({c.margin_source})"],
        [context.say("Quality of B"), quality_cell(context, found, c)],
    ]
    if c.reason:
        rows.append([context.say("Reason"), c.reason])
    if c.blocks_to_decide:
        rows.append([context.say("Blocks that would decide"), str(c.blocks_to_decide)])
    history = link(
        context, context.say("History of this case"), "/trend", case=c.candidate.case_id, metric=c.metric,
        machine=found.run_b.machine_id,
    )  # fmt: skip
    return section(
        context.say("Numbers"),
        data_table(context, [Column(""), Column("")], rows, caption=context.say("Numbers of this comparison")),
        html.P(history),
    )


def _method(context: Context, c: Comparison) -> str:
    if c.estimate is None:
        return context.say("single values: no interval")
    words = context.say("paired by block") if c.paired else context.say("two runs: blocks are not paired")
    return f"{words}; {c.estimate.method}"


def _blocks(context: Context, c: Comparison) -> Child:
    """The value of each block on both sides: drift shows as both moving together."""
    a, b = c.reference.series.get(c.metric), c.candidate.series.get(c.metric)
    if a is None or b is None or a.single or b.single:
        return None
    numbers = sorted({*a.blocks, *b.blocks})
    rows: list[list[Cell]] = [
        [
            str(number),
            quantity(a.blocks.get(number), c.unit),
            quantity(b.blocks.get(number), c.unit),
            _block_ratio(a.blocks.get(number), b.blocks.get(number)) if c.paired else "–",
        ]
        for number in numbers
    ]
    heads = [
        Column(context.say("Block"), right=True),
        Column("A", right=True),
        Column("B", right=True),
        Column("B/A", right=True),
    ]
    return html.Details(
        [
            html.Summary(context.say("Block by block ({n})", n=len(numbers))),
            data_table(context, heads, rows, caption=context.say("Value of each block")),
        ]
    )


def _block_ratio(a: float | None, b: float | None) -> str:
    return f"{b / a:.3f}" if a and b is not None else "–"


def _told(context: Context, c: Comparison) -> Child:
    """What a side said beside its numbers: why it broke, the end of its error output, what it wrote."""
    parts: list[Child] = []
    for name, case in (("A", c.reference), ("B", c.candidate)):
        if case.status != "ok":
            parts.append(html.P([html.Strong(f"{name}: {case.status}: "), case.reason]))
        parts += [
            html.Details([html.Summary(f"{name}: {key}"), html.Pre(_text(case.facts[key]))])
            for key in _TOLD
            if case.facts.get(key)
        ]
        disturbed: Mapping[str, Any] = case.facts.get("invalid_blocks", {})
        if disturbed:
            lines = [html.Li(f"{block}: {reason}") for block, reason in disturbed.items()]
            words = context.say("{side}: {n} blocks were disturbed and do not count", side=name, n=len(lines))
            parts.append(html.Details([html.Summary(words), html.Ul(lines)]))
    return section(context.say("What was said"), *parts) if parts else None


def _text(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _environment(context: Context, found: Compared) -> Component:
    sides = [("A", found.run_a), ("B", found.run_b)]
    if found.run_a.run_id == found.run_b.run_id:
        sides = [("A, B", found.run_a)]
    rows: list[list[Cell]] = [
        [name, run.run_id, machine_line(run, context.language), repeat(context, run.command)] for name, run in sides
    ]
    heads = [Column(""), Column(context.say("Run")), Column(context.say("Measured on")), Column(context.say("Repeat"))]
    return section(
        context.say("Environment"), data_table(context, heads, rows, caption=context.say("Where it was measured"))
    )
