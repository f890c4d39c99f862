"""What the Compare page shows, whatever was asked for: two sides, or one run against its own references.

    found = compared(context, "latest~1", "latest")
    found.comparisons       # exactly those of `harness compare latest~1 latest -o json`, in its order
    chosen(found, Wanted(verdict="regressed")).rows

One shape for both, so that filters, figure, table and exports are written once. Raises UsageError for a side that the
store does not know.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dashboard import views_cache
from dashboard.context import Context
from harness.compare import Comparison, Measured
from harness.core import UsageError, VerdictName
from harness.schema import RunRow
from harness.sides import find_side
from reports.views import ComparisonView, Difference, Quality, RunView
from reports.wording import ratio_of

Shown = Literal["auto", "all", "significant"]
Order = Literal["effect", "worst", "best", "plan"]
Kept = Literal["", "regressed", "improved", "inconclusive", "invalid", "equivalent", "only_a", "only_b"]
SIGNIFICANT: tuple[VerdictName, ...] = ("regressed", "improved")
_OPTION = re.compile(r"[a-z]*:?\s*-")
FEW_ROWS = 24  # up to here nothing is hidden


@dataclass(frozen=True, slots=True)
class Compared:
    """Side A is `run_a`, of it `variant_a` (None: every case, or each case's own reference where `within`)."""

    run_a: RunRow
    run_b: RunRow
    variant_a: str | None
    variant_b: str | None
    within: bool
    sentence: str
    warnings: tuple[str, ...]
    differences: tuple[Difference, ...]
    comparisons: tuple[Comparison, ...]
    headline: tuple[Comparison, ...]
    only_in_a: tuple[Measured, ...]
    only_in_b: tuple[Measured, ...]
    quality: Mapping[tuple[str, str], Quality]
    command: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which comparisons a reader wants to see, and in which order. No metric: the first of each case."""

    metric: tuple[str, ...] = ()
    model: str = ""
    verdict: Kept = ""
    rows: Shown = "auto"
    sort: Order = "effect"


@dataclass(frozen=True, slots=True)
class Chosen:
    """`rows`: what the table lists; `counts`: of all verdicts before that choice; `hidden`: not significant ones."""

    rows: tuple[Comparison, ...]
    counts: Mapping[str, int]
    hidden: int


def compared(context: Context, a: str, b: str, margin: float | None = None) -> Compared:
    """B against A, or run `b` against its own references where `a` is empty. Raises UsageError."""
    for text in (a, b):
        if _OPTION.match(text):  # a revision goes to git: what git would take for an option never does
            raise UsageError(f"'{text[:80]}' is not a side: a name does not begin with a dash")
    if a:
        return _of_sides(context, views_cache.comparison(context, a, b, margin))
    return _of_run(context, views_cache.within(context, find_side(context.results, b).run_id))


def _of_sides(context: Context, view: ComparisonView) -> Compared:
    return Compared(
        view.a.run,
        view.b.run,
        view.a.variant,
        view.b.variant,
        within=False,
        sentence=view.sentence(context.language),
        warnings=tuple(view.warnings(context.language)),
        differences=view.differences,
        comparisons=view.comparisons,
        headline=view.headline,
        only_in_a=view.only_in_a,
        only_in_b=view.only_in_b,
        quality=view.quality,
        command=view.command,
    )


def _of_run(context: Context, view: RunView) -> Compared:
    lone = tuple(found.case for found in view.cases if found.case.status != "ok" and found.comparison is None)
    return Compared(
        view.run,
        view.run,
        None,
        None,
        within=True,
        sentence=view.sentence(context.language),
        warnings=(),
        differences=(),
        comparisons=view.comparisons,
        headline=view.headline,
        only_in_a=(),
        only_in_b=lone,
        quality={(view.run.run_id, found.case.case_id): found.quality for found in view.cases if found.quality},
        command=f"python -m harness show {view.run.run_id}",
    )


def chosen(found: Compared, wanted: Wanted) -> Chosen:
    """The comparisons that a reader wants, with what was left out counted."""
    offered = [c for c in found.comparisons if c.metric in wanted.metric] if wanted.metric else list(found.headline)
    if wanted.model:
        offered = [c for c in offered if c.candidate.model == wanted.model]
    counts: dict[str, int] = dict(Counter(c.verdict for c in offered))
    counts["only_a"], counts["only_b"] = len(found.only_in_a), len(found.only_in_b)
    if wanted.verdict:
        rows = [c for c in offered if c.verdict == wanted.verdict]
    elif wanted.rows == "significant" or (wanted.rows == "auto" and _crowded(offered)):
        rows = [c for c in offered if c.verdict in (*SIGNIFICANT, "invalid")]
    else:
        rows = offered
    hidden = 0 if wanted.verdict else len(offered) - len(rows)
    return Chosen(tuple(ordered(rows, wanted.sort)), counts, hidden)


def _crowded(offered: Sequence[Comparison]) -> bool:
    """Whether what did not change would bury what did."""
    return len(offered) > FEW_ROWS and any(c.verdict in SIGNIFICANT for c in offered)


def ordered(rows: Sequence[Comparison], sort: Order) -> list[Comparison]:
    """By size of the effect, or by how good it is, or as the plan has them; what has no ratio comes last."""
    if sort == "plan":
        return list(rows)

    def key(comparison: Comparison) -> tuple[bool, float]:
        gain = goodness(comparison)
        return gain is None, -abs(gain or 0.0) if sort == "effect" else (gain or 0.0) * (1 if sort == "worst" else -1)

    return sorted(rows, key=key)


def goodness(comparison: Comparison) -> float | None:
    """Logarithm of the ratio, turned so that above zero is better; None where there is no ratio."""
    ratio = ratio_of(comparison)
    if ratio is None or not 0 < ratio < math.inf:
        return None
    return -math.log(ratio) if comparison.better == "lower" else math.log(ratio)


def find(found: Compared, case_id: str, metric: str) -> Comparison | None:
    """The comparison that a drawer shows: of this case on side B, of this metric or its first."""
    mine = [c for c in found.comparisons if c.candidate.case_id == case_id]
    named = [c for c in mine if c.metric == metric]
    first = [c for c in mine if c.metric == c.candidate.headline]
    return next(iter([*named, *first, *mine]), None)
