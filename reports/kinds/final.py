"""Report `final`: the route's last page. What was improved, at what cost, what did not help, and what is still open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.compare import Comparison
from harness.schema import RunRow
from harness.store import Store
from harness.tables import Column
from reports.document import Block, Document, Grid, Listing, Missing, Note, Paragraph, Section
from reports.grids import Qualities, changes_grid, forest_of
from reports.kinds.parts import nothing
from reports.kinds.run import qualities
from reports.language import Language, say
from reports.sources import (
    Pool,
    Request,
    environment_section,
    kind_of,
    left_out_note,
    repeat_section,
)
from reports.views import RunView, verdict_sentence
from reports.wording import case_name, change_text, most_changed

_MOST_ROWS = 10
_CLOSE = 1e-3  # nats per token: below this the predictions are called the same
_LEAST_GAIN, _LEAST_SAVING = 1.05, 0.90  # the route's aim: 5% more tokens/s, or 10% less memory
_RATES = ("tps", "prefill_tps", "train_tps")


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of the route: which report shows it, and which workloads and words of variants are its evidence."""

    weeks: str
    what: str
    kind: str
    workloads: tuple[str, ...]
    variants: tuple[str, ...]
    command: str


def build(store: Store, request: Request) -> Document:
    """The runs named, else the newest run of every suite of this machine."""
    language = request.language
    title = say(language, "Final report")
    pool = Pool.of(store, request)
    if not pool.runs:
        return nothing("final", title, language)
    views = [pool.view(run) for run in pool.newest_of_suites()]
    quality: Qualities = {key: found for view in views for key, found in qualities(view).items()}
    comparisons = [c for view in views for c in view.comparisons]
    used = tuple(view.run for view in views)
    notes = left_out_note(store, used, request)
    environment = environment_section(used, language)
    sections = (
        Section(say(language, "The improvement"), _improvement(comparisons, quality, language)),
        Section(say(language, "What did not help"), _negative(comparisons, quality, language)),
        Section(say(language, "Every run in a sentence"), (_sentences(views, language),)),
        Section(say(language, "The route"), _route(pool, language)),
        Section(environment.title, (*environment.blocks, *notes)),
        repeat_section(used, language),
    )
    return Document("final", title, _verdict(comparisons, quality, language), language, sections, used, "/")


def _verdict(comparisons: Sequence[Comparison], quality: Qualities, language: Language) -> str:
    best = _best(comparisons, quality)
    if best is None:
        return say(language, "No run shows an improvement of 5% more tokens/s or 10% less memory at the same quality.")
    return say(
        language,
        "The largest improvement at the same quality: {case}, {metric} {change}.",
        case=case_name(best, language),
        metric=best.metric,
        change=change_text(best),
    )


def _best(comparisons: Sequence[Comparison], quality: Qualities) -> Comparison | None:
    reached = [c for c in comparisons if _reached(c) and _kept(c, quality)]
    timed = [c for c in reached if c.metric in _RATES]
    return next(iter(most_changed(timed or reached)), None)


def _reached(c: Comparison) -> bool:
    """Whether the whole interval (or an exact value) lies beyond the route's aim."""
    if c.verdict != "improved":
        return False
    if c.metric in _RATES and c.estimate is not None:
        return c.estimate.low >= _LEAST_GAIN
    if c.metric == "kv_bytes" and c.reference_value and c.candidate_value is not None:
        return c.candidate_value / c.reference_value <= _LEAST_SAVING
    return False


def _kept(c: Comparison, quality: Qualities) -> bool:
    """Whether the variant's predictions were measured, and are those of the reference."""
    found = quality.get((c.candidate.run_id, c.candidate.case_id))
    return found is not None and found.kl is not None and found.kl < _CLOSE


def _improvement(comparisons: Sequence[Comparison], quality: Qualities, language: Language) -> tuple[Block, ...]:
    reached = [c for c in comparisons if _reached(c)]
    kept, lossy = (most_changed(c for c in reached if _kept(c, quality) is same) for same in (True, False))
    blocks: list[Block] = []
    aim = say(
        language,
        "Aim: at least 5% more tokens/s or 10% less memory, the whole interval beyond it. At the same quality means a "
        "measured KL below {limit} nats per token.",
        limit=_CLOSE,
    )
    blocks.append(Paragraph(aim))
    if kept:
        title = say(language, "At the same quality")
        blocks.append(changes_grid(kept, quality, language, title=title, most=_MOST_ROWS))
    else:
        blocks.append(Missing(say(language, "an improvement at the same quality"), "python -m harness run ladder"))
    if lossy:
        title = say(language, "At a cost in quality, or with quality not measured")
        blocks.append(changes_grid(lossy, quality, language, title=title, most=_MOST_ROWS))
    picture = forest_of([c for c in comparisons if c.metric in _RATES], language)
    return (*blocks, *([picture] if picture else []))


