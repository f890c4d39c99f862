"""Trend: what has changed from run to run, by how much, between which commits, and whether somebody has explained it.

    /trend?metric=tps&filter=norm=triton&machine=5cef0b44a416

Up to twelve series of one metric on one machine, four of them drawn at a time. Changes of level come from
harness.change_points; a series breaks where the machine's software or the suite changed, and no change is looked for
across a break. Remarks come from the store's annotations.jsonl (dashboard.annotations).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from dash import ALL, Dash, Input, Output, dcc, html
from dash.development.base_component import Component

from dashboard import choices, url
from dashboard.annotations import Annotation, read_annotations
from dashboard.attributes import aria, data
from dashboard.browser import in_browser
from dashboard.components import (
    Cell,
    Child,
    Column,
    controls,
    data_table,
    empty,
    figure,
    link,
    notice,
    page,
    section,
)
from dashboard.context import Context
from dashboard.histories import MIN_RUNS, History, Numbered, histories_of, history_figure, numbered
from dashboard.history_parts import changes_part, remarks_part
from dashboard.inputs import segmented, select
from dashboard.source import Source
from harness.tables import quantity
from reports.figures import Along

PATH = "/trend"
TITLE = "Trend"
ORDER = 4
SERIES, DRAWN = 12, 4  # chosen by the filter; drawn at once


@dataclass(frozen=True, slots=True)
class State:
    """`case`: only these series (ids); `runs`: how far back; `axis`: runs in order, or on a scale of time.

    `first`, `last`: the runs between which the figures are drawn; a box drawn over a figure sets them.
    """

    filter: str = ""
    machine: str = ""
    metric: str = ""
    case: tuple[str, ...] = ()
    runs: Literal["20", "50", "100", "200"] = "100"
    axis: Along = "commit"
    first: str = ""
    last: str = ""
    part: int = 1


def layout(context: Context, state: State) -> Component:
    """The page."""
    title = context.say("Trend")
    place = choices.place_of(context, state.machine, state.filter)
    if place is None:
        what = context.say("The store has no run yet: there is no history.")
        return page(context, title, what, empty(context, what, context.command("run quickstart")))
    lines = choices.newest_lines(context, place)
    metrics = choices.distinct(line.metric for line in lines)
    metric = state.metric or choices.first_of(("tps", "ttft", "train_tps"), metrics)
    chosen = [line for line in lines if line.metric == metric and (not state.case or line.case_id in state.case)]
    bar = _bar(context, state, place, metrics, metric)
    if not chosen:
        what = context.say(
            "No run of this machine has {metric} for what the filter lets through.", metric=metric or "?"
        )
        return page(context, title, what, bar, empty(context, what, context.command("run quickstart")))
    histories = histories_of(context, chosen[:SERIES], metric, int(state.runs), place.filter.values_of("run"))
    remarks, problems = read_annotations(context.query.path)
    changes = numbered(histories, remarks)
    pictured = [history for history in histories if len(history.lines) > 1]
    parts = max(math.ceil(len(pictured) / DRAWN), 1)
    part = min(max(state.part, 1), parts)
    return page(
        context,
        title,
        sentence(context, metric, histories, changes),
        bar,
        *(notice(context, "warning", problem) for problem in problems[:5]),
        changes_part(context, changes),
        *(_figure(context, state, history, changes, remarks) for history in pictured[(part - 1) * DRAWN :][:DRAWN]),
        _pointing(context, state) if pictured else None,
        _turning(context, state, part, parts),
        _series_part(context, histories, changes, len(chosen) - len(histories)),
        remarks_part(context, remarks),
    )


def _figure(
    context: Context, state: State, history: History, changes: Sequence[Numbered], remarks: Sequence[Annotation]
) -> Component:
    window = history.window(state.first, state.last)
    drawn = history_figure(context, history, changes, remarks, along=state.axis, window=window)
    return figure(context, drawn, name=f"trend-{history.case_id}", height=340)


def _bar(context: Context, state: State, place: choices.Place, metrics: Sequence[str], metric: str) -> Component:
    along = [("commit", context.say("runs in order")), ("time", context.say("time"))]
    return controls(
        choices.machine_select(context, place),
        select(context, "metric", context.say("Metric"), [(name, name) for name in sorted(metrics)], metric),
        select(context, "runs", context.say("Runs back"), [(n, n) for n in ("20", "50", "100", "200")], state.runs),
        segmented(context, "axis", context.say("Along"), along, state.axis),
    )


def sentence(context: Context, metric: str, histories: Sequence[History], changes: Sequence[Numbered]) -> str:
    """What changed, in words."""
    longest, total = max(len(history.lines) for history in histories), len(histories)
    if longest < MIN_RUNS:
        return context.say(
            "Too few runs to see a change of level in {metric}: it takes {least} of a series, the longest of {total} "
            "has {longest}.",
            metric=metric, total=total, longest=longest, least=MIN_RUNS,
        )  # fmt: skip
    if not changes:
        return context.say(
            "{metric}: none of {total} series changed its level in the last {longest} runs.",
            metric=metric, total=total, longest=longest,
        )  # fmt: skip
    largest = max(changes, key=lambda change: abs(math.log(change.found.point.ratio)))
    point = largest.found.point
    return context.say(
        "{metric}: {changed} of {total} series changed their level; the largest change is {size} [{low}, {high}] in "
        "{name}, at commit {commit}.",
        metric=metric, changed=len({change.history.case_id for change in changes}), total=total,
        size=f"{point.ratio - 1:+.1%}", low=f"{point.low - 1:+.1%}", high=f"{point.high - 1:+.1%}",
        name=largest.history.name, commit=largest.found.after.git_sha[:8] or "?",
    )  # fmt: skip


def register(app: Dash, source: Source) -> None:
    """What is done in a figure goes into the address: a box over it chooses runs, two points a comparison."""
    pointed = [Input({"type": "figure", "name": ALL}, name) for name in ("relayoutData", "clickData")]
    address = Output("url", "search", allow_duplicate=True)
    in_browser(app, "pointed", address, *pointed, prevent_initial_call=True)


def _pointing(context: Context, state: State) -> Component:
    """What the figures answer to, which words tell that a point is marked, and the way back from a stretch.

    It stays at the lower edge of the window while figures are in sight.
    """
    words = context.say(
        "Click two runs to compare them, or draw a box to see only some. In the table of a figure each run leads to "
        "its comparison with the one before."
    )
    marks = data(
        words=words,
        marked=context.say("Run {run} is marked: click another to compare the two.", run="{run}"),
        before=context.say("compare with the run before"),
        compare=context.href("/compare"),
    )
    parts: list[Child] = [html.Span(words, id="trend-hint", role="status", className="muted", **marks)]
    if state.first and state.last:
        parts += [" ", _at(context, state, context.say("Show all runs"), first="", last="")]
    return html.Div(parts, className="pointing")


def _at(context: Context, state: State, text: str, **changes: Any) -> Component:
    """A link to this page with some of its state changed."""
    return dcc.Link(text, href=url.join(PATH, [*url.query(replace(state, **changes)), *context.shell]))


def _turning(context: Context, state: State, part: int, parts: int) -> Child:
    """Links to the other figures; nothing where all are drawn."""
    if parts < 2:
        return None
    label = context.say("Figures {part} of {parts}", part=part, parts=parts)
    places = [
        html.Strong(str(number)) if number == part else _at(context, state, str(number), part=number)
        for number in range(1, parts + 1)
    ]
    return html.Nav([f"{label}: ", *[item for place in places for item in (place, " ")]], **aria(label=label))


def _series_part(context: Context, histories: Sequence[History], changes: Sequence[Numbered], hidden: int) -> Component:
    columns = [
        Column(context.say("Series")), Column(context.say("Runs"), right=True), Column(context.say("History")),
        Column(context.say("Newest"), right=True), Column(context.say("Changes"), right=True),
        Column(context.say("Noise of a run"), right=True),
        Column(
            context.say("Limit"), right=True,
            note=context.say("what the gate of the suite lets pass, counted from the newest level"),
        ),
        Column(context.say("Breaks")),
    ]  # fmt: skip
    rows: list[list[Cell]] = [
        [
            choices.roomy(link(context, history.name, "/case", case=history.case_id)),
            str(len(history.lines)),
            choices.spark(context, [line.median for line in history.lines]),
            quantity(history.lines[-1].median, history.unit) if history.lines else "–",
            str(sum(change.history is history for change in changes)),
            "–" if history.band is None else f"{history.band:.1%}",
            choices.amount(history.limit, history.unit),
            choices.whole("; ".join(history.breaks[-2:]) or "–"),
        ]
        for history in histories
    ]
    more = context.say("{n} more series match; a narrower filter shows them.", n=hidden)
    return section(context.say("Series"), data_table(context, columns, rows), html.P(more) if hidden else None)
