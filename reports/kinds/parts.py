"""How a report of several questions is put together: each part answers one, from one run, or says what is missing.

parts = [_prompts(pool, language), _memory(pool, language)]
return assembled("long_context", title, parts, store, request)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness.compare import Measured
from harness.core import Workload
from harness.schema import RunRow
from harness.store import Store
from reports.document import Block, Document, Missing, Section
from reports.kinds.run import nothing
from reports.language import Language, say
from reports.sources import (
    CaseRows,
    Request,
    environment_section,
    kind_of,
    left_out_note,
    repeat_section,
    workload_of,
)
from reports.views import RunView
from reports.wording import joined

__all__ = ["Part", "assembled", "lengths_in", "missing_part", "nothing", "series_of"]


@dataclass(frozen=True, slots=True)
class Part:
    """One question: its section, the runs behind it, and the answer in a sentence (empty where there is none)."""

    section: Section
    runs: tuple[RunRow, ...] = ()
    answer: str = ""


def missing_part(title: str, what: str, command: str, *blocks: Block) -> Part:
    """A question that the store cannot answer."""
    return Part(Section(title, (*blocks, Missing(what, command))))


def assembled(
    kind: str, title: str, parts: Sequence[Part], store: Store, request: Request, *, query: str = ""
) -> Document:
    """The parts in their order, then where the numbers come from and how to repeat them."""
    language = request.language
    runs = tuple({run.run_id: run for part in parts for run in part.runs}.values())
    answers = [part.answer for part in parts if part.answer]
    empty = sum(not part.answer for part in parts)
    sentence = joined(language, answers)
    if not answers:
        sentence = say(language, "Nothing that this report is about has been measured yet.")
    elif empty:
        open_ones = say(language, "Open questions: {empty} of {total}.", empty=empty, total=len(parts))
        sentence = joined(language, (sentence, open_ones))
    notes = left_out_note(store, runs, request) if runs else ()
    environment = environment_section(runs, language)
    sections = (
        *(part.section for part in parts),
        Section(environment.title, (*environment.blocks, *notes)),
        *([repeat_section(runs, language)] if runs else []),
    )
    return Document(kind, title, sentence, language, sections, runs, query)


def lengths_in(rows: CaseRows, kind: str, name: str) -> int:
    """The most different values of a parameter that one model and variant was measured at."""
    found: dict[tuple[str, ...], set[int]] = {}
    for row in rows:
        if kind_of(row["workload"]) == kind:
            workload = Workload.parse(row["workload"])
            rest = tuple(f"{key}={value}" for key, value in workload.params if key != name)
            found.setdefault((row["model"], row["variant"], *rest), set()).add(dict(workload.params).get(name, 0))
    return max(map(len, found.values()), default=0)


def series_of(view: RunView, kind: str, name: str) -> dict[tuple[str, ...], list[Measured]]:
    """(model, variant, other parameters) -> the measured cases of a workload, by the parameter that varies."""
    found: dict[tuple[str, ...], list[Measured]] = {}
    for item in view.cases:
        case = item.case
        if kind_of(case.workload) == kind and case.status in ("ok", "not_steady"):
            rest = tuple(f"{key}={value}" for key, value in workload_of(case).params if key != name)
            found.setdefault((case.model, case.variant, *rest), []).append(case)
    return {
        key: sorted(cases, key=lambda case: dict(workload_of(case).params).get(name, 0))
        for key, cases in found.items()
        if len(cases) > 1
    }


def in_words(language: Language, pairs: Mapping[str, str] | Iterable[tuple[str, str]]) -> str:
    """`a 1, b 2`: short lists inside a sentence."""
    items = pairs.items() if isinstance(pairs, Mapping) else pairs
    return say(language, ", ").join(f"{name} {text}" for name, text in items)
