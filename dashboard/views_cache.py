"""What pages compute from samples or from many rows, kept while what it rests on does not change.

    view = comparison(context, "latest~1", "latest")      # the numbers of `harness compare latest~1 latest`
    view = within(context, run_id)                        # every case of a run against its reference
    table = pairs(context, machine_id)                    # see dashboard.pairs

A page that is sorted or filtered asks again and again for the same; and while a run goes on the store changes every few
seconds, but finished runs do not: what speaks of them only, by their ids, is kept.
"""

from __future__ import annotations

import threading
from functools import lru_cache

from dashboard.context import Context
from dashboard.pairs import Pair, axis_pairs
from dashboard.query import Query
from dashboard.rows import NoiseLine
from harness.store import Store
from reports.views import ComparisonView, RunView, comparison_view, run_view

_ONE_AT_A_TIME = threading.RLock()  # who asks for what is being computed waits for it instead of computing it again


def comparison(context: Context, a: str, b: str, margin: float | None = None) -> ComparisonView:
    """B against A. Raises UsageError as `comparison_view` does."""
    with _ONE_AT_A_TIME:
        return _comparison(context.results, _edition(context, a, b), a, b, margin)


def within(context: Context, run_id: str) -> RunView:
    """A run against its own references."""
    with _ONE_AT_A_TIME:
        return _within(context.results, _edition(context, run_id), run_id)


def pairs(context: Context, machine_id: str) -> dict[str, tuple[Pair, ...]]:
    """The pairs of options that were measured side by side."""
    with _ONE_AT_A_TIME:
        return _pairs(context.query, context.query.generation(), machine_id)


def noise(context: Context, machine_id: str) -> tuple[NoiseLine, ...]:
    """The noise of every series of a machine."""
    with _ONE_AT_A_TIME:
        return _noise(context.query, context.query.generation(), machine_id)


def _edition(context: Context, *sides: str) -> str:
    """What must be the same for an answer to hold: the runs' ends and the calibration, else the whole store."""
    ends = []
    for side in sides:
        run = context.query.run(side.partition("/")[0])
        if run is None or run.status != "finished":
            return context.query.generation()
        ends.append(f"{run.finished_at}")
    folder = context.query.path / "calibration"
    return " ".join([*ends, str(folder.stat().st_mtime_ns) if folder.is_dir() else ""])


@lru_cache(maxsize=64)
def _comparison(store: Store, edition: str, a: str, b: str, margin: float | None) -> ComparisonView:
    return comparison_view(store, a, b, margin=margin)


@lru_cache(maxsize=64)
def _within(store: Store, edition: str, run_id: str) -> RunView:
    return run_view(store, run_id)


@lru_cache(maxsize=16)
def _pairs(query: Query, generation: str, machine_id: str) -> dict[str, tuple[Pair, ...]]:
    return axis_pairs(query, machine_id)


@lru_cache(maxsize=16)
def _noise(query: Query, generation: str, machine_id: str) -> tuple[NoiseLine, ...]:
    return query.noise(machine_id)
