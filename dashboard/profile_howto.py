"""How the profiles that the pages Profile and Memory show come about.

how_to_profile(context, run, case)      # a section with the command, and the places where files are looked for
profile_command(context, run)           # `python -m harness profile gate --store DIR`
"""

from __future__ import annotations

from dash import html
from dash.development.base_component import Component

from dashboard.components import repeat, section
from dashboard.context import Context
from dashboard.rows import CaseLine, RunLine
from harness.profiles import SUITE_PREFIX
from harness.registry import SUITES


def profile_command(context: Context, run: RunLine) -> str:
    """The command that profiles what a run measured; of a suite that is not declared here, the quickstart's."""
    name = run.suite.removeprefix(SUITE_PREFIX)
    return context.command(f"profile {name if name in SUITES else 'quickstart'}")


def how_to_profile(context: Context, run: RunLine, case: CaseLine | None) -> Component:
    """The command, and where a case's files would lie for programs that write such files too."""
    place = f"artifacts/{run.run_id}/{case.case_id if case else 'CASE'}"
    words = context.say(
        "A profile is recorded case by case, apart from all timing: a trace of every operation with the allocator's "
        "events, and, where py-spy is installed, sampled stacks."
    )
    others = context.say("Files that other programs write are shown from these places of the store:")
    stacks = context.say(": stacks, one a line, with a count (py-spy record --format raw)")
    events = context.say(": Chrome trace events, up to 50 MB (torch.profiler)")
    notes = context.say(
        "Nsight Systems (nsys profile, in the README) writes a format for its own window, in which the harness names "
        "every phase."
    )
    listed = html.Ul(
        [
            html.Li([html.Code(f"{place}.collapsed"), stacks]),
            html.Li([html.Code(f"{place}.trace.json"), events]),
        ]
    )
    return section(
        context.say("How to get a profile"),
        html.P(words), repeat(context, profile_command(context, run)), html.P(others), listed, html.P(notes),
    )  # fmt: skip
