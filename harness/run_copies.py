"""Copies of the rows of runs/ in one file, `runs.parquet`: thousands of runs are listed as quickly as one. Torch-free.

    write_copies(catalog, store.runs())               # at the end of a compaction, under the catalog's lock
    copies = read_copies(catalog)
    copied(copies, path)                              # the row in runs/<run_id>.parquet, or None: read the file

The files in runs/ stay the truth. A copy counts only for a file that is, byte for byte, the one it was taken from, so a
store that was copied, restored or cloned keeps its copies, and a row that was replaced meanwhile is never served stale.
A damaged `runs.parquet` is passed over and named, as any other file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import pyarrow as pa

from harness.catalog import COPIES_FILE, Catalog, write_file
from harness.schema import SCHEMAS, Damaged, RunRow, decode, encode, read_footer, run_rows, run_table


class Copy(NamedTuple):
    """A run's row, and the digest of the file that it was taken from."""

    digest: str
    row: RunRow


Copies: TypeAlias = "Mapping[str, Copy]"  # by run id
NO_COPIES: Copies = {}


def write_copies(catalog: Catalog, runs: Sequence[RunRow]) -> None:
    """Write `runs.parquet`. A run that goes on is left out: its row is replaced soon. Raises StoreError.

    The caller holds the catalog's lock; whoever takes up a run that has ended waits for it, so no row changes here.
    """
    ended = [run for run in runs if run.status != "running"]
    digests = {run.run_id: _digest(catalog.root / "runs" / f"{run.run_id}.parquet") for run in ended}
    rows = pa.concat_tables([SCHEMAS["runs"].empty_table(), *map(run_table, ended)])
    write_file(catalog.root / COPIES_FILE, encode(rows, "runs", {}, digests=json.dumps(digests)))


def read_copies(catalog: Catalog) -> Copies:
    """The copies as they were last written; none where there is no such file or it cannot be read."""
    path = catalog.root / COPIES_FILE
    try:
        digests = json.loads(read_footer(path, "runs").metadata.get("digests", "{}"))
        return {row.run_id: Copy(digests.get(row.run_id, ""), row) for row in run_rows(decode(path, "runs"))}
    except FileNotFoundError:
        pass
    except Damaged as damage:
        catalog.note(path, damage)
    return NO_COPIES


def copied(copies: Copies, path: Path) -> RunRow | None:
    """The row that a file of runs/ holds, where a copy was taken from just this file."""
    copy = copies.get(path.stem)
    return copy.row if copy is not None and copy.digest and copy.digest == _digest(path) else None


def _digest(path: Path) -> str:
    """Of a whole file; "" for one that cannot be read: who reads its row says what is wrong with it."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
