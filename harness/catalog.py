"""Which file of a store holds which rows, and how files are read and written so that a kill loses nothing. Torch-free.

    catalog = Catalog(Path("results"))
    table = catalog.read("samples", run_id)       # each row once, whatever copies of it lie about
    catalog.problems                              # files that were passed over, with the reason

A run is written as numbered parts; merging and compaction copy parts into larger files and remove them afterwards.
Every file says in its metadata which parts of which run it holds, as a bit mask. A file whose parts of a run are all
held by larger ones is ignored for that run, so a kill between copy and removal counts nothing twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import pyarrow as pa

from harness.core import StoreError
from harness.schema import PART_TABLES, Damaged, Footer, TableName, concat, decode, read_footer

_PART_NAME = re.compile(rf"^({'|'.join(PART_TABLES)})(?:-(\d+))?\.parquet$")
SUMMARY_FILE = "summary.parquet"
COPIES_FILE = "runs.parquet"  # what `harness.run_copies` writes
COMPACTED_NAME = re.compile(r"^part-(\d+)\.parquet$")
_NOT_OURS = "is not a file of this store"
_NUM_RETRIES = 5


Chosen: TypeAlias = "list[tuple[Piece, frozenset[str]]]"
Edition: TypeAlias = tuple[int, int, int]


class Problem(NamedTuple):
    """A file that was passed over, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Piece:
    """One usable file of a table: the parts of each run that it holds (bit masks); a lower rank is preferred."""

    path: Path
    parts: Mapping[str, int]
    num_rows: int
    rank: tuple[int, int]

    @property
    def compacted(self) -> bool:
        """Whether the file lies in `compacted/`, not in the inbox."""
        return self.rank[0] == 0


