"""Report `comparison`: B against A, with exactly the numbers of `harness compare A B`."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlencode

from harness import registry
from harness.compare import Comparison
from harness.core import UsageError
from harness.store import Store
from harness.tables import Column
from reports.document import Block, Command, Document, Grid, Missing, Note, Paragraph, Section
from reports.grids import changes_grid, forest_of, gates_grid, margin_listing, reasons_grid
from reports.kinds.run import MOST_ROWS, hidden_sentence
from reports.language import Language, say
from reports.sources import Request, environment_section, repeat_section
from reports.views import ComparisonView, comparison_view, difference_word
from reports.wording import place_name

_MOST_DIFFERENCES = 6
_MOST_ONE_SIDED = 4


def build(store: Store, request: Request) -> Document:
    """The report of two sides, A then B. Raises UsageError for any other number of them."""
    if len(request.refs) != 2:
        raise UsageError(f"a comparison takes two sides, A and B, not {len(request.refs)}: --compare A B")
    language = request.language
    view = comparison_view(store, *request.refs)
    title = _title(view, language)
    runs = tuple({side.run.run_id: side.run for side in (view.a, view.b)}.values())
    sections = (
        Section(say(language, "What changed"), (*_notes(view, language), *_changes(view, language))),
        Section(say(language, "What differs between A and B"), _differences(view, language)),
        *_gates(view, language),
        environment_section(runs, language),
        repeat_section(runs, language, Command(view.command, say(language, "this comparison"))),
        Section(
            say(language, "All comparisons"),
            (changes_grid(view.headline, view.quality, language, name=_name(view)),),
            "detail",
        ),
        Section(
            say(language, "All metrics, with margins and reasons"),
            (margin_listing(view.comparisons), reasons_grid(view.comparisons, language, name=_name(view))),
            "detail",
        ),
        *_one_sided(view, language),
    )
    query = "/compare?" + urlencode({"a": view.a.reference, "b": view.b.reference})
    return Document("comparison", title, view.sentence(language), language, sections, runs, query)


def _title(view: ComparisonView, language: Language) -> str:
    a, b = view.a, view.b
    if a.run.run_id == b.run.run_id and a.variant and b.variant:
        return say(language, "{b} against {a} in run {run}", a=a.variant, b=b.variant, run=b.run.run_id)
    return say(language, "{b} against {a}", a=a.reference, b=b.reference)


def _name(view: ComparisonView) -> Callable[[Comparison], str] | None:
    """How rows are called: by their place, where the title says which variants are compared."""
    return place_name if view.a.variant and view.b.variant else None


def _notes(view: ComparisonView, language: Language) -> list[Block]:
    return [Note(text) for text in view.warnings(language)]


def _changes(view: ComparisonView, language: Language) -> list[Block]:
    changed = view.changed
    blocks: list[Block] = []
    if not view.headline:
        known = ", ".join(sorted({case.variant for case in view.a.cases})[:5])
        text = say(language, "cases that both sides have (A has the variants {variants})", variants=known or "-")
        blocks.append(Missing(text, f"python -m harness run {view.a.run.suite}"))
    elif not changed:
        blocks.append(Paragraph(say(language, "No case differs significantly between A and B.")))
    else:
        blocks.append(changes_grid(changed, view.quality, language, most=MOST_ROWS, name=_name(view)))
    blocks.append(Paragraph(hidden_sentence(view.counts, len(changed), language)))
    if view.only_in_a or view.only_in_b:
        text = say(
            language,
            "Cases only in A: {a}; only in B: {b}.",
            a=len(view.only_in_a),
            b=len(view.only_in_b),
        )
        blocks.append(Paragraph(text))
    picture = forest_of(view.headline, language, name=_name(view))
    return [*blocks, *([picture] if picture else [])]


def _differences(view: ComparisonView, language: Language) -> tuple[Block, ...]:
    if not view.differences:
        return (Paragraph(say(language, "Nothing that is recorded: commit, versions, machine and variant agree.")),)
    columns = (Column(say(language, "what")), Column("A"), Column("B"))
    rows = tuple(
        (f"{difference_word(found.kind, language)}: {found.what}", found.a[:60], found.b[:60])
        for found in view.differences
    )
    return (Grid(columns, rows, most=_MOST_DIFFERENCES),)


def _gates(view: ComparisonView, language: Language) -> list[Section]:
    from reports.kinds.gate import judged_rows

    suite = registry.SUITES.get(view.b.run.suite)
    if suite is None or not suite.gates or view.a.run.suite != view.b.run.suite:
        return []
    rows = judged_rows(view.comparisons, view.only_in_a, view.only_in_b, suite, None)
    note = Note(say(language, "Judged once, from what is stored; `harness gate` measures red rows again."), "note")
    return [Section(say(language, "Gates"), (gates_grid(rows, language, most=6), note))]


def _one_sided(view: ComparisonView, language: Language) -> list[Section]:
    found = []
    for title, cases in (
        (say(language, "Only in A"), view.only_in_a),
        (say(language, "Only in B"), view.only_in_b),
    ):
        if cases:
            columns = (Column(say(language, "case")), Column(say(language, "status")), Column(say(language, "reason")))
            rows = tuple((f"{case.model}: {case.label} {case.variant}", case.status, case.reason) for case in cases)
            found.append(Section(title, (Grid(columns, rows),), "detail"))
    return found
