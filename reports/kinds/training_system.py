"""Report `training_system`: what a training step costs, what number formats and norms do to it, and what limits it."""

from __future__ import annotations

from harness.compare import Measured
from harness.store import Store
from harness.tables import Column
from reports.causes import bound_of, work_of
from reports.document import Block, Document, Grid, Note, Paragraph, Picture, Section
from reports.figures import Pair, Value, bars
from reports.figures.numbers import number
from reports.grids import changes_grid, forest_of
from reports.growth import too_low_note
from reports.kinds.parts import Part, assembled, missing_part, nothing
from reports.kinds.profile_report import bound_word
from reports.kinds.run import qualities
from reports.language import Language, say
from reports.sources import CaseRows, Pool, Request, kind_of, point_of, text_of
from reports.views import RunView, verdict_sentence
from reports.wording import percent

_COMMAND = "python -m harness run train_step"


def build(store: Store, request: Request) -> Document:
    """The newest run with training steps."""
    language = request.language
    title = say(language, "Training system")
    pool = Pool.of(store, request)
    if not pool.runs:
        return nothing("training_system", title, language)
    view = pool.newest(_trains, prefer=("train_step", "precision"))
    parts = [
        _step(pool, view, language),
        _changes(view, "precision", say(language, "fp32 against autocast and 16 bits"), language),
        _changes(view, "norm", say(language, "The norm in training"), language),
        _changes(view, "compile", say(language, "Compiled training"), language),
        _pipeline(pool, language),
        missing_part(
            say(language, "Memory by phase"),
            say(language, "memory of forward, backward and update apart: only the peak of the whole step is stored"),
            "",
        ),
        missing_part(
            say(language, "Loss and stability"),
            say(language, "losses, gradient norms and loss scales by step: the trainer prints them and stores none"),
            "",
        ),
    ]
    return assembled("training_system", title, parts, store, request, query="/runs")


def _trains(rows: CaseRows) -> bool:
    return any(kind_of(row["workload"]) == "train_step" for row in rows)


def _step(pool: Pool, view: RunView | None, language: Language) -> Part:
    """Tokens/s, step time, memory and what limits the step."""
    title = say(language, "The step")
    if view is None:
        return missing_part(
            title, say(language, "tokens/s, step time, MFU and peak memory of training steps"), _COMMAND
        )
    items = [item for item in view.cases if kind_of(item.case.workload) == "train_step"]
    columns = (
        Column(say(language, "case")),
        Column(say(language, "tokens/s"), right=True),
        Column(say(language, "step"), right=True),
        Column("MFU", right=True),
        Column(say(language, "peak memory"), right=True),
        Column(say(language, "status")),
    )
    rows = tuple(
        (
            f"{item.case.model}: {item.case.label} {item.case.variant}",
            text_of(item.case, "train_tps"),
            text_of(item.case, "step_time"),
            text_of(item.case, "mfu"),
            text_of(item.case, "peak_bytes"),
            item.case.status if item.case.status == "ok" else f"{item.case.status}: {item.case.reason}",
        )
        for item in items
    )
    blocks: list[Block] = [Grid(columns, rows)]
    first = next((item.case for item in items if item.is_reference and item.case.status == "ok"), None)
    answer = say(language, "Training steps are recorded.")
    if first is not None:
        answer = say(
            language,
            "{model} trains at {rate} ({workload}).",
            model=first.model,
            rate=text_of(first, "train_tps"),
            workload=first.label,
        )
        bound, work = bound_of(first, pool.peaks(view)), work_of(first)
        if bound is not None and work is not None and bound.compute_share is not None:
            text = say(
                language,
                "Forward, backward and update take {seconds} for {flops:.3g} FLOP, {rate} or {share} of the peak: the "
                "step is bound by {bound}.",
                seconds=number(bound.seconds, "s"),
                flops=work.flops,
                rate=number(work.flops / bound.seconds, "FLOP/s"),
                share=percent(bound.compute_share),
                bound=bound_word(bound, language),
            )
            blocks.insert(0, Paragraph(text))
            if bound.peak_too_low:
                blocks.append(Note(too_low_note(language)))
    return Part(Section(title, tuple(blocks)), (view.run,), answer)


def _changes(view: RunView | None, axis: str, title: str, language: Language) -> Part:
    """The options of one axis against the reference, in training."""
    found = [] if view is None else [
        c for c in view.comparisons
        if kind_of(c.candidate.workload) == "train_step" and f"{axis}=" in c.candidate.variant
    ]  # fmt: skip
    wanted = [c for c in found if c.metric in ("train_tps", "step_time", "peak_bytes")]
    if view is None or not wanted:
        what = say(language, "training steps with options of {axis}", axis=axis)
        command = "python -m harness run precision" if axis == "precision" else _COMMAND
        command = f"{_COMMAND} --axis compile=off,default" if axis == "compile" else command
        return missing_part(title, what, command)
    headline = [c for c in wanted if c.metric == "train_tps"]
    picture = forest_of(headline, language)
    pairs = [
        Pair(f"{c.candidate.model} {c.candidate.variant}", _value("A", c.reference), _value("B", c.candidate))
        for c in headline
    ]
    blocks: list[Block] = [changes_grid(wanted, qualities(view), language)]
    if picture is not None:
        blocks.append(Picture(f"{axis}-effects", picture.figure))
    if pairs:
        blocks.append(Picture(f"{axis}-rates", bars(pairs, unit="tokens/s", language=language)))
    return Part(Section(title, tuple(blocks)), (view.run,), verdict_sentence(headline, language))


def _value(name: str, case: Measured) -> Value:
    point = point_of(case, "train_tps")
    if point is None:
        return Value(name, float("nan"), None, None, 0)
    return Value(name, point.value, point.low, point.high, point.n)


def _pipeline(pool: Pool, language: Language) -> Part:
    """The data loader, where a suite measured one."""
    title = say(language, "Data pipeline")
    view = pool.newest(lambda rows: any(kind_of(row["workload"]) == "dataloader" for row in rows))
    if view is None:
        what = say(language, "the loader's rate, packed against unpacked, workers, pinned memory: no suite measures it")
        return missing_part(title, what, "")
    items = [item for item in view.cases if kind_of(item.case.workload) == "dataloader"]
    names = sorted({name for item in items for name, series in item.case.series.items() if not series.single})
    columns = (Column(say(language, "case")), *(Column(name, right=True) for name in names))
    rows = tuple(
        (f"{item.case.label} {item.case.variant}", *(text_of(item.case, name) for name in names)) for item in items
    )
    answer = say(language, "The loader is measured.")
    return Part(Section(title, (Grid(columns, rows),)), (view.run,), answer)
