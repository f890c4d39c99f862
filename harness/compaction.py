"""Many runs into few files: merging the parts of a run, compaction of the inbox, and the summary. Torch-free.

    merge(catalog, run_id)                # after a run: its parts become one file per table
    compact(catalog, eligible=run_ids)    # now and then: many runs become few sorted files; summary.parquet follows

Both copy first and remove afterwards; a kill at any point leaves copies that readers tell apart (`harness.catalog`).
Damaged files are neither copied nor removed, so they stay named.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from harness.catalog import (
    COMPACTED_NAME,
    SUMMARY_FILE,
    Catalog,
    Chosen,
    last_rows,
    make_folder,
    remove,
    resolve,
    write_file,
)
from harness.schema import PART_TABLES, SCHEMAS, Damaged, TableName, concat, decode, encode, read_footer
from harness.stats import Values, noise, quantile, typical_interval

TARGET_ROWS = 2_000_000  # a compacted file is closed above this; those of less than half are rewritten with new runs
_ORDER: dict[TableName, tuple[str, ...]] = {
    "cases": ("run_id", "case_id", "seq"),
    "samples": ("run_id", "case_id", "metric", "block", "t_ns"),
    "telemetry": ("run_id", "t_ns", "source", "name"),
}


def _chosen(catalog: Catalog, table: TableName, paths: Collection[Path], run_id: str | None = None) -> Chosen:
    return [(piece, runs) for piece, runs in resolve(catalog.pieces(table, run_id)) if piece.path in paths]


def _rewrite(
    catalog: Catalog, table: TableName, target: Path, sources: Collection[Path], run_id: str | None = None
) -> None:
    """Copy the rows that count in some files into one sorted file. The sources stay, superseded."""
    read = catalog.gather(table, lambda: _chosen(catalog, table, sources, run_id))
    rows = concat([part for _, _, part in read], table)
    rows = last_rows(rows) if table == "cases" else rows
    held: dict[str, int] = {}
    for piece, runs, _ in read:
        for run in runs:
            held[run] = held.get(run, 0) | piece.parts[run]
    if held:
        write_file(target, encode(rows.sort_by([(name, "ascending") for name in _ORDER[table]]), table, held))


def _sweep(catalog: Catalog, table: TableName, run_ids: Collection[str], run_id: str | None = None) -> None:
    """Remove files all of whose rows larger files hold: those of these runs in the inbox, and compacted ones."""
    pieces = catalog.pieces(table, run_id)
    chosen = {piece.path for piece, _ in resolve(pieces)}
    surplus = [piece for piece in pieces if piece.path not in chosen]
    mine = [piece for piece in surplus if (run_id is None if piece.compacted else piece.parts.keys() <= set(run_ids))]
    remove([piece.path for piece in mine])


def merge(catalog: Catalog, run_id: str) -> None:
    """Make one file per table of a run's parts in the inbox. Raises StoreError if it cannot be written: parts stay."""
    for table in PART_TABLES:
        target = catalog.root / "inbox" / run_id / f"{table}.parquet"
        sources = {piece.path for piece, _ in resolve(catalog.pieces(table, run_id)) if not piece.compacted}
        if sources - {target}:
            _rewrite(catalog, table, target, sources, run_id)
        _sweep(catalog, table, {run_id}, run_id)


def compact(catalog: Catalog, *, eligible: Collection[str]) -> None:
    """Copy these runs' files from the inbox into few sorted ones, remove the copies, and renew `summary.parquet`.

    The caller holds the catalog's lock. Raises StoreError if something cannot be written; nothing is lost then.
    """
    summary, held = summarise(catalog)  # first: a run's own files are quicker to read than a compacted one
    for table in PART_TABLES:
        for sources in _groups(catalog, table, set(eligible)):
            folder = catalog.root / "compacted" / table
            make_folder(folder)
            numbers = [int(name[5:-8]) for name in catalog.names(folder) if COMPACTED_NAME.match(name)]
            _rewrite(catalog, table, folder / f"part-{max(numbers, default=0) + 1:06d}.parquet", sources)
        _sweep(catalog, table, eligible)
    for run_id in eligible:
        _remove_folder(catalog.root / "inbox" / run_id)
    masks = {run_id: [f"{mask:x}" for mask in pair] for run_id, pair in held.items()}
    write_file(catalog.root / SUMMARY_FILE, encode(summary, "summary", {}, summarised=json.dumps(masks)))


