"""Report `long_context`: how time to first token, decode speed and memory grow with length, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.compare import Measured
from harness.store import Store
from harness.tables import Column
from reports.causes import Growth
from reports.document import Block, Document, Grid, Note, Paragraph, Picture, Section
from reports.figures import ScalingLine, fit_line, scaling
from reports.figures.numbers import number
from reports.growth import (
    MOST_LINES,
    arithmetic_sentence,
    fit_sentence,
    growth_figure,
    growth_grid,
    growths_of,
    too_low_note,
    traffic_grid,
    traffic_sentences,
)
from reports.kinds.cache import heads_part, layout_part, memory_part
from reports.kinds.parts import Part, assembled, lengths_in, missing_part, nothing, series_of
from reports.language import Language, say
from reports.sources import Pool, Request, parameter, point_of, text_of
from reports.views import CaseView
from reports.wording import joined

_COMMAND = "python -m harness run long_context"
_PREFERRED = ("long_context", "kv_cache")


def build(store: Store, request: Request) -> Document:
    """The newest runs that have prompts, decoding, answers and memory at several lengths."""
    language = request.language
    title = say(language, "Long context: time and memory against length")
    pool = Pool.of(store, request)
    if not pool.runs:
        return nothing("long_context", title, language)
    parts = [
        _prompts(pool, language),
        _decoding(pool, language),
        _answers(pool, language),
        memory_part(pool, language),
        heads_part(pool, language),
        layout_part(pool, language),
    ]
    return assembled("long_context", title, parts, store, request, query="/memory")


def _prompts(pool: Pool, language: Language) -> Part:
    """TTFT against the length of the prompt."""
    title = say(language, "Time to first token against the prompt")
    view = pool.newest(lambda rows: lengths_in(rows, "prefill", "context") >= 2, prefer=_PREFERRED)
    growths = growths_of(None if view is None else series_of(view, "prefill", "context"), "ttft", "context")
    if view is None or not growths:
        return missing_part(title, say(language, "TTFT at several prompt lengths"), _COMMAND)
    first = growths[0]
    blocks: list[Block] = [
        Paragraph(joined(language, fit_sentence(first, "TTFT", say(language, "token of the prompt"), language))),
        Paragraph(arithmetic_sentence(first, language)),
        growth_grid(growths, "TTFT", "FLOP", language),
        Picture("ttft", growth_figure(growths, say(language, "prompt in tokens"), "TTFT", language)),
    ]
    answer = say(
        language,
        "TTFT goes from {low} at {least} tokens to {high} at {most} ({variant}).",
        **_ends(first),
    )
    return Part(Section(title, tuple(blocks)), (view.run,), answer)


def _ends(growth: Growth) -> dict[str, Any]:
    """The shortest and the longest length and what was measured there, for a sentence."""
    return {
        "low": growth.points[0].text,
        "high": growth.points[-1].text,
        "least": growth.lengths[0],
        "most": growth.lengths[-1],
        "variant": growth.variant,
    }


def _decoding(pool: Pool, language: Language) -> Part:
    """TPOT against the context, and the bytes that it pays for."""
    title = say(language, "Time per token against the context")
    view = pool.newest(lambda rows: lengths_in(rows, "decode", "context") >= 2, prefer=_PREFERRED)
    growths = growths_of(None if view is None else series_of(view, "decode", "context"), "tpot", "context")
    if view is None or not growths:
        what = say(language, "decoding at several context depths")
        return missing_part(title, what, "python -m harness run kv_cache")
    first = growths[0]
    blocks: list[Block] = [
        Paragraph(joined(language, fit_sentence(first, "TPOT", say(language, "cached position"), language))),
        Paragraph(joined(language, traffic_sentences(first, _case_of(view.cases, first), language))),
        traffic_grid(growths, language),
    ]
    if any(a and e and e < 0.95 * a for g in growths for a, e in zip(g.analytic_bytes, g.effective_bytes, strict=True)):
        blocks.append(Note(too_low_note(language)))
    blocks.append(Picture("tpot", growth_figure(growths, say(language, "context in tokens"), "TPOT", language)))
    answer = say(
        language,
        "A token takes {low} after {least} tokens and {high} after {most} ({variant}).",
        **_ends(first),
    )
    return Part(Section(title, tuple(blocks)), (view.run,), answer)


def _answers(pool: Pool, language: Language) -> Part:
    """TPS against the number of new tokens."""
    title = say(language, "Decode speed against the length of the answer")
    view = pool.newest(lambda rows: lengths_in(rows, "generate", "new_tokens") >= 2, prefer=_PREFERRED)
    series = series_of(view, "generate", "new_tokens") if view else {}
    if view is None or not series:
        return missing_part(title, say(language, "TPS for answers of 100, 500 and 1000 tokens"), _COMMAND)
    lines, rows = [], []
    for (_, variant, *_), cases in list(series.items())[:MOST_LINES]:
        points = []
        for case in cases:
            point, size = point_of(case, "tps"), parameter(case.workload, "new_tokens")
            if point is not None and size is not None:
                points.append((float(size), point.value, point.low, point.high))
                rows.append((variant, str(size), point.text, text_of(case, "tpot")))
        lines.append(ScalingLine(variant, points, fit_line([p[0] for p in points], [p[1] for p in points])))
    columns = (
        Column(say(language, "variant")),
        Column(say(language, "new tokens"), right=True),
        Column("TPS", right=True),
        Column("TPOT", right=True),
    )
    drawn = scaling(lines, x_label=say(language, "new tokens"), y_label="TPS", unit="tokens/s", language=language)
    first, last = lines[0].points[0], lines[0].points[-1]
    answer = say(
        language,
        "Answers of {least} tokens come at {low}, of {most} at {high} ({variant}).",
        least=int(first[0]),
        most=int(last[0]),
        low=number(first[1], "tokens/s"),
        high=number(last[1], "tokens/s"),
        variant=lines[0].name,
    )
    return Part(Section(title, (Grid(columns, tuple(rows)), Picture("tps", drawn))), (view.run,), answer)


def _case_of(items: Sequence[CaseView], growth: Growth) -> Measured | None:
    cases = [item.case for item in items]
    return next((case for case in cases if (case.model, case.variant) == (growth.model, growth.variant)), None)
