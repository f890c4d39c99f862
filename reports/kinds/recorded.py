"""What a profile beside the store tells a report: the operations of a case by their own time, and its timeline.

    found = recorded(pool, "decode", prefer=case.case_id)     # the newest trace of that case, else of any of its kind
    operations_grid(found, language), timeline_part(found, language)

Refuses nothing: a trace that cannot be read counts as none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.core import Workload
from harness.profiles import ITERATION, Trace, Unreadable, artifact, profiled, read_trace
from harness.registry import workload_label
from harness.schema import RunRow
from harness.tables import Column
from reports.document import Grid, Paragraph, Picture, Section
from reports.figures import Span, timeline
from reports.kinds.parts import Part, missing_part
from reports.language import Language, say
from reports.sources import Pool, kind_of
from reports.wording import duration, percent

COMMAND = "python -m harness profile ladder"
_MOST = 8


@dataclass(frozen=True, slots=True)
class Recorded:
    """A trace, the run that recorded it, and the row of its case."""

    run: RunRow
    case: Mapping[str, Any]
    trace: Trace

    @property
    def name(self) -> str:
        """The case, for people."""
        return f"{self.case['model']}: {workload_label(Workload.parse(self.case['workload']))} {self.case['variant']}"

    @property
    def between(self) -> float | None:
        """The share of an iteration that lies between its operations; None where iterations are not marked."""
        whole = sum(operation.total for operation in self.trace.operations)
        own = next((operation.total for operation in self.trace.operations if operation.name == ITERATION), None)
        return None if own is None or not whole else own / whole


def recorded(pool: Pool, kind: str, *, prefer: str = "") -> Recorded | None:
    """The newest trace of the preferred case, else of any case of this kind of workload."""
    there = profiled(pool.store.path)
    offered = [
        (run, row)
        for run in pool.runs
        if run.run_id in there
        for row in pool.rows(run)
        if row["case_id"] in there[run.run_id] and kind_of(row["workload"]) == kind
    ]
    for run, row in sorted(offered, key=lambda pair: pair[1]["case_id"] != prefer):
        path = artifact(pool.store.path, run.run_id, row["case_id"], "trace")
        try:
            if path:
                return Recorded(run, row, read_trace(path))
        except Unreadable:
            continue
    return None


def operations_grid(found: Recorded, language: Language) -> Grid:
    """The operations with most time of their own."""
    whole = sum(operation.total for operation in found.trace.operations)
    columns = (
        Column(say(language, "operator")), Column(say(language, "calls"), right=True),
        Column(say(language, "own time"), right=True), Column(say(language, "share"), right=True),
    )  # fmt: skip
    rows = tuple(
        (
            operation.name if operation.name != ITERATION else say(language, "between operators (Python, dispatch)"),
            f"{operation.calls:,}",
            duration(operation.total),
            percent(operation.total / whole) if whole else "-",
        )
        for operation in found.trace.operations[:_MOST]
    )
    title = say(language, "Most of the time of {case} (run {run})", case=found.name, run=found.run.run_id)
    return Grid(columns, rows, title)


def timeline_part(found: Recorded | None, language: Language) -> Part:
    """One picture of the calls, with what is idle between them."""
    title = say(language, "Timeline")
    if found is None:
        what = say(language, "a trace: the calls of one case in their order, with the gaps between them")
        return missing_part(title, what, COMMAND)
    spans = [Span(slot.lane, slot.name, slot.start, slot.end) for slot in found.trace.slots]
    told = say(language, "The calls of {case} in their order (run {run}).", case=found.name, run=found.run.run_id)
    answer = "" if found.between is None else say(
        language,
        "In {case}, {share} of the profiled time lies between operators.",
        case=found.name,
        share=percent(found.between),
    )  # fmt: skip
    picture = Picture("timeline", timeline(spans, language=language))
    return Part(Section(title, (Paragraph(told), picture)), (found.run,), answer or told)
