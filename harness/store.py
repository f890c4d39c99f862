"""Append-only results in Parquet: runs, cases, samples, telemetry, their summary, and measured peaks. Torch-free.

    store = Store.open("results", create=True)
    writer = store.begin(RunRow(suite="quickstart"))
    writer.write(cases=[...], samples=[...])        # on disk when this returns, whatever happens next
    writer.finish("finished")
    run = store.find_run("latest"); store.samples(run.run_id, metric="tpot")     # a pyarrow Table

    runs/<run_id>.parquet                  one row, replaced as the run's status changes
    inbox/<run_id>/<table>-<n>.parquet     parts of a run that goes on; after it <table>.parquet
    compacted/<table>/part-<n>.parquet     many runs, after `compact`; summary.parquet with them
    runs.parquet                           copies of the rows in runs/ (harness.run_copies), as of the last `compact`
    calibration/<machine_id>.parquet       measured peaks
    calibration/<machine_id>.noise.parquet noise floors, false alarms and power (harness.calibration)

A damaged, foreign or newer file is passed over and named in `problems`, never an exception. It refuses (StoreError) a
folder that is not a store, a read-only or full disk, and to resume a run that is still being written.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from harness import compaction
from harness.catalog import Catalog, Edition, Problem, edition, explain, make_folder, remove, write_file
from harness.core import SCHEMA_VERSION, Reading, Sample, StoreError, UsageError
from harness.run_copies import NO_COPIES, Copies, copied, read_copies, write_copies
from harness.schema import (
    PART_TABLES,
    CaseRow,
    Damaged,
    PeakRow,
    RunRow,
    RunStatus,
    TableName,
    case_table,
    decode,
    encode,
    peak_table,
    reading_table,
    run_rows,
    run_table,
    sample_table,
)

__all__ = ["CaseRow", "Compaction", "PeakRow", "Problem", "RunRow", "RunWriter", "Store"]

_FOLDERS = ("runs", "inbox", "compacted")
_LATEST = re.compile(r"^(?P<name>.+?)(?:~(?P<back>\d+))?$")


@dataclass(frozen=True, slots=True)
class Compaction:
    """What `Store.compact` did: runs taken from the inbox, files before and after, runs left with the reason."""

    num_runs: int
    num_files_before: int
    num_files_after: int
    skipped: tuple[tuple[str, str], ...]


def process_start(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 if it is not there, 1 where the system does not tell."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return 0
    except PermissionError:
        pass
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 1
    fields = text.rpartition(")")[2].split()
    return 0 if fields[0] == "Z" else int(fields[19])


class Store:
    """Results in one folder; many processes may write and read it at once. Make one with `Store.open`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.catalog = Catalog(path)
        self._runs: dict[Path, tuple[Edition, RunRow]] = {}
        self._listed = False

    @classmethod
    def open(cls, path: str | Path, *, create: bool = False) -> Store:
        """The store in a folder. Raises StoreError if there is none (unless `create`) or it cannot be read."""
        root = Path(path)
        if root.exists() and not root.is_dir():
            raise StoreError(f"{root} is not a folder; give the store's folder with --store DIR")
        if create:
            for name in _FOLDERS:
                make_folder(root / name)
        elif not root.exists():
            raise StoreError(
                f"there is no store at {root}; `python -m harness run quickstart` makes one, --store DIR names another"
            )
        elif not any((root / name).is_dir() for name in _FOLDERS):
            raise StoreError(
                f"{root} is not a store: it has no folder {', '.join(_FOLDERS)}; name another with --store DIR"
            )
        store = cls(root)
        store.catalog.names(root)
        return store

    @property
    def problems(self) -> list[Problem]:
        """The files that were passed over so far (damaged, foreign, newer), as (path, reason)."""
        return self.catalog.problems

    def check_writable(self, *, min_free_bytes: int = 64 << 20) -> None:
        """Make sure, before anything is measured, that results can be written: really writes a file and removes it.

        Raises StoreError naming the path, the free bytes and what to do.
        """
        for name in _FOLDERS:
            make_folder(self.path / name)
            probe = self.path / name / f".probe-{os.getpid()}-{secrets.token_hex(3)}"
            write_file(probe, pa.py_buffer(bytes(4096)))
            remove([probe])
        found = os.statvfs(self.path)
        free = found.f_bavail * found.f_frsize
        if free < min_free_bytes:
            raise StoreError(
                f"the disk of {self.path} has {free} bytes free, results need {min_free_bytes}; "
                "free some space or choose another folder with --store DIR"
            )

    def begin(self, run: RunRow) -> RunWriter:
        """Start a run: gives it an id, stores its row as `running`. Raises StoreError if that cannot be written."""
        now = datetime.now(UTC)
        while True:
            run_id = f"{now:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
            folder = self.path / "inbox" / run_id
            make_folder(folder.parent)
            try:
                folder.mkdir()
                break
            except FileExistsError:
                continue
            except OSError as error:
                raise StoreError(explain(folder, error)) from error
        return RunWriter(self, _owned(replace(run, run_id=run_id, started_at=now)), first=0)

    def reopen(self, run_id: str) -> RunWriter:
        """Go on with an interrupted run. Raises UsageError if it is unknown, StoreError if it is being written."""
        with self.catalog.lock(wait=True):  # a compaction that took this run for dead ends first
            run = self.find_run(run_id)
            if self.is_live(run):
                raise StoreError(
                    f"run {run.run_id} is being written by process {run.pid} on {run.host}; wait for it or stop it"
                )
            folder = self.path / "inbox" / run.run_id
            make_folder(folder)
            remove([path for path in folder.iterdir() if path.name.endswith(".tmp")])
            return RunWriter(self, _owned(replace(run, finished_at=None)), first=self._next_part(run.run_id))

    def _next_part(self, run_id: str) -> int:
        held = [mask for table in PART_TABLES for run, mask in self._masks(table, run_id) if run == run_id]
        numbers = [mask.bit_length() for mask in held]
        for name in self.catalog.names(self.path / "inbox" / run_id):
            number = name.removesuffix(".parquet").rpartition("-")[2]
            numbers.append(int(number) + 1 if number.isdigit() else 0)
        return max(numbers, default=0)

    def _masks(self, table: TableName, run_id: str) -> list[tuple[str, int]]:
        return [pair for piece in self.catalog.pieces(table, run_id) for pair in piece.parts.items()]

    def save_run(self, run: RunRow) -> None:
        """Write a run's row, replacing the older one. Raises StoreError."""
        make_folder(self.path / "runs")
        write_file(self.path / "runs" / f"{run.run_id}.parquet", encode(run_table(run), "runs", {}))

    def is_live(self, run: RunRow) -> bool:
        """Whether a process is still writing the run; on another host: whether it wrote within the last hour."""
        if run.status != "running":
            return False
        if run.host == socket.gethostname():
            return run.pid == os.getpid() or (run.pid > 0 and process_start(run.pid) == run.pid_start)
        return self._age_seconds(run.run_id) < 3600

    def _age_seconds(self, run_id: str) -> float:
        folder = self.path / "inbox" / run_id
        times = [(folder / name).stat().st_mtime for name in self.catalog.names(folder)]
        return time.time() - max(times) if times else float("inf")

    def runs(self) -> list[RunRow]:
        """Every run, the newest last. A run's row that cannot be read is named in `problems`."""
        self.catalog.note_strays()
        copies = NO_COPIES if self._listed else read_copies(self.catalog)
        names = self.catalog.names(self.path / "runs")
        found = [row for name in names if (row := self._run(self.path / "runs" / name, copies))]
        self._listed = True
        oldest = datetime.min.replace(tzinfo=UTC)
        return sorted(found, key=lambda run: (run.started_at or oldest, run.run_id))

    def run(self, run_id: str) -> RunRow | None:
        """The run of that id; None if there is none, or its row cannot be read (then it is named in `problems`)."""
        known = f"{run_id}.parquet" in self.catalog.names(self.path / "runs")  # an id is never taken for a path
        return self._run(self.path / "runs" / f"{run_id}.parquet") if known else None

    def _run(self, path: Path, copies: Copies = NO_COPIES) -> RunRow | None:
        try:
            key = edition(path)
            if path not in self._runs or self._runs[path][0] != key:
                self._runs[path] = (key, copied(copies, path) or _only_row(path))
            return self._runs[path][1]
        except FileNotFoundError:
            return None
        except Damaged as damage:
            self.catalog.note(path, damage)
            return None

    def find_run(self, ref: str) -> RunRow:
        """The run meant by an id, a unique prefix, `latest`, a suite's name (its latest), the last two with `~n` back.

        Raises UsageError listing the runs that it could be, or the last few.
        """
        if (exact := self.run(ref)) is not None:
            return exact
        runs = self.runs()
        match = _LATEST.match(ref)
        name, back = (match["name"], int(match["back"] or 0)) if match else (ref, 0)
        named = [run for run in runs if name in ("latest", run.suite)]
        if back < len(named):
            return named[-1 - back]
        starting = [run for run in runs if ref and run.run_id.startswith(ref)]
        if len(starting) == 1:
            return starting[0]
        shown = ", ".join(f"{run.run_id} ({run.suite})" for run in (starting or runs)[-5:])
        if starting:
            raise UsageError(f"'{ref}' may be any of {len(starting)} runs: {shown}; give more of the id")
        known = f"the last runs are {shown}" if shown else "it has no runs yet"
        raise UsageError(
            f"no run '{ref}' in store {self.path}: {known}; give an id, a prefix, a suite, latest or latest~1"
        )

    def cases(self, run_id: str) -> pa.Table:
        """The cases of a run as they stood last, in the order of the plan; one column `axis_<name>` per axis."""
        return self.catalog.read("cases", run_id)

    def samples(self, run_id: str, *, case_id: str | None = None, metric: str | None = None) -> pa.Table:
        """The samples of a run, warm-up included; in no particular order."""
        wanted = {"case_id": case_id, "metric": metric}
        return self.catalog.read(
            "samples", run_id, {name: [value] for name, value in wanted.items() if value is not None}
        )

    def telemetry(self, run_id: str) -> pa.Table:
        """The telemetry of a run, in no particular order."""
        return self.catalog.read("telemetry", run_id)

    def summary(self) -> pa.Table:
        """One row per run, case and metric: see `compaction.summarise_run`. Computed for runs not yet compacted."""
        return compaction.summarise(self.catalog)[0]

    def done_blocks(self, run_id: str) -> dict[str, set[int]]:
        """The blocks of which a case has timed samples."""
        rows = self.samples(run_id)
        timed = rows.filter(pc.equal(rows["phase"], "timed")).group_by(["case_id", "block"]).aggregate([])
        done: dict[str, set[int]] = {}
        for case_id, block in zip(timed["case_id"].to_pylist(), timed["block"].to_pylist(), strict=True):
            done.setdefault(case_id, set()).add(block)
        return done

    def calibration(self, machine_id: str) -> list[PeakRow]:
        """The measured peaks of a machine; none if it was never calibrated."""
        folder, name = self.path / "calibration", f"{machine_id}.parquet"
        if name not in self.catalog.names(folder):  # an id is never taken for a path
            return []
        path = folder / name
        try:
            rows = decode(path, "calibration").drop_columns(["machine_id"]).to_pylist()
        except FileNotFoundError:
            return []
        except Damaged as damage:
            self.catalog.note(path, damage)
            return []
        return [PeakRow(**{name: value for name, value in row.items() if value is not None}) for row in rows]

    def save_calibration(self, machine_id: str, rows: Sequence[PeakRow]) -> None:
        """Store peaks of a machine; a row replaces an older one of the same kind, dtype, size and threads."""
        make_folder(self.path / "calibration")
        with self.catalog.lock(wait=True):
            every = [*self.calibration(machine_id), *rows]
            last = {(row.kind, row.dtype, row.size_bytes, row.threads): row for row in every}
            path = self.path / "calibration" / f"{machine_id}.parquet"
            write_file(path, encode(peak_table(machine_id, list(last.values())), "calibration", {}))

    def compact(self, *, min_age_seconds: float = 60.0) -> Compaction:
        """Sort the runs of the inbox into few files and renew the summary; runs that are being written stay.

        Raises StoreError if another process compacts, or something cannot be written; nothing is lost then.
        """
        with self.catalog.lock(wait=False):
            before = self._num_files()
            skipped: dict[str, str] = {}
            # A run makes its folder, then its row, then parts: looked at the other way round, one with parts has a row.
            ages = {run_id: self._age_seconds(run_id) for run_id in self.catalog.inbox_runs()}
            rows = {run.run_id: run for run in self.runs()}
            for run_id, age in ages.items():
                run = rows.get(run_id)
                if run is not None and self.is_live(run):
                    skipped[run_id] = f"is being written by process {run.pid} on {run.host}"
                elif run is None and age == float("inf"):
                    skipped[run_id] = "has neither a row nor parts yet"
                elif age < min_age_seconds and (run is None or run.status == "running"):
                    skipped[run_id] = f"was written within the last {min_age_seconds:.0f} seconds and is not finished"
            eligible = [run_id for run_id in ages if run_id not in skipped]
            compaction.compact(self.catalog, eligible=eligible)
            write_copies(self.catalog, self.runs())
            return Compaction(len(eligible), before, self._num_files(), tuple(skipped.items()))

    def _num_files(self) -> int:
        return sum(len(self.catalog.pieces(table)) for table in PART_TABLES)

    def check(self) -> list[Problem]:
        """Read every file in full: the damaged, foreign and newer ones, runs whose writer died, rows without a run."""
        rows = self.runs()
        for table in PART_TABLES:
            for piece in self.catalog.pieces(table):
                try:
                    decode(piece.path, table)
                except Damaged as damage:
                    self.catalog.damaged(piece.path, damage)
                except FileNotFoundError:
                    continue
        compaction.stored_summary(self.catalog)
        for name in self.catalog.names(self.path / "calibration"):
            kind: TableName = "noise" if name.endswith(".noise.parquet") else "calibration"
            try:
                decode(self.path / "calibration" / name, kind)
            except FileNotFoundError:
                continue
            except Damaged as damage:
                self.catalog.note(self.path / "calibration" / name, damage)
        found = self.problems
        for run in rows:
            if run.status == "running" and not self.is_live(run):
                reason = f"its writer died; complete it with: {run.completion}"
                found.append(Problem(self.path / "runs" / f"{run.run_id}.parquet", reason))
        known = {run.run_id for run in rows}
        for run_id in sorted({*self.catalog.masks("cases"), *self.catalog.masks("samples")} - known):
            found.append(
                Problem(
                    self.path / "runs" / f"{run_id}.parquet", "is missing or unreadable; the rows of the run are there"
                )
            )
        return found