def write_file(path: Path, data: pa.Buffer) -> None:
    """Write a whole file or nothing: temporary file, fsync, rename, fsync of the folder.

    Raises StoreError naming the path, the free space and what to do; an older file of that name is then untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(memoryview(data))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise StoreError(explain(path, error)) from error


def edition(path: Path) -> Edition:
    """What changes when a file is replaced, even by one of the same size within a tick of the clock. Raises OSError."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def make_folder(path: Path) -> None:
    """Create a folder and its parents. Raises StoreError naming it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(explain(path, error)) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def explain(path: Path, error: OSError) -> str:
    """Why a path cannot be written, with the free space of its disk and what to do about it."""
    try:
        found = os.statvfs(path if path.exists() else path.parent)
        free = f"{found.f_bavail * found.f_frsize / 1e6:.1f} MB free"
    except OSError:
        free = "free space unknown"
    reason = error.strerror or str(error)
    return f"cannot write {path}: {reason} ({free}); free some space or choose another folder with --store DIR"


def remove(paths: Collection[Path]) -> None:
    """Remove files whose rows are held elsewhere; one that cannot be removed is ignored by readers anyway."""
    for path in paths:
        with contextlib.suppress(OSError):
            os.unlink(path)


def resolve(pieces: Sequence[Piece]) -> Chosen:
    """The files to read, each with the runs that count in it, such that every part of a run is read once."""
    candidates: dict[str, list[Piece]] = {}
    for piece in pieces:
        for run_id in piece.parts:
            candidates.setdefault(run_id, []).append(piece)
    chosen: dict[Path, set[str]] = {}
    for run_id, holders in candidates.items():
        held = 0
        for piece in sorted(holders, key=lambda p: (-p.parts[run_id].bit_count(), p.rank)):
            if piece.parts[run_id] & ~held:
                chosen.setdefault(piece.path, set()).add(run_id)
                held |= piece.parts[run_id]
    return [(piece, frozenset(chosen[piece.path])) for piece in pieces if piece.path in chosen]


def last_rows(cases: pa.Table) -> pa.Table:
    """Of each case of each run the row written last, in the order of the plan."""
    last: dict[tuple[str, str], tuple[int, int]] = {}
    keys = zip(*(cases[name].to_pylist() for name in ("run_id", "case_id", "seq")), strict=True)
    for index, (run_id, case_id, seq) in enumerate(keys):
        last[run_id, case_id] = max(last.get((run_id, case_id), (-1, -1)), (seq, index))
    kept = cases.take(pa.array(sorted(index for _, index in last.values()), pa.int64()))
    return kept.sort_by([(name, "ascending") for name in ("run_id", "ordinal", "case_id")])


class Catalog:
    """The files of one store folder. Reading never raises for a bad file: it is noted in `problems`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._footers: dict[Path, tuple[Edition, Footer | Damaged]] = {}
        self._problems: dict[Path, str] = {}

    @property
    def problems(self) -> list[Problem]:
        """Files that were passed over so far, by path."""
        return [Problem(path, reason) for path, reason in sorted(self._problems.items())]

    def note(self, path: Path, reason: object) -> None:
        """Remember that a file was passed over."""
        self._problems[path] = str(reason)

    def names(self, folder: Path) -> list[str]:
        """The visible Parquet files of a folder, sorted; none if it does not exist."""
        try:
            found = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise StoreError(f"cannot read {folder}: {error.strerror or error}; check its permissions") from error
        return [name for name in found if name.endswith(".parquet") and not name.startswith(".")]

    def inbox_runs(self) -> list[str]:
        """The runs that have a folder in the inbox."""
        try:
            return sorted(entry.name for entry in os.scandir(self.root / "inbox") if entry.is_dir())
        except FileNotFoundError:
            return []

    def note_strays(self) -> None:
        """Name Parquet files in places where the store keeps none."""
        expected = {self.root: {SUMMARY_FILE, COPIES_FILE}, self.root / "inbox": set(), self.root / "compacted": set()}
        for folder, allowed in expected.items():
            for name in self.names(folder):
                if name not in allowed:
                    self.note(folder / name, _NOT_OURS)

    def pieces(self, table: TableName, run_id: str | None = None) -> list[Piece]:
        """The usable files of a table, of one run or of all. The inbox is listed first: files only move out of it."""
        found = []
        for run in self.inbox_runs() if run_id is None else [run_id]:
            folder = self.root / "inbox" / run
            for name in self.names(folder):
                match = _PART_NAME.match(name)
                if match is None:
                    self.note(folder / name, _NOT_OURS)
                elif match[1] == table:
                    found.append((folder / name, (1, 0) if match[2] is None else (2, int(match[2]))))
        folder = self.root / "compacted" / table
        for name in self.names(folder):
            match = COMPACTED_NAME.match(name)
            if match is None:
                self.note(folder / name, _NOT_OURS)
            else:
                found.append((folder / name, (0, -int(match[1]))))
        usable = ((path, rank, self._footer(path, table)) for path, rank in found)
        return [
            Piece(path, footer.parts, footer.num_rows, rank)
            for path, rank, footer in usable
            if footer is not None and (run_id is None or run_id in footer.parts)
        ]

    def _footer(self, path: Path, table: TableName) -> Footer | None:
        try:
            key = edition(path)
        except FileNotFoundError:
            return None
        known = self._footers.get(path)
        if known is None or known[0] != key:
            try:
                known = (key, read_footer(path, table))
            except FileNotFoundError:
                return None
            except Damaged as damage:
                known = (key, damage)
            self._footers[path] = known
        if isinstance(known[1], Damaged):
            self.note(path, known[1])
            return None
        return known[1]

    def damaged(self, path: Path, damage: Damaged) -> None:
        """Pass over a file whose footer was good but whose rows are not."""
        known = self._footers.get(path)
        if known is not None:
            self._footers[path] = (known[0], damage)
        self.note(path, damage)

    def masks(self, table: TableName) -> dict[str, int]:
        """The parts of each run that the store holds."""
        held: dict[str, int] = {}
        for piece in self.pieces(table):
            for run_id, mask in piece.parts.items():
                held[run_id] = held.get(run_id, 0) | mask
        return held

    def read(
        self, table: TableName, run_id: str | None = None, where: Mapping[str, Collection[str]] | None = None
    ) -> pa.Table:
        """The rows of one run (or all) of a table, each once; a case's last row only. Their order is not defined."""

        def choose() -> Chosen:
            chosen = resolve(self.pieces(table, run_id))
            return chosen if run_id is None else [(piece, runs & {run_id}) for piece, runs in chosen]

        rows = concat([rows for _, _, rows in self.gather(table, choose, where)], table)
        return last_rows(rows) if table == "cases" else rows

    def gather(
        self, table: TableName, choose: Callable[[], Chosen], where: Mapping[str, Collection[str]] | None = None
    ) -> list[tuple[Piece, frozenset[str], pa.Table]]:
        """The files that `choose` gives with the rows that count in each; chosen anew if one moved or is damaged."""
        num_gone = 0
        while True:
            found = []
            try:
                for piece, runs in choose():
                    path = piece.path
                    partly = {"run_id": runs} if len(runs) < len(piece.parts) else {}
                    if runs:
                        found.append((piece, runs, decode(path, table, {**(where or {}), **partly})))
                return found
            except Damaged as damage:
                self.damaged(path, damage)
            except FileNotFoundError:
                num_gone += 1
                if num_gone > _NUM_RETRIES:
                    raise StoreError(f"files of {self.root} vanish while they are read; is it being deleted?") from None

    @contextlib.contextmanager
    def lock(self, *, wait: bool) -> Iterator[None]:
        """The right to rewrite shared files. Raises StoreError if another process has it and `wait` is false."""
        path = self.root / ".lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreError(explain(path, error)) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError as error:
                raise StoreError(f"{self.root} is being compacted by another process; try again later") from error
            yield
        finally:
            os.close(descriptor)
