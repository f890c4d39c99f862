"""Report `profile_report`: prefill and decode apart, what limits each, and what would help."""

from __future__ import annotations

from collections.abc import Sequence

from harness.compare import Measured
from harness.schema import PeakRow
from harness.store import Store
from harness.tables import Column
from reports.causes import Bound, bound_of, nearest_peak, steps_of, top_operations, work_of
from reports.document import Block, Document, Grid, Missing, Note, Paragraph, Picture, Section
from reports.figures import Ceiling, RoofPoint, roofline
from reports.growth import too_low_note
from reports.kinds.parts import Part, assembled, missing_part, nothing
from reports.kinds.recorded import COMMAND, Recorded, operations_grid, recorded, timeline_part
from reports.language import Language, say
from reports.sources import CaseRows, Pool, Request, kind_of, point_of
from reports.views import CaseView, RunView
from reports.wording import case_name, change_text, duration, joined, most_changed, percent

_COMMAND = "python -m harness calibrate && python -m harness run ladder"
_PREFERRED = ("ladder", "quickstart", "engines")
_MOST_POINTS = 12
_MOST_OPERATIONS = 5


def build(store: Store, request: Request) -> Document:
    """The newest runs of this machine that recorded work and utilisation."""
    language = request.language
    title = say(language, "Profile: where a step's time goes")
    pool = Pool.of(store, request)
    if not pool.runs:
        return nothing("profile_report", title, language)
    view = pool.newest(_has_both, prefer=_PREFERRED) or pool.newest(lambda rows: _kinds(rows) != set())
    parts = [
        _phase(pool, view, "prefill", say(language, "Prefill"), language),
        _phase(pool, view, "decode", say(language, "Decode"), language),
        _roofline(pool, view, language),
        _launches(view, language),
        timeline_part(recorded(pool, "decode") or recorded(pool, "prefill"), language),
    ]
    return assembled("profile_report", title, parts, store, request, query="/roofline")


def _kinds(rows: CaseRows) -> set[str]:
    return {kind_of(row["workload"]) for row in rows} & {"prefill", "decode"}


def _has_both(rows: CaseRows) -> bool:
    return _kinds(rows) == {"prefill", "decode"}


def bound_word(bound: Bound, language: Language) -> str:
    """What a step is limited by, in words."""
    words = {
        "compute": say(language, "compute"),
        "memory": say(language, "memory"),
        "dispatch": say(language, "launches and dispatch"),
        "kernels": say(language, "kernels below both roofs"),
        "unknown": say(language, "neither roof"),
    }
    return words[bound.name]


def _phase(pool: Pool, view: RunView | None, kind: str, title: str, language: Language) -> Part:
    """Prefill or decode of every variant: shares of both roofs, calls, and what follows from them."""
    items = [] if view is None else [
        item for item in view.cases if kind_of(item.case.workload) == kind and item.case.status in ("ok", "not_steady")
    ]  # fmt: skip
    peaks = pool.peaks(view)
    bounds = [(item, bound) for item in items if (bound := bound_of(item.case, peaks)) is not None]
    if view is None or not bounds:
        what = say(language, "work and measured peaks of {workload}, to say what limits it", workload=kind)
        return missing_part(title, what, _COMMAND)
    item, first = bounds[0]
    trace = recorded(pool, kind, prefer=item.case.case_id)
    blocks: list[Block] = [
        Paragraph(_bound_sentence(item.case, first, language)),
        _bounds_grid(bounds, language),
        *_operations(item.case, trace, language),
        Paragraph(_what_helps(view, kind, first, language)),
    ]
    if any(bound.peak_too_low for _, bound in bounds):
        blocks.append(Note(too_low_note(language)))
    answer = say(
        language,
        "{workload} ({variant}) is bound by {bound}.",
        workload=item.case.label,
        variant=item.case.variant,
        bound=bound_word(first, language),
    )
    return Part(Section(title, tuple(blocks)), (view.run, *([trace.run] if trace else [])), answer)


def _bound_sentence(case: Measured, bound: Bound, language: Language) -> str:
    shares = []
    if bound.compute_share is not None:
        shares.append(say(language, "{share} of the peak arithmetic", share=percent(bound.compute_share)))
    if bound.memory_share is not None:
        shares.append(say(language, "{share} of the read bandwidth", share=percent(bound.memory_share)))
    text = say(
        language,
        "A step of {workload} ({variant}) takes {seconds} and uses {shares}: it is bound by {bound}.",
        workload=case.label,
        variant=case.variant,
        seconds=duration(bound.seconds),
        shares=say(language, " and ").join(shares),
        bound=bound_word(bound, language),
    )
    if bound.operations and bound.rest > 0:
        unexplained = say(
            language,
            "Neither roof explains {rest} of it: {each} for each of its {calls} operator calls.",
            rest=duration(bound.rest),
            each=duration(bound.rest / bound.operations),
            calls=bound.operations,
        )
        text = joined(language, (text, unexplained))
    return text


