"""Comparisons as pages show them: those of `reports.views`, kept while the store does not change.

    view = comparison(context, "latest~1", "latest")      # the numbers of `harness compare latest~1 latest`
    view = within(context, "latest")                      # every case of a run against its reference

A page that is sorted or filtered asks again and again for the same comparison; reading its samples once is enough.
"""

from __future__ import annotations

from functools import lru_cache

from dashboard.context import Context
from harness.store import Store
from reports.views import ComparisonView, RunView, comparison_view, run_view


def comparison(context: Context, a: str, b: str, margin: float | None = None) -> ComparisonView:
    """B against A. Raises UsageError as `comparison_view` does."""
    return _comparison(context.results, context.query.generation(), a, b, margin)


def within(context: Context, run_id: str) -> RunView:
    """A run against its own references. A finished run does not change, whatever else comes into the store."""
    row = context.query.run(run_id)
    settled = row is not None and row.status == "finished"
    generation = f"{row.finished_at}" if row is not None and settled else context.query.generation()
    return _within(context.results, generation, run_id)


@lru_cache(maxsize=32)
def _comparison(store: Store, generation: str, a: str, b: str, margin: float | None) -> ComparisonView:
    return comparison_view(store, a, b, margin=margin)


@lru_cache(maxsize=64)
def _within(store: Store, generation: str, run_id: str) -> RunView:
    return run_view(store, run_id)
