"""`harness profile`: where the time and the memory of each case of a suite go, case by case in the solo pass."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from harness import registry
from harness.campaign import offered
from harness.cli import EXIT_NOTHING, EXIT_OK
from harness.commands.run import request_of
from harness.commands.terminal import name_problems, open_store, print_table, progress_bar, warn
from harness.core import Grid, Suite, UsageError, Workload
from harness.plan import Plan
from harness.profiles import SUITE_PREFIX, Trace, Unreadable, artifact, read_trace
from harness.store import Store
from harness.tables import Column, Table, quantity

TOP = 3
RECORDED = ("peak_bytes", "reserved_bytes", "kv_bytes")  # besides what the suite records in its solo passes


def profile_suite(plan: Plan) -> Suite:
    """The suite that profiles another: its timed cases, and of its metrics those of the solo pass.

    Raises UsageError for a suite without timed cases.
    """
    grids: list[Grid] = []
    for grid in plan.suite.grids.get(plan.device, ()):
        timed = tuple(workload for workload in grid.workloads if registry.WORKLOADS[workload.kind].timed)
        grids += [replace(grid, workloads=timed)] if timed else []
    if not grids:
        raise UsageError(
            f"suite '{plan.suite.name}' has no timed case on {plan.device}, so there is nothing to profile"
        )
    solo = [name for name in plan.suite.metrics if not registry.METRICS[name].timed]
    return replace(
        plan.suite,
        name=f"{SUITE_PREFIX}{plan.suite.name}",
        doc=f"Profiles of {plan.suite.name}.",
        grids={plan.device: tuple(grids)},
        metrics=tuple(dict.fromkeys((*solo, *RECORDED))),
        gates=(),
    )


def profile_verb(arguments: argparse.Namespace) -> int:
    """Record a trace and stacks of every case, beside the store, and show what each spends its time on."""
    from harness.execute import measure

    registry.load_all(arguments.plugin)
    if arguments.suite is None:
        raise UsageError(f"which suite? Known: {', '.join(sorted(registry.SUITES))}")
    asked = request_of(arguments, arguments.suite)
    suite = profile_suite(asked.plan())
    request = replace(asked, suite=suite.name, blocks=0, repeat=asked.command("profile"))
    with offered(suite):
        request.plan()  # a usage error comes before the store is made
        store = open_store(arguments, create=True)
        with progress_bar() as progress:
            (run_id,) = measure(request, store, progress, warn, profile=True).values()
    name_problems(store)
    table = profile_table(store, run_id)
    print_table(table, arguments)
    return EXIT_OK if any(record["trace"] for record in table.records) else EXIT_NOTHING


def profile_table(store: Store, run_id: str) -> Table:
    """One row per case: time of an iteration, what most of it goes to, the allocator's peak, what was recorded."""
    rows, records = [], []
    for case in store.cases(run_id).to_pylist():
        files = {kind: artifact(store.path, run_id, case["case_id"], kind) for kind in ("trace", "collapsed")}
        trace, reason = None, case["reason"] or ""
        try:
            trace = read_trace(files["trace"]) if files["trace"] else None
        except Unreadable as error:
            reason = str(error)
        said = _said(case)
        record = {
            **{name: case[name] for name in ("case_id", "model", "workload", "variant", "status")},
            **{kind: str(path) if path else None for kind, path in files.items()},
            "said": said,
            "operations": _operations(trace),
            "seconds": trace.seconds if trace else None,
            "peak_allocated": _peak(trace),
            "reason": reason,
        }
        records.append(record)
        label = registry.workload_label(Workload.parse(case["workload"]))
        shown = ", ".join(f"{found['name']} {found['share']:.0%}" for found in record["operations"][:TOP])
        stacks = said.get("stacks", "")
        rows.append(
            (
                f"{case['model']}: {label}",
                case["variant"],
                shown or reason or "–",
                quantity(record["peak_allocated"], "bytes"),
                said.get("trace", case["status"]),
                stacks,
            )
        )
    columns = [Column("case"), Column("variant"), Column("most of its time"), Column("allocated", right=True)]
    columns += [Column("trace"), Column("stacks")]
    run = store.find_run(run_id)
    notes = [
        "most of its time: in the operation itself (kernels on a GPU); `iteration` is what lies between operations",
        "allocated: the allocator's peak within the trace; on a CPU above what was held when it began",
        f"look at it: python -m dashboard --store {store.path}, then /profile?run={run_id}",
        f"repeat:     {run.command}",
    ]
    return Table(f"{run.suite}  run {run_id}", columns, rows, records, notes)


def _said(case: Mapping[str, Any]) -> dict[str, str]:
    found = json.loads(case["facts"] or "{}").get("profile", {})
    return {str(kind): str(words) for kind, words in found.items()}


def _operations(trace: Trace | None) -> list[dict[str, Any]]:
    if trace is None:
        return []
    whole = sum(operation.total for operation in trace.operations)
    return [
        {
            "name": found.name,
            "calls": found.calls,
            "seconds": found.total,
            "share": found.total / whole if whole else 0.0,
        }
        for found in trace.operations[:10]
    ]


def _peak(trace: Trace | None) -> float | None:
    return max((max(found.allocated) for found in trace.allocations), default=None) if trace else None
