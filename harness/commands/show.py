"""`harness show`, `compare` and `export`: what the store holds."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness import registry
from harness.cli import EXIT_INCONCLUSIVE, EXIT_NOTHING, EXIT_OK, EXIT_REGRESSED
from harness.commands.terminal import name_problems, open_store, print_table, warn
from harness.compare import DEFAULT_MARGIN, Comparison, compare_within, measured_cases
from harness.core import UsageError, one_of
from harness.schema import RunRow
from harness.sides import calibrated_margin, compare_sides, open_side
from harness.store import Store
from harness.tables import Column, Table, comparison_table, quantity, render, run_table, to_json


def machine_line(run: RunRow) -> str:
    """The machine and versions of a run in one line."""
    device = f", {run.device_name}" if run.device == "cuda" else ""
    return (
        f"{run.cpu_model}, {run.cores} cores{device}, {quantity(float(run.ram_bytes), 'bytes')}; torch {run.torch}, "
        f"Python {run.python}; machine {run.machine_id}"
    )


def print_run(store: Store, run: RunRow, arguments: argparse.Namespace, *, margin: float | None) -> int:
    """The table of a run, or its JSON; EXIT_NOTHING where no case of it was measured. `margin` None: the suite's."""
    registry.load_all(arguments.plugin)
    suite = registry.SUITES.get(run.suite)
    used = margin if margin is not None else (suite.margin if suite else DEFAULT_MARGIN)
    margin_of = calibrated_margin(store, run, used)
    cases = measured_cases(store, run.run_id)
    comparisons = compare_within(cases, margin=margin_of)
    name_problems(store)
    notes = [
        f"ratio: variant over reference, 95% interval over blocks; a verdict needs the interval beyond ±{used:.1%}",
        f"machine: {machine_line(run)}",
        f"repeat:  {run.command}",
    ]
    if run.status != "finished":
        notes.insert(0, f"this run is {run.status}; complete it with: {run.completion}")
    table = run_table(cases, comparisons, f"{run.suite}  run {run.run_id}", notes)
    if arguments.output == "json":
        document = {
            "run": asdict(run),
            "margin": used,
            "rows": table.records,
            "comparisons": [comparison.as_dict() for comparison in comparisons],
        }
        sys.stdout.write(to_json(document))
    else:
        print_table(table, arguments)
    measured = any(case.series for case in cases if case.status in ("ok", "not_steady"))
    return EXIT_OK if measured else EXIT_NOTHING


def show_run(arguments: argparse.Namespace) -> int:
    """One run's table, or the list of runs."""
    store = open_store(arguments)
    if arguments.run is not None:
        return print_run(store, store.find_run(arguments.run), arguments, margin=arguments.margin)
    runs = store.runs()
    name_problems(store)
    columns = [Column(name) for name in ("run", "suite", "status", "device", "machine", "commit", "command")]
    rows = [
        (r.run_id, r.suite, r.status, r.device, r.machine_id, r.git_sha[:9] + ("+" if r.git_dirty else ""), r.command)
        for r in runs
    ]
    print_table(Table(f"{len(runs)} runs in {arguments.store}", columns, rows, [asdict(r) for r in runs]), arguments)
    return EXIT_OK


def compare_two(arguments: argparse.Namespace) -> int:
    """B against A."""
    registry.load_all(arguments.plugin)
    for name in arguments.metric:
        one_of("metric", name, list(registry.METRICS))
    store = open_store(arguments)
    a, b = open_side(store, arguments.a), open_side(store, arguments.b)
    margin = arguments.margin if arguments.margin is not None else DEFAULT_MARGIN
    found = compare_sides(a, b, metrics=arguments.metric or None, margin=calibrated_margin(store, b.run, margin))
    name_problems(store)
    notes = [f"B over A; a verdict needs the interval beyond ±{margin:.1%}"]
    notes += _between(a.run, b.run)
    title = f"B = {arguments.b} ({b.run.run_id}) against A = {arguments.a} ({a.run.run_id})"
    if not found:
        warn("the two sides have no case in common")
        return EXIT_NOTHING
    print_table(comparison_table(found, title, notes), arguments)
    return _strict(found) if arguments.strict else EXIT_OK


def _between(a: RunRow, b: RunRow) -> list[str]:
    """What a reader must know of two runs before the numbers."""
    if a.run_id == b.run_id:
        return []
    if a.session and a.session == b.session:
        return ["two runs of one session, interleaved: differences are paired by block"]
    notes = ["two runs, not interleaved: what changed on the machine in between is in the ratio"]
    if a.fingerprint != b.fingerprint:
        notes.append("the two runs come from different machines or versions")
    return notes


def _strict(found: Sequence[Comparison]) -> int:
    verdicts = {comparison.verdict for comparison in found}
    for name, code in (("regressed", EXIT_REGRESSED), ("invalid", EXIT_NOTHING), ("inconclusive", EXIT_INCONCLUSIVE)):
        if name in verdicts:
            return code
    return EXIT_OK


def export_run(arguments: argparse.Namespace) -> int:
    """All rows of one table of a run."""
    store = open_store(arguments)
    run = store.find_run(arguments.run)
    tables: Mapping[str, Any] = {
        "samples": lambda: store.samples(run.run_id),
        "cases": lambda: store.cases(run.run_id),
        "telemetry": lambda: store.telemetry(run.run_id),
        "summary": lambda: _rows_of(store.summary(), run.run_id),
        "runs": lambda: _rows_of(_runs_table(run), run.run_id),
    }
    found = tables[one_of("table", arguments.table, list(tables))]()
    name_problems(store)
    if arguments.to is None:
        records = found.to_pylist()
        rows = [tuple("" if value is None else str(value) for value in record.values()) for record in records]
        columns = [Column(name) for name in found.column_names]
        print_table(Table(f"{arguments.table} of {run.run_id}", columns, rows, records), arguments)
        return EXIT_OK
    _write_export(found, Path(arguments.to), f"{arguments.table} of {run.run_id}")
    return EXIT_OK


def _rows_of(table: Any, run_id: str) -> Any:
    import pyarrow.compute as pc

    return table.filter(pc.equal(table["run_id"], run_id))


def _runs_table(run: RunRow) -> Any:
    from harness import schema

    return schema.run_table(run)


def _write_export(found: Any, path: Path, title: str) -> None:
    formats = {".csv": "csv", ".json": "json", ".md": "md", ".parquet": "parquet"}
    if path.suffix not in formats:
        raise UsageError(f"--to '{path}': unknown ending '{path.suffix}'. Known: {', '.join(formats)}")
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            pq.write_table(found, path)
            return
        records = found.to_pylist()
        rows = [tuple("" if value is None else str(value) for value in record.values()) for record in records]
        table = Table(title, [Column(name) for name in found.column_names], rows, records)
        path.write_text(render(table, formats[path.suffix]), encoding="utf-8")  # type: ignore[arg-type]
    except OSError as error:
        raise UsageError(f"--to '{path}' cannot be written: {error.strerror or error}") from error
