"""Report `gate`: what the gates of a suite say of a candidate beside its baseline, as both lie in the store.

`harness gate` prints the same when it has measured; this report makes it again later, and repeats a red row's second
measurement where that is stored. The gates are those that the suite declares.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import timedelta
from urllib.parse import urlencode

from harness import registry
from harness.calibration import NoiseCalibration, load_noise
from harness.cli import EXIT_INCONCLUSIVE, EXIT_OK, EXIT_REGRESSED
from harness.compare import CONFIDENCE, Comparison, Measured, compare_pairs, measured_cases
from harness.core import Suite, UsageError
from harness.gates import GateRow, confirmed, describe, evaluate, exit_code, red, unmatched
from harness.schema import RunRow
from harness.sequential import Looks
from harness.store import Store
from reports.document import Block, Command, Document, Listing, Missing, Note, Paragraph, Section
from reports.grids import forest_of, gates_grid
from reports.language import Language, say
from reports.sources import Pool, Request, environment_section, repeat_section
from reports.wording import commit_text

ALPHA = 0.05  # as `harness gate` judges
_SOON = timedelta(hours=2)  # a second measurement follows its first within that
_COMMAND = "python -m harness gate --against HEAD~1"


def build(store: Store, request: Request) -> Document:
    """The gate of a candidate run: that named, else the newest one measured beside a baseline."""
    language = request.language
    if len(request.refs) > 2:
        raise UsageError(f"a gate report takes a candidate and at most one baseline, not {len(request.refs)} runs")
    candidate, baseline = _pair(store, request)
    if candidate is None or baseline is None:
        return _nothing(candidate, language)
    suite = registry.SUITES.get(candidate.suite)
    if suite is None or not suite.gates:
        missing = Missing(say(language, "gates: the suite {suite} declares none", suite=candidate.suite), _COMMAND)
        return _document(language, say(language, "No gate is declared."), (candidate,), (missing,))
    rows, comparisons, runs = _judge(store, suite, candidate, baseline)
    sections = (
        Section(say(language, "Gates"), _rows_blocks(rows, suite, language)),
        Section(say(language, "What can be detected"), _abilities(store, rows, candidate, language)),
        *_picture(comparisons, language),
        environment_section(runs, language),
        repeat_section((), language, Command(_repeat(candidate, baseline))),
        Section(say(language, "Every gated row"), (gates_grid(rows, language),), "detail"),
    )
    query = "/compare?" + urlencode({"a": baseline.run_id, "b": candidate.run_id})
    title = say(language, "Gate of {suite}: {candidate}", suite=suite.name, candidate=commit_text(candidate, language))
    return Document("gate", title, sentence_of(rows, baseline, language), language, sections, runs, query)


def gate_blocks(store: Store, run: RunRow, language: Language) -> tuple[Block, ...]:
    """The gates of a run inside another report: judged where a baseline was measured beside it."""
    baseline = _baseline_of(store, run)
    suite = registry.SUITES[run.suite]
    if baseline is None:
        text = say(language, "a baseline measured beside this run, to judge the gates of {suite}", suite=suite.name)
        return (Missing(text, f"python -m harness gate {suite.name} --against HEAD~1"),)
    rows, _, _ = _judge(store, suite, run, baseline)
    return (Paragraph(sentence_of(rows, baseline, language)), gates_grid(rows, language, most=6))


def sentence_of(rows: Sequence[GateRow], baseline: RunRow, language: Language) -> str:
    """The gate's verdict in one sentence."""
    judged = [row for row in rows if row.decision != "skipped"]
    against = commit_text(baseline, language)
    code = exit_code(rows)
    if code == EXIT_REGRESSED:
        worse = sum(row.decision == "regressed" for row in rows)
        return say(
            language,
            "Red: {count} of {total} gated rows regressed against {baseline}.",
            count=worse,
            total=len(judged),
            baseline=against,
        )
    if code == EXIT_OK:
        return say(
            language,
            "Green: none of {total} gated rows regressed against {baseline}.",
            total=len(judged),
            baseline=against,
        )
    if code == EXIT_INCONCLUSIVE:
        open_rows = sum(row.decision in ("inconclusive", "invalid") for row in rows)
        return say(
            language,
            "Undecided: {count} of {total} gated rows could not be judged against {baseline}.",
            count=open_rows,
            total=len(judged),
            baseline=against,
        )
    return say(language, "Nothing could be measured against {baseline}.", baseline=against)


