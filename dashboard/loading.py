"""What the dashboard keeps of a store in memory: every run's row, and where the rows of cases and summaries lie.

    reader = Reader(Path("results"))
    found = reader.load()           # reads what changed since the last time
    found.runs["20261122T..."].suite; found.base_cases, found.fresh[run_id].summary

A run is "base" when its rows lie in one compacted file and `summary.parquet` covers them: then nothing of it is read
here but its own row. Every other run (new, being written, written to again after a compaction) is "fresh": its rows are
read and summarised by the harness's own code, once for as long as it does not change. Damaged files are passed over and
named, as everywhere. No SQL here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from harness.catalog import SUMMARY_FILE, Piece, Problem, resolve
from harness.compaction import stored_summary, summarise_run
from harness.core import UsageError
from harness.schema import SCHEMAS, Damaged, RunRow, decode
from harness.store import Store
from harness.worktree import own_repository, run_git

CASE_COLUMNS = (
    *("run_id", "case_id", "ordinal", "suite", "group", "workload", "model", "variant"),
    *("num_params", "status", "reason", "num_blocks"),
)
COMMITS_FILE = "commits.json"  # sha to subject, for commits that the repository of this program does not know
_SETTLED_SECONDS = 0.1  # a folder's time of change may stand still for a clock tick while it changes twice
_SHA_LENGTH = 40
_MANY = 1_000  # commits per call of git


@dataclass(frozen=True, slots=True)
class Fresh:
    """The rows of a run that the stored summary does not cover; `parts`: bit masks of its cases and samples."""

    parts: tuple[int, int]
    cases: pa.Table
    summary: pa.Table


@dataclass(frozen=True, slots=True)
class Loaded:
    """The store at one moment. `base_key` changes when the compacted rows do."""

    generation: str
    runs: Mapping[str, RunRow]
    base_key: tuple[object, ...]
    base_runs: frozenset[str]
    base_cases: tuple[Path, ...]
    fresh: Mapping[str, Fresh]
    subjects: Mapping[str, str] = field(default_factory=dict)


class Reader:
    """Reads a store again and again; keeps what did not change. `num_files_read` counts what it opened."""

    def __init__(self, path: Path) -> None:
        self.store = Store.open(path)
        self.num_files_read = 0
        self._fresh: dict[str, Fresh] = {}
        self._summary: tuple[tuple[object, ...], pa.Table, dict[str, tuple[int, int]]] | None = None
        self._subjects: dict[str, str] = {}
        self._looked_up: set[str] = set()

    def generation(self) -> tuple[str, bool]:
        """(a text that changes when files of the store do, whether it can be trusted to have changed yet)."""
        root = self.store.path
        folders = [root / name for name in ("runs", "inbox", "calibration")]
        folders += [root / "compacted" / name for name in ("cases", "samples", "telemetry")]
        folders += [root / "inbox" / run_id for run_id in self.store.catalog.inbox_runs()]
        folders += [root / name for name in (SUMMARY_FILE, "baselines.json", COMMITS_FILE)]
        times = [_changed(path) for path in folders]
        settled = time.time_ns() - max(times) > _SETTLED_SECONDS * 1e9
        return f"{hash(tuple(times)) & 0xFFFFFFFFFFFFFFFF:016x}", settled

    def load(self) -> Loaded:
        """The store as it is now; files that are gone or damaged meanwhile are passed over."""
        generation, _ = self.generation()
        runs = {run.run_id: run for run in self.store.runs()}
        cases, samples = self.store.catalog.pieces("cases"), self.store.catalog.pieces("samples")
        masks = _masks(cases), _masks(samples)
        held = {run_id: (masks[0].get(run_id, 0), masks[1].get(run_id, 0)) for run_id in {**masks[0], **masks[1]}}
        key, _, covered = self._stored()
        places = _places(cases)
        base = frozenset(
            run_id
            for run_id, parts in held.items()
            if covered.get(run_id) == parts and [piece.compacted for piece in places.get(run_id, ())] == [True]
        )
        files = tuple(sorted({places[run_id][0].path for run_id in base}))
        self._fresh = {
            run_id: self._read(run_id, parts) for run_id, parts in held.items() if run_id not in base and run_id in runs
        }
        self._note_orphans(set(held) - set(runs))
        base_key = (key, files, tuple(map(_changed, files)), base)
        return Loaded(generation, runs, base_key, base & runs.keys(), files, dict(self._fresh), self._names(runs))

    def summary(self) -> pa.Table:
        """The rows of `summary.parquet`; a run counts where `Loaded.base_runs` names it."""
        return self._stored()[1]

    def base_cases(self, found: Loaded) -> pa.Table:
        """The compacted case rows in light columns and one per axis; a run counts where `Loaded.base_runs` names it."""
        tables = [SCHEMAS["cases"].empty_table().select(CASE_COLUMNS)]
        for path in found.base_cases:
            try:
                self.num_files_read += 1
                tables.append(_light(path))
            except FileNotFoundError:
                continue  # compacted meanwhile: the next load finds its rows elsewhere
            except Damaged as damage:
                self.store.catalog.damaged(path, damage)
        return pa.concat_tables(tables, promote_options="permissive")

    def _stored(self) -> tuple[tuple[object, ...], pa.Table, dict[str, tuple[int, int]]]:
        path = self.store.path / SUMMARY_FILE
        key = (_changed(path),)
        if self._summary is None or self._summary[0] != key:
            self.num_files_read += 1
            self._summary = (key, *stored_summary(self.store.catalog))
        return self._summary

    def _read(self, run_id: str, parts: tuple[int, int]) -> Fresh:
        known = self._fresh.get(run_id)
        if known is None or known.parts != parts:
            cases, samples = self.store.cases(run_id), self.store.samples(run_id)
            self.num_files_read += 2
            known = Fresh(parts, cases, summarise_run(run_id, cases, samples))
        return known

    def _note_orphans(self, run_ids: set[str]) -> None:
        for run_id in sorted(run_ids):
            path = self.store.path / "runs" / f"{run_id}.parquet"
            self.store.catalog.note(path, "is missing or unreadable; the rows of the run are there")

    def problems(self, runs: Mapping[str, RunRow]) -> tuple[Problem, ...]:
        """Files that were passed over, and runs whose writer died."""
        found = list(self.store.problems)
        for run in runs.values():
            if run.status == "running" and not self.store.is_live(run):
                reason = f"its writer died; complete it with: {run.completion}"
                found.append(Problem(self.store.path / "runs" / f"{run.run_id}.parquet", reason))
        return tuple(found)

    def _names(self, runs: Mapping[str, RunRow]) -> dict[str, str]:
        """The subjects of the commits of these runs, as far as the store's file or the repository knows them."""
        wanted = {run.git_sha for run in runs.values()} - self._looked_up
        if wanted:
            self._subjects |= _from_file(self.store.path / COMMITS_FILE)
            self._subjects |= _from_git([sha for sha in sorted(wanted) if sha not in self._subjects])
            self._looked_up |= wanted
        return self._subjects


