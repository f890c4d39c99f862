"""The two sides of a comparison on a page: the boxes to write them, what they turned out to be, what differs.

    way_in(context, a="", b="")                              # no comparison yet: pairs on offer, and the two boxes
    sides_row(context, "latest~1", "latest", swap=href)      # the boxes above a comparison
    header(context, found)

A box takes any text of the grammar of `harness compare`; what the store has is on offer below it.
"""

from __future__ import annotations

from dash import dcc, html
from dash.development.base_component import Component

from dashboard.comparing import Compared
from dashboard.components import Cell, Child, Column, controls, copy_button, data_table, machine, page, section, when
from dashboard.context import Context
from dashboard.front_door import front_door
from dashboard.inputs import side_box
from harness.schema import RunRow
from harness.sides import known_sides, variants_of
from reports.views import difference_word
from reports.wording import commit_text

MAX_OFFERED = 60  # of a kind


def way_in(context: Context, a: str, b: str) -> Component:
    """No B yet: pairs on offer, and the two boxes."""
    sentence = context.say("Choose a pair of options that were measured side by side, or any two sides.")
    return page(
        context,
        context.say("Compare"),
        sentence,
        section(context.say("One click"), front_door(context), name="pairs"),
        section(context.say("Any two"), sides_row(context, a, b, ""), grammar(context), name="sides"),
    )


def grammar(context: Context) -> Component:
    """What a side may be, as on the command line."""
    rows: list[list[Cell]] = [
        [
            html.Code("latest, latest~1, engines, 20261122T09"),
            context.say("a run: the newest, a suite's newest, an id's beginning"),
        ],
        [html.Code("commit:1a2b3c4, commit:HEAD~1"), context.say("the newest finished run of a commit")],
        [html.Code("tag:NAME"), context.say("the run that a baseline's name stands for")],
        [html.Code("machine:5cef@engines"), context.say("the newest finished run of a machine, of one suite")],
        [html.Code("latest/norm=fused kv=prealloc"), context.say("one variant of any of these")],
        [html.Code("latest/backend=onnxruntime"), context.say("an engine is a variant, too")],
    ]
    heads = [Column(context.say("Write")), Column(context.say("Means"))]
    return data_table(context, heads, rows, caption=context.say("What a side may be"))


def sides_row(context: Context, a: str, b: str, swap: str) -> Component:
    """The two boxes, with what the store has on offer. `swap`: the address with A and B exchanged, or ""."""
    offered = _offered(context, a, b)
    button = dcc.Link("⇄", href=swap, className="button swap", title=context.say("Swap A and B")) if swap else None
    own = context.say("empty: each case's own reference") if b else ""
    return controls(
        side_box(context, "a", context.say("A, the baseline"), offered, a, placeholder=own),
        button,
        side_box(context, "b", context.say("B, the candidate"), offered, b, placeholder="latest"),
    )


def _offered(context: Context, a: str, b: str) -> list[tuple[str, list[str]]]:
    """Heading -> sides, for both boxes: variants of the runs chosen first, then what else there is."""
    store = context.results
    groups: dict[str, list[str]] = {}
    runs = {run.run_id: run for run in store.runs()}
    for text in dict.fromkeys((a, b)):
        name = text.partition("/")[0]
        run = runs.get(name)
        if run is not None:
            heading = context.say("variants of {run}", run=f"{run.suite} {name}")
            groups[heading] = [f"{name}/{variant}" for variant in variants_of(store, run)]
    names = {
        "tag": context.say("tags"),
        "machine": context.say("machines"),
        "commit": context.say("commits"),
        "run": context.say("runs"),
    }
    for side in known_sides(store):
        listed = groups.setdefault(names[side.kind], [])
        if len(listed) < MAX_OFFERED:
            listed.append(side.text)
    return list(groups.items())


def header(context: Context, found: Compared) -> Component:
    """What A and B are, and what else differs between them."""
    if found.within:
        words = context.say("One run; each case is compared with the reference of its group.")
        rows = [_side_cells(context, "A, B", found.run_b, None)]
    else:
        words = ""
        rows = [
            _side_cells(context, "A", found.run_a, found.variant_a),
            _side_cells(context, "B", found.run_b, found.variant_b),
        ]
    heads = [
        Column(context.say("Side")),
        Column(context.say("Run")),
        Column(context.say("Variant")),
        Column(context.say("Commit")),
        Column(context.say("Machine")),
        Column(context.say("Repeat")),
    ]
    sides = data_table(context, heads, rows, caption=words or context.say("The two sides"), name="sides")
    return html.Div([sides, _differences(context, found)])


def _side_cells(context: Context, name: str, run: RunRow, variant: str | None) -> list[Cell]:
    return [
        html.Strong(name),
        [when(context, run.started_at), " ", html.Span(run.suite), html.Br(), html.Small(run.run_id)],
        variant or context.say("all"),
        commit_text(run, context.language),
        machine(context, run),
        [
            html.Code(run.command, className="shown-command"),
            " ",
            copy_button(context, run.command, context.say("Copy the command")),
        ]
        if run.command
        else "–",
    ]


def _command(context: Context, run: RunRow) -> Cell:
    if not run.command:
        return "–"
    button = copy_button(context, run.command, context.say("Copy the command"))
    return [html.Code(run.command, className="shown-command"), " ", button]


def _differences(context: Context, found: Compared) -> Child:
    if not found.differences:
        return None
    rows: list[list[Cell]] = [
        [difference_word(one.kind, context.language), one.what, one.a, one.b] for one in found.differences
    ]
    heads = [Column(context.say("Kind")), Column(context.say("What")), Column("A"), Column("B")]
    table = data_table(context, heads, rows, caption=context.say("What differs between A and B"))
    words = context.say("What differs between A and B ({n})", n=len(rows))
    return html.Details([html.Summary(words), table], open=len(rows) <= 4)