def judged_rows(
    comparisons: Sequence[Comparison],
    missing: Sequence[Measured],
    new: Sequence[Measured],
    suite: Suite,
    noise: NoiseCalibration | None,
) -> tuple[GateRow, ...]:
    """The suite's gates on some comparisons, judged once."""
    return evaluate(suite.gates, comparisons, calibration=noise, policy=suite.margin, missing=missing, new=new)


def _pair(store: Store, request: Request) -> tuple[RunRow | None, RunRow | None]:
    runs = Pool.of(store, request).runs
    if len(request.refs) == 2:
        return runs[0], runs[1]
    for run in runs:
        baseline = _baseline_of(store, run)
        if request.refs or baseline is not None:
            first = first_of(store, run)
            return first, baseline if first is run else _baseline_of(store, first)
    return None, None


def _baseline_of(store: Store, run: RunRow) -> RunRow | None:
    """The run measured interleaved with a candidate, as its baseline."""
    if not run.session or run.side == "baseline":
        return None
    beside = [other for other in store.runs() if other.session == run.session and other.run_id != run.run_id]
    return next((other for other in beside if other.side == "baseline"), None)


def _judge(
    store: Store, suite: Suite, candidate: RunRow, baseline: RunRow
) -> tuple[tuple[GateRow, ...], list[Comparison], tuple[RunRow, ...]]:
    """The rows as the gate judged them: red ones with their second measurement, where one followed."""
    noise = load_noise(store, candidate.fingerprint)
    comparisons: dict[str, list[Comparison]] = {}

    def judge(ours: RunRow, theirs: RunRow) -> tuple[GateRow, ...]:
        comparisons[ours.run_id], rows = _once(store, suite, ours, theirs, noise)
        return rows

    again = _second(store, candidate, baseline)
    rows = rows_of((candidate, baseline), again, judge)
    runs = (
        (candidate, baseline, *again) if again is not None and any(row.first for row in rows) else (candidate, baseline)
    )
    return rows, comparisons[candidate.run_id], runs


def rows_of(
    pair: tuple[RunRow, RunRow],
    again: tuple[RunRow, RunRow] | None,
    judge: Callable[[RunRow, RunRow], tuple[GateRow, ...]],
) -> tuple[GateRow, ...]:
    """What `judge` says of a candidate and its baseline; red rows are confirmed, or not, by what was measured again."""
    rows = judge(*pair)
    wanted = {(row.case.case_id, row.metric) for row in red(rows)}
    if not wanted or again is None:
        return rows
    return confirmed(rows, [row for row in judge(*again) if (row.case.case_id, row.metric) in wanted])


def _once(
    store: Store, suite: Suite, candidate: RunRow, baseline: RunRow, noise: NoiseCalibration | None
) -> tuple[list[Comparison], tuple[GateRow, ...]]:
    ours, theirs = measured_cases(store, candidate.run_id), measured_cases(store, baseline.run_id)
    known, names = {case.case_id: case for case in theirs}, {case.case_id for case in ours}
    pairs = [(known[case.case_id], case) for case in ours if case.case_id in known]
    most = max((len(series.turns) for case in ours for series in case.series.values()), default=0)
    looks = _looks(suite, candidate, baseline, most)

    def confidence(num_blocks: int) -> float:
        return CONFIDENCE if looks is None else looks.confidence_after(num_blocks)

    comparisons = compare_pairs(pairs, metrics=None, confidence=confidence)
    missing = [case for case in theirs if case.case_id not in names]
    new = [case for case in ours if case.case_id not in known]
    return comparisons, judged_rows(comparisons, missing, new, suite, noise)


def _looks(suite: Suite, candidate: RunRow, baseline: RunRow, most: int) -> Looks | None:
    """When results were looked at; None where the two were not interleaved, or judged once at the end."""
    interleaved = candidate.session != "" and candidate.session == baseline.session
    blocks = json.loads(candidate.plan or "{}").get("blocks") or suite.sampling.blocks
    if not (interleaved and suite.sampling.looks and blocks >= 2):
        return None
    return Looks(suite.sampling.looks, alpha=ALPHA / 2).upto(blocks).until(most)


def first_of(store: Store, run: RunRow) -> RunRow:
    """The run whose red rows this one measured again, or the run itself."""
    before = [other for other in store.runs() if follows(other, run)]
    return before[-1] if before else run


