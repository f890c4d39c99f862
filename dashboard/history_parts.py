"""Two parts of the page Trend: the numbered changes of level, and the remarks of people, as tables.

changes_part(context, numbered(histories, remarks))     # None where nothing changed
remarks_part(context, remarks)                          # None where nobody wrote anything
"""

from __future__ import annotations

from collections.abc import Sequence

from dash.development.base_component import Component

from dashboard.annotations import Annotation
from dashboard.choices import roomy, whole
from dashboard.components import Cell, Child, Column, data_table, link, ratio, section
from dashboard.components import when as time_of
from dashboard.context import Context
from dashboard.histories import Numbered


def changes_part(context: Context, changes: Sequence[Numbered]) -> Child:
    """Every change with its size, its place between two commits, and whether somebody has explained it."""
    if not changes:
        return None
    columns = [
        Column("#"),
        Column(context.say("Series")),
        Column(context.say("First run after")),
        Column(context.say("Level after / before"), right=True),
        Column(
            context.say("Between commits"),
            note=context.say("The change lies after the first and not after the second."),
        ),
        Column(context.say("Status")),
    ]
    rows: list[list[Cell]] = []
    for change in changes:
        found, point, remark = change.found, change.found.point, change.remark
        commits = f"{found.before.git_sha[:8] or '?'}..{found.latest.git_sha[:8] or '?'}"
        machine = found.after.machine_id
        rows.append([
            str(change.number),
            roomy(link(context, change.history.name, "/case", case=change.history.case_id, machine=machine)),
            whole(time_of(context, found.after.started_at)),
            ratio(context, point.ratio, point.low, point.high, change.verdict),
            whole(link(context, commits, "/compare", a=found.before.run_id, b=found.latest.run_id)),
            _status(context, remark),
        ])  # fmt: skip
    return section(context.say("Changes of level"), data_table(context, columns, rows))


def _status(context: Context, remark: Annotation | None) -> Component | str:
    """What has been said of a change; `new` where nothing was."""
    if remark is None:
        return context.say("new")
    word = context.say("explained") if remark.status == "explained" else context.say("acknowledged")
    return roomy(f"{word}: {remark.text} ({remark.author or '?'})")


def remarks_part(context: Context, remarks: Sequence[Annotation]) -> Child:
    """The remarks by their numbers, which stand in the figures; the last hundred."""
    if not remarks:
        return None
    columns = [
        Column("#"),
        Column(context.say("Time")),
        Column(context.say("Author")),
        Column(context.say("Cases")),
        Column(context.say("Remark")),
    ]
    rows: list[list[Cell]] = [
        [str(number), whole(time_of(context, remark.time)), remark.author or "–", remark.case, roomy(remark.text)]
        for number, remark in enumerate(remarks, start=1)
    ]
    return section(context.say("Remarks"), data_table(context, columns, rows[-100:]))
