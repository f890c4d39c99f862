"""Questions of the pages to a store, answered in SQL (`dashboard.sql`) over the views of `dashboard.database`.

    query = Query(Path("results"))
    page = query.runs(parse_filter("suite=gate machine=ab12"), sort="started_at", descending=True, limit=50)
    lines = query.summary([page.rows[0].run_id], metrics=["tps"])

A page on a compacted store reads `summary.parquet` and the compacted cases once, and samples never; `samples` alone
reads samples, those of one series, and `cases` the facts of one run. Numbers are the harness's own: the stored summary,
or `summarise_run` for runs that it does not cover yet.

It refuses (UsageError) an unknown column to sort by or axis, (StoreError) a folder that is no store. A run, case or
file that is gone meanwhile gives an empty answer. Every value is bound; a Query may be used by many threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dashboard import sql
from dashboard.database import Database
from dashboard.filters import Filter
from dashboard.folding import cells, finite, mapping, noise_line, run_line
from dashboard.loading import Loaded
from dashboard.rows import (
    CaseLine,
    MachineLine,
    MatrixCell,
    NoiseLine,
    Progress,
    RunLine,
    RunsPage,
    SampleLine,
    Stamp,
    SummaryLine,
)
from harness import registry
from harness.calibration import NoiseCalibration, load_noise
from harness.core import SCHEMA_VERSION, one_of
from harness.schema import RunRow
from harness.store import Store

__all__ = [
    "CaseLine",
    "MachineLine",
    "MatrixCell",
    "NoiseLine",
    "Progress",
    "Query",
    "RunLine",
    "RunsPage",
    "SampleLine",
    "Stamp",
    "SummaryLine",
]

MAX_SAMPLES = 2_000
SYNTHETIC_HOST = "synthetic"
_MAX_ANSWERS = 64
_EVERYTHING = Filter()
T = TypeVar("T")


class Query:
    """One store, asked many times. Raises StoreError where the folder is no store."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database = Database(path)
        self._known: tuple[Loaded | None, dict[tuple[object, ...], Any]] = None, {}

    @property
    def store(self) -> Store:
        """The store itself, for what needs samples and verdicts (`reports.views`)."""
        return self._database.reader.store

    @property
    def num_files_read(self) -> int:
        """How many files of cases, samples and summaries were opened so far."""
        return self._database.reader.num_files_read

    def generation(self) -> str:
        """A text that changes when files of the store do; cheap."""
        return self._database.reader.generation()[0]

    def stamp(self) -> Stamp:
        """The state of the store: how many runs, how fresh, what was passed over, what goes on."""
        found = self._database.current()
        finished = [run.finished_at for run in found.runs.values() if run.status != "running" and run.finished_at]
        return Stamp(
            num_runs=len(found.runs),
            complete_as_of=max(finished, default=None),
            problems=self._database.reader.problems(found.runs),
            running=tuple(self._progress(run) for run in found.runs.values() if self.store.is_live(run)),
            synthetic=any(run.host == SYNTHETIC_HOST for run in found.runs.values()),
            schema_version=SCHEMA_VERSION,
        )

    def _progress(self, run: RunRow) -> Progress:
        suite = registry.SUITES.get(run.suite)
        blocks = _planned_blocks(run) or (suite.sampling.blocks if suite is not None else 0)
        done = self._database.ask(sql.PROGRESS, [max(blocks, 1), run.run_id])[0][0]
        return Progress(run.run_id, run.suite, float(done or 0.0), run.started_at)

    def _once(self, key: tuple[object, ...], answer: Callable[[], T]) -> T:
        """The answer to a question about the whole store, asked once for as long as the store stays as it is."""
        found = self._database.current()
        if self._known[0] is not found:
            self._known = found, {}
        answers = self._known[1]
        if key not in answers and len(answers) >= _MAX_ANSWERS:
            answers.clear()
        if key not in answers:
            answers[key] = answer()
        return answers[key]  # type: ignore[no-any-return]

    # Runs and cases ---------------------------------------------------------------------------------------------

    def run(self, run_id: str) -> RunRow | None:
        """A run's row; None if there is none of this id."""
        return self._database.current().runs.get(run_id)

    def runs(
        self,
        which: Filter = _EVERYTHING,
        *,
        sort: str = "started_at",
        descending: bool = True,
        offset: int = 0,
        limit: int = 50,
        baseline: str | None = None,
    ) -> RunsPage:
        """A stretch of the runs that match; a clause on cases lets a run through that has such a case.

        `sort`: one of `sql.SORTS`, missing values last. `baseline`: the run that geomeans are relative to.
        """
        found = self._database.current()
        one_of("column to sort by", sort, list(sql.SORTS))
        condition, values = _of_runs(which)
        other = found.runs.get(baseline) if baseline else None
        against = [baseline or "", other.machine_id if other else ""]
        first = against if sort == "geomean" else []
        text = sql.page(sort, descending, condition)
        ids = [row[0] for row in self._database.ask(text, [*first, *values, max(limit, 0), max(offset, 0)])]
        beside = {row[0]: row for row in self._database.ask(sql.RUNS, [ids, ids, *against, ids, ids])}
        total = self._database.ask(f"SELECT count(*) FROM runs WHERE {condition}", values)[0][0]
        lines = [run_line(found, *beside[run_id]) for run_id in ids if run_id in beside and run_id in found.runs]
        return RunsPage(tuple(lines), total)

    def cases(self, run_id: str) -> tuple[CaseLine, ...]:
        """The cases of a run in the order of its plan, with what really ran; none if the run is gone."""
        series = self._database.series
        self._database.current()
        return tuple(
            CaseLine(
                row["case_id"],
                row["workload"] or "",
                row["model"] or "",
                row["variant"] or "",
                series[row["case_id"]].axes if row["case_id"] in series else {},
                row["status"] or "",
                row["reason"] or "",
                row["num_blocks"] or 0,
                row["num_params"] or 0,
                mapping(row["facts"]),
                row["suite"] or "",
                row["group"] or "",
            )
            for row in self.store.cases(run_id).to_pylist()
        )

    # Numbers ----------------------------------------------------------------------------------------------------

    def summary(self, which: Filter | Sequence[str], metrics: Sequence[str] | None = None) -> tuple[SummaryLine, ...]:
        """The summary of some runs (by id) or of all that matches a filter, the oldest run first.

        `metrics` None: all, and a line with metric "" for each case without a number; else only these.
        """
        condition, values = which.where() if isinstance(which, Filter) else ("summary.run_id = ANY(?)", [list(which)])
        if metrics is None:
            return self._lines(condition, values)
        return self._lines(f"{condition} AND metric = ANY(?)", [*values, list(metrics)])

    def series(self, case_id: str, metric: str, machine_id: str) -> tuple[SummaryLine, ...]:
        """One metric of one case on one machine, the oldest run first."""
        return self._lines("summary.case_id = ? AND metric = ? AND runs.machine_id = ?", [case_id, metric, machine_id])

    def _lines(self, condition: str, values: Sequence[Any]) -> tuple[SummaryLine, ...]:
        found = self._database.current()
        order = "runs.number, cases.ordinal, summary.case_id, metric"
        rows = self._database.ask(f"SELECT {sql.LINE} {sql.LINES} WHERE {condition} ORDER BY {order}", values)
        return tuple(self._line(found.runs[row[0]], *row[1:]) for row in rows if row[0] in found.runs)

    def _line(
        self,
        run: RunRow,
        case_id: str,
        metric: str,
        unit: str,
        status: str,
        n: int,
        num_blocks: int,
        *numbers: float | None,
    ) -> SummaryLine:
        what = self._database.series[case_id]
        return SummaryLine(
            run.run_id,
            run.started_at,
            run.git_sha,
            run.machine_id,
            run.suite,
            case_id,
            what.workload,
            what.model,
            what.variant,
            what.axes,
            metric,
            unit,
            status,
            n,
            num_blocks,
            *map(finite, numbers),
        )

    def samples(self, run_id: str, case_id: str, metric: str) -> tuple[SampleLine, ...]:
        """The samples of one series in time order, warm-up included; of more than 2,000 evenly spaced ones."""
        rows = self.store.samples(run_id, case_id=case_id, metric=metric)
        order = [(name, "ascending") for name in ("block", "t_ns", "turn", "iteration")]
        names = ("value", "unit", "block", "turn", "iteration", "phase", "t_ns")
        rows = rows.sort_by(order).select(names)
        if rows.num_rows > MAX_SAMPLES:
            last = rows.num_rows - 1
            rows = rows.take([round(at * last / (MAX_SAMPLES - 1)) for at in range(MAX_SAMPLES)])
        return tuple(SampleLine(**row) for row in rows.to_pylist())

    def matrix(self, row_axis: str, column_axis: str, which: Filter = _EVERYTHING) -> tuple[MatrixCell, ...]:
        """What became of the cases, spread over two of: an axis, a parameter, model, workload, variant.

        Raises UsageError for another word. Each case counts once per machine, as its newest run left it.
        """
        rows, row_values = self._spread(row_axis)
        columns, column_values = self._spread(column_axis)
        condition, values = which.where("run", "case")
        text, bound = sql.matrix(rows, columns, condition), [*values, *row_values, *column_values]
        return self._once((text, *bound), lambda: cells(self._database.ask(text, bound)))

    def _spread(self, name: str) -> tuple[str, list[str]]:
        if name in sql.SPREADS:
            return sql.SPREADS[name], []
        axes = self.axes()
        parameters = {key for one in self._database.series.values() for key in one.params}
        one_of("axis of a matrix", name, [*axes, *parameters, *sql.SPREADS])
        return (sql.AXIS if name in axes else sql.PARAMETER), [name]

    # Noise ------------------------------------------------------------------------------------------------------

    def noise(self, machine_id: str) -> tuple[NoiseLine, ...]:
        """The noise of every timed series of a machine, and the calibrated floor of its family."""
        return self._once((sql.STEADINESS, machine_id), lambda: tuple(self._noise(machine_id)))

    def _noise(self, machine_id: str) -> Iterator[NoiseLine]:
        calibration = self.calibration(machine_id)
        for case_id, *rest in self._database.ask(sql.STEADINESS, [machine_id]):
            yield noise_line(self._database.series[case_id], calibration, *rest)

    def calibration(self, machine_id: str) -> NoiseCalibration | None:
        """The noise calibration that holds for a machine's newest run; it says itself if it is from elsewhere."""
        mine = [run for run in self._database.current().runs.values() if run.machine_id == machine_id]
        return load_noise(self.store, mine[-1].fingerprint) if mine else None

    # What pickers offer -----------------------------------------------------------------------------------------

    def machines(self) -> tuple[MachineLine, ...]:
        """Every machine of the store, the one that ran last first."""
        by_id: dict[str, list[RunRow]] = {}
        for run in self._database.current().runs.values():
            by_id.setdefault(run.machine_id, []).append(run)
        lines = [
            MachineLine(
                machine_id, runs[-1].device_name or runs[-1].cpu_model, runs[-1].device, len(runs), runs[-1].started_at
            )
            for machine_id, runs in by_id.items()
        ]
        return tuple(sorted(lines, key=lambda line: line.latest.timestamp() if line.latest else 0.0, reverse=True))

    def suites(self) -> tuple[str, ...]:
        """The suites that have runs."""
        return tuple(sorted({run.suite for run in self._database.current().runs.values()}))

    def models(self) -> tuple[str, ...]:
        """The models that have cases."""
        self._database.current()
        return tuple(sorted({one.model for one in self._database.series.values()}))

    def metrics(self) -> tuple[str, ...]:
        """The metrics that have numbers."""
        return self._once((sql.METRICS,), lambda: tuple(row[0] for row in self._database.ask(sql.METRICS)))

    def axes(self) -> dict[str, tuple[str, ...]]:
        """Every axis of the store with the options seen on it, the reference first."""
        self._database.current()
        seen: dict[str, set[str]] = {}
        for one in self._database.series.values():
            for axis, option in one.axes.items():
                seen.setdefault(axis, set()).add(option)
        references = {name: axis.reference for name, axis in registry.AXES.items()}
        return {
            axis: tuple(sorted(options, key=lambda option: (option != references.get(axis), option)))
            for axis, options in sorted(seen.items())
        }


def _of_runs(which: Filter) -> tuple[str, list[Any]]:
    """The condition on runs; a clause on cases or metrics asks for a run that has one such case."""
    condition, values = which.where("run")
    if not (which.speaks_of("case") or which.speaks_of("metric")):
        return condition, list(values)
    inner, more = which.where("case", "metric")
    metric = "JOIN summary USING (run_id, case_id)" if which.speaks_of("metric") else ""
    some = f"runs.run_id IN (SELECT cases.run_id FROM cases JOIN series USING (case_id) {metric} WHERE {inner})"
    return f"{condition} AND {some}", [*values, *more]


def _planned_blocks(run: RunRow) -> int:
    found = mapping(run.plan).get("blocks")
    return found if isinstance(found, int) else 0
