"""Report `environment`: each machine and its versions, its measured peaks and noise, and the first baselines on it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from harness.calibration import load_noise
from harness.schema import PeakRow, RunRow
from harness.store import Store
from harness.tables import Column
from reports.document import Block, Document, Grid, Missing, Note, Paragraph, Section
from reports.figures.numbers import number
from reports.kinds.gate import noise_blocks
from reports.kinds.parts import Part, assembled, missing_part, nothing
from reports.language import Language, say
from reports.sources import CaseRows, Pool, Request, kind_of, parameter, text_of
from reports.views import CaseView, RunView
from reports.wording import machine_line

_GIB = 2**30


def build(store: Store, request: Request) -> Document:
    """The machine of the runs named, else of the newest run."""
    language = request.language
    title = say(language, "Environment record")
    pool = Pool.of(store, request)
    if not pool.runs:
        return nothing("environment", title, language)
    parts = [
        _machine(pool.runs, language),
        _peaks(pool, language),
        _noise(pool, language),
        _inference(pool, language),
        _training(pool, language),
    ]
    return assembled("environment", title, parts, store, request, query="/runs")


def _machine(runs: Sequence[RunRow], language: Language) -> Part:
    """Hardware, versions and packages of the newest run, and what earlier runs had instead."""
    run = runs[0]
    rows = [
        (say(language, "processor"), run.cpu_model),
        (say(language, "cores, threads used"), f"{run.cores}, {run.threads}"),
        (say(language, "memory"), f"{run.ram_bytes / _GIB:.1f} GiB" if run.ram_bytes else ""),
        (say(language, "device"), f"{run.device} {run.device_name}" if run.device == "cuda" else run.device),
        (say(language, "driver, CUDA"), ", ".join(filter(None, (run.driver, run.cuda)))),
        (say(language, "system"), run.os),
        ("Python", run.python),
        ("torch", run.torch),
        ("triton", run.triton),
        (say(language, "machine"), run.machine_id),
        (say(language, "fingerprint"), run.fingerprint),
    ]
    rows += [(name, str(version)) for name, version in sorted(json.loads(run.packages or "{}").items())
             if name not in ("torch", "triton")]  # fmt: skip
    columns = (Column(say(language, "what")), Column(say(language, "value")))
    grid = Grid(columns, tuple((name, value or "-") for name, value in rows))
    blocks: list[Block] = [grid]
    prints = {other.fingerprint for other in runs if other.machine_id == run.machine_id}
    if len(prints) > 1:
        text = say(
            language,
            "{count} states of this machine (hardware and versions) occur in these runs; their times do not compare.",
            count=len(prints),
        )
        blocks.append(Note(text))
    answer = machine_line(run, language) + ("." if language == "en" else "。")
    return Part(Section(say(language, "Machine"), tuple(blocks)), (run,), answer)


def _peaks(pool: Pool, language: Language) -> Part:
    """What the machine can reach, as calibration measured it for the newest state that was calibrated."""
    title = say(language, "Measured peaks")
    found = next(((run, rows) for run in pool.runs if (rows := pool.store.calibration(run.fingerprint))), None)
    if found is None:
        return missing_part(title, say(language, "measured peaks of this machine"), "python -m harness calibrate")
    run, peaks = found
    columns = (
        Column(say(language, "peak")),
        Column(say(language, "number format")),
        Column(say(language, "working set"), right=True),
        Column(say(language, "threads"), right=True),
        Column(say(language, "value"), right=True),
    )
    blocks: list[Block] = [Grid(columns, tuple(_peak_row(row, language) for row in peaks))]
    if run.fingerprint != pool.runs[0].fingerprint:
        text = say(language, "the same for the newest run's versions (fingerprint {key})", key=pool.runs[0].fingerprint)
        blocks.append(Missing(text, "python -m harness calibrate"))
    fastest = max((row for row in peaks if row.kind == "matmul"), key=lambda row: row.value, default=None)
    answer = say(language, "Its peaks are measured.")
    if fastest is not None:
        answer = say(
            language,
            "Its fastest products reach {rate} in {dtype}.",
            rate=_rate(fastest),
            dtype=fastest.dtype,
        )
    return Part(Section(title, tuple(blocks)), (run,), answer)


def _peak_row(row: PeakRow, language: Language) -> tuple[str, ...]:
    names = {
        "matmul": say(language, "matrix product"),
        "read": say(language, "reading"),
        "copy": say(language, "copying"),
    }
    size = f"{row.size_bytes / 1e6:.0f} MB" if row.size_bytes else "-"
    return names.get(row.kind, row.kind), row.dtype, size, str(row.threads), _rate(row)


def _rate(row: PeakRow) -> str:
    return number(row.value, "FLOP/s" if row.unit.startswith("FLOP") else "bytes/s")


def _noise(pool: Pool, language: Language) -> Part:
    """How often verdicts are wrong here."""
    run = pool.runs[0]
    blocks = noise_blocks(load_noise(pool.store, run.fingerprint), language)
    known = not any(isinstance(block, Missing) for block in blocks)
    answer = say(language, "Its noise is calibrated.") if known else ""
    return Part(Section(say(language, "Noise of verdicts"), tuple(blocks)), (run,) if known else (), answer)


def _inference(pool: Pool, language: Language) -> Part:
    """The reference's TTFT, TPS and memory, and what it writes."""
    title = say(language, "Baseline inference")

    def has_both(rows: CaseRows) -> bool:
        kinds = {kind_of(row["workload"]) for row in rows if row["variant"] == "reference"}
        return {"prefill", "decode"} <= kinds

    view = pool.newest(has_both, prefer=("quickstart", "engines"))
    if view is None:
        what = say(language, "TTFT, TPS and peak memory of the reference")
        return missing_part(title, what, "python -m harness run quickstart")
    items = [item for item in view.cases if item.case.variant == "reference" and item.case.status == "ok"]
    timed = [item for item in items if kind_of(item.case.workload) in ("prefill", "decode", "generate")]
    columns = (
        Column(say(language, "case")),
        Column("TTFT", right=True),
        Column("TPS", right=True),
        Column(say(language, "peak memory"), right=True),
    )
    rows = tuple(
        (
            f"{item.case.model}: {item.case.label}",
            text_of(item.case, "ttft"),
            text_of(item.case, "tps"),
            text_of(item.case, "peak_bytes"),
        )
        for item in timed
    )
    blocks: list[Block] = [Grid(columns, rows), *_sample(view, items, language)]
    speed = next((item.case for item in timed if "tps" in item.case.series), None)
    answer = say(language, "The reference's inference is recorded.")
    if speed is not None:
        answer = say(
            language,
            "The reference decodes {model} at {rate} after {context} tokens.",
            model=speed.model,
            rate=text_of(speed, "tps"),
            context=parameter(speed.workload, "context") or "?",
        )
    return Part(Section(title, tuple(blocks)), (view.run,), answer)


