"""Which programs write the profiles that the page Profile shows: none of them is the harness.

how_to_profile(context, run, case)      # a section with the places of the files and the commands
"""

from __future__ import annotations

import shlex

from dash import html
from dash.development.base_component import Component

from dashboard.components import Cell, Column, data_table, repeat, section
from dashboard.context import Context
from dashboard.rows import CaseLine, RunLine


def how_to_profile(context: Context, run: RunLine, case: CaseLine | None) -> Component:
    """Where a case's profiles would lie, and the commands that write such files."""
    place = f"artifacts/{run.run_id}/{case.case_id if case else 'CASE'}"
    target = shlex.quote(f"{context.query.path}/{place}.collapsed")
    record = f"py-spy record --subprocesses --format raw --output {target} -- {run.command}"
    columns = [
        Column(context.say("File in the store")),
        Column(context.say("What it is")),
        Column(context.say("Written by")),
    ]
    rows: list[list[Cell]] = [
        [
            html.Code(f"{place}.collapsed"),
            context.say("stacks, one a line, with a count"),
            repeat(context, record) if run.command else "py-spy record --format raw",
        ],
        [
            html.Code(f"{place}.trace.json"),
            context.say("Chrome trace events, up to 50 MB"),
            html.Code("torch.profiler.profile(...).export_chrome_trace(path)"),
        ],
    ]
    words = context.say("The harness does not write profiles. What other programs write is shown from these places:")
    notes = context.say(
        "py-spy is a program of its own (pip install py-spy); it records the whole run, so narrow that with --axis and "
        "--model. Nsight Systems (nsys profile, in the README) writes a format for its own window, in which the "
        "harness names every phase. A trace file opens in Perfetto too."
    )
    return section(
        context.say("How to get a profile"), html.P(words), data_table(context, columns, rows), html.P(notes)
    )
