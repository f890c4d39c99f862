"""Roofline: how near each case comes to what this machine can do, by ceilings that were measured on it.

    /roofline?run=latest&workload=prefill

Arithmetic intensity and achieved rate of the cases of one run, from the operations and bytes that the model itself
counts (analytic) and the measured time of one repetition. Ceilings are those of `harness calibrate` for the same
fingerprint: another machine's, or those before an update of torch, are not used. MFU and MBU stand in the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dash.development.base_component import Component

from dashboard import choices
from dashboard.components import Cell, Column, controls, data_table, empty, figure, link, page, section
from dashboard.context import Context
from dashboard.inputs import select
from dashboard.roofs import Reached, ceilings_of, reached
from dashboard.rows import RunLine
from reports.figures import Ceiling, number, roof_of, roofline

PATH = "/roofline"
TITLE = "Roofline"
ORDER = 9


@dataclass(frozen=True, slots=True)
class State:
    """`workload`: its kind; `model`: its name; empty for all of the run."""

    filter: str = ""
    machine: str = ""
    run: str = ""
    workload: str = ""
    model: str = ""


def layout(context: Context, state: State) -> Component:
    """The page."""
    title = context.say("Roofline")
    place = choices.place_of(context, state.machine, state.filter)
    run = _default_run(context, place, state) if place else None
    if place is None or run is None:
        what = context.say("No run matches: nothing was measured that has a place under a roof.")
        return page(context, title, what, empty(context, what, context.command("run attention")))
    ceilings = ceilings_of(choices.peaks_of(context, run.run_id))
    every = reached(context, place, run, ceilings)
    kinds = choices.distinct(choices.kind_of(found.case.workload) for found in every)
    models = choices.distinct(found.case.model for found in every)
    bar = controls(
        choices.machine_select(context, place),
        choices.run_select(context, place, run),
        select(context, "workload", context.say("Workload"), [(k, k) for k in kinds], state.workload, clearable=True),
        select(context, "model", context.say("Model"), [(name, name) for name in models], state.model, clearable=True),
    )
    shown = [
        found
        for found in every
        if state.workload in ("", choices.kind_of(found.case.workload)) and state.model in ("", found.case.model)
    ]
    if not ceilings:
        what = context.say("The peaks of this machine, in the state of run {run}, were not measured.", run=run.run_id)
        command = context.command(f"calibrate --device {'cpu' if run.device == 'cpu' else 'cuda'}")
        return page(context, title, what, bar, empty(context, what, command), _table(context, run, shown, ceilings))
    if not shown:
        what = context.say("Run {run} has no timed case whose operations and bytes are counted.", run=run.run_id)
        return page(context, title, what, bar, empty(context, what, context.command("run quickstart")))
    drawn = roofline(ceilings, [found.point for found in shown], language=context.language)
    return page(
        context, title, sentence(context, shown, ceilings), bar,
        figure(context, drawn, name="roofline", height=480), _table(context, run, shown, ceilings),
    )  # fmt: skip


def _default_run(context: Context, place: choices.Place, state: State) -> RunLine | None:
    """The run named; else the newest whose machine's peaks are known, else the newest."""
    if state.run:
        return choices.run_of(context, place, state.run)
    recent = choices.recent_runs(context, place)
    calibrated = (run for run in recent if choices.peaks_of(context, run.run_id))
    return next(calibrated, next(iter(recent), None))


def sentence(context: Context, shown: Sequence[Reached], ceilings: Sequence[Ceiling]) -> str:
    """The case nearest to its roof, and what holds most cases."""
    shares = [(found, roof[0], roof[1]) for found in shown if (roof := roof_of(found.point, ceilings))]
    if not shares:
        return context.say("{n} cases; no ceiling holds for them.", n=len(shown))
    nearest, ceiling_rate, binding = max(shares, key=lambda share: share[0].point.rate / share[1])
    by_memory = sum(ceiling.kind == "bandwidth" for _, _, ceiling in shares)
    return context.say(
        "{name} comes nearest to its roof: {share} of {ceiling}. Memory bounds {memory} of {total} cases, arithmetic "
        "the others.",
        name=nearest.point.name, share=f"{nearest.point.rate / ceiling_rate:.0%}", ceiling=binding.name,
        memory=by_memory, total=len(shares),
    )  # fmt: skip


def _table(context: Context, run: RunLine, shown: Sequence[Reached], ceilings: Sequence[Ceiling]) -> Component | None:
    if not shown:
        return None
    columns = [
        Column(context.say("Case")), Column("FLOP/B", right=True), Column(context.say("Arithmetic"), right=True),
        Column(context.say("Bandwidth"), right=True), Column(context.say("Of its roof"), right=True),
        Column(context.say("Bound by")), Column("MFU", right=True), Column("MBU", right=True),
    ]  # fmt: skip
    rows: list[list[Cell]] = []
    for found in shown:
        roof = roof_of(found.point, ceilings)
        rows.append([
            choices.roomy(link(context, found.point.name, "/case", case=found.case.case_id, machine=run.machine_id)),
            _digits(found.point.intensity), number(found.point.rate, "FLOP/s"),
            choices.amount(found.bandwidth, "bytes/s"),
            f"{found.point.rate / roof[0]:.0%}" if roof else "–", choices.whole(roof[1].name if roof else "–"),
            choices.amount(found.mfu, "ratio"), choices.amount(found.mbu, "ratio"),
        ])  # fmt: skip
    note = context.say(
        "Operations and bytes as the model counts them. Over 100%: a cache holds what was counted, or the peak is low."
    )
    return section(
        context.say("Every case"), data_table(context, columns, rows, caption=note),
        choices.source(context, run),
    )  # fmt: skip


def _digits(value: float) -> str:
    """Three digits that count, without powers of ten."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
