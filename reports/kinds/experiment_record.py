"""Report `experiment_record`: the table `id | change | tokens/s | PPL | peak memory | note`, and its commands."""

from __future__ import annotations

from collections.abc import Sequence

from harness.core import VerdictName
from harness.store import Store
from harness.tables import Column
from reports.document import Document, Grid, Missing, Paragraph, Section
from reports.grids import ratio_with_interval, verdict_text
from reports.kinds.parts import nothing
from reports.language import Language, say
from reports.sources import (
    Pool,
    Request,
    environment_section,
    kind_of,
    left_out_note,
    point_of,
    repeat_section,
    text_of,
)
from reports.views import CaseView, RunView

_RATES = ("tps", "prefill_tps", "train_tps")
_MOST_ROWS = 60


def build(store: Store, request: Request) -> Document:
    """The runs named, else the newest run of every suite of this machine."""
    language = request.language
    title = say(language, "Experiment record")
    pool = Pool.of(store, request)
    if not pool.runs:
        return nothing("experiment_record", title, language)
    views = [pool.view(run) for run in pool.newest_of_suites()]
    grid = record_grid(views, language)
    used = tuple(view.run for view in views)
    sentence = say(
        language,
        "{rows} experiments of {runs} runs; each id is run-case, and its run's command is below.",
        rows=len(grid.rows),
        runs=len(views),
    )
    legend = Paragraph(
        say(
            language,
            "tokens/s: the median over blocks with its 95% interval. Note: the ratio to the run's own reference and "
            "its verdict. PPL in brackets was measured on the trained model with the same variant.",
        )
    )
    blocks = (
        (legend, grid) if grid.rows else (Missing(say(language, "cases with a rate in tokens/s"), _first(language)),)
    )
    notes = left_out_note(store, used, request)
    environment = environment_section(used, language)
    sections = (
        Section(title, blocks),
        Section(environment.title, (*environment.blocks, *notes)),
        repeat_section(used, language),
    )
    return Document("experiment_record", title, sentence, language, sections, used, "/runs")


def _first(language: Language) -> str:
    return "python -m harness run quickstart"


def record_grid(views: Sequence[RunView], language: Language) -> Grid:
    """One row per case that has a rate, or that failed to have one."""
    columns = (
        Column("id"),
        Column(say(language, "change")),
        Column("tokens/s", right=True),
        Column("PPL", right=True),
        Column(say(language, "peak memory"), right=True),
        Column(say(language, "note")),
    )
    rows: list[tuple[str, ...]] = []
    verdicts: list[VerdictName | None] = []
    records = []
    for view in views:
        for item in view.cases:
            if not _is_experiment(item):
                continue
            rows.append(_row(item, language))
            verdicts.append(item.comparison.verdict if item.comparison else None)
            records.append(_record(view, item))
    return Grid(columns, tuple(rows), "", tuple(verdicts), tuple(records), _MOST_ROWS)


def _is_experiment(item: CaseView) -> bool:
    kind = kind_of(item.case.workload)
    return kind in ("decode", "generate", "prefill", "train_step") or any(name in item.case.series for name in _RATES)


def _rate_name(item: CaseView) -> str | None:
    return next((name for name in _RATES if name in item.case.series), None)


def _row(item: CaseView, language: Language) -> tuple[str, ...]:
    case, quality, comparison = item.case, item.quality, item.comparison
    rate = _rate_name(item)
    ppl = "-"
    if quality is not None and quality.ppl is not None:
        ppl = f"({quality.ppl:.2f})" if quality.borrowed else f"{quality.ppl:.2f}"
    if case.status not in ("ok", "not_steady"):
        note = f"{case.status}: {case.reason}"
    elif comparison is None:
        note = say(language, "(reference)")
    else:
        note = f"{verdict_text(comparison.verdict, language)} {ratio_with_interval(comparison)}"
    return (
        f"{case.run_id[-6:]}-{case.case_id[:6]}",
        f"{case.model}: {case.label}: {case.variant}",
        "-" if rate is None else text_of(case, rate),
        ppl,
        text_of(case, "peak_bytes"),
        note,
    )


def _record(view: RunView, item: CaseView) -> dict[str, object]:
    rate, memory = _rate_name(item), point_of(item.case, "peak_bytes")
    speed = point_of(item.case, rate) if rate else None
    return {
        "run_id": item.case.run_id,
        "case_id": item.case.case_id,
        "model": item.case.model,
        "workload": item.case.workload,
        "change": item.case.variant,
        "metric": rate,
        "tokens_per_second": speed.value if speed else None,
        "low": speed.low if speed else None,
        "high": speed.high if speed else None,
        "ppl": item.quality.ppl if item.quality else None,
        "ppl_model": item.quality.model if item.quality else None,
        "peak_bytes": memory.value if memory else None,
        "status": item.case.status,
        "reason": item.case.reason,
        "verdict": item.comparison.verdict if item.comparison else None,
        "command": view.command,
    }
