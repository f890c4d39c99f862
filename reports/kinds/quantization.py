"""Report `quantization`: what fewer bits save in bytes, gain in speed and cost in quality, and where they run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.compare import Measured
from harness.store import Store
from harness.tables import Column
from reports.causes import bound_of, operations_of, steps_of, work_of
from reports.document import Block, Document, Grid, Note, Paragraph, Picture, Section
from reports.figures import AxisOf, Curve, ParetoPoint, pareto
from reports.figures.numbers import number, ratio_text
from reports.grids import changes_grid, forest_of
from reports.growth import too_low_note
from reports.kinds.parts import Part, assembled, missing_part, nothing
from reports.kinds.run import qualities
from reports.language import Language, say
from reports.sources import CaseRows, Pool, Request, kind_of, point_of, text_of
from reports.views import CaseView, RunView
from reports.wording import joined, percent

_COMMAND = "python -m harness run quantization"
_PREFERRED = ("quantization",)
_CLOSE = 1e-3  # nats per token: below this the predictions are called the same
_TARGETS: Mapping[str, str] = {  # backend -> the file format that it loads
    "llama_cpp": "GGUF",
    "onnxruntime": "ONNX",
    "onnxruntime_genai": "ONNX",
}


def build(store: Store, request: Request) -> Document:
    """The newest run with quantised variants for each question."""
    language = request.language
    title = say(language, "Quantisation: bytes, speed and quality")
    pool = Pool.of(store, request)
    if not pool.runs:
        return nothing("quantization", title, language)
    parts = [
        _quality(pool, language),
        _speed(pool, language),
        _tradeoff(pool, language),
        _targets(pool, language),
        missing_part(
            say(language, "Edge devices"),
            say(language, "a model for MNN, loaded and timed: no backend of this project measures MNN"),
            "",
        ),
    ]
    return assembled("quantization", title, parts, store, request, query="/pareto")


def is_quantised(variant: str) -> bool:
    """Whether a variant holds its weights in fewer bits: an option of `quant`, or 16-bit weights."""
    return "quant=" in variant or "precision=bf16" in variant or "precision=fp16" in variant


def _rows_with(kind: str, rows: CaseRows) -> int:
    return sum(is_quantised(row["variant"]) and kind_of(row["workload"]) == kind for row in rows)


def _quality(pool: Pool, language: Language) -> Part:
    """PPL, KL and top-1 against the bytes of the weights."""
    title = say(language, "Quality against size")
    view = pool.newest(lambda rows: _rows_with("perplexity", rows) >= 2, prefer=_PREFERRED)
    if view is None:
        return missing_part(title, say(language, "PPL and KL of quantised weights"), _COMMAND)
    items = [item for item in view.cases if kind_of(item.case.workload) == "perplexity" and item.case.status == "ok"]
    items.sort(key=lambda item: _disk(item.case) or 0.0, reverse=True)
    columns = (
        Column(say(language, "variant")),
        Column(say(language, "weights in a file"), right=True),
        Column(say(language, "bytes per weight"), right=True),
        Column("PPL", right=True),
        Column("KL", right=True),
        Column("top-1", right=True),
        Column(say(language, "text")),
    )
    reference = next((item for item in items if item.case.variant == "reference"), items[0])
    rows = tuple(_quality_row(item, reference.case, language) for item in items)
    trained = items[0].case.model
    text = say(
        language,
        "Measured on held-out text with {model}, which is trained; KL is of the variant's predictions from the "
        "reference's on the same tokens.",
        model=trained,
    )
    best = _smallest_close(items)
    answer = say(language, "Number formats whose quality is known: {count}.", count=len(items))
    if best is not None and best.quality is not None and best.quality.kl is not None:
        answer = say(
            language,
            "Of the formats with a KL below 0.001 the smallest is {variant}: {size} for {base} of fp32, KL {kl:.2g}.",
            variant=best.case.variant,
            size=number(_disk(best.case), "bytes"),
            base=number(_disk(reference.case), "bytes"),
            kl=best.quality.kl,
        )
    return Part(Section(title, (Paragraph(text), Grid(columns, rows))), (view.run,), answer)


def _smallest_close(items: Sequence[CaseView]) -> CaseView | None:
    close = [
        item
        for item in items
        if is_quantised(item.case.variant)
        and item.quality is not None
        and item.quality.kl is not None
        and item.quality.kl < _CLOSE
    ]
    return min(close, key=lambda item: _disk(item.case) or float("inf"), default=None)


def _quality_row(item: CaseView, reference: Measured, language: Language) -> tuple[str, ...]:
    case, quality = item.case, item.quality
    per_weight = case.facts.get("bytes_per_weight")
    parameters = case.facts.get("num_params")
    disk = _disk(case)
    each = per_weight if isinstance(per_weight, int | float) else (disk / parameters if disk and parameters else None)
    sample, expected = case.facts.get("sample_text"), reference.facts.get("sample_text")
    same = say(language, "as the reference's") if sample == expected and case is not reference else f"“{sample}”"
    return (
        case.variant,
        number(disk, "bytes"),
        "-" if each is None else f"{each:.3g}",
        "-" if quality is None or quality.ppl is None else f"{quality.ppl:.2f}",
        "-" if quality is None or quality.kl is None else f"{0 if quality.kl < 1e-9 else quality.kl:.2g}",
        "-" if quality is None or quality.top1 is None else percent(quality.top1),
        "-" if not sample else same,
    )


def _disk(case: Measured) -> float | None:
    found = case.facts.get("disk_bytes")
    return float(found) if isinstance(found, int | float) else None


def _speed(pool: Pool, language: Language) -> Part:
    """What fewer bytes did to the time of a step, and why not more."""
    title = say(language, "Speed, and what limits it")
    view = pool.newest(lambda rows: _rows_with("decode", rows) >= 2, prefer=_PREFERRED)
    found = [] if view is None else [
        c for c in view.headline
        if is_quantised(c.candidate.variant) and kind_of(c.candidate.workload) in ("decode", "prefill")
    ]  # fmt: skip
    if view is None or not found:
        return missing_part(title, say(language, "decoding with quantised weights"), _COMMAND)
    cases = [item.case for item in view.cases if kind_of(item.case.workload) == "decode" and item.case.status == "ok"]
    bounds = _bounds_grid(cases, pool, view, language)
    sentences = _why_not_more(cases, language)
    picture = forest_of(found, language)
    blocks: list[Block] = [changes_grid(found, qualities(view), language)]
    blocks += [picture] if picture else []
    blocks += [Paragraph(joined(language, sentences))] if sentences else []
    blocks += [bounds] if bounds.rows else []
    if any("mbu" in case.series and case.series["mbu"].median > 1.05 for case in cases):
        blocks.append(Note(too_low_note(language)))
    best = max(
        (c for c in found if c.verdict == "improved" and c.estimate is not None),
        key=lambda c: c.estimate.ratio if c.better == "higher" else 1 / c.estimate.ratio,  # type: ignore[union-attr]
        default=None,
    )
    if best is None or best.estimate is None:
        answer = say(language, "No quantised variant is significantly faster.")
    else:
        answer = say(
            language,
            "The largest significant gain is {ratio} in {metric} with {variant}.",
            ratio=ratio_text(best.estimate.ratio, best.estimate.low, best.estimate.high),
            metric=best.metric,
            variant=best.candidate.variant,
        )
    return Part(Section(title, tuple(blocks)), (view.run,), answer)


def _why_not_more(cases: Sequence[Measured], language: Language) -> list[str]:
    """The reference against the quantised variants of the same step: bytes saved, time saved."""
    first = cases[0] if cases else None
    ours = next((c for c in cases if "quant=int8" in c.variant.split() and "step=cpp" not in c.variant), None)
    if first is None or ours is None:
        return []
    works, times = (work_of(first), work_of(ours)), (point_of(first, "tpot"), point_of(ours, "tpot"))
    if works[0] is None or works[1] is None or times[0] is None or times[1] is None or not works[1].bytes:
        return []
    calls = operations_of(ours)
    found = [
        say(
            language,
            "{variant} must move {bytes:.1f} times fewer bytes a token than {reference}, but takes {time:.1f} times "
            "less time.",
            variant=ours.variant,
            reference=first.variant,
            bytes=works[0].bytes / steps_of(first) / (works[1].bytes / steps_of(ours)),
            time=times[0].value / times[1].value,
        )
    ]
    if calls and calls > 50:
        found.append(
            say(
                language,
                "A step still dispatches {calls} operator calls, whose cost does not shrink with the weights.",
                calls=calls,
            )
        )
    return found


def _bounds_grid(cases: Sequence[Measured], pool: Pool, view: RunView, language: Language) -> Grid:
    columns = (
        Column(say(language, "variant")),
        Column(say(language, "time per token"), right=True),
        Column(say(language, "bytes a token must move"), right=True),
        Column(say(language, "share of the bandwidth"), right=True),
        Column(say(language, "operator calls"), right=True),
    )
    peaks = pool.peaks(view)
    rows = []
    for case in cases:
        bound, work = bound_of(case, peaks), work_of(case)
        if bound is None or work is None:
            continue
        calls = "-" if bound.operations is None else str(bound.operations)
        share = "-" if bound.memory_share is None else percent(bound.memory_share)
        rows.append((case.variant, text_of(case, "tpot"), number(work.bytes / steps_of(case), "bytes"), share, calls))
    return Grid(columns, tuple(rows), say(language, "What a token costs"))


def _tradeoff(pool: Pool, language: Language) -> Part:
    """Speed against size, coloured by what it costs in quality."""
    title = say(language, "Speed against size, with the loss of quality")
    view = pool.newest(
        lambda rows: _rows_with("decode", rows) >= 2 and _rows_with("perplexity", rows) >= 2, prefer=_PREFERRED
    )
    curves = [] if view is None else _curves(view)
    if view is None or not curves:
        return missing_part(
            title, say(language, "speed and quality of the same quantised variants in one run"), _COMMAND
        )
    drawn = pareto(
        curves,
        x=AxisOf(say(language, "weights in a file"), "bytes", "lower"),
        y=AxisOf("TPS", "tokens/s", "higher"),
        language=language,
    )
    note = Note(
        say(language, "Quality is of the same variant of the trained model; speed and size are of the model named."),
        "note",
    )
    answer = say(
        language,
        "Variants with speed, size and loss in one figure: {count}.",
        count=sum(len(c.points) for c in curves),
    )
    return Part(Section(title, (Picture("pareto", drawn), note)), (view.run,), answer)


def _curves(view: RunView) -> list[Curve]:
    found: dict[str, list[ParetoPoint]] = {}
    for item in view.cases:
        case, speed, size = item.case, point_of(item.case, "tps"), _disk(item.case)
        if kind_of(case.workload) != "decode" or speed is None or size is None or case.status != "ok":
            continue
        name = f"{case.model}: step=cpp" if "step=cpp" in case.variant else case.model
        loss = item.quality.kl if item.quality else None
        found.setdefault(name, []).append(
            ParetoPoint(case.variant, size, speed.value, None, None, speed.low, speed.high, loss)
        )
    return [Curve(name, tuple(points)) for name, points in found.items()]


def _targets(pool: Pool, language: Language) -> Part:
    """Whether exported models load and run on their engines."""
    title = say(language, "On its target")

    def fits(rows: CaseRows) -> bool:
        return any(f"backend={name}" in row["variant"] for row in rows for name in _TARGETS)

    view = pool.newest(fits, prefer=("engines",))
    command = "python -m harness run engines"
    if view is None:
        return missing_part(title, say(language, "GGUF and ONNX exports, loaded and run by their engines"), command)
    columns = (
        Column(say(language, "engine")),
        Column(say(language, "file")),
        Column(say(language, "variant")),
        Column("TPS", right=True),
        Column("TTFT", right=True),
        Column(say(language, "weights in a file"), right=True),
        Column("KL", right=True),
        Column(say(language, "status")),
    )
    by_variant: dict[str, list[CaseView]] = {}
    for item in view.cases:
        backend = next((name for name in _TARGETS if f"backend={name}" in item.case.variant.split()), None)
        if backend is not None and kind_of(item.case.workload) in ("decode", "prefill"):
            by_variant.setdefault(item.case.variant, []).append(item)
    rows = tuple(_target_row(variant, items) for variant, items in by_variant.items())
    loaded = sum(any(item.case.status == "ok" for item in items) for items in by_variant.values())
    answer = say(language, "Exported variants that load and run on their engine: {count}.", count=loaded)
    return Part(Section(title, (Grid(columns, rows),)), (view.run,), answer)


def _target_row(variant: str, items: Sequence[CaseView]) -> tuple[str, ...]:
    backend = next(name for name in _TARGETS if f"backend={name}" in variant.split())
    measured = {name: next((i.case for i in items if name in i.case.series), None) for name in ("tps", "ttft")}
    one = items[0]
    quality = next((item.quality for item in items if item.quality is not None), None)
    status = one.case.status if one.case.status == "ok" else f"{one.case.status}: {one.case.reason}"
    return (
        backend,
        _TARGETS[backend],
        variant,
        *(text_of(case, name) if case else "-" for name, case in measured.items()),
        number(_disk(one.case), "bytes"),
        "-" if quality is None or quality.kl is None else f"{0 if quality.kl < 1e-9 else quality.kl:.2g}",
        status,
    )
