"""What a report is built from: which runs of the store, which cases of them, and single numbers with their intervals.

    pool = Pool.of(store, Request(("kv_cache",)))            # the runs named; the newest machine's where none is
    view = pool.newest(lambda rows: any(row["workload"].startswith("decode") for row in rows))
    point_of(view.cases[0].case, "tpot")                     # Point(0.0166, low=0.0159, high=0.0173, unit="s", n=3)

Machines never mix unless the user names runs of several. Refuses (UsageError) a run that the store does not have.
Torch-free.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.compare import Measured
from harness.core import UsageError, Workload
from harness.profiles import SUITE_PREFIX
from harness.schema import PeakRow, RunRow
from harness.stats import typical_interval
from harness.store import Store
from harness.tables import Column
from reports.document import Command, Grid, Note, Paragraph, Section
from reports.figures.numbers import measured
from reports.language import Language, say
from reports.views import RunView, run_view
from reports.wording import commit_text, machine_line

CaseRows = Sequence[Mapping[str, Any]]  # rows of the store's table `cases`
_ENDED = ("finished", "interrupted")
LOOKED_AT = 200  # runs; older ones must be named
MOST_SUITES = 12  # in a report of everything


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked for: runs by name (none: the newest that fit), and the language."""

    refs: tuple[str, ...] = ()
    language: Language = "en"


@dataclass(frozen=True, slots=True)
class Point:
    """One metric of one case: the median over blocks with its 95% interval (None for a single value)."""

    value: float
    low: float | None
    high: float | None
    unit: str
    n: int

    @property
    def text(self) -> str:
        """The value with its interval."""
        return measured(self.value, self.low, self.high, self.unit)


class Pool:
    """The runs that a report may use, the newest first. It reads each at most once, and samples only of those used."""

    def __init__(self, store: Store, runs: Sequence[RunRow], *, named: bool = False) -> None:
        self.store = store
        self.runs = tuple(runs)
        self._named = named
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._views: dict[str, RunView] = {}

    @classmethod
    def of(cls, store: Store, request: Request) -> Pool:
        """The runs named, in that order; else the last ones that have ended of the newest run's machine."""
        if request.refs:
            return cls(store, [store.find_run(ref) for ref in request.refs], named=True)
        ended = [run for run in reversed(store.runs()) if run.status in _ENDED]
        return cls(store, [run for run in ended if run.machine_id == ended[0].machine_id][:LOOKED_AT])

    def rows(self, run: RunRow) -> list[dict[str, Any]]:
        """The rows of a run's cases that were measured."""
        if run.run_id not in self._rows:
            rows = self.store.cases(run.run_id).to_pylist()
            self._rows[run.run_id] = [row for row in rows if row["status"] in ("ok", "not_steady")]
        return self._rows[run.run_id]

    def view(self, run: RunRow) -> RunView:
        """A run with its samples read and compared."""
        if run.run_id not in self._views:
            self._views[run.run_id] = run_view(self.store, run)
        return self._views[run.run_id]

    def newest(self, fits: Callable[[CaseRows], bool], *, prefer: Sequence[str] = ()) -> RunView | None:
        """The first run whose measured cases fit; None where none does.

        A run of a preferred suite goes before others, and one of two blocks or more before one that has no intervals.
        """
        fitting = [run for run in self.runs if fits(self.rows(run))]

        def place(run: RunRow) -> tuple[bool, int]:
            return self._single(run), prefer.index(run.suite) if run.suite in prefer else len(prefer)

        chosen = fitting if self._named else sorted(fitting, key=place)
        return self.view(chosen[0]) if chosen else None

    def newest_of_suites(self) -> list[RunRow]:
        """Those named; else of every suite that times the newest run, one of two blocks or more where there is one."""
        if self._named:
            return list(self.runs)
        found: dict[str, RunRow] = {}
        for run in self.runs:
            if len(found) == MOST_SUITES:
                break
            if run.suite.startswith(SUITE_PREFIX):
                continue
            if run.suite not in found or (self._single(found[run.suite]) and not self._single(run)):
                found[run.suite] = run
        return list(found.values())

    def _single(self, run: RunRow) -> bool:
        return max((row["num_blocks"] or 0 for row in self.rows(run)), default=0) < 2

    def peaks(self, view: RunView | None) -> list[PeakRow]:
        """The measured peaks of the machine and versions of a run."""
        return [] if view is None else self.store.calibration(view.run.fingerprint)


