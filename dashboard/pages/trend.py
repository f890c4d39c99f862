"""Trend: what has changed from run to run, by how much, between which commits, and whether somebody has explained it.

    /trend?metric=tps&filter=norm=triton&machine=5cef0b44a416

Up to twelve series of one metric on one machine, four of them drawn at a time. Changes of level come from
harness.change_points; a series breaks where the machine's software or the suite changed, and no change is looked for
across a break. Remarks come from the store's annotations.jsonl (dashboard.annotations).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

from dash import html
from dash.development.base_component import Component

from dashboard import choices
from dashboard.annotations import read_annotations
from dashboard.attributes import aria
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
from harness.tables import quantity

PATH = "/trend"
TITLE = "Trend"
ORDER = 4
SERIES, DRAWN = 12, 4  # chosen by the filter; drawn at once


@dataclass(frozen=True, slots=True)
class State:
    """`case`: only these series (ids); `runs`: how far back; `axis`: runs in order, or on a scale of time."""

    filter: str = ""
    machine: str = ""
    metric: str = ""
    case: tuple[str, ...] = ()
    runs: Literal["20", "50", "100", "200"] = "100"
    axis: Literal["commit", "time"] = "commit"
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
    histories = histories_of(context, chosen[:SERIES], metric, int(state.runs))
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
        *(
            figure(
                context,
                history_figure(context, history, changes, remarks, along=state.axis),
                name=f"trend-{history.case_id}",
                height=340,
            )
            for history in pictured[(part - 1) * DRAWN :][:DRAWN]
        ),
        _turning(context, state, part, parts),
        _series_part(context, histories, changes, len(chosen) - len(histories)),
        remarks_part(context, remarks),
    )


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


def _turning(context: Context, state: State, part: int, parts: int) -> Child:
    """Links to the other figures; nothing where all are drawn."""
    if parts < 2:
        return None
    label = context.say("Figures {part} of {parts}", part=part, parts=parts)
    chosen = {field.name: getattr(state, field.name) for field in fields(state) if field.name != "part"}
    kept = {name: value for name, value in chosen.items() if value != getattr(State(), name)}
    places = [
        html.Strong(str(number)) if number == part else link(context, str(number), PATH, **kept, part=number)
        for number in range(1, parts + 1)
    ]
    return html.Nav([f"{label}: ", *[item for place in places for item in (place, " ")]], **aria(label=label))


def _series_part(context: Context, histories: Sequence[History], changes: Sequence[Numbered], hidden: int) -> Component:
    columns = [
        Column(context.say("Series")), Column(context.say("Runs"), right=True), Column(context.say("History")),
        Column(context.say("Newest"), right=True), Column(context.say("Changes"), right=True),
        Column(context.say("Noise of a run"), right=True), Column(context.say("Breaks")),
    ]  # fmt: skip
    rows: list[list[Cell]] = [
        [
            choices.roomy(link(context, history.name, "/case", case=history.case_id)),
            str(len(history.lines)),
            choices.spark(context, [line.median for line in history.lines]),
            quantity(history.lines[-1].median, history.unit) if history.lines else "–",
            str(sum(change.history is history for change in changes)),
            "–" if history.band is None else f"{history.band:.1%}",
            choices.whole("; ".join(history.breaks[-2:]) or "–"),
        ]
        for history in histories
    ]
    more = context.say("{n} more series match; a narrower filter shows them.", n=hidden)
    return section(context.say("Series"), data_table(context, columns, rows), html.P(more) if hidden else None)
