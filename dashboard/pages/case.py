"""Case: one series from every side: what it runs, how it stands on each machine, whether its output is right, its past.

    /case?case=23edf06fe5ed

The permalink of a workload, a model and a variant together. Without a case the page lists those of the newest runs.
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
    link,
    page,
    quality,
    repeat,
    section,
)
from dashboard.components import machine as machine_chip
from dashboard.components import when as time_of
from dashboard.context import Context
from dashboard.histories import histories_of, history_figure
from dashboard.inputs import select
from dashboard.standings import Standing, facts_part, headline_of, standing, what_it_runs
from reports.figures import RawSeries, measured, strip

PATH = "/case"
TITLE = "Case"
ORDER = 11
LISTED = 300


@dataclass(frozen=True, slots=True)
class State:
    """`case`: its id; `machine`, `metric`: of the history and the samples."""

    filter: str = ""
    case: str = ""
    machine: str = ""
    metric: str = ""


def layout(context: Context, state: State) -> Component:
    """The page."""
    title = context.say("Case")
    place = choices.place_of(context, state.machine, state.filter)
    if place is None:
        what = context.say("The store has no run yet: there are no cases.")
        return page(context, title, what, empty(context, what, context.command("run quickstart")))
    if not state.case:
        return _list(context, place)
    standings = [found for known in place.machines if (found := standing(context, known.machine_id, state.case))]
    if not standings:
        what = context.say("No run of this store has the case '{case}'.", case=state.case[:60])
        back = link(context, context.say("All cases of the newest runs"), PATH)
        return page(context, title, what, empty(context, what, context.command("show latest")), back)
    chosen = next((found for found in standings if found.run.machine_id == place.machine.machine_id), standings[0])
    metric = state.metric or headline_of(chosen)
    return page(
        context,
        choices.case_name(chosen.case),
        sentence(context, chosen, standings, metric),
        _bar(context, place, chosen, metric),
        what_it_runs(context, chosen.case),
        _standings_part(context, standings, metric),
        _numerics_part(context, chosen),
        _history(context, chosen, metric),
        _samples(context, chosen, metric),
        facts_part(context, chosen),
    )


def sentence(context: Context, chosen: Standing, standings: Sequence[Standing], metric: str) -> str:
    """How it stands now, and where it was measured."""
    line = next((line for line in chosen.lines if line.metric == metric), None)
    if chosen.case.status != "ok" or line is None:
        return context.say(
            "In its newest run ({run}) it is {status}: {reason}", run=chosen.run.run_id, status=chosen.case.status,
            reason=chosen.case.reason or context.say("no reason was recorded"),
        )  # fmt: skip
    return context.say(
        "{metric} {value} in run {run}; machines that measured it: {machines}.", metric=metric, run=chosen.run.run_id,
        value=measured(line.median, line.low, line.high, line.unit), machines=len(standings),
    )  # fmt: skip


def _list(context: Context, place: choices.Place) -> Component:
    runs = {run.suite: run for run in reversed(choices.recent_runs(context, place))}
    cases = {case.case_id: case for run in runs.values() for case in context.query.cases(run.run_id)}
    columns = [
        Column(context.say("Case")), Column(context.say("Model")), Column(context.say("Workload")),
        Column(context.say("Variant")), Column(context.say("Status")),
    ]  # fmt: skip
    rows: list[list[Cell]] = [
        [
            link(context, html.Code(case.case_id), PATH, case=case.case_id, machine=place.machine.machine_id),
            case.model, choices.workload_name(case.workload), case.variant, case.status,
        ]
        for case in [*cases.values()][:LISTED]
    ]  # fmt: skip
    words = context.say("{n} cases in the newest run of each suite; each has a page of its own.", n=len(cases))
    bar = controls(choices.machine_select(context, place))
    return page(
        context, context.say("Case"), words, bar, data_table(context, columns, rows, caption=context.say("Cases"))
    )


def _bar(context: Context, place: choices.Place, chosen: Standing, metric: str) -> Component:
    metrics = [(line.metric, line.metric) for line in chosen.lines]
    return controls(
        choices.machine_select(context, place), select(context, "metric", context.say("Metric"), metrics, metric)
    )


def _standings_part(context: Context, standings: Sequence[Standing], metric: str) -> Component:
    columns = [
        Column(context.say("Machine")), Column(context.say("Newest run")), Column(context.say("Commit")),
        Column(context.say("Status")), Column(metric, right=True), Column(context.say("Blocks"), right=True),
        Column(context.say("Repeat")),
    ]  # fmt: skip
    rows: list[list[Cell]] = []
    for found in standings:
        line = next((line for line in found.lines if line.metric == metric), None)
        rows.append([
            machine_chip(context, found.run), time_of(context, found.run.started_at), found.run.git_sha[:8] or "–",
            f"{found.case.status} {found.case.reason}".strip(),
            measured(line.median, line.low, line.high, line.unit) if line else "–",
            str(line.num_blocks) if line else "–", repeat(context, found.run.command),
        ])  # fmt: skip
    return section(context.say("How it stands on each machine"), data_table(context, columns, rows))


def _numerics_part(context: Context, chosen: Standing) -> Component:
    """Whether it says what the reference says, and what its quality is where the run measured it."""
    ours = chosen.case.facts.get("outputs")
    theirs = chosen.reference.facts.get("outputs") if chosen.reference else None
    if ours is None or theirs is None:
        words = context.say("Its greedy tokens were not compared with the reference's in this run.")
    elif ours == theirs:
        words = context.say("Its greedy tokens are the reference's.")
    else:
        words = context.say("Its greedy tokens differ from the reference's.")
    costs = choices.quality_of(context, chosen.run.run_id, chosen.case.model).get(chosen.case.variant, {})
    shown = quality(context, ppl=(None, costs.get("ppl")), kl=costs.get("kl"), top1=costs.get("top1_agreement"))
    return section(
        context.say("Is its output right?"), html.P(words), html.P([context.say("Quality of the variant:"), " ", shown])
    )


def _history(context: Context, chosen: Standing, metric: str) -> Child:
    line = next((line for line in chosen.lines if line.metric == metric), None)
    histories = histories_of(context, [line] if line else [], metric, 200)
    if not histories or len(histories[0].lines) < 2:
        return None
    history = histories[0]
    drawn = history_figure(context, history)
    more = link(
        context, context.say("Changes of level on the page Trend"), "/trend", case=(history.case_id,), metric=metric
    )
    return section(context.say("Its past"), figure(context, drawn, name="case-trend", height=300), more)


def _samples(context: Context, chosen: Standing, metric: str) -> Child:
    """Every stored sample of the newest run in order of time, warm-up in grey."""
    samples = sorted(
        context.query.samples(chosen.run.run_id, chosen.case.case_id, metric), key=lambda sample: sample.t_ns
    )
    if len(samples) < 2:
        return None
    series = RawSeries(
        chosen.run.run_id, [sample.value for sample in samples], [sample.phase == "warmup" for sample in samples]
    )
    drawn = strip([series], unit=samples[0].unit, language=context.language)
    return section(context.say("Samples of the newest run"), figure(context, drawn, name="case-samples", height=300))
