"""Report `run`: what one run found. Significant changes first, the rest counted, everything in the details."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlencode

from harness import registry
from harness.core import UsageError, VerdictName
from harness.schema import RunRow
from harness.store import Store
from reports.document import Block, Command, Document, Missing, Note, Paragraph, Section
from reports.grids import (
    cases_grid,
    changes_grid,
    forest_of,
    margin_listing,
    metrics_of,
    reasons_grid,
    unmeasured_listing,
)
from reports.language import Language, say
from reports.sources import Request, environment_section, repeat_section
from reports.views import Quality, RunView, run_view

MOST_ROWS = 12
MOST_REASONS = 5
BESIDES = ("peak_bytes", "kv_bytes", "disk_bytes", "compile_time", "launches_per_step", "mbu", "mfu")
EMPTY_COMMAND = "python -m harness run quickstart"


def build(store: Store, request: Request) -> Document:
    """The report of the run named, or of the latest."""
    language = request.language
    if len(request.refs) > 1:
        raise UsageError(f"a report of one run takes one run, not {len(request.refs)}; use --compare A B for two")
    if not request.refs and not store.runs():
        return nothing("run", say(language, "Run"), language)
    view = run_view(store, request.refs[0] if request.refs else "latest")
    run = view.run
    sections = (
        Section(say(language, "What changed"), (*_status_notes(store, run, language), *_changes(view, language))),
        *_not_measured(view, language),
        Section(say(language, "Gates"), _gates(store, run, language)),
        environment_section([run], language),
        repeat_section([run], language),
        *_details(view, language),
    )
    title = say(language, "Run {run}: {suite}", run=run.run_id, suite=run.suite)
    query = "/compare?" + urlencode({"a": run.run_id, "b": run.run_id})
    return Document("run", title, view.sentence(language), language, sections, (run,), query)


def nothing(kind: str, title: str, language: Language) -> Document:
    """What is reported of a store without runs."""
    sentence = say(language, "The store has no runs yet.")
    missing = Missing(say(language, "a run to report on"), EMPTY_COMMAND)
    return Document(kind, title, sentence, language, (Section(say(language, "Missing"), (missing,)),))


def hidden_sentence(counts: Mapping[VerdictName, int], shown: int, language: Language) -> str:
    """How many rows are not shown, and why."""
    parts = [
        say(language, "{count} unchanged", count=counts["equivalent"]) if counts["equivalent"] else "",
        say(language, "{count} inconclusive", count=counts["inconclusive"]) if counts["inconclusive"] else "",
        say(language, "{count} invalid or not measured", count=counts["invalid"]) if counts["invalid"] else "",
    ]
    total = sum(counts.values()) - shown
    if total <= 0:
        return say(language, "No row is hidden.")
    return say(
        language,
        "Hidden here: {parts}. The HTML and JSON reports have every row.",
        parts=say(language, ", ").join(part for part in parts if part),
    )


def _status_notes(store: Store, run: RunRow, language: Language) -> list[Block]:
    if run.status == "finished":
        return []
    if store.is_live(run):
        return [Note(say(language, "This run is still going on: these are its numbers so far."))]
    text = say(language, "This run is {status}, so blocks or cases may be missing. Complete it with", status=run.status)
    return [Note(text), Command(run.completion)]


def _changes(view: RunView, language: Language) -> list[Block]:
    quality = qualities(view)
    changed = view.changed
    if not changed:
        blocks: list[Block] = [Paragraph(say(language, "No case differs significantly from its reference."))]
    else:
        blocks = [changes_grid(changed, quality, language, most=MOST_ROWS)]
    blocks.append(Paragraph(hidden_sentence(view.counts, len(changed), language)))
    picture = forest_of(view.headline, language)
    return [*blocks, *([picture] if picture else [])]


def qualities(view: RunView) -> dict[tuple[str, str], Quality]:
    """The quality of every case, by run and case."""
    return {(item.case.run_id, item.case.case_id): item.quality for item in view.cases if item.quality is not None}


def _not_measured(view: RunView, language: Language) -> list[Section]:
    listing = unmeasured_listing(view, language, most=MOST_REASONS)
    return [] if listing is None else [Section(say(language, "Not measured"), (listing,))]


def _gates(store: Store, run: RunRow, language: Language) -> tuple[Block, ...]:
    from reports.kinds.gate import gate_blocks

    suite = registry.SUITES.get(run.suite)
    if suite is None or not suite.gates:
        return (Paragraph(say(language, "The suite {suite} declares no gates.", suite=run.suite)),)
    return gate_blocks(store, run, language)


def _details(view: RunView, language: Language) -> list[Section]:
    metrics = metrics_of(view, BESIDES)
    sections = [Section(say(language, "All cases"), (cases_grid(view, language, metrics=metrics),), "detail")]
    if view.headline:
        grid = changes_grid(view.headline, qualities(view), language)
        sections.append(Section(say(language, "All comparisons"), (grid,), "detail"))
    if view.comparisons:
        blocks = (margin_listing(view.comparisons), reasons_grid(view.comparisons, language))
        sections.append(Section(say(language, "All metrics, with margins and reasons"), blocks, "detail"))
    listing = unmeasured_listing(view, language)
    if listing is not None:
        sections.append(Section(say(language, "Every reason"), (listing,), "detail"))
    return sections
