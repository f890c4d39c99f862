"""One series through the runs of one machine: its points, its breaks, its changes of level, its band of noise.

    histories = histories_of(context, lines, "tps", 100)    # of these lines' cases and suites, the last 100 runs
    for change in numbered(histories, remarks):
        print(change.number, change.found.after.git_sha, change.found.point.ratio, change.remark)

A series breaks where the suite's version or the machine's software changed: what lies on both sides is not one level.
Changes come from harness.change_points, looked for within each stretch; a stretch shorter than MIN_RUNS can show none.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

from dashboard import choices
from dashboard.annotations import Annotation
from dashboard.context import Context
from dashboard.filters import Filter
from dashboard.limits import limit_of
from dashboard.rows import SummaryLine
from harness.change_points import ChangePoint, change_points, history_noise
from harness.core import Better, VerdictName
from harness.stats import median
from reports.figures import Along, Change, Figure, Mark, TrendPoint, trend

MIN_SEGMENT = 3
MIN_RUNS = 2 * MIN_SEGMENT


@dataclass(frozen=True, slots=True)
class Found:
    """A change of level. `index`: of its first run in the history; `before`: the last run that it can come after,
    `latest`: the first run that has it for certain; levels are medians of their stretches."""

    index: int
    point: ChangePoint
    before: SummaryLine
    after: SummaryLine
    latest: SummaryLine
    level_before: float
    level_after: float


@dataclass(frozen=True, slots=True)
class History:
    """A series, oldest run first. `segments`: the stretch between breaks that each run lies in; `breaks`: what changed
    at each; `band`: relative noise of one run, from the history or else the machine's noise floor, None if unknown;
    `limit`: the gate's bound, counted from the newest level."""

    case_id: str
    name: str
    text: str
    metric: str
    unit: str
    better: Better
    lines: tuple[SummaryLine, ...]
    segments: tuple[int, ...]
    changes: tuple[Found, ...]
    band: float | None
    limit: float | None
    breaks: tuple[str, ...]

    @property
    def names(self) -> tuple[str, str]:
        """What a remark may call it."""
        return self.case_id, self.text

    def index_at(self, time: datetime) -> int | None:
        """The first run at or after a time; None for a time outside the history."""
        times = [line.started_at for line in self.lines if line.started_at is not None]
        if len(times) != len(self.lines) or not times or not times[0] <= time <= times[-1]:
            return None
        return bisect_left(times, time)

    def window(self, first: str, last: str) -> tuple[int, int] | None:
        """The numbers of the runs from one to another; None where a run is not in this history, or they are one."""
        places = [number for number, line in enumerate(self.lines) if line.run_id in (first, last)]
        return (places[0], places[-1]) if len(places) == 2 else None


@dataclass(frozen=True, slots=True)
class Numbered:
    """A change of level with its number on the page, its history, and the remark that settles it, if any."""

    number: int
    history: History
    found: Found
    remark: Annotation | None

    @property
    def verdict(self) -> VerdictName:
        """improved or regressed where the size's interval leaves no doubt and the metric has a good side."""
        point, better = self.found.point, self.history.better
        if point.low <= 1.0 <= point.high or better == "neither":
            return "inconclusive"
        return "improved" if (point.ratio > 1.0) == (better == "higher") else "regressed"


def histories_of(
    context: Context, newest: Sequence[SummaryLine], metric: str, runs: int, only: Sequence[str] = ()
) -> list[History]:
    """The histories of some summary lines' cases under their suites, in their order; all lines are of one machine.

    At most the last `runs` runs with a positive value, of those whose ids begin as in `only` where that names any; one
    question to the store for all of them.
    """
    if not newest:
        return []
    cases = Filter().with_value("machine", newest[0].machine_id).with_value("metric", metric)
    cases = cases.with_value("run", ",".join(only))
    wanted = cases.with_value("case", ",".join(choices.distinct(line.case_id for line in newest)))
    found: dict[tuple[str, str], list[SummaryLine]] = {}
    for line in context.query.summary(wanted):
        if line.metric == metric and line.machine_id == newest[0].machine_id and _usable(line.median):
            found.setdefault((line.case_id, line.suite), []).append(line)
    states: dict[str, Mapping[str, str]] = {}
    return [_history(context, line, found.get((line.case_id, line.suite), [])[-runs:], states) for line in newest]


def _history(
    context: Context,
    newest: SummaryLine,
    lines: Sequence[SummaryLine],
    states: dict[str, Mapping[str, str]],
) -> History:
    """One history; `states` keeps what was learnt of a run for the others."""
    for line in lines:
        if line.run_id not in states:
            states[line.run_id] = _state(context, line.run_id)
    segments, breaks = _segments([states[line.run_id] for line in lines])
    values = [line.median or 0.0 for line in lines]
    stretches = _stretches(segments)
    noises = [history_noise(values[start:end]) for start, end in stretches if end - start >= MIN_SEGMENT]
    changes = tuple(change for start, end in stretches for change in _changes(lines, values, start, end))
    better = choices.better_of(newest.metric)
    present = max([stretches[-1][0], *(change.index for change in changes)])  # where the newest level begins
    return History(
        newest.case_id,
        choices.case_name(newest),
        f"{newest.model} {newest.workload} {newest.variant}",
        newest.metric,
        newest.unit,
        better,
        tuple(lines),
        segments,
        changes,
        math.expm1(median(noises)) if noises else _floor(context, newest),
        limit_of(newest, better, median(values[present:])) if values else None,
        breaks,
    )


