"""The allocator's timeline of one case, from the trace that a profile of it has beside the store.

    allocator_part(context, place, run, ["23edf06fe5ed"])      # of the first of these cases that has one

Looked for in the run itself and then in newer and older runs of the same machine. It refuses nothing: without a trace,
or with one that cannot be read, it says so and which command records one.
"""

from __future__ import annotations

from collections.abc import Sequence

from dash import html
from dash.development.base_component import Component

from dashboard import choices
from dashboard.components import empty, figure, link, notice, section
from dashboard.context import Context
from dashboard.profile_howto import profile_command
from dashboard.rows import RunLine
from harness.profiles import Allocations, Unreadable, artifact, profiled, read_trace
from reports.figures import Held, allocator

_SHOWN = 4  # operations of a path


def held_of(found: Allocations) -> list[Held]:
    """Who held memory at the peak, by the innermost operations of their paths."""
    return [Held(" › ".join(one.path[-_SHOWN:]) or "–", one.bytes, one.blocks) for one in found.holders]


def allocator_part(context: Context, place: choices.Place, run: RunLine, case_ids: Sequence[str]) -> Component:
    """The part of the page: a figure for each device of the trace."""
    title = context.say("The allocator over time")
    there = profiled(context.query.path)
    here = [run, *choices.recent_runs(context, place)]
    with_profile = [(other, case) for other in here for case in case_ids if case in there.get(other.run_id, ())]
    for other, case_id in with_profile:
        path = artifact(context.query.path, other.run_id, case_id, "trace")
        try:
            trace = read_trace(path) if path else None
        except Unreadable as error:
            return section(title, notice(context, "warning", str(error)))
        if trace is None or not trace.allocations:
            continue
        drawn = [
            figure(
                context,
                allocator(
                    found.device,
                    found.seconds,
                    found.allocated,
                    reserved=found.reserved,
                    held=held_of(found),
                    language=context.language,
                ),
                name=f"allocator-{number}",
                height=360,
            )
            for number, found in enumerate(trace.allocations)
        ]
        case = next((case for case in context.query.cases(other.run_id) if case.case_id == case_id), None)
        words = context.say(
            "{name}, from the trace of run {run}. On a CPU it begins at nothing: what was held before, the weights "
            "too, is not counted.",
            name=choices.case_name(case) if case else case_id, run=other.run_id,
        )  # fmt: skip
        there_link = link(context, context.say("its profile"), "/profile", run=other.run_id, case=case_id)
        return section(title, html.P([words, " ", there_link]), *drawn)
    what = context.say("No trace of these cases has the allocator's events.")
    return section(title, empty(context, what, profile_command(context, run)))
