"""One case in the newest run of one machine, and what it runs by the words of its declarations.

    found = standing(context, machine_id, "23edf06fe5ed")     # None where no run of the machine has the case
    headline_of(found)                                        # "tps"
    what_it_runs(context, found.case)                         # a section: workload, model, options with meanings

What the registry does not declare (an old axis, somebody's plugin) is said to be not declared here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from dash import html
from dash.development.base_component import Component

from dashboard import choices
from dashboard.components import Cell, Column, data_table, link, section
from dashboard.context import Context
from dashboard.filters import Filter
from dashboard.rows import CaseLine, RunLine, SummaryLine
from harness import registry
from harness.core import UsageError, Variant


@dataclass(frozen=True, slots=True)
class Standing:
    """The case in the newest run of one machine: the run, the row, its numbers, the reference's row beside it."""

    run: RunLine
    case: CaseLine
    lines: tuple[SummaryLine, ...]
    reference: CaseLine | None


def standing(context: Context, machine_id: str, case_id: str) -> Standing | None:
    """The case in the newest run of a machine that has it; None where none has."""
    wanted = Filter().with_value("machine", machine_id).with_value("case", case_id)
    runs = context.query.runs(wanted, limit=1).rows
    if not runs:
        return None
    cases = context.query.cases(runs[0].run_id)
    case = next((case for case in cases if case.case_id == case_id), None)
    if case is None:
        return None
    lines = tuple(
        line for line in context.query.summary((runs[0].run_id,), None) if line.case_id == case_id and line.metric
    )
    same = (case.workload, case.model, "reference")
    reference = next((other for other in cases if (other.workload, other.model, other.variant) == same), None)
    return Standing(runs[0], case, lines, reference)


def headline_of(found: Standing) -> str:
    """The metric shown first for the case's workload, else any that it has."""
    return choices.first_of((choices.headline(found.case.workload),), [line.metric for line in found.lines])


def what_it_runs(context: Context, case: CaseLine) -> Component:
    """The declared meaning of the workload and of each option."""
    registry.load_all()
    kind = registry.WORKLOADS.get(choices.kind_of(case.workload))
    rows: list[list[Cell]] = [
        [
            html.Code(case.workload),
            choices.roomy(choices.marked(kind.doc) if kind else context.say("not declared here")),
        ]
    ]
    rows.append(
        [html.Code(case.model), context.say("{n} parameters", n=f"{case.num_params:,}") if case.num_params else "–"]
    )
    try:
        options = Variant.parse(case.variant).choices
    except UsageError:
        options = ()
    for axis, option in options:
        rows.append(
            [
                html.Code(f"{axis}={option}"),
                choices.roomy(choices.marked(_option_doc(axis, option)) or context.say("not declared here")),
            ]
        )
    if not options:
        rows.append([html.Code(case.variant), context.say("What upstream MiniMind does, on every axis.")])
    columns = [Column(context.say("Part")), Column(context.say("Meaning"))]
    return section(context.say("What it runs"), data_table(context, columns, rows))


def _option_doc(axis: str, option: str) -> str:
    try:
        declared = registry.find_option(axis, option)
    except UsageError:
        return ""
    if declared is None:
        backend = registry.BACKENDS.get(option) if axis == "backend" else None
        return backend.doc if backend else ""
    return declared.doc


def facts_part(context: Context, chosen: Standing) -> Component:
    """What the session reported to have really run, as it stands in the store."""
    facts = sorted(chosen.case.facts.items())
    rows = [[name, json.dumps(value, ensure_ascii=False)[:400]] for name, value in facts]
    table = data_table(context, [Column(context.say("Fact")), Column(context.say("Value"))], rows)
    links = [
        link(context, context.say("its run against the reference"), "/compare",
             a=f"{chosen.run.run_id}/reference", b=f"{chosen.run.run_id}/{chosen.case.variant}"),
        link(context, context.say("its profile"), "/profile", run=chosen.run.run_id, case=chosen.case.case_id),
    ]  # fmt: skip
    return section(
        context.say("What really ran"), html.P([item for place in links for item in (place, " · ")][:-1]),
        html.Details([html.Summary(context.say("Facts of the session ({n})", n=len(rows))), table]),
    )  # fmt: skip