def _floor(context: Context, line: SummaryLine) -> float | None:
    """The calibrated noise floor of a case on its machine; None where none was measured for its family."""
    calibration = context.query.calibration(line.machine_id)
    kind = choices.kind_of(line.workload)
    found = calibration.floor_for(kind, line.model, line.metric) if calibration else None
    return found.margin(max(line.num_blocks, 2)) if found else None


def numbered(histories: Sequence[History], remarks: Sequence[Annotation]) -> list[Numbered]:
    """Every change of the histories, numbered from 1, with the newest remark that settles it.

    A remark settles a change if it has a status, concerns the case and falls between the runs that bracket the change.
    """
    found = [(history, change) for history in histories for change in history.changes]
    return [
        Numbered(number, history, change, _settled(history, change, remarks))
        for number, (history, change) in enumerate(found, start=1)
    ]


def _settled(history: History, change: Found, remarks: Sequence[Annotation]) -> Annotation | None:
    start, end = change.before.started_at, change.latest.started_at
    fitting = [
        remark
        for remark in remarks
        if remark.status and remark.concerns(history.names) and start and end and start <= remark.time <= end
    ]
    return fitting[-1] if fitting else None


def _usable(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value > 0


def _segments(states: Sequence[Mapping[str, str]]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """(the stretch of each run, what changed at each break)."""
    segments, breaks = [0] * min(len(states), 1), []
    for before, after in pairwise(states):
        differing = [
            f"{name} {before[name] or '-'} → {after[name] or '-'}" for name in after if before[name] != after[name]
        ]
        segments.append(segments[-1] + bool(differing))
        if differing:
            breaks.append(", ".join(differing))
    return tuple(segments), tuple(breaks)


def _state(context: Context, run_id: str) -> Mapping[str, str]:
    """What breaks a series where it changes; nothing for a run whose row is gone."""
    run = context.query.run(run_id)
    if run is None:
        return dict.fromkeys(("suite version", "torch", "triton", "CUDA", "driver"), "")
    return {
        "suite version": str(run.suite_version),
        "torch": run.torch,
        "triton": run.triton,
        "CUDA": run.cuda,
        "driver": run.driver,
    }


def _stretches(segments: Sequence[int]) -> list[tuple[int, int]]:
    edges = [0, *(i for i in range(1, len(segments)) if segments[i] != segments[i - 1]), len(segments)]
    return list(pairwise(edges))


def _changes(lines: Sequence[SummaryLine], values: Sequence[float], start: int, end: int) -> list[Found]:
    """The changes of one stretch, placed in the whole history."""
    points = change_points(values[start:end], min_segment=MIN_SEGMENT)
    edges = [0, *(point.index for point in points), end - start]
    return [
        Found(
            start + point.index,
            point,
            lines[start + max(point.index_low - 1, 0)],
            lines[start + point.index],
            lines[start + point.index_high],
            median(values[start + before : start + point.index]),
            median(values[start + point.index : start + after]),
        )
        for point, before, after in zip(points, edges, edges[2:], strict=False)
    ]


def history_figure(
    context: Context,
    history: History,
    changes: Sequence[Numbered] = (),
    remarks: Sequence[Annotation] = (),
    *,
    along: Along = "commit",
    window: tuple[int, int] | None = None,
) -> Figure:
    """The trend of a history, with those of the numbered changes and remarks that are its own."""
    points = [
        TrendPoint(
            run_id=line.run_id,
            label=line.git_sha[:8] or line.run_id[:15],
            when=line.started_at,
            value=line.median,
            low=line.low,
            high=line.high,
            segment=segment,
        )
        for line, segment in zip(history.lines, history.segments, strict=True)
    ]
    steps = [
        Change(
            number=change.number,
            index=change.found.index,
            before=change.found.level_before,
            after=change.found.level_after,
            low=change.found.point.low,
            high=change.found.point.high,
        )
        for change in changes
        if change.history is history
    ]
    marks = [
        Mark(number=number, index=index, text=remark.text)
        for number, remark in enumerate(remarks, start=1)
        if remark.concerns(history.names) and (index := history.index_at(remark.time)) is not None
    ]
    return trend(
        points,
        title=f"{history.metric}: {history.name}",
        unit=history.unit,
        changes=steps,
        band=history.band,
        limit=history.limit,
        marks=marks,
        better=history.better,
        along=along,
        window=window,
        language=context.language,
    )