def _bounds_grid(bounds: Sequence[tuple[CaseView, Bound]], language: Language) -> Grid:
    columns = (
        Column(say(language, "case")),
        Column(say(language, "time per step"), right=True),
        Column(say(language, "of peak arithmetic"), right=True),
        Column(say(language, "of read bandwidth"), right=True),
        Column(say(language, "operator calls"), right=True),
        Column(say(language, "unexplained"), right=True),
        Column(say(language, "bound by")),
    )
    rows = tuple(
        (
            f"{item.case.model}: {item.case.label} {item.case.variant}",
            duration(bound.seconds),
            "-" if bound.compute_share is None else percent(bound.compute_share),
            "-" if bound.memory_share is None else percent(bound.memory_share),
            "-" if bound.operations is None else str(bound.operations),
            duration(bound.rest),
            bound_word(bound, language),
        )
        for item, bound in bounds
    )
    return Grid(columns, rows)


def _operations(case: Measured, trace: Recorded | None, language: Language) -> list[Block]:
    """Where the time of the operators goes, else how often each is called and what would tell their times."""
    if trace is not None:
        return [operations_grid(trace, language)]
    blocks: list[Block] = []
    if found := top_operations(case, _MOST_OPERATIONS):
        columns = (Column(say(language, "operator")), Column(say(language, "calls per step"), right=True))
        title = say(language, "Called most often ({variant})", variant=case.variant)
        blocks.append(Grid(columns, tuple((name, str(count)) for name, count in found), title))
    return [*blocks, Missing(say(language, "time by operator: no case of this kind has a profile"), COMMAND)]


def _what_helps(view: RunView, kind: str, bound: Bound, language: Language) -> str:
    advice = {
        "compute": say(language, "What helps is less arithmetic or a faster number format (bf16, int8)."),
        "memory": say(language, "What helps is fewer bytes: weights in fewer bits, a smaller cache, a larger batch."),
        "dispatch": say(
            language, "What helps is fewer calls: fused kernels, a compiled step, a CUDA graph, one call per step."
        ),
        "kernels": say(
            language, "What helps are better kernels: its few calls neither fill the arithmetic nor the memory."
        ),
        "unknown": say(language, "Neither roof explains the time, and the operator calls were not counted."),
    }[bound.name]
    changed = [c for c in view.changed if kind_of(c.candidate.workload) == kind and c.verdict == "improved"]
    if not changed:
        return advice
    best = most_changed(changed)[0]
    seen = say(
        language,
        "Measured here: {case}, {metric} {change}.",
        case=case_name(best, language),
        metric=best.metric,
        change=change_text(best),
    )
    return joined(language, (advice, seen))


def _roofline(pool: Pool, view: RunView | None, language: Language) -> Part:
    """Cases under the measured ceilings."""
    title = say(language, "Roofline")
    peaks = pool.peaks(view)
    items = [] if view is None else view.cases
    points = [point for item in items if (point := _roof_point(item, peaks)) is not None][:_MOST_POINTS]
    used = {name for point in points for name in point.bounds}
    ceilings = [
        Ceiling(
            _peak_name(row),
            "compute" if row.kind == "matmul" else "bandwidth",
            row.value,
            say(language, "measured by calibration"),
        )
        for row in peaks
        if _peak_name(row) in used
    ]
    if view is None or not ceilings or not points:
        return missing_part(title, say(language, "measured peaks of this machine"), "python -m harness calibrate")
    picture = Picture("roofline", roofline(ceilings, points, language=language))
    answer = say(language, "Cases under the measured roofs: {count}.", count=len(points))
    return Part(Section(title, (picture,)), (view.run,), answer)


def _peak_name(row: PeakRow) -> str:
    return f"{row.kind} {row.dtype}" + (f" {row.size_bytes / 1e6:.0f} MB" if row.kind == "read" else "")


def _roof_point(item: CaseView, peaks: Sequence[PeakRow]) -> RoofPoint | None:
    """A case under the peaks of its number format and of its working set."""
    work, whole = work_of(item.case), point_of(item.case, "step_time")
    if work is None or whole is None or not work.bytes or item.case.status != "ok":
        return None
    if kind_of(item.case.workload) not in ("prefill", "decode"):
        return None
    dtype = "?" if "quant=" in item.case.variant else str(item.case.facts.get("compute_dtype", "?"))
    bounds = (
        nearest_peak(peaks, "matmul", dtype=dtype),
        nearest_peak(peaks, "read", size=work.bytes / steps_of(item.case)),
    )
    names = tuple(_peak_name(row) for row in bounds if row is not None)
    name = f"{item.case.label} {item.case.variant}"
    return RoofPoint(name, work.flops / work.bytes, work.flops / whole.value, "analytic", names)


def _launches(view: RunView | None, language: Language) -> Part:
    """Launches and waits per step, where a GPU counted them."""
    title = say(language, "Launches and waits per step")
    names = ("launches_per_step", "syncs_per_step")
    items = [] if view is None else [item for item in view.cases if any(name in item.case.series for name in names)]
    if view is None or not items:
        what = say(language, "launches and waits per step: they are counted on a GPU only")
        return missing_part(title, what, "python -m harness run ladder --device cuda")
    columns = (Column(say(language, "case")), *(Column(name, right=True) for name in names))
    rows = tuple(
        (
            f"{item.case.model}: {item.case.label} {item.case.variant}",
            *(f"{item.case.series[name].median:g}" if name in item.case.series else "-" for name in names),
        )
        for item in items
    )
    answer = say(language, "Cases with counted launches: {count}.", count=len(items))
    return Part(Section(title, (Grid(columns, rows),)), (view.run,), answer)