def _light(path: Path) -> pa.Table:
    """The columns of a file of cases that lists need: without the facts, which are most of it. Raises Damaged."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            names = [n for n in file.schema_arrow.names if n in CASE_COLUMNS or n.startswith("axis_")]
            return file.read(names)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        decode(path, "cases")  # says what is wrong with it
        raise Damaged(f"is not readable Parquet: {error}") from error


def _changed(path: Path) -> int:
    """When a file or folder changed, in nanoseconds; 0 if it is not there."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _masks(pieces: Sequence[Piece]) -> dict[str, int]:
    """The parts of each run that files hold together."""
    held: dict[str, int] = {}
    for piece in pieces:
        for run_id, mask in piece.parts.items():
            held[run_id] = held.get(run_id, 0) | mask
    return held


def _places(pieces: Sequence[Piece]) -> dict[str, list[Piece]]:
    """Of each run the files from which it is read."""
    found: dict[str, list[Piece]] = {}
    for piece, run_ids in resolve(pieces):
        for run_id in run_ids:
            found.setdefault(run_id, []).append(piece)
    return found


def _from_file(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(sha): str(subject) for sha, subject in found.items()} if isinstance(found, dict) else {}


def _from_git(commits: Sequence[str]) -> dict[str, str]:
    """Subjects by sha from the repository that this program runs from; none where there is none."""
    shas = [sha for sha in commits if len(sha) == _SHA_LENGTH and set(sha) <= set("0123456789abcdef")]
    found: dict[str, str] = {}
    try:
        repository = own_repository() if shas else None
        for start in range(0, len(shas) if repository else 0, _MANY):
            words = ("log", "--no-walk=unsorted", "--ignore-missing", "--format=%H%x09%s")
            done = run_git(repository, *words, *shas[start : start + _MANY], "--")  # type: ignore[arg-type]
            found |= dict(line.split("\t", 1) for line in done.stdout.splitlines() if "\t" in line)
    except UsageError:
        return found
    return found
