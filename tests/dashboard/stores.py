"""What the tests of the dashboard's questions share: arms with numbers, and the comparison with the store's summary."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from dashboard.filters import Filter
from dashboard.query import Query
from harness.store import Store
from tests.synthetic import Arm

REFERENCE = Path(__file__).resolve().parents[2] / "results" / "reference"
FOUR = (100.0, 101.0, 99.0, 100.0)


def arm(variant: str = "reference", factor: float = 1.0, **changes: Any) -> Arm:
    """One arm whose tps are four blocks around 100 times a factor."""
    return Arm(variant, **{"timed": {"tps": [value * factor for value in FOUR]}, **changes})


def stored_rows(store: Store) -> dict[tuple[str, str, str], dict[str, Any]]:
    """The rows of the store's own summary by run, case and metric."""
    known = {run.run_id for run in store.runs()}
    rows = [row for row in store.summary().to_pylist() if row["run_id"] in known]
    return {(row["run_id"], row["case_id"], row["metric"]): row for row in rows}


def same(mine: float | None, stored: float | None) -> bool:
    """Equal to the bit; what is not finite is shown as missing."""
    return mine == (stored if stored is not None and math.isfinite(stored) else None)


def assert_summary_of(query: Query, store: Store) -> None:
    """The dashboard's lines are the store's rows, to the bit."""
    stored, lines = stored_rows(store), query.summary(Filter())
    assert len(lines) == len(stored) > 0
    for line in lines:
        row = stored[line.run_id, line.case_id, line.metric]
        assert (line.unit, line.status, line.n, line.num_blocks) == tuple(
            row[k] for k in ("unit", "status", "n", "num_blocks")
        )
        assert all(same(getattr(line, name), row[name]) for name in ("median", "low", "high", "noise"))
