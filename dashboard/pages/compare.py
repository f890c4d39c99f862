"""Compare: B against A, each a run, a commit, a tag, a machine, or a variant of one of these (an engine is a variant).

    layout(context, State(a="latest~1", b="latest"))
    layout(context, State(b="latest"))           # one run: every case against its own reference
    layout(context, State())                     # the way in: pairs of options that were measured side by side

Verdict first, then the figure, then the rows, then the samples of one row in a drawer. All numbers are those of
`harness compare`. A side that the store does not know is told beside the boxes; an export of it is a UsageError.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dash import dcc, html
from dash.development.base_component import Component

from dashboard import url
from dashboard.attributes import aria
from dashboard.compare_table import comparison_rows
from dashboard.comparing import Chosen, Compared, Kept, Order, Shown, Wanted, chosen, compared, find
from dashboard.components import (
    Cell,
    Child,
    Column,
    controls,
    data_table,
    empty,
    figure,
    multi,
    notice,
    page,
    repeat,
    section,
    segmented,
    select,
)
from dashboard.context import Context
from dashboard.drawer import samples_drawer
from dashboard.side_parts import grammar, header, sides_row, way_in
from harness.compare import Comparison, Measured
from harness.core import UsageError, VerdictName
from harness.gate_rules import declared_limit
from harness.registry import SUITES
from harness.schema import RunRow
from harness.tables import comparison_table, render
from reports.figures import Effect, forest
from reports.language import verdict_word
from reports.wording import ratio_of

PATH = "/compare"
TITLE = "Compare"
ORDER = 3
EXPORTS = ("md", "csv", "json")
MAX_TABLE = 300
MAX_OFFERED = 60
FILTERS: tuple[VerdictName, ...] = ("regressed", "improved", "inconclusive", "invalid", "equivalent")


@dataclass(frozen=True, slots=True)
class State:
    """`a`, `b`: the sides as text; `verdict` keeps one kind; `case`, `on`: the row whose samples are open, its metric.

    `margin`: the smallest change that matters, in percent; 0 is the policy's.
    """

    a: str = ""
    b: str = ""
    metric: tuple[str, ...] = ()
    model: str = ""
    verdict: Kept = ""
    rows: Shown = "auto"
    sort: Order = "effect"
    margin: float = 0.0
    case: str = ""
    on: str = ""


def layout(context: Context, state: State) -> Component:
    """The comparison that the address asks for, or the way to one."""
    if not context.query.stamp().num_runs:
        words = context.say("Nothing was measured yet.")
        what = context.say("The store is there, but it holds no run.")
        return page(context, context.say("Compare"), words, empty(context, what, context.command("run quickstart")))
    if not state.b:
        return way_in(context, state.a, state.b)
    try:
        found = _found(context, state)
    except UsageError as error:  # told between the boxes, so that a slip of the pen costs nothing
        told = notice(context, "error", str(error))
        return page(
            context,
            context.say("Compare"),
            context.say("Compare cannot show this."),
            sides_row(context, state.a, state.b, _swapped(context, state)),
            told,
            grammar(context),
        )
    kept = chosen(found, _wanted(state))
    return page(
        context,
        context.say("Compare"),
        found.sentence,
        sides_row(context, state.a, state.b, _swapped(context, state)),
        *(notice(context, "warning", text) for text in found.warnings),
        header(context, found),
        _counts(context, state, kept),
        _controls(context, state, found),
        *_evidence(context, state, found, kept),
        _unmatched(context, state, found),
        _exports(context, state, found),
        _drawer(context, state, found),
    )


def export(context: Context, state: State, form: str) -> str:
    """The comparisons in sight as Markdown or CSV; `json` is `harness compare A B -o json`, all of it."""
    found = _found(context, state)
    title = f"{state.a or found.run_b.run_id} -> {state.b}"
    if form == "json":
        return render(comparison_table(found.comparisons, title, []), "json")
    kept = chosen(found, _wanted(state))
    notes = [found.sentence, *found.warnings, f"`{found.command}`"]
    if kept.hidden:
        notes.append(context.say("{n} comparisons without a significant change are left out", n=kept.hidden))
    return render(comparison_table(kept.rows, title, notes), "md" if form == "md" else "csv")


def _found(context: Context, state: State) -> Compared:
    return compared(context, state.a, state.b, state.margin / 100 if state.margin > 0 else None)


def _wanted(state: State) -> Wanted:
    return Wanted(state.metric, state.model, state.verdict, state.rows, state.sort)


def _at(context: Context, state: State, **changes: Any) -> str:
    """This page's address with some of its state changed."""
    return url.join(PATH, [*url.query(replace(state, **changes)), *context.shell])


