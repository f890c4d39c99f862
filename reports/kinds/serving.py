"""Report `serving`: many requests at once, their latency and throughput; until measured, engines one by one."""

from __future__ import annotations

from collections.abc import Sequence

from harness.compare import Measured
from harness.store import Store
from harness.tables import Column
from reports.document import Block, Document, Grid, Note, Picture, Section
from reports.figures import ScalingLine, scaling
from reports.grids import forest_of
from reports.kinds.parts import Part, assembled, lengths_in, missing_part, nothing, series_of
from reports.language import Language, say
from reports.sources import CaseRows, Pool, Request, kind_of, parameter, point_of, text_of
from reports.views import CaseView

_METRICS = ("tps", "ttft", "tpot")
_MOST_LINES = 6


def build(store: Store, request: Request) -> Document:
    """The newest runs with served requests, batches and engines."""
    language = request.language
    title = say(language, "Serving: many requests at once")
    pool = Pool.of(store, request)
    if not pool.runs:
        return nothing("serving", title, language)
    parts = [
        _served(pool, language),
        _batches(pool, language),
        _engines(pool, language),
    ]
    return assembled("serving", title, parts, store, request, query="/pareto")


def _served(pool: Pool, language: Language) -> Part:
    """Requests at once: throughput and latency."""
    title = say(language, "Requests at once")
    view = pool.newest(lambda rows: any(kind_of(row["workload"]) == "serve" for row in rows))
    if view is None:
        what = say(language, "2, 4 and 8 requests at once, TPOT at p50 and p95: no suite serves requests yet")
        return missing_part(title, what, "")
    items = [item for item in view.cases if kind_of(item.case.workload) == "serve"]
    names = sorted({name for item in items for name in item.case.series})
    columns = (Column(say(language, "case")), *(Column(name, right=True) for name in names))
    rows = tuple(
        (f"{item.case.label} {item.case.variant}", *(text_of(item.case, name) for name in names)) for item in items
    )
    answer = say(language, "Serving cases measured: {count}.", count=len(items))
    return Part(Section(title, (Grid(columns, rows),)), (view.run,), answer)


def _batches(pool: Pool, language: Language) -> Part:
    """What a batch gains, which is where serving's gain comes from."""
    title = say(language, "What batching can gain")
    view = pool.newest(lambda rows: lengths_in(rows, "decode", "batch") >= 2)
    series = {} if view is None else series_of(view, "decode", "batch")
    if view is None or not series:
        what = say(language, "decoding with several sequences at once: no suite sweeps the batch yet")
        return missing_part(title, what, "")
    lines = [ScalingLine(key[1], _points(cases)) for key, cases in list(series.items())[:_MOST_LINES]]
    drawn = scaling(
        lines, x_label=say(language, "sequences at once"), y_label="TPS", unit="tokens/s", language=language
    )
    first, last = lines[0].points[0], lines[0].points[-1]
    answer = say(
        language,
        "{most} sequences at once decode {gain:.1f} times as many tokens/s as {least}.",
        most=int(last[0]),
        least=int(first[0]),
        gain=last[1] / first[1],
    )
    return Part(Section(title, (Picture("batches", drawn),)), (view.run,), answer)


def _points(cases: Sequence[Measured]) -> list[tuple[float, float, float | None, float | None]]:
    found = []
    for case in cases:
        point, size = point_of(case, "tps"), parameter(case.workload, "batch")
        if point is not None and size is not None:
            found.append((float(size), point.value, point.low, point.high))
    return found


def _engines(pool: Pool, language: Language) -> Part:
    """Engines with one request each: the floor on which batching builds."""
    title = say(language, "Engines, one request")

    def fits(rows: CaseRows) -> bool:
        return len({_engine(row["variant"]) for row in rows if kind_of(row["workload"]) == "decode"}) >= 2

    view = pool.newest(fits, prefer=("engines",))
    if view is None:
        return missing_part(title, say(language, "several engines in one run"), "python -m harness run engines")
    items = [item for item in view.cases if kind_of(item.case.workload) in ("decode", "prefill", "generate")]
    columns = (
        Column(say(language, "engine")),
        Column(say(language, "case")),
        *(Column(name, right=True) for name in _METRICS),
        Column(say(language, "status")),
    )
    picture = forest_of(
        [c for c in view.headline if kind_of(c.candidate.workload) == "decode" and "backend=" in c.candidate.variant],
        language,
    )
    note = Note(say(language, "One request at a time: these figures say nothing of load."), "note")
    vllm = [item for item in items if _engine(item.case.variant) == "vllm"]
    answer = say(language, "Engines measured with one request each: {count}.", count=len(_measured(items)))
    blocks: list[Block] = [
        note,
        Grid(columns, tuple(_engine_row(item) for item in items)),
        *([picture] if picture else []),
    ]
    if not any(item.case.status == "ok" for item in vllm):
        reason = vllm[0].case.reason if vllm else say(language, "not in this run")
        blocks.append(Note(say(language, "vLLM was not measured: {reason}", reason=reason)))
    return Part(Section(title, tuple(blocks)), (view.run,), answer)


def _engine(variant: str) -> str:
    return next((word[8:] for word in variant.split() if word.startswith("backend=")), "torch")


def _measured(items: Sequence[CaseView]) -> set[str]:
    return {_engine(item.case.variant) for item in items if item.case.status == "ok"}


def _engine_row(item: CaseView) -> tuple[str, ...]:
    case = item.case
    status = case.status if case.status == "ok" else f"{case.status}: {case.reason}"
    return (
        _engine(case.variant),
        f"{case.model}: {case.label} {case.variant}",
        *(text_of(case, name) for name in _METRICS),
        status,
    )