def follows(first: RunRow, second: RunRow) -> bool:
    """Whether one run measured again what was red in the other: the same gate soon after, with the next seed."""
    if first.finished_at is None or second.started_at is None:
        return False
    same = (first.suite, first.git_sha, first.side, first.command) == (
        second.suite,
        second.git_sha,
        second.side,
        second.command,
    )
    soon = first.finished_at <= second.started_at <= first.finished_at + _SOON
    return same and soon and first.side != "" and second.seed == first.seed + 1


def _second(store: Store, candidate: RunRow, baseline: RunRow) -> tuple[RunRow, RunRow] | None:
    """The session in which red rows were measured again."""
    for run in store.runs():
        beside = _baseline_of(store, run) if follows(candidate, run) else None
        if beside is not None and beside.git_sha == baseline.git_sha:
            return run, beside
    return None


def _rows_blocks(rows: Sequence[GateRow], suite: Suite, language: Language) -> tuple[Block, ...]:
    shown = [row for row in rows if row.decision not in ("passed", "skipped")]
    hidden = len(rows) - len(shown)
    blocks: list[Block] = [gates_grid(shown, language)] if shown else []
    if hidden:
        blocks.append(Paragraph(say(language, "Gated rows that are unchanged and hidden here: {count}.", count=hidden)))
    idle = [describe(gate) for gate in unmatched(suite.gates, rows)]
    if idle:
        told = say(language, "Gates that judged nothing here: {gates}.", gates="; ".join(idle))
        blocks.append(Note(told, "note"))
    if red(rows):
        text = say(language, "A red row counts only after a second measurement on fresh blocks, which the store lacks.")
        blocks.append(Note(text))
    return tuple(blocks)


def _abilities(store: Store, rows: Sequence[GateRow], run: RunRow, language: Language) -> tuple[Block, ...]:
    effects = sorted(
        row.minimum_detectable_effect
        for row in rows
        if row.p_value is not None and row.minimum_detectable_effect is not None
    )
    blocks: list[Block] = []
    if effects:
        text = say(
            language,
            "With what was measured, changes from {least:.1%} were detectable in 4 of 5 cases; in the middle row from "
            "{middle:.1%}, in the worst from {most:.1%}.",
            least=effects[0],
            middle=effects[len(effects) // 2],
            most=effects[-1],
        )
        blocks.append(Paragraph(text))
    blocks += noise_blocks(load_noise(store, run.fingerprint), language)
    return tuple(blocks)


def noise_blocks(noise: NoiseCalibration | None, language: Language) -> list[Block]:
    """How often verdicts here are wrong, as calibration measured it; missing where it never did."""
    command = "python -m harness calibrate --noise"
    if noise is None:
        return [Missing(say(language, "the noise floor of this machine, its false alarms and its power"), command)]
    lines = []
    for floor in noise.floors:
        low, high = floor.red.interval
        lines.append(
            say(
                language,
                "{family} ({metric}): {hits} of {trials} comparisons of unchanged code were red (95% interval "
                "{low:.1%} to {high:.1%}), measured {day}",
                family=floor.family,
                metric=floor.metric,
                hits=floor.red.hits,
                trials=floor.red.trials,
                low=low,
                high=high,
                day=f"{floor.measured_at:%Y-%m-%d}",
            )
        )
    blocks: list[Block] = [Listing(tuple(lines))]
    if flags := noise.flags():
        blocks.append(Note(say(language, "The calibration was measured {flags}.", flags=flags)))
    return blocks


def _picture(comparisons: Sequence[Comparison], language: Language) -> list[Section]:
    picture = forest_of([c for c in comparisons if c.metric == c.candidate.headline], language)
    return [] if picture is None else [Section(say(language, "Effects"), (picture,))]


def _repeat(candidate: RunRow, baseline: RunRow) -> str:
    if candidate.session and candidate.session == baseline.session and baseline.git_sha:
        return f"python -m harness gate {candidate.suite} --against commit:{baseline.git_sha[:12]}"
    return f"python -m harness gate {candidate.suite} --against {baseline.run_id}"


def _nothing(candidate: RunRow | None, language: Language) -> Document:
    what = say(language, "a candidate measured beside its baseline")
    runs = () if candidate is None else (candidate,)
    return _document(language, say(language, "No gate was measured."), runs, (Missing(what, _COMMAND),))


def _document(language: Language, sentence: str, runs: tuple[RunRow, ...], blocks: tuple[Block, ...]) -> Document:
    sections = (Section(say(language, "Missing"), blocks), environment_section(runs, language))
    return Document("gate", say(language, "Gate"), sentence, language, sections, runs)
