"""Rows, runs and whole stores for the tests of the store."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from harness import schema
from harness.core import Reading, Sample
from harness.store import CaseRow, RunRow, RunWriter, Store

WARM: dict[str, Any] = {"phase": "warmup"}


def sample(case: str = "c0", metric: str = "tpot", value: float = 1.0, **other: Any) -> Sample:
    fields: dict[str, Any] = {
        "unit": "s",
        "block": 0,
        "worker": "w",
        "turn": 0,
        "iteration": 0,
        "phase": "timed",
        "t_ns": 0,
    }
    return Sample(case, metric, value, **(fields | other))


def case(case_id: str = "c0", **other: Any) -> CaseRow:
    fields: dict[str, Any] = {"workload": "decode", "model": "tiny", "variant": "reference", "status": "ok"}
    return CaseRow(case_id, **(fields | other))


def reading(block: int = 0, **other: Any) -> Reading:
    fields: dict[str, Any] = {"source": "os", "name": "steal", "value": 0.5, "unit": "1", "t_ns": 7}
    return Reading(block, **(fields | other))


def write_block(writer: RunWriter, block: int, *, num_cases: int = 2, num_samples: int = 3) -> None:
    names = [f"c{i}" for i in range(num_cases)]
    samples = [
        sample(name, value=1 + i + block / 100 + j / 1000, block=block, iteration=j, t_ns=1000 * block + j)
        for i, name in enumerate(names)
        for j in range(num_samples)
    ]
    cases = [case(name, ordinal=i, num_blocks=block + 1) for i, name in enumerate(names)]
    writer.write(cases=cases, samples=samples, telemetry=[reading(block)])


def make_run(store: Store, *, num_blocks: int = 3, status: str | None = "finished", suite: str = "quickstart") -> str:
    writer = store.begin(RunRow(suite=suite))
    for block in range(num_blocks):
        write_block(writer, block)
    if status is not None:
        writer.finish(status)  # type: ignore[arg-type]
    return writer.run_id


def rows(table: pa.Table) -> list[str]:
    """The rows as a multiset that can be compared: order and all-null columns (another file's axes) do not count."""
    return sorted(json.dumps({k: v for k, v in row.items() if v is not None}, default=str) for row in table.to_pylist())


def content(store: Store) -> dict[str, Any]:
    """All that a reader of a store sees."""
    runs = [run.run_id for run in store.runs()]
    found: dict[str, Any] = {"summary": rows(store.summary())}
    for run_id in runs:
        found[run_id] = [rows(store.cases(run_id)), rows(store.samples(run_id)), rows(store.telemetry(run_id))]
        found[run_id].append(store.done_blocks(run_id))
    return found


def everything(store: Store) -> list[list[str]]:
    """The rows of all runs: quicker than `content`."""
    return [rows(store.catalog.read(table)) for table in schema.PART_TABLES]


def disown(store: Store, run_id: str) -> None:
    """Make a running run look as if its process had died."""
    run = store.find_run(run_id)
    store.save_run(RunRow(**{f: getattr(run, f) for f in run.__slots__} | {"pid_start": run.pid_start + 1, "pid": 1}))
