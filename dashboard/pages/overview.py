"""Overview: is anything wrong, and where is the way in. One machine at a time; no figure, so that it is there at once.

    layout(context, State(machine=""))       # the machine that measured last

Everything on it is a link to the comparison, the runs or the page that has the details.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dash import dcc, html
from dash.development.base_component import Component

from dashboard.components import (
    Cell,
    Child,
    Column,
    controls,
    data_table,
    empty,
    link,
    machine,
    page,
    repeat,
    section,
    select,
    short_id,
    verdict,
    when,
)
from dashboard.context import Context
from dashboard.front_door import front_door
from dashboard.overview import AxisCell, Standing, axis_cells, concerns, newest_gates, suite_standings
from dashboard.rows import MachineLine, RunLine
from harness.core import VerdictName
from harness.tables import GLYPHS
from reports.grids import gates_grid
from reports.kinds.gate import sentence_of
from reports.wording import ratio_of

PATH = "/"
TITLE = "Overview"
ORDER = 1
LAST_RUNS = 10
MAX_GATES = 12


@dataclass(frozen=True, slots=True)
class State:
    """`machine`: its id or the beginning of it; empty: the one that measured last."""

    machine: str = ""


def layout(context: Context, state: State) -> Component:
    """The state of one machine, and the ways in."""
    machines = context.query.machines()
    if not machines:
        words = context.say("Nothing was measured yet.")
        what = context.say("The store is there, but it holds no run.")
        return page(context, context.say("Overview"), words, empty(context, what, context.command("run quickstart")))
    here = next((one for one in machines if state.machine and one.machine_id.startswith(state.machine)), machines[0])
    standings = suite_standings(context, here.machine_id)
    return page(
        context,
        context.say("Overview"),
        _sentence(context, here, standings),
        _picker(context, machines, here),
        _attention(context, here, standings),
        _since(context, standings),
        section(context.say("Compare in one click"), front_door(context, here.machine_id), name="pairs"),
        _heat(context, standings),
        _gates(context, here),
        _last_runs(context),
    )


def _picker(context: Context, machines: Sequence[MachineLine], here: MachineLine) -> Component:
    offered = [
        (one.machine_id, f"{one.name or '?'} ({short_id(one.machine_id)}, {one.num_runs:,})") for one in machines
    ]
    return controls(select(context, "machine", context.say("Machine"), offered, here.machine_id))


def _sentence(context: Context, here: MachineLine, standings: Sequence[Standing]) -> str:
    name = f"{here.name or here.machine_id} ({short_id(here.machine_id)})"
    total: Counter[VerdictName] = Counter()
    for standing in standings:
        total.update(standing.view.counts if standing.view is not None else {})
    cases = sum(total.values())
    if not cases:
        return context.say(
            "{machine}: no run has a baseline yet; {n} suites were measured.", machine=name, n=len(standings)
        )
    if not total["regressed"] and not total["improved"]:
        return context.say(
            "{machine}: no significant change in {n} cases against their baselines.", machine=name, n=cases
        )
    return context.say(
        "{machine}: {worse} of {n} cases regressed and {better} improved against their baselines.",
        machine=name, worse=total["regressed"], better=total["improved"], n=cases,
    )  # fmt: skip


def _since(context: Context, standings: Sequence[Standing]) -> Component:
    """Each suite's newest run against its baseline."""
    title = context.say("Since the baseline")
    if not standings:
        what = context.say("No run of this machine is finished.")
        return section(title, empty(context, what, context.command("run quickstart")), name="since")
    rows: list[list[Cell]] = []
    for standing in standings:
        against: Cell = html.Span(context.say("nothing to compare with"), className="missing")
        changes: Cell = "–"
        target = context.href("/compare", b=standing.run.run_id)
        if standing.view is not None and standing.baseline is not None:
            target = context.href("/compare", a=standing.baseline.run_id, b=standing.run.run_id)
            against = [when(context, standing.baseline.started_at), html.Br(), html.Small(standing.why)]
            changes = _tally(context, standing.view.counts)
        newest = [when(context, standing.run.started_at), html.Br(), html.Small(standing.run.git_sha[:9])]
        rows.append(
            [
                dcc.Link(standing.run.suite, href=target, className="row-link"),
                newest,
                against,
                changes,
                repeat(context, standing.run.command),
            ]
        )
    heads = [
        Column(context.say("Suite")), Column(context.say("Newest run")), Column(context.say("Against")),
        Column(context.say("Verdicts")), Column(context.say("Repeat")),
    ]  # fmt: skip
    table = data_table(context, heads, rows, caption=context.say("The newest finished run of each suite"))
    return section(title, table, name="since")


def _tally(context: Context, counts: Mapping[VerdictName, int]) -> list[Component | str]:
    """How many of each verdict, as chips; nothing of a verdict, nothing said."""
    found: list[Component | str] = []
    for name, count in counts.items():
        if count:
            found += [html.Span([html.Strong(str(count)), " ", verdict(context, name)], className="tally"), " "]
    return found or ["–"]