def other_machines(store: Store, runs: Sequence[RunRow]) -> list[str]:
    """The machines whose runs were left out."""
    used = {run.machine_id for run in runs}
    return sorted({run.machine_id for run in store.runs() if run.status in _ENDED} - used)


def workload_of(case: Measured) -> Workload:
    """The parsed workload."""
    return Workload.parse(case.workload)


def parameter(workload: str, name: str) -> int | None:
    """A parameter of a workload's text: `context` of `decode(batch=1,context=128,new_tokens=16)` is 128."""
    try:
        return dict(Workload.parse(workload).params).get(name)
    except UsageError:
        return None


def kind_of(workload: str) -> str:
    """`decode` of `decode(batch=1,context=128,new_tokens=16)`."""
    return workload.partition("(")[0]


def point_of(case: Measured, metric: str) -> Point | None:
    """A metric of a case; None where it was not recorded."""
    series = case.series.get(metric)
    if series is None or not math.isfinite(series.median):
        return None
    low: float | None
    high: float | None
    low, high = typical_interval(list(series.blocks.values()))
    if series.single or not (math.isfinite(low) and math.isfinite(high)):
        low = high = None
    return Point(series.median, low, high, series.unit, len(series.blocks))


def text_of(case: Measured, metric: str) -> str:
    """A metric of a case with its interval, or a dash."""
    found = point_of(case, metric)
    return "-" if found is None else found.text


def unique_runs(views: Iterable[RunView | None]) -> tuple[RunRow, ...]:
    """The runs behind some views, each once."""
    return tuple({view.run.run_id: view.run for view in views if view is not None}.values())


def environment_section(runs: Sequence[RunRow], language: Language, *, place: str = "summary") -> Section:
    """Which runs the numbers come from, on which machine, with which versions."""
    title = say(language, "Environment")
    if not runs:
        return Section(title, (Paragraph(say(language, "No run went into this report.")),))
    columns = tuple(
        Column(name)
        for name in (
            say(language, "run"),
            say(language, "suite"),
            say(language, "measured at"),
            say(language, "status"),
            say(language, "commit"),
            say(language, "machine and versions"),
        )
    )
    rows = tuple(
        (
            run.run_id,
            run.suite,
            f"{run.started_at:%Y-%m-%d %H:%M} UTC" if run.started_at else "-",
            status_word(run, language),
            commit_text(run, language),
            machine_line(run, language),
        )
        for run in runs
    )
    blocks: list[Grid | Note] = [Grid(columns, rows)]
    if len({run.machine_id for run in runs}) > 1:
        blocks.append(Note(say(language, "These runs come from different machines: their times do not compare.")))
    return Section(title, tuple(blocks), "detail" if place == "detail" else "summary")


def status_word(run: RunRow, language: Language) -> str:
    """How a run ended."""
    words = {
        "running": say(language, "running"),
        "finished": say(language, "finished"),
        "interrupted": say(language, "interrupted"),
        "failed": say(language, "failed"),
    }
    return words.get(run.status, run.status)


def repeat_section(runs: Sequence[RunRow], language: Language, *more: Command) -> Section:
    """The command that measures each run again."""
    commands = [Command(text, ", ".join(names)) for text, names in _by_command(runs).items()]
    if len(commands) == 1:
        commands = [Command(commands[0].text)]
    return Section(say(language, "Repeat"), (*commands, *more))


def _by_command(runs: Sequence[RunRow]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for run in runs:
        if run.command:
            found.setdefault(run.command, []).append(f"{run.suite} ({run.run_id})")
    return found


def left_out_note(store: Store, runs: Sequence[RunRow], request: Request) -> tuple[Note, ...]:
    """Says that other machines' runs were left out; nothing where the user named the runs, or there are none."""
    others = [] if request.refs else other_machines(store, runs)
    if not others:
        return ()
    text = say(
        request.language,
        "Runs of other machines ({machines}) are left out: machines do not mix. Name runs to report on those.",
        machines=", ".join(others),
    )
    return (Note(text, "note"),)
