"""The tables of a store in DuckDB's memory, renewed when files of the store changed. Asked by `dashboard.query` only.

    database = Database(Path("results"))
    found = database.current()                       # renews what changed, once for all threads
    database.ask("SELECT count(*) FROM cases WHERE status = ?", ["failed"])

Views: `runs`, `cases` (as they stood last), `series` (one row per case: what it is), `options` and `parameters` (of a
case, long), `summary` (with the standard error of the logarithm of each median). Every value is bound; no
text from files becomes a name in SQL, and DuckDB itself may reach neither files nor network.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from dashboard.loading import CASE_COLUMNS, Loaded, Reader
from dashboard.series import Identity, identity, series_tables, student_table
from harness import registry
from harness.schema import SCHEMAS, RunRow

_SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "autoload_known_extensions": "false",
    "autoinstall_known_extensions": "false",
    "python_enable_replacements": "false",
}
_CASES = """
    run_id, case_id, ordinal, coalesce(suite, '') AS suite, coalesce("group", '') AS "group",
    coalesce(num_params, 0) AS num_params, status, coalesce(reason, '') AS reason, coalesce(num_blocks, 0) AS num_blocks
"""
_SUMMARY = """
    run_id, case_id, metric, unit, status, n, found.num_blocks, median, low, high, noise,
    CASE WHEN low > 0 AND isfinite(high) THEN ln(high / low) / 2 / coalesce(t, 1.96) END AS log_error
"""
_RUN_TEXTS = ("run_id", "status", "suite", "git_sha", "machine_id", "device", "device_name", "cpu_model", "session")


class Database:
    """One store's tables. Raises StoreError where the folder is no store. May be used by many threads."""

    def __init__(self, path: Path) -> None:
        registry.load_all()
        self.reader = Reader(path)
        self.series: dict[str, Identity] = {}
        self._connection = duckdb.connect(":memory:", config=_SETTINGS)
        self._lock = threading.Lock()
        self._loaded: Loaded | None = None
        self._settled = False

    def current(self) -> Loaded:
        """The store as it is now; what changed since the last question is read and the views are renewed."""
        with self._lock:
            generation, settled = self.reader.generation()
            before = self._loaded
            if before is not None and before.generation == generation and self._settled:
                return before
            found = self.reader.load()
            if before is None or _state(before) != _state(found):
                self._renew(before, found)
            self._loaded, self._settled = found, settled
            return found

    def ask(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows that a question gives; `values` are bound to its marks in order."""
        with self._connection.cursor() as cursor:
            return cursor.execute(sql, list(values)).fetchall()

    def _renew(self, before: Loaded | None, found: Loaded) -> None:
        """Fill the tables in one transaction: a question that is being answered sees the store of before or of now."""
        with self._connection.cursor() as cursor:
            cursor.execute("BEGIN")
            if before is None or before.base_key != found.base_key:
                _fill(cursor, "base_runs", pa.table({"run_id": pa.array(sorted(found.base_runs), pa.string())}), "*")
                self._fill_rows(cursor, "base", self.reader.base_cases(found), self.reader.summary())
            fresh = found.fresh.values()
            cases = pa.concat_tables(
                [SCHEMAS["cases"].empty_table().select(CASE_COLUMNS), *(one.cases for one in fresh)],
                promote_options="permissive",
            )
            summary = pa.concat_tables([SCHEMAS["summary"].empty_table(), *(one.summary for one in fresh)])
            self._fill_rows(cursor, "fresh", cases, summary)
            _fill(cursor, "runs", _runs_table(found.runs.values()), "*")
            tables = zip(("series", "options", "parameters"), series_tables(self.series.values()), strict=True)
            for name, table in tables:
                _fill(cursor, name, table, "*")
            for name in ("cases", "summary"):
                cursor.execute(f"CREATE OR REPLACE VIEW {name} AS FROM base_{name} UNION ALL FROM fresh_{name}")
            cursor.execute("COMMIT")

    def _fill_rows(self, cursor: duckdb.DuckDBPyConnection, kind: str, cases: pa.Table, summary: pa.Table) -> None:
        only = "WHERE run_id IN (SELECT run_id FROM base_runs)" if kind == "base" else ""
        _fill(cursor, f"{kind}_cases", cases, _CASES, only)
        _fill(cursor, "student", student_table(pc.unique(summary["num_blocks"]).to_pylist()), "*")
        _fill(cursor, f"{kind}_summary", summary, _SUMMARY, f"LEFT JOIN student USING (num_blocks) {only}")
        self.series |= {one.case_id: one for one in _identities(cases)}


def _fill(cursor: duckdb.DuckDBPyConnection, name: str, rows: pa.Table, columns: str, rest: str = "") -> None:
    """Make or replace a table from rows; the names are ours, never from a file."""
    cursor.register("given", rows)
    cursor.execute(f"CREATE OR REPLACE TABLE {name} AS SELECT {columns} FROM given AS found {rest}")
    cursor.unregister("given")


def _state(found: Loaded) -> tuple[Any, ...]:
    """What the tables depend on."""
    return found.base_key, {run_id: fresh.parts for run_id, fresh in found.fresh.items()}, found.runs


def _runs_table(runs: Iterable[RunRow]) -> pa.Table:
    """What lists filter and sort by; times without zone, in UTC. `number` counts the runs in the order of time."""
    rows = list(runs)
    columns = {name: pa.array([getattr(run, name) for run in rows], pa.string()) for name in _RUN_TEXTS}
    for name in ("started_at", "finished_at"):
        columns[name] = pa.array([getattr(run, name) for run in rows], pa.timestamp("us", "UTC")).cast(
            pa.timestamp("us")
        )
    columns["number"] = pa.array(range(len(rows)), pa.int64())
    columns["git_dirty"] = pa.array([run.git_dirty for run in rows], pa.bool_())
    return pa.table(columns)


def _identities(cases: pa.Table) -> list[Identity]:
    """The series of these rows; of each case the row that stands last, which knows the most axes."""
    numbered = pa.table({"case_id": cases["case_id"], "at": pa.array(range(cases.num_rows), pa.int64())})
    last = numbered.group_by("case_id").aggregate([("at", "max")])["at_max"]
    axes = [name for name in cases.column_names if name.startswith("axis_")]
    rows = cases.select(["case_id", "workload", "model", "variant", *axes]).take(last).to_pylist()
    return [
        identity(
            row["case_id"],
            row["workload"] or "",
            row["model"] or "",
            row["variant"] or "",
            {axis.removeprefix("axis_"): row[axis] for axis in axes if row[axis]},
        )
        for row in rows
    ]
