"""Which programs write the profiles that the page Profile shows: none of them is the harness.

how_to_profile(context, run, case)      # a section with the places of the files and the commands
"""

from __future__ import annotations

import shlex

from dash import html
from dash.development.base_component import Component

from dashboard.components import repeat, section
from dashboard.context import Context
from dashboard.rows import CaseLine, RunLine


def how_to_profile(context: Context, run: RunLine, case: CaseLine | None) -> Component:
    """Where a case's profiles would lie, and the commands that write such files."""
    place = f"artifacts/{run.run_id}/{case.case_id if case else 'CASE'}"
    target = shlex.quote(f"{context.query.path}/{place}.collapsed")
    record = (
        f"py-spy record --subprocesses --format raw --output {target} -- {run.command or 'python -m harness run SUITE'}"
    )
    trace = html.Code("torch.profiler.profile(...).export_chrome_trace(path)")
    stacks = context.say(": stacks, one a line, with a count; written for example by")
    events = context.say(": Chrome trace events, up to 50 MB; written by ")
    words = context.say("The harness does not write profiles. What other programs write is shown from these places:")
    notes = context.say(
        "py-spy is a program of its own (pip install py-spy); it records the whole run, so narrow that with --axis and "
        "--model. Nsight Systems (nsys profile, in the README) writes a format for its own window, in which the "
        "harness names every phase. A trace file opens in Perfetto too."
    )
    first = html.Li([html.Code(f"{place}.collapsed"), stacks, html.Br(), repeat(context, record)])
    listed = html.Ul([first, html.Li([html.Code(f"{place}.trace.json"), events, trace])])
    return section(context.say("How to get a profile"), html.P(words), listed, html.P(notes))