def _negative(comparisons: Sequence[Comparison], quality: Qualities, language: Language) -> tuple[Block, ...]:
    worse = most_changed(c for c in comparisons if c.verdict == "regressed" and c.metric in _RATES)
    same = [c for c in comparisons if c.verdict == "equivalent" and c.metric in _RATES]
    blocks: list[Block] = []
    if worse:
        blocks.append(changes_grid(worse, quality, language, most=_MOST_ROWS))
    if same:
        names = tuple(dict.fromkeys(f"{case_name(c, language)} ({c.metric} {change_text(c)})" for c in same))
        blocks.append(Paragraph(say(language, "No difference that matters:")))
        blocks.append(Listing(names[:_MOST_ROWS]))
    return tuple(blocks) or (Paragraph(say(language, "Nothing measured was slower or without effect.")),)


def _sentences(views: Sequence[RunView], language: Language) -> Grid:
    columns = (Column(say(language, "run")), Column(say(language, "suite")), Column(say(language, "result")))
    rows = tuple((view.run.run_id, view.run.suite, verdict_sentence(view.headline, language)) for view in views)
    return Grid(columns, rows)


def stages(language: Language) -> tuple[Stage, ...]:
    """The route in its order: what is to be produced, and by which command."""
    run = "python -m harness run"
    return (
        Stage("1", say(language, "environment, baseline inference"), "environment", ("decode", "prefill"), (),
              f"{run} quickstart"),
        Stage("1-4", say(language, "training step, number formats"), "training_system", ("train_step",), (),
              f"{run} train_step"),
        Stage("5-6", say(language, "RMSNorm: native, fused, Triton, compiled"), "run", ("rms_norm",), ("norm=",),
              f"{run} norm"),
        Stage("6", say(language, "compilation"), "run", ("decode", "prefill"), ("compile=",), f"{run} compile"),
        Stage("7", say(language, "KV cache preallocated against concatenated"), "long_context", ("decode",),
              ("kv=prealloc",), f"{run} kv_cache"),
        Stage("8, 17-18", say(language, "weights in fewer bits, exports"), "quantization", ("perplexity",), ("quant=",),
              f"{run} quantization"),
        Stage("13-14", say(language, "profile of prefill and decode"), "profile_report", ("prefill", "decode"), (),
              f"{run} ladder"),
        Stage("15-16", say(language, "long context; GQA against MQA"), "long_context", ("prefill",), ("attn=",),
              f"{run} long_context"),
        Stage("19-20", say(language, "serving many requests"), "serving", ("serve",), (), ""),
        Stage("21-22", say(language, "one improvement, step by step"), "final", ("decode",), ("step=cpp", "cudagraph="),
              f"{run} ladder"),
        Stage("23-24", say(language, "gate of a change, evidence for it"), "gate", (), (),
              "python -m harness gate --against HEAD~1"),
    )  # fmt: skip


def _route(pool: Pool, language: Language) -> tuple[Block, ...]:
    columns = (
        Column(say(language, "weeks")),
        Column(say(language, "what")),
        Column(say(language, "evidence")),
        Column(say(language, "report")),
    )
    rows, open_stages = [], []
    measured = [(run, pool.rows(run)) for run in pool.runs]
    for stage in stages(language):
        shown = [run for run, cases in measured if _shows(stage, run, cases)]
        found = min(shown, key=lambda run: run.suite not in stage.command.split(), default=None)
        if found is None:
            open_stages.append(Missing(f"{stage.what} ({say(language, 'weeks')} {stage.weeks})", stage.command))
        evidence = f"{found.suite} {found.run_id}" if found else say(language, "not measured")
        rows.append((stage.weeks, stage.what, evidence, f"python -m harness report {stage.kind}"))
    blocks: list[Block] = [Grid(columns, tuple(rows)), *open_stages]
    if open_stages:
        blocks.append(
            Note(say(language, "Stages without evidence in this store: {count}.", count=len(open_stages)), "note")
        )
    return tuple(blocks)


def _shows(stage: Stage, run: RunRow, cases: Sequence[dict[str, object]]) -> bool:
    if stage.kind == "gate":
        return run.session != "" and run.side == "candidate"
    fitting = [case for case in cases if kind_of(str(case["workload"])) in stage.workloads]
    if not stage.variants:
        return bool(fitting)
    return any(word in str(case["variant"]) for case in fitting for word in stage.variants)