def _gates(context: Context, here: MachineLine) -> Component:
    title = context.say("Gates")
    judged = newest_gates(context, here.machine_id)
    if not judged:
        what = context.say("No gate was measured on this machine: that needs a baseline and a candidate side by side.")
        return section(title, empty(context, what, context.command("gate --against HEAD~1")), name="gates")
    parts: list[Child] = []
    for gated in judged:
        grid = gates_grid(gated.rows, context.language, most=MAX_GATES)
        heads = [Column(column.name, column.right) for column in grid.columns]
        caption = context.say("Gates of {suite}", suite=gated.run.suite)
        parts.append(html.P(sentence_of(gated.rows, gated.baseline, context.language)))
        parts.append(data_table(context, heads, [list(row) for row in grid.rows[:MAX_GATES]], caption=caption))
        left = len(grid.rows) - MAX_GATES
        words = context.say("and {n} more", n=left) if left > 0 else context.say("The whole comparison")
        parts.append(html.P(link(context, words, "/compare", a=gated.baseline.run_id, b=gated.run.run_id)))
    return section(title, *parts, name="gates")


def _heat(context: Context, standings: Sequence[Standing]) -> Component:
    """Cases by options: ratio to the reference with the verdict's glyph; failures hatched, unmeasured empty."""
    title = context.say("Options against the reference")
    cells = axis_cells(standings)
    if not cells:
        what = context.say("No run of this machine sets a single option against the reference.")
        return section(title, empty(context, what, context.command("run quickstart")), name="options")
    lines = list(dict.fromkeys(row for row, _ in cells))
    options = sorted({column for _, column in cells})
    rows: list[list[Cell]] = [
        [line, *(_heat_cell(context, cells.get((line, option))) for option in options)] for line in lines
    ]
    heads = [Column(context.say("Case")), *(Column(option, right=True) for option in options)]
    legend = context.say(
        "Ratio of the first metric to the reference in the same run. ▲ improved, ▼ regressed, = equivalent, "
        "? inconclusive, hatched: failed or skipped; empty: not measured."
    )
    table = data_table(context, heads, rows, caption=legend)
    return section(title, html.Div(table, className="heat"), name="options")


def _heat_cell(context: Context, cell: AxisCell | None) -> Cell:
    if cell is None:
        return ""
    case = cell.case.case
    href = context.href("/compare", a=f"{cell.run_id}/reference", b=f"{cell.run_id}/{case.variant}", case=case.case_id)
    if case.status not in ("ok", "not_steady"):
        word = context.say("skipped") if case.status == "skipped" else case.status
        return html.Span(word, className="hatched", title=case.reason)
    c = cell.case.comparison
    ratio = ratio_of(c) if c is not None else None
    if c is None or ratio is None or not math.isfinite(ratio):
        return html.Span("✗", className="hatched", title=c.reason if c is not None else "")
    glyph = GLYPHS[c.verdict].split(" ")[0]
    interval = f" [{c.estimate.low:.3f}, {c.estimate.high:.3f}]" if c.estimate is not None else ""
    words = f"{c.metric} {ratio:.3f}{interval}"
    return html.Span(
        dcc.Link(f"{glyph} {ratio:.2f}", href=href, title=words), className=f"heat-cell verdict-{c.verdict}"
    )


def _attention(context: Context, here: MachineLine, standings: Sequence[Standing]) -> Component:
    found = concerns(context, here.machine_id, standings)
    title = context.say("Needs attention")
    if not found:
        return section(
            title, html.P(context.say("Nothing: no open regression, no failure, no noisy series.")), name="attention"
        )
    rows: list[list[Cell]] = [[one.kind, dcc.Link(one.text, href=one.href, className="row-link")] for one in found]
    heads = [Column(context.say("Kind")), Column(context.say("What"))]
    return section(title, data_table(context, heads, rows, label=title), name="attention")


def _last_runs(context: Context) -> Component:
    lines = context.query.runs(limit=LAST_RUNS).rows
    rows = [_run_cells(context, line) for line in lines]
    heads = [
        Column(context.say("Time")), Column(context.say("Suite")), Column(context.say("Commit")),
        Column(context.say("Cases ok / skipped / failed"), right=True), Column(context.say("Machine")),
    ]  # fmt: skip
    table = data_table(context, heads, rows, caption=context.say("The newest runs of all machines"))
    return section(
        context.say("Last runs"), table, html.P(link(context, context.say("All runs"), "/runs")), name="runs"
    )


def _run_cells(context: Context, line: RunLine) -> list[Cell]:
    time = context.local(line.started_at) if line.started_at else line.run_id
    dirty = "*" if line.git_dirty else ""
    failed = html.Span(str(line.num_failed), className="verdict-regressed" if line.num_failed else "")
    return [
        link(context, time, "/compare", b=line.run_id),
        line.suite,
        [html.Code(line.git_sha[:9] + dirty), " ", line.subject],
        [f"{line.num_ok} / {line.num_skipped} / ", failed],
        machine(context, line),
    ]