def _groups(catalog: Catalog, table: TableName, eligible: set[str]) -> list[set[Path]]:
    """The files that become one, for each new file: small compacted ones first, then the inbox, run by run."""
    chosen = [piece for piece, _ in resolve(catalog.pieces(table))]
    small = [piece for piece in chosen if piece.compacted and piece.num_rows < TARGET_ROWS // 2]
    fresh = [piece for piece in chosen if not piece.compacted and piece.parts.keys() <= eligible]
    if not fresh and len(small) < 2:
        return []
    groups: list[set[Path]] = [set()]
    num_rows = 0
    for piece in [*small, *sorted(fresh, key=lambda p: min(p.parts, default=""))]:
        if num_rows > TARGET_ROWS:
            groups.append(set())
            num_rows = 0
        groups[-1].add(piece.path)
        num_rows += piece.num_rows
    return groups


def _remove_folder(folder: Path) -> None:
    """Remove a run's folder with the leftovers of killed writers, unless a file that counts is still in it."""
    with contextlib.suppress(OSError):
        remove([path for path in folder.iterdir() if path.name.endswith(".tmp")])
        os.rmdir(folder)


def summarise(catalog: Catalog) -> tuple[pa.Table, dict[str, tuple[int, int]]]:
    """The summary of every run, and the parts of (cases, samples) that it covers. What `compact` stored is reused."""
    cases, samples = catalog.masks("cases"), catalog.masks("samples")
    held = {run_id: (cases.get(run_id, 0), samples.get(run_id, 0)) for run_id in sorted({*cases, *samples})}
    stored, known = stored_summary(catalog)
    current = {run_id for run_id, masks in known.items() if held.get(run_id) == masks}
    kept = stored.filter(pc.is_in(stored["run_id"], value_set=pa.array(sorted(current), pa.string())))
    fresh = [
        summarise_run(run_id, catalog.read("cases", run_id), catalog.read("samples", run_id))
        for run_id in held
        if run_id not in current
    ]
    rows = concat([kept, *fresh], "summary")
    return rows.sort_by([(name, "ascending") for name in ("run_id", "case_id", "metric")]), held


def stored_summary(catalog: Catalog) -> tuple[pa.Table, dict[str, tuple[int, int]]]:
    """What `compact` last wrote: the rows, and the parts of each run that they cover; nothing if it cannot be read."""
    path = catalog.root / SUMMARY_FILE
    try:
        table = decode(path, "summary")
        masks = json.loads(read_footer(path, "summary").metadata.get("summarised", "{}"))
        return table, {run_id: (int(cases, 16), int(samples, 16)) for run_id, (cases, samples) in masks.items()}
    except FileNotFoundError:
        pass
    except Damaged as damage:
        catalog.note(path, damage)
    return SCHEMAS["summary"].empty_table(), {}


def summarise_run(run_id: str, cases: pa.Table, samples: pa.Table) -> pa.Table:
    """One row per case and metric over the timed samples; a case without samples has one row with metric "".

    n: samples; num_blocks: blocks; median: median of the block medians, with a 95% interval low..high from the spread
    between blocks (null for one block); p10, p90: of the samples; noise: robust relative spread of the samples.
    """
    status = dict(zip(cases["case_id"].to_pylist(), cases["status"].to_pylist(), strict=True))
    rows = []
    for (case_id, metric, unit), values, blocks in _series(samples):
        medians = [quantile(values[blocks == block], 0.5) for block in np.unique(blocks)]
        low, high = typical_interval(medians) if len(medians) > 1 else (None, None)
        row = {
            "run_id": run_id,
            "case_id": case_id,
            "metric": metric,
            "unit": unit,
            "status": status.get(case_id, "ok"),
        }
        row |= {
            "n": len(values),
            "num_blocks": len(medians),
            "median": quantile(medians, 0.5),
            "low": low,
            "high": high,
        }
        row |= {"p10": quantile(values, 0.1), "p90": quantile(values, 0.9), "noise": noise(values)}
        rows.append(row)
    seen = {row["case_id"] for row in rows}
    for case_id, state in status.items():
        if case_id not in seen:
            row = {
                "run_id": run_id,
                "case_id": case_id,
                "metric": "",
                "unit": "",
                "status": state,
                "n": 0,
                "num_blocks": 0,
            }
            rows.append(row)
    return pa.Table.from_pylist(rows, schema=SCHEMAS["summary"])


def _series(samples: pa.Table) -> Iterator[tuple[tuple[str, str, str], Values, NDArray[np.int64]]]:
    """The timed samples of each case and metric: (case_id, metric, unit), values, blocks."""
    timed = samples.filter(pc.equal(samples["phase"], "timed"))
    timed = timed.sort_by([("case_id", "ascending"), ("metric", "ascending")])
    if timed.num_rows == 0:
        return
    keys = list(zip(timed["case_id"].to_pylist(), timed["metric"].to_pylist(), timed["unit"].to_pylist(), strict=True))
    values, blocks = timed["value"].to_numpy(), timed["block"].to_numpy()
    edges = [0, *(i for i in range(1, len(keys)) if keys[i][:2] != keys[i - 1][:2]), len(keys)]
    for start, end in pairwise(edges):
        yield keys[start], values[start:end], blocks[start:end]