def _only_row(path: Path) -> RunRow:
    rows = run_rows(decode(path, "runs"))
    if len(rows) != 1 or rows[0].run_id != path.stem:
        raise Damaged(f"does not hold the one row of run {path.stem}")
    return rows[0]


def _owned(run: RunRow) -> RunRow:
    pid = os.getpid()
    return replace(
        run,
        status="running",
        schema_version=SCHEMA_VERSION,
        host=socket.gethostname(),
        pid=pid,
        pid_start=process_start(pid),
    )


class RunWriter:
    """Appends to one run. Made by `Store.begin` and `Store.reopen`; one writer per run at a time."""

    def __init__(self, store: Store, run: RunRow, *, first: int) -> None:
        self._store = store
        self._next = first
        self._pending: dict[tuple[int, TableName], pa.Table] = {}
        self.run = run
        store.save_run(run)

    @property
    def run_id(self) -> str:
        """The id of the run."""
        return self.run.run_id

    def write(
        self, *, cases: Sequence[CaseRow] = (), samples: Sequence[Sample] = (), telemetry: Sequence[Reading] = ()
    ) -> None:
        """Append rows: one part per table that has any, on disk when this returns, cases last.

        Raises StoreError if the disk is full or read-only: nothing written before is lost, and the rows are kept in
        memory, so that the next `write` (of nothing, too) or `finish` tries them again.
        """
        seq, run_id = self._next, self.run_id
        new = {
            "telemetry": reading_table(run_id, telemetry),
            "samples": sample_table(run_id, samples),
            "cases": case_table(run_id, cases, seq=seq),
        }
        self._next += 1
        for table in PART_TABLES:
            if new[table].num_rows:
                self._pending[seq, table] = new[table]
        self._flush()

    def _flush(self) -> None:
        """Write what is pending. A part keeps its number, so writing it again after Ctrl-C counts nothing twice."""
        folder = self._store.path / "inbox" / self.run_id
        if self._pending:
            make_folder(folder)
        for (seq, table), rows in list(self._pending.items()):
            write_file(folder / f"{table}-{seq:06d}.parquet", encode(rows, table, {self.run_id: 1 << seq}))
            del self._pending[seq, table]

    def update(self, **changes: Any) -> None:
        """Change fields of the run's row (`plan`, `command`...). Raises StoreError if it cannot be written."""
        self.run = replace(self.run, **changes)
        self._store.save_run(self.run)

    def finish(self, status: RunStatus) -> None:
        """Write what is pending, the final status, and merge the parts into one file per table.

        Raises StoreError if rows or status cannot be written. Parts that cannot be merged stay, and are as good.
        """
        self._flush()
        self.update(status=status, finished_at=datetime.now(UTC))
        try:
            compaction.merge(self._store.catalog, self.run_id)
        except StoreError as error:
            self._store.catalog.note(self._store.path / "inbox" / self.run_id, f"left unmerged: {error}")
