"""What a page may cost, in things that can be counted: rows and files that it reads, bytes that it sends.

The first question of a fresh server loads the store, the first look at a page may read samples; both are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from dash._utils import to_json

from dashboard import shell
from dashboard.database import Database
from dashboard.source import Source
from harness.schema import decode
from harness.store import Store

MAX_BYTES = 300_000
PAGES = shell.found_pages()
# Rows from the database and files of a run's cases or samples: the first time, and when the page is asked for again.
BUDGETS = {
    "/": ((1_500, 60), (300, 0)),
    "/runs": ((200, 0), (200, 0)),
    "/compare": ((1_500, 0), (50, 0)),
    "/compare?a={baseline}&b={candidate}&rows=all": ((1_000, 8), (1_000, 4)),
    "/trend": ((2_000, 0), (2_000, 0)),
    "/trend?filter=suite=gate": ((500, 0), (500, 0)),
    "/pareto": ((1_500, 0), (1_500, 0)),
    "/memory": ((600, 2), (600, 2)),
    "/matrix": ((100, 0), (10, 0)),
    "/noise": ((1_000, 8), (200, 0)),
    "/roofline": ((300, 2), (300, 2)),
    "/profile": ((200, 2), (200, 2)),
    "/case": ((200, 8), (200, 8)),
    "/help": ((10, 0), (10, 0)),
}


@dataclass
class Cost:
    """What was read since it was last reset."""

    rows: int = 0
    files: list[Path] = field(default_factory=list)

    def taken(self) -> tuple[int, int]:
        """(rows, files), and from here on anew."""
        found = self.rows, len(self.files)
        self.rows, self.files = 0, []
        return found


@pytest.fixture
def cost(monkeypatch: pytest.MonkeyPatch) -> Cost:
    """Counts rows that leave the database and files that are decoded for one run."""
    counted, ask = Cost(), Database.ask

    def asked(database: Database, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        rows = ask(database, sql, values)
        counted.rows += len(rows)
        return rows

    def decoded(path: Path, *rest: Any) -> pa.Table:
        counted.files.append(path)
        return decode(path, *rest)

    monkeypatch.setattr(Database, "ask", asked)
    monkeypatch.setattr("harness.catalog.decode", decoded)
    return counted


@pytest.fixture(scope="module")
def names(sample: Path) -> dict[str, str]:
    """The two sides of the newest session."""
    runs = Store.open(sample).runs()
    candidate = [run for run in runs if run.side == "candidate" and run.status == "finished"][-1]
    baseline = next(run for run in runs if run.session == candidate.session and run.side == "baseline")
    return {"baseline": baseline.run_id, "candidate": candidate.run_id}


def test_every_page_has_a_budget() -> None:
    assert {place.partition("?")[0] for place in BUDGETS} == {page.path for page in PAGES}


@pytest.mark.parametrize("place", BUDGETS)
def test_a_page_stays_within_its_budget(sample: Path, names: dict[str, str], cost: Cost, place: str) -> None:
    source = Source(sample)
    query, _ = source.open()
    query.stamp()
    opened = query.num_files_read
    assert opened <= 4  # the summary and the cases, and the two files of the run that goes on
    path, _, search = place.format(**names).partition("?")
    cost.taken()
    for rows, files in BUDGETS[place]:
        drawn = shell.draw(source, PAGES, path, f"?{search}" if search else "")
        found = cost.taken()
        assert found[0] <= rows and found[1] <= files
        assert len(to_json([drawn.top, drawn.nav, drawn.content, drawn.now])) <= MAX_BYTES
    assert query.num_files_read == opened


def test_a_stretch_of_the_list_of_runs_reads_its_own_rows_only(sample: Path, cost: Cost) -> None:
    query, _ = Source(sample).open()
    query.stamp()
    cost.taken()
    query.runs(limit=10)
    assert cost.taken() == (10 + 10 + 1, 0)  # ids in order, what stands beside them, the total
