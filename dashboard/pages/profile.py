"""Profile: where the time of one case goes: stacks as an icicle, also against another's, operations, and a timeline.

    /profile?run=20261122T095707-971a34&case=23edf06fe5ed&against=4a2c4643c80c

Profiles lie beside the store, under artifacts/<run_id>/<case_id>.collapsed and .trace.json (harness.profiles).
`harness profile` writes them, and so may other programs. Only runs and cases that the store knows are looked for.
`find` marks the frames and keeps the operations whose name holds a text. The files themselves are the exports; one that
is not there is refused (UsageError).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dash import html
from dash.development.base_component import Component

from dashboard import choices, url
from dashboard.components import Cell, Child, Column, controls, data_table, empty, figure, notice, page, section
from dashboard.context import Context
from dashboard.inputs import select, text_box
from dashboard.profile_howto import how_to_profile
from dashboard.rows import CaseLine, RunLine
from harness.core import UsageError
from harness.profiles import ITERATION, Kind, Stacks, Trace, Unreadable, artifact, profiled, read_collapsed, read_trace
from harness.tables import quantity
from reports.figures import Frame, Span, icicle, timeline

PATH = "/profile"
TITLE = "Profile"
ORDER = 10
EXPORTS = ("json", "txt")
KINDS: Mapping[str, Kind] = {"json": "trace", "txt": "collapsed"}
OPERATIONS = 20


@dataclass(frozen=True, slots=True)
class State:
    """`case`, `against`: ids of cases of the run; `against` is what the stacks are compared with; `find`: in names."""

    filter: str = ""
    machine: str = ""
    run: str = ""
    case: str = ""
    against: str = ""
    find: str = ""


def layout(context: Context, state: State) -> Component:
    """The page."""
    title = context.say("Profile")
    place = choices.place_of(context, state.machine, state.filter)
    run, cases, chosen = _asked_for(context, place, state)
    if place is None or run is None:
        what = context.say("No run matches: there is nothing to profile.")
        return page(context, title, what, empty(context, what, context.command("run quickstart")))
    other = cases.get(state.against)
    offered = [(case.case_id, choices.case_name(case)) for case in cases.values()]
    bar = controls(
        choices.machine_select(context, place),
        choices.run_select(context, place, run),
        select(context, "case", context.say("Case"), offered, chosen.case_id if chosen else None),
        select(context, "against", context.say("Against"), offered, other.case_id if other else None, clearable=True),
        text_box(context, "find", context.say("Find in names"), state.find, placeholder="matmul"),
    )
    if chosen is None:
        what = (
            context.say("Run {run} has no measured case '{case}'.", run=run.run_id, case=state.case[:60])
            if state.case
            else context.say("No case of run {run} has a profile.", run=run.run_id)
        )
        return page(
            context,
            title,
            what,
            bar,
            empty(context, what),
            how_to_profile(context, run, next(iter(cases.values()), None)),
        )
    stacks, trace, problems = _read(context, run, chosen)
    return page(
        context,
        title,
        sentence(context, chosen, stacks, trace),
        bar,
        *(notice(context, "warning", problem) for problem in problems),
        _stacks_part(context, run, chosen, other, stacks, state.find),
        *_trace_parts(context, trace, state.find),
        _files(context, run, chosen, state),
        None if stacks and trace else how_to_profile(context, run, chosen),
        choices.source(context, run),
    )


def export(context: Context, state: State, form: str) -> Path:
    """The file of the case that the page shows: `json` its trace, `txt` its stacks. Raises UsageError without one."""
    run, _, case = _asked_for(context, choices.place_of(context, state.machine, state.filter), state)
    kind = KINDS[form]
    found = artifact(context.query.path, run.run_id, case.case_id, kind) if run and case else None
    if found is None:
        raise UsageError(f"no case of this address has a file of kind '{kind}'; the page Profile lists those that have")
    return found


def _asked_for(
    context: Context, place: choices.Place | None, state: State
) -> tuple[RunLine | None, Mapping[str, CaseLine], CaseLine | None]:
    """The run, its measured cases by id, and the case: as named, else the newest run and the first with a profile."""
    if place is None:
        return None, {}, None
    there = profiled(context.query.path)
    if state.run:
        run = choices.run_of(context, place, state.run)
    else:
        recent = choices.recent_runs(context, place)
        run = next((run for run in recent if run.run_id in there), next(iter(recent), None))
    if run is None:
        return None, {}, None
    cases = {case.case_id: case for case in context.query.cases(run.run_id) if case.status == "ok"}
    with_profile = there.get(run.run_id, set())
    case = cases.get(state.case) if state.case else next((cases[c] for c in cases if c in with_profile), None)
    return run, cases, case


def _read(context: Context, run: RunLine, case: CaseLine) -> tuple[Stacks | None, Trace | None, list[str]]:
    """What the two files of a case hold, and why one could not be read."""
    problems: list[str] = []

    def path(kind: Kind) -> Path | None:
        return artifact(context.query.path, run.run_id, case.case_id, kind)

    stacks, trace = None, None
    try:
        stacks = read_collapsed(found) if (found := path("collapsed")) else None
    except Unreadable as error:
        problems.append(str(error))
    try:
        trace = read_trace(found) if (found := path("trace")) else None
    except Unreadable as error:
        problems.append(str(error))
    return stacks, trace, problems


def sentence(context: Context, case: CaseLine, stacks: Stacks | None, trace: Trace | None) -> str:
    """Where most of the time goes."""
    name = choices.case_name(case)
    if trace is not None and (calls := [found for found in trace.operations if found.name != ITERATION]):
        total = sum(operation.total for operation in trace.operations)
        own = sum(operation.total for operation in calls)
        told = context.say(
            "{name}: {share} of the time of {n} operations is in {operation}.", name=name, n=len(calls),
            share=f"{calls[0].total / own:.0%}" if own else "–", operation=calls[0].name,
        )  # fmt: skip
        if own == total:
            return told
        between = context.say("{share} of all its time lies between operations.", share=f"{1 - own / total:.0%}")
        return f"{told} {between}"
    if stacks is not None:
        leaves: dict[str, float] = {}
        for path, value in stacks.by_path.items():
            leaves[path[-1]] = leaves.get(path[-1], 0.0) + value
        frame = max(leaves, key=lambda leaf: leaves[leaf])
        return context.say(
            "{name}: {share} of {n} samples are in {frame} itself.", name=name, frame=frame,
            share=f"{leaves[frame] / stacks.total:.0%}", n=f"{stacks.total:,.0f}",
        )  # fmt: skip
    return context.say("{name} has no profile.", name=name)


def _frames(stacks: Stacks) -> list[Frame]:
    return [Frame(path, value) for path, value in stacks.by_path.items()]


def _stacks_part(
    context: Context, run: RunLine, case: CaseLine, other: CaseLine | None, stacks: Stacks | None, find: str
) -> Child:
    if stacks is None:
        return None
    beside, _, problems = _read(context, run, other) if other else (None, None, [])
    drawn = icicle(_frames(stacks), other=_frames(beside) if beside else None, find=find, language=context.language)
    missing = None
    if other and beside is None:
        why = (
            problems[0]
            if problems
            else context.say("{name} has no stacks to compare with.", name=choices.case_name(other))
        )
        missing = notice(context, "info", why)
    passed = context.say("{n} lines were not stacks and were passed over.", n=stacks.num_passed_over)
    return section(
        context.say("Stacks"), missing, figure(context, drawn, name="icicle", height=520),
        notice(context, "info", passed) if stacks.num_passed_over else None,
    )  # fmt: skip


def _trace_parts(context: Context, trace: Trace | None, find: str) -> Sequence[Child]:
    if trace is None:
        return ()
    total = sum(operation.total for operation in trace.operations)
    found = [operation for operation in trace.operations if find.casefold() in operation.name.casefold()]
    columns = [
        Column(context.say("Operation")), Column(context.say("Calls"), right=True),
        Column(context.say("Total"), right=True), Column(context.say("Mean"), right=True),
        Column(context.say("Share"), right=True),
    ]  # fmt: skip
    rows: list[list[Cell]] = [
        [
            operation.name, f"{operation.calls:,}", quantity(operation.total, "s"),
            quantity(operation.total / operation.calls, "s"), f"{operation.total / total:.1%}" if total else "–",
        ]
        for operation in found[:OPERATIONS]
    ]  # fmt: skip
    caption = context.say(
        "{shown} of {total} operations, each without the time of those that it calls; '{iteration}' is what lies "
        "between operations",
        shown=len(rows), total=len(trace.operations), iteration=ITERATION,
    )  # fmt: skip
    if find:
        share = f"{sum(operation.total for operation in found) / total:.1%}" if total else "–"
        caption += ". " + context.say(
            "{n} operations have '{text}' in their name: {share} of the time.", n=len(found), text=find, share=share
        )
    spans = [Span(slot.lane, slot.name, slot.start, slot.end) for slot in trace.slots]
    drawn = timeline(spans, language=context.language)
    left_out = context.say("{n} shorter calls were left out.", n=f"{trace.num_slots - len(spans):,}")
    cut = html.P(left_out) if trace.num_slots > len(spans) else None
    return (
        section(context.say("Operations"), data_table(context, columns, rows, caption=caption)),
        section(context.say("Timeline"), figure(context, drawn, name="timeline"), cut),
    )


def _files(context: Context, run: RunLine, case: CaseLine, state: State) -> Child:
    """Links to the case's files, whole; what opens them."""
    pairs = [*url.query(replace(state, run=run.run_id, case=case.case_id, against="", find="")), *context.shell]
    names = {"json": context.say("Chrome trace"), "txt": context.say("collapsed stacks")}
    links = [
        html.A(
            names[form], href=url.join(f"/export/profile.{form}", pairs), className="button", download=f"profile.{form}"
        )
        for form in EXPORTS
        if artifact(context.query.path, run.run_id, case.case_id, KINDS[form])
    ]
    opened = context.say(
        "A trace opens in Perfetto or chrome://tracing (Open trace file), stacks in speedscope; neither file leaves "
        "this machine for that."
    )
    saved = html.Div([context.say("Save as"), *links], className="exports")
    return section(context.say("Take it along"), saved, html.P(opened)) if links else None
