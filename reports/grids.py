"""The tables and figures that several kinds of report share: changes with their quality, cases, gates.

    changes_grid(view.changed, view.quality, "en", most=10)      # significant rows, quality beside each
    forest_of(view.headline, "en")                               # every headline comparison as one figure

Text cells are for people; each grid carries the same rows as data (`records`) for the JSON form. Torch-free.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harness.compare import Comparison
from harness.core import VerdictName
from harness.gate_report import change_text as gate_change_text
from harness.gates import Decision, GateRow
from harness.tables import GLYPHS, Column, identity, quantity
from reports.document import Grid, Listing, Picture
from reports.figures import Effect, forest
from reports.figures.numbers import ratio_text
from reports.language import Language, say, verdict_word
from reports.sources import text_of
from reports.views import CaseView, Quality, RunView
from reports.wording import case_name, most_changed, percent, ratio_of, short_names

MOST_IN_FIGURE = 60
Qualities = Mapping[tuple[str, str], Quality]
_DECISION_VERDICTS: Mapping[Decision, VerdictName | None] = {
    "regressed": "regressed",
    "improved": "improved",
    "passed": "equivalent",
    "inconclusive": "inconclusive",
    "invalid": "invalid",
    "skipped": None,
}


def verdict_text(verdict: VerdictName, language: Language) -> str:
    """Glyph and word: `▲ improved`."""
    return f"{GLYPHS[verdict].split(' ')[0]}\N{NO-BREAK SPACE}{verdict_word(language, verdict)}"


def ratio_with_interval(comparison: Comparison) -> str:
    """`1.137× [1.120, 1.154]`; bare for single values."""
    estimate = comparison.estimate
    return ratio_text(ratio_of(comparison), estimate.low if estimate else None, estimate.high if estimate else None)


def would_show(comparison: Comparison) -> str:
    """The smallest change that would have been seen."""
    effect = comparison.minimum_detectable_effect
    return "-" if effect is None else percent(effect)


def quality_text(ours: Quality | None, theirs: Quality | None, language: Language) -> str:
    """PPL from -> to, KL and top-1 agreement of the candidate; in brackets where another model was scored."""
    if ours is None:
        return say(language, "not measured")
    parts = []
    if ours.ppl is not None:
        before = None if theirs is None or theirs.data_fingerprint != ours.data_fingerprint else theirs.ppl
        parts.append(f"PPL {ours.ppl:.2f}" if before is None else f"PPL {before:.2f} → {ours.ppl:.2f}")
    if ours.kl is not None:
        parts.append(f"KL {0 if ours.kl < 1e-9 else ours.kl:.2g}")
    if ours.top1 is not None:
        parts.append(f"top-1 {percent(ours.top1)}")
    text = ", ".join(parts) or say(language, "not measured")
    return f"({ours.model}: {text})" if ours.borrowed and parts else text


def changes_grid(
    comparisons: Sequence[Comparison],
    quality: Qualities,
    language: Language,
    *,
    title: str = "",
    most: int = 0,
    name: Callable[[Comparison], str] | None = None,
) -> Grid:
    """One row per comparison: both values, ratio, verdict, what would have shown, what it costs in quality."""
    columns = (
        Column(say(language, "case")),
        Column(say(language, "metric")),
        Column("A", right=True),
        Column("B", right=True),
        Column("B/A [95%]", right=True),
        Column(say(language, "verdict")),
        Column(say(language, "would show"), right=True),
        Column(say(language, "quality of B")),
    )
    rows = tuple(
        (
            name(c) if name else case_name(c, language),
            c.metric,
            quantity(c.reference_value, c.unit),
            quantity(c.candidate_value, c.unit),
            ratio_with_interval(c),
            verdict_text(c.verdict, language),
            would_show(c),
            quality_text(
                quality.get((c.candidate.run_id, c.candidate.case_id)),
                quality.get((c.reference.run_id, c.reference.case_id)),
                language,
            ),
        )
        for c in comparisons
    )
    records = tuple(c.as_dict() for c in comparisons)
    return Grid(columns, rows, title, tuple(c.verdict for c in comparisons), records, most)


def reasons_grid(
    comparisons: Sequence[Comparison],
    language: Language,
    *,
    title: str = "",
    name: Callable[[Comparison], str] | None = None,
) -> Grid:
    """Every comparison with its margin and the reason of its verdict."""
    columns = (
        Column(say(language, "case")),
        Column(say(language, "metric")),
        Column("B/A [95%]", right=True),
        Column(say(language, "verdict")),
        Column(say(language, "margin"), right=True),
        Column(say(language, "blocks"), right=True),
        Column(say(language, "reason")),
    )
    rows = tuple(
        (
            name(c) if name else case_name(c, language),
            c.metric,
            ratio_with_interval(c),
            verdict_text(c.verdict, language),
            percent(c.margin),
            str(c.estimate.num_blocks) if c.estimate else "-",
            c.reason,
        )
        for c in comparisons
    )
    return Grid(columns, rows, title, tuple(c.verdict for c in comparisons), tuple(c.as_dict() for c in comparisons))


def margin_listing(comparisons: Sequence[Comparison]) -> Listing:
    """Where the margins come from, with how many comparisons each judged."""
    counts = Counter(f"{percent(c.margin)}: {c.margin_source}" for c in comparisons)
    return Listing(tuple(f"{source} ({count})" for source, count in counts.most_common()))


def forest_of(
    comparisons: Sequence[Comparison],
    language: Language,
    *,
    limit: float | None = None,
    name: Callable[[Comparison], str] | None = None,
) -> Picture | None:
    """The comparisons that have a ratio, the most changed where there are too many for one figure; None for none."""
    drawn = [c for c in comparisons if c.verdict != "invalid" and ratio_of(c)]
    if not drawn:
        return None
    shown = most_changed(drawn)[:MOST_IN_FIGURE]
    labels = [f"{name(c)} {c.metric}" for c in shown] if name else short_names(shown, language)
    effects = [
        Effect(
            label,
            ratio_of(c) or 1.0,
            c.estimate.low if c.estimate else None,
            c.estimate.high if c.estimate else None,
            c.verdict,
            c.better,
            c.reason,
        )
        for c, label in zip(shown, labels, strict=True)
    ]
    return Picture("forest", forest(effects, limit=limit, language=language))


def cases_grid(view: RunView, language: Language, *, metrics: Sequence[str], title: str = "", most: int = 0) -> Grid:
    """Every case of a run: status, its first metric, its ratio to the reference, other metrics, its quality."""
    columns = (
        Column(say(language, "case")),
        Column(say(language, "status")),
        Column(say(language, "first metric"), right=True),
        Column(say(language, "against the reference"), right=True),
        *(Column(name, right=True) for name in metrics),
        Column(say(language, "quality")),
    )
    rows, verdicts, records = [], [], []
    for item in view.cases:
        case, comparison = item.case, item.comparison
        against = ratio_with_interval(comparison) if comparison else say(language, "(reference)")
        rows.append(
            (
                f"{case.model}: {case.label} {case.variant}",
                case.status if case.status == "ok" else f"{case.status}: {case.reason}",
                f"{case.headline} {text_of(case, case.headline)}" if case.headline else "-",
                against if case.status == "ok" else "-",
                *(text_of(case, name) for name in metrics),
                quality_text(item.quality, None, language) if item.quality else "-",
            )
        )
        verdicts.append(comparison.verdict if comparison else None)
        records.append(_case_record(item))
    return Grid(columns, tuple(rows), title, tuple(verdicts), tuple(records), most)


def _case_record(item: CaseView) -> dict[str, Any]:
    case = item.case
    return {
        **identity(case),
        "metrics": {name: {"value": series.median, "unit": series.unit} for name, series in case.series.items()},
        "same_output": item.same_output,
        "comparison": item.comparison.as_dict() if item.comparison else None,
    }


def unmeasured_listing(view: RunView, language: Language, *, most: int = 0) -> Listing | None:
    """Why cases were not measured, a reason that several share told once; None where all were."""
    lines = []
    for (status, reason), cases in view.reasons().items():
        first = f"{cases[0].model}: {cases[0].label} {cases[0].variant}"
        more = say(language, " and {count} more", count=len(cases) - 1) if len(cases) > 1 else ""
        lines.append(f"{status}: {first}{more}: {reason}")
    if not lines:
        return None
    if most and len(lines) > most:
        lines = [*lines[: most - 1], say(language, "reasons more: {count}", count=len(lines) - most + 1)]
    return Listing(tuple(lines))


def metrics_of(view: RunView, wanted: Sequence[str]) -> list[str]:
    """Those of some metrics that the run recorded, in that order."""
    known = {name for item in view.cases for name in item.case.series}
    return [name for name in wanted if name in known]


def gates_grid(rows: Sequence[GateRow], language: Language, *, title: str = "", most: int = 0) -> Grid:
    """One row per gate and case, the worst first: change, detectable effect, margin, limit, why."""
    order: list[Decision] = ["regressed", "inconclusive", "invalid", "improved", "passed", "skipped"]
    columns = (
        Column(say(language, "verdict")),
        Column(say(language, "case")),
        Column(say(language, "metric")),
        Column(say(language, "baseline"), right=True),
        Column(say(language, "candidate"), right=True),
        Column(say(language, "change [interval]"), right=True),
        Column(say(language, "detectable"), right=True),
        Column(say(language, "limit"), right=True),
        Column(say(language, "why")),
    )
    ordered = sorted(rows, key=lambda row: order.index(row.decision))
    cells = tuple(
        (
            decision_text(row.decision, language),
            f"{row.case.model}: {row.case.label} {row.case.variant}",
            row.metric,
            quantity(row.baseline_value, row.unit),
            quantity(row.candidate_value, row.unit),
            gate_change_text(row),
            "-" if row.minimum_detectable_effect is None else percent(row.minimum_detectable_effect),
            "-" if row.limit is None else f"{row.limit:g}" if row.gate.kind == "bound" else percent(row.limit),
            row.reason,
        )
        for row in ordered
    )
    verdicts = tuple(_DECISION_VERDICTS[row.decision] for row in ordered)
    return Grid(columns, cells, title, verdicts, tuple(row.as_dict() for row in ordered), most)


def decision_text(decision: Decision, language: Language) -> str:
    """A gate's word with its glyph."""
    if decision == "passed":
        return f"= {say(language, 'passed')}"
    if decision == "skipped":
        return f"- {say(language, 'skipped')}"
    return verdict_text(decision, language)