def _swapped(context: Context, state: State) -> str:
    return _at(context, state, a=state.b, b=state.a, case="", on="") if state.a and state.b else ""


def _counts(context: Context, state: State, kept: Chosen) -> Component:
    """How many of each verdict; each a filter, that of the page marked."""
    words = {name: verdict_word(context.language, name) for name in FILTERS}
    items: list[tuple[Kept, int, str]] = [(name, kept.counts.get(name, 0), words[name]) for name in FILTERS]
    items += [
        ("only_a", kept.counts["only_a"], context.say("only in A")),
        ("only_b", kept.counts["only_b"], context.say("only in B")),
    ]
    links = []
    for name, count, word in items:
        here = state.verdict == name
        if count or here or name in ("regressed", "improved", "equivalent"):
            anchor = dcc.Link(
                [html.Strong(str(count)), html.Span(word, className=f"verdict-{name}")],
                href=_at(context, state, verdict="" if here else name),
                className="here" if here else "",
                title=context.say("show all verdicts") if here else context.say("show only these"),
            )
            links.append(html.Li(anchor))
    return html.Ul(links, className="counts", **aria(label=context.say("Verdicts")))


def _controls(context: Context, state: State, found: Compared) -> Component:
    metrics = sorted({c.metric for c in found.comparisons})
    models = sorted({c.candidate.model for c in found.comparisons})
    shown = [
        ("auto", context.say("Auto")),
        ("significant", context.say("Changed")),
        ("all", context.say("All")),
    ]
    orders = [
        ("effect", context.say("largest effect first")),
        ("worst", context.say("worst first")),
        ("best", context.say("best first")),
        ("plan", context.say("as planned")),
    ]
    margins = [("0", context.say("the policy's"))] + [(f"{value:g}", f"{value:g}%") for value in (0.5, 1, 2, 3, 5)]
    return controls(
        multi(
            context,
            "metric",
            context.say("Metrics (none: the first of each case)"),
            [(m, m) for m in metrics],
            state.metric,
        ),
        select(context, "model", context.say("Model"), [(m, m) for m in models], state.model, clearable=True)
        if len(models) > 1
        else None,
        select(context, "sort", context.say("Order"), orders, state.sort),
        select(context, "margin", context.say("Margin"), margins, f"{state.margin:g}") if not found.within else None,
        segmented(context, "rows", context.say("Rows"), shown, state.rows),
    )


def _evidence(context: Context, state: State, found: Compared, kept: Chosen) -> list[Child]:
    """Figure and table of the rows in sight, and what is hidden."""
    if state.verdict in ("only_a", "only_b"):
        return []
    parts: list[Child] = []
    if kept.hidden:
        words = context.say("{n} comparisons without a significant change are hidden.", n=kept.hidden)
        parts.append(
            html.P(
                [words, " ", dcc.Link(context.say("Show all"), href=_at(context, state, rows="all"))], className="muted"
            )
        )
    if not kept.rows:
        return [*parts, empty(context, context.say("No comparison is left: none has what is chosen above."))]
    drawn = _effects(kept.rows)
    if drawn:
        limit = _limit(found.run_b, kept.rows)
        parts.append(figure(context, forest(drawn, limit=limit, language=context.language), name="forest"))
    table = comparison_rows(
        context,
        found,
        kept.rows[:MAX_TABLE],
        href=lambda c: _at(context, state, case=c.candidate.case_id, on=c.metric),
        chosen=state.case,
    )
    parts.append(table)
    if len(kept.rows) > MAX_TABLE:
        cut = context.say("The table ends after {n} rows; the exports have all {all}.", n=MAX_TABLE, all=len(kept.rows))
        parts.append(html.P(cut, className="muted"))
    return parts


