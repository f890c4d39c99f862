"""The rows of a comparison: both values, ratio with interval, verdict, what it costs in quality, how to repeat it.

    comparison_rows(context, found, rows, href=lambda c: "/compare?...")

Digits are those of `harness compare`; pointing at a ratio shows it in full.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from dash import dcc, html
from dash.development.base_component import Component

from dashboard.choices import spark
from dashboard.comparing import Compared
from dashboard.components import Cell, Column, copy_button, data_table, quality, ratio, verdict
from dashboard.context import Context
from dashboard.filters import Clause, Filter
from harness.compare import Comparison
from harness.stats import p_value_beyond
from harness.tables import quantity
from reports.wording import ratio_of

PAST = 12  # runs that a row's history goes back


def columns(context: Context) -> list[Column]:
    """The headings."""
    return [
        Column(context.say("Case")),
        Column(context.say("Metric")),
        Column("A", right=True, note=context.say("median over blocks")),
        Column("B", right=True, note=context.say("median over blocks")),
        Column(
            context.say("B/A [95%]"), right=True, note=context.say("paired by block where A and B were interleaved")
        ),
        Column(context.say("Verdict")),
        Column(context.say("Quality of B")),
        Column("p", right=True, note=context.say("that a change beyond the margin is only noise, one-sided")),
        Column(
            context.say("Would show"),
            right=True,
            note=context.say("the smallest true change that these blocks show as beyond the margin in 4 of 5 cases"),
        ),
        Column(context.say("Margin"), right=True, note=context.say("the smallest change that matters")),
        Column(context.say("Blocks"), right=True),
        Column(context.say("Spread"), right=True, note=context.say("of the ratio from block to block")),
        Column(
            context.say("History"),
            note=context.say("of B in the last runs on its machine; from block to block where it has no past"),
        ),
        Column(context.say("Repeat")),
    ]


def comparison_rows(
    context: Context,
    found: Compared,
    rows: Sequence[Comparison],
    *,
    href: Callable[[Comparison], str],
    chosen: str = "",
) -> Component:
    """The table; a case's name opens its samples. `chosen`: the case whose samples are open."""
    pasts = _pasts(context, found, rows)
    body: list[list[Cell]] = [
        _cells(context, found, c, href(c), pasts.get((c.candidate.case_id, c.metric), ())) for c in rows
    ]
    marks = ["chosen" if c.candidate.case_id == chosen else "" for c in rows]
    return data_table(
        context, columns(context), body, caption=context.say("Comparisons"), name="comparisons", marks=marks
    )


def _pasts(
    context: Context, found: Compared, rows: Sequence[Comparison]
) -> Mapping[tuple[str, str], Sequence[float | None]]:
    """(case, metric) -> medians of the last runs of B's suite on its machine, those of B last."""
    run = found.run_b
    if run.started_at is None:
        return {}
    same = Filter().with_value("machine", run.machine_id).with_value("suite", run.suite)
    until = Filter((*same.clauses, Clause("started", "<=", run.started_at.isoformat())))
    runs = [line.run_id for line in context.query.runs(until, limit=PAST).rows]
    pasts: dict[tuple[str, str], list[float | None]] = {}
    for line in context.query.summary(runs, sorted({c.metric for c in rows})):
        pasts.setdefault((line.case_id, line.metric), []).append(line.median)
    return pasts


def _spark(context: Context, c: Comparison, past: Sequence[float | None]) -> Cell:
    """The past as a picture, else how the value went from block to block."""
    series = c.candidate.series.get(c.metric)
    if len(past) > 1 or series is None or series.single:
        return spark(context, past)
    blocks = [series.blocks[number] for number in sorted(series.blocks)]
    return spark(context, blocks, context.say("{n} blocks of this run", n=len(blocks)))


def _cells(context: Context, found: Compared, c: Comparison, href: str, past: Sequence[float | None]) -> list[Cell]:
    estimate = c.estimate
    effect = c.minimum_detectable_effect
    seen = effect is not None and math.isfinite(effect)
    return [
        [dcc.Link(c.candidate.label, href=href, className="row-link"), html.Br(), html.Small(arm_text(c))],
        c.metric,
        quantity(c.reference_value, c.unit),
        quantity(c.candidate_value, c.unit),
        html.Span(
            ratio(
                context, ratio_of(c), estimate.low if estimate else None, estimate.high if estimate else None, c.verdict
            ),
            title=full_digits(c),
            className="exact",
        ),
        _judged(context, c),
        quality_cell(context, found, c),
        p_text(c),
        f"{effect:.1%}" if seen else "–",
        html.Span(f"{c.margin:.1%}" + ("" if c.margin_source.startswith("policy") else "*"), title=c.margin_source),
        str(estimate.num_blocks) if estimate else "–",
        f"{estimate.sd:.1%}" if estimate and math.isfinite(estimate.sd) else "–",
        _spark(context, c, past),
        copy_button(context, found.run_b.command, context.say("Copy the command that measures this again"))
        if found.run_b.command
        else "–",
    ]


def _judged(context: Context, c: Comparison) -> Cell:
    """The verdict, and why where the numbers beside it do not say so."""
    chip = html.Span(verdict(context, c.verdict), title=c.reason)
    return [chip, html.Br(), html.Small(c.reason)] if c.verdict == "invalid" and c.reason else chip


def arm_text(c: Comparison) -> str:
    """Model and variant of B, and of A where that is another."""
    against = "" if c.reference.variant == c.candidate.variant else f" ← {c.reference.variant}"
    return f"{c.candidate.model}: {c.candidate.variant}{against}"


def full_digits(c: Comparison) -> str:
    """The ratio and its interval as `harness compare -o json` prints them."""
    if c.estimate is None:
        return f"{ratio_of(c)!r}"
    return f"{c.estimate.ratio!r} [{c.estimate.low!r}, {c.estimate.high!r}]"


def p_text(c: Comparison) -> str:
    """The one-sided p-value of the change that the estimate points to; a dash where there is none."""
    if c.estimate is None or c.better == "neither" or c.verdict == "invalid":
        return "–"
    better = (c.estimate.ratio > 1) == (c.better == "higher")
    p = p_value_beyond(c.estimate, margin=c.margin, better=c.better, side="better" if better else "worse")
    if not math.isfinite(p):
        return "–"
    return "<0.001" if p < 0.001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def quality_cell(context: Context, found: Compared, c: Comparison) -> Component:
    """PPL, KL and top-1 of B beside those of A: what the change costs."""
    ours = found.quality.get((c.candidate.run_id, c.candidate.case_id))
    theirs = found.quality.get((c.reference.run_id, c.reference.case_id))
    if ours is None:
        return quality(context)
    same_text = theirs is not None and theirs.data_fingerprint == ours.data_fingerprint and theirs.model == ours.model
    return quality(
        context,
        ppl=(theirs.ppl if theirs is not None and same_text else None, ours.ppl),
        kl=ours.kl,
        top1=ours.top1,
        note=context.say("measured on {model}", model=ours.model) if ours.borrowed else "",
    )