def _sample(view: RunView, items: Sequence[CaseView], language: Language) -> list[Block]:
    one = next((item.case for item in items if item.case.facts.get("sample_text")), None)
    if one is None:
        return [Missing(say(language, "a sample of what the model writes"), "python -m harness run engines")]
    prompt = str(one.facts.get("sample_prompt", ""))[-60:]
    text = say(
        language,
        "{model} continues “…{prompt}” with “{text}”.",
        model=one.model,
        prompt=prompt,
        text=str(one.facts["sample_text"]),
    )
    return [Paragraph(text)]


def _training(pool: Pool, language: Language) -> Part:
    """The reference's training step."""
    title = say(language, "Baseline training")
    view = pool.newest(lambda rows: any(kind_of(row["workload"]) == "train_step" for row in rows))
    command = "python -m harness run train_step"
    loss = Missing(say(language, "the loss curve of a training: the store holds no losses"), "")
    if view is None:
        return missing_part(title, say(language, "tokens/s and peak memory of a training step"), command, loss)
    found = [item.case for item in view.cases if kind_of(item.case.workload) == "train_step" and item.is_reference]
    columns = (
        Column(say(language, "case")),
        Column(say(language, "tokens/s"), right=True),
        Column(say(language, "step"), right=True),
        Column(say(language, "peak memory"), right=True),
    )
    rows = tuple(
        (
            f"{case.model}: {case.label}",
            text_of(case, "train_tps"),
            text_of(case, "step_time"),
            text_of(case, "peak_bytes"),
        )
        for case in found
    )
    answer = say(language, "The reference's training step is recorded.")
    return Part(Section(title, (Grid(columns, rows), loss)), (view.run,), answer)