def _effects(rows: Sequence[Comparison]) -> list[Effect]:
    """What the figure draws; a label says only what tells its row from the others."""
    models = {c.candidate.model for c in rows}
    metrics = {(c.candidate.label, c.metric) for c in rows}
    several = len(metrics) > len({label for label, _ in metrics})
    found = []
    for c in rows:
        ratio = ratio_of(c)
        if ratio is None:
            continue
        against = "" if c.reference.variant in ("reference", c.candidate.variant) else f" ← {c.reference.variant}"
        parts = [c.candidate.label, c.candidate.variant + against]
        parts += [c.metric] if several else []
        parts += [c.candidate.model] if len(models) > 1 else []
        low, high = (c.estimate.low, c.estimate.high) if c.estimate else (None, None)
        found.append(Effect(" · ".join(parts), ratio, low, high, c.verdict, c.better, c.reason))
    return found


def _limit(run: RunRow, rows: Sequence[Comparison]) -> float | None:
    """The ratio at which the suite's gate turns red, where all rows count in the same direction."""
    suite = SUITES.get(run.suite)
    directions = {c.better for c in rows}
    gates = [gate for gate in suite.gates if gate.kind == "statistical"] if suite else []
    if not gates or len(directions) != 1:
        return None
    change = declared_limit(gates[0])
    return 1 - change if directions == {"higher"} else 1 + change


def _unmatched(context: Context, state: State, found: Compared) -> Child:
    """Cases that only one side has, and those that were not measured, with the reason."""
    parts: list[Child] = []
    for name, cases, words in (
        ("only_a", found.only_in_a, context.say("Only in A")),
        ("only_b", found.only_in_b, context.say("Not measured") if found.within else context.say("Only in B")),
    ):
        if cases and state.verdict in ("", name):
            table = _case_table(context, cases, words)
            parts.append(html.Details([html.Summary(f"{words} ({len(cases)})"), table], open=state.verdict == name))
    return section(context.say("Without a counterpart"), *parts) if parts else None


def _case_table(context: Context, cases: Sequence[Measured], caption: str) -> Component:
    rows: list[list[Cell]] = [
        [case.label, case.model, case.variant, case.status, case.reason or "–"] for case in cases[:MAX_TABLE]
    ]
    heads = [
        Column(context.say("Case")), Column(context.say("Model")), Column(context.say("Variant")),
        Column(context.say("Status")), Column(context.say("Reason")),
    ]  # fmt: skip
    return data_table(context, heads, rows, caption=caption)


def _exports(context: Context, state: State, found: Compared) -> Component:
    pairs = [*url.query(replace(state, case="", on="")), *context.shell]
    forms = [("md", "Markdown"), ("csv", "CSV"), ("json", "JSON")]
    links = [
        html.A(name, href=url.join(f"/export/compare.{form}", pairs), className="button", download=f"compare.{form}")
        for form, name in forms
    ]
    return section(
        context.say("Take it along"),
        html.Div([context.say("Save as"), *links], className="exports"),
        html.P([context.say("The same in a terminal:"), " ", repeat(context, found.command)]),
    )


def _drawer(context: Context, state: State, found: Compared) -> Child:
    if not state.case:
        return None
    comparison = find(found, state.case, state.on)
    if comparison is None:
        return notice(
            context, "warning", context.say("The case {case} is not part of this comparison.", case=state.case)
        )
    return samples_drawer(context, found, comparison, fields="case,on")
