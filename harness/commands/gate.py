"""`harness gate`: measure a candidate and its baseline, judge every gated row, and say so in every form asked for."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness import registry
from harness.baselines import Baseline, parse_baseline
from harness.calibration import NoiseCalibration, load_noise
from harness.commands.run import request_of
from harness.commands.show import machine_line
from harness.commands.terminal import name_problems, open_store, print_table, progress_bar, warn
from harness.compare import CONFIDENCE, Comparison, Measured, compare_pairs, measured_cases
from harness.core import Case, Gate, UsageError, one_of
from harness.execute import Request, SideRequest, measure
from harness.gate_power import abilities_of, forecast, margin_of
from harness.gate_report import GateReport, to_annotations, to_json_text, to_junit, to_markdown, to_table
from harness.gates import GateRow, applicable, confirmed, evaluate, gates_of, load_gates, red, settled, unmatched
from harness.machine import checkout, fingerprint, inspect_machine, versions
from harness.plan import Group, Plan
from harness.run_noise import RunNoise
from harness.runner import Runner, Schedule
from harness.schedule import adaptive, fixed
from harness.sequential import Looks
from harness.stats import Estimate
from harness.store import Store
from harness.telemetry import usable_cpus
from harness.worktree import checkout_worktree, own_repository

DEFAULT_FILE = Path("gates.toml")
DEFAULT_SUITE = "gate"
DEFAULT_BUDGET = 600.0
ALPHA = 0.05
_FIRST_SHARE = 0.8  # of the budget; the rest is for measuring red cases again


@dataclass(frozen=True, slots=True)
class Session:
    """What one `harness gate` works with, once everything that the user named has been found.

    `source`: where the gates are declared. Of `arguments` only `axis` and `model` are needed to measure and judge.
    """

    request: Request
    plan: Plan
    gates: tuple[Gate, ...]
    source: str
    store: Store
    baseline: Baseline
    calibration: NoiseCalibration | None
    arguments: argparse.Namespace

    @property
    def timed(self) -> bool:
        """Whether blocks are measured at all."""
        return any(gate.kind == "statistical" for gate in self.gates)

    @property
    def looks(self) -> Looks | None:
        """When results are looked at; None where they are judged once, at the end."""
        sampling, kind = self.plan.sampling, self.baseline.kind
        own_reference = all(group.baseline == self.baseline.variant for group in self.plan.groups if group.timed())
        interleaved = kind == "commit" or (kind == "variant" and own_reference)
        if not (interleaved and self.timed and sampling.looks and sampling.blocks >= 2):
            return None
        return Looks(sampling.looks, alpha=ALPHA / 2).upto(sampling.blocks)


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured once: the comparisons, the cases of one side only, and the runs."""

    comparisons: Sequence[Comparison]
    missing: Sequence[Measured]
    new: Sequence[Measured]
    runs: dict[str, str]


def gate_verb(arguments: argparse.Namespace) -> int:
    """0 green, 1 regressed, 2 usage, 3 nothing measured, 4 undecided."""
    started = time.monotonic()
    session = find_session(arguments)
    told = forecast(session.plan, session.gates, session.calibration, session.request.budget_seconds)
    for line in told:
        print(line, file=sys.stderr)
    with opened_sides(session) as sides:
        first = measure_once(session, sides, _share(session.request, _FIRST_SHARE if session.timed else 1.0))
        rows = judge(session, first)
        if reds := red(rows):
            names = ", ".join(sorted({f"{row.case.model} {row.case.label} {row.case.variant}" for row in reds}))
            print(f"red, measured again on fresh blocks: {names}", file=sys.stderr)
            rows = confirmed(rows, judge_again(session, sides, reds))
    name_problems(session.store)
    report = make_report(session, first, rows, told, time.monotonic() - started)
    write_outputs(report, arguments)
    return report.exit_code


def find_session(arguments: argparse.Namespace) -> Session:
    """Everything that can be wrong with what the user named is found here, before anything is measured."""
    registry.load_all(arguments.plugin)
    for flag in ("markdown", "junit"):
        _check_target(f"--{flag}", getattr(arguments, flag))
    suite, gates, source, budget = declared_gates(arguments)
    if arguments.exact:
        gates = tuple(gate for gate in gates if gate.kind != "statistical")
        if not gates:
            raise UsageError(f"{source} declares no exact or bound gate: with --exact there is nothing to gate")
    timed = any(gate.kind == "statistical" for gate in gates)
    request = request_of(arguments, suite, blocks=arguments.blocks, budget_seconds=_budget(arguments, budget))
    plan = request.plan()
    before = Store(Path(arguments.store))  # whatever is there: the folder is made only when everything else is right
    baseline = parse_baseline(arguments.against, before, None)
    key = fingerprint(inspect_machine(request.device), versions(), request.device, threads=len(usable_cpus()))
    check_baseline(baseline, plan, key, timed=timed)
    store = open_store(arguments, create=True)
    found = Session(request, plan, gates, source, store, baseline, load_noise(store, key), arguments)
    return replace(found, request=replace(request, repeat=repeat_command(found)))


def declared_gates(arguments: argparse.Namespace) -> tuple[str, tuple[Gate, ...], str, float | None]:
    """(suite, gates, where they are declared, budget): --gates, else ./gates.toml if of this suite, else the suite."""
    asked: str | None = arguments.suite
    path = Path(arguments.gates) if arguments.gates is not None else DEFAULT_FILE
    if arguments.gates is not None or path.exists():
        found = load_gates(path)
        if arguments.gates is not None or asked is None or found.suite in (None, asked):
            return asked or found.suite or DEFAULT_SUITE, found.gates, str(path), found.budget_seconds
    name = asked or DEFAULT_SUITE
    suite = registry.SUITES[one_of("suite", name, list(registry.SUITES))]
    return name, tuple(gates_of(suite.gates, f"suite '{name}'")), f"suite {name}", None


def _budget(arguments: argparse.Namespace, declared: float | None) -> float | None:
    """Seconds for everything; none where the user named the number of blocks instead."""
    if arguments.budget is not None:
        return float(arguments.budget)
    return None if arguments.blocks is not None else declared or DEFAULT_BUDGET


def _check_target(flag: str, path: str | None) -> None:
    """A report that cannot be written is an error before the measurement, not after it."""
    if path is None:
        return
    folder = Path(path).resolve().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or Path(path).is_dir():
        raise UsageError(f"{flag} '{path}' cannot be written: {folder} is no folder that can be written into")


def check_baseline(baseline: Baseline, plan: Plan, key: str, *, timed: bool) -> None:
    """Raise UsageError where a comparison with this baseline would mean nothing."""
    if baseline.run is not None:
        run, suite = baseline.run, plan.suite
        if (run.suite, run.suite_version) != (suite.name, suite.version):
            raise UsageError(
                f"{baseline} is of suite {run.suite} version {run.suite_version}, "
                f"not of {suite.name} version {suite.version}"
            )
        if timed and run.fingerprint != key:
            again = f"measure its commit beside this one (--against commit:{run.git_sha[:9]})" if run.git_sha else ""
            raise UsageError(
                f"{baseline} was measured on another machine ({run.machine_id}) or with other versions, so its times "
                f"say nothing here; {again or 'name a commit'}, or gate what has no noise with --exact"
            )
    elif baseline.variant is not None:
        known = {str(arm) for group in plan.groups for arm in group.arms}
        if str(baseline.variant) not in known:
            raise UsageError(
                f"suite '{plan.suite.name}' measures no variant {baseline.variant} to compare with; it measures "
                f"{', '.join(sorted(known))}. Name more with --axis"
            )


@contextlib.contextmanager
def opened_sides(session: Session) -> Iterator[tuple[SideRequest, ...]]:
    """What is measured: both commits interleaved, or the candidate alone."""
    if session.baseline.kind != "commit":
        yield (SideRequest(),)
        return
    commit, here = session.baseline.commit, checkout()
    with checkout_worktree(own_repository(), commit) as root:
        own = SideRequest("candidate", None, here.sha if here else "", bool(here and here.dirty))
        yield (SideRequest("baseline", root, commit), own)


def measure_once(
    session: Session, sides: Sequence[SideRequest], request: Request, wanted: Collection[str] | None = None
) -> Measurement:
    """Measure and compare. `wanted`: identities of the only cases that get blocks; None for all."""
    with progress_bar() as progress:
        schedule = _schedule(session, wanted)
        by_side = measure(request, session.store, progress, warn, sides=sides, schedule=schedule)
    runs = {name or "candidate": run_id for name, run_id in by_side.items()}
    return _compared(session, runs, whole=wanted is None)


def _share(request: Request, share: float) -> Request:
    budget = request.budget_seconds
    return request if budget is None else replace(request, budget_seconds=budget * share)


def _compared(session: Session, runs: dict[str, str], *, whole: bool) -> Measurement:
    """The candidate's cases beside the baseline's. `whole`: all cases of the suite were meant to be measured."""
    stored, variant = session.baseline.run, session.baseline.variant
    candidates = measured_cases(session.store, runs["candidate"])
    most = max((len(series.turns) for case in candidates for series in case.series.values()), default=0)
    looks = None if session.looks is None else session.looks.until(most)

    def confidence(num_blocks: int) -> float:
        return CONFIDENCE if looks is None else looks.confidence_after(num_blocks)

    if variant is not None:
        pairs = _variant_pairs(candidates, str(variant))
        return Measurement(compare_pairs(pairs, metrics=None, confidence=confidence), (), (), runs)
    runs = runs if stored is None else {"baseline": stored.run_id, **runs}
    references = measured_cases(session.store, runs["baseline"])
    known = {case.case_id: case for case in references}
    pairs = [(known[case.case_id], case) for case in candidates if case.case_id in known]
    narrowed = not whole or session.arguments.model or session.arguments.axis
    missing = [] if narrowed else _without(references, candidates)
    found = compare_pairs(pairs, metrics=None, confidence=confidence)
    return Measurement(found, missing, _without(candidates, references), runs)


def _without(cases: Sequence[Measured], others: Sequence[Measured]) -> list[Measured]:
    known = {case.case_id for case in others}
    return [case for case in cases if case.case_id not in known]


def _variant_pairs(cases: Sequence[Measured], variant: str) -> list[tuple[Measured, Measured]]:
    """Every case with the same model and workload in the baseline's variant."""
    references = {(case.model, case.workload): case for case in cases if case.variant == variant}
    places = [(references.get((case.model, case.workload)), case) for case in cases if case.variant != variant]
    return [(reference, case) for reference, case in places if reference is not None]


def _schedule(session: Session, wanted: Collection[str] | None) -> Schedule:
    """Looks where sides are interleaved, else all blocks; of `wanted` cases only. None at all for exact gates."""
    looks = session.looks
    statistical = [gate for gate in session.gates if gate.kind == "statistical"]

    def gated(case: Case) -> dict[str, Gate]:
        return applicable(statistical, case.workload, case.model, str(case.variant))

    whole: Schedule = fixed
    if looks is not None:
        whole = adaptive(looks, _decided(session, gated), pool=lambda case: tuple(gated(case)))
    if not session.timed:
        return lambda runner: iter(())
    if wanted is None:
        return whole

    def chosen(runner: Runner) -> Iterator[tuple[Group, int, Collection[Case]]]:
        for group, block, cases in whole(runner):
            if kept := [case for case in cases if case.case_id in wanted]:
                yield group, block, kept

    return chosen


def _decided(session: Session, gated: Callable[[Case], dict[str, Gate]]) -> Callable[[Case, Estimate], bool]:
    """Whether a case needs no more blocks: every statistical gate on it is settled by its step time."""

    def decided(case: Case, estimate: Estimate) -> bool:
        return all(
            settled(
                replace(gate, metric="step_time"),
                estimate,
                margin_of(session.calibration, case, gate, session.plan.suite.margin, estimate.num_blocks),
            )
            for gate in gated(case).values()
        )

    return decided


def judge(session: Session, measured: Measurement) -> tuple[GateRow, ...]:
    """The rows of the first measurement."""
    return _rows(session, session.gates, measured.comparisons, missing=measured.missing, new=measured.new)


def _rows(
    session: Session, gates: Sequence[Gate], comparisons: Sequence[Comparison], **unpaired: Sequence[Measured]
) -> tuple[GateRow, ...]:
    policy, stored = session.plan.suite.margin, session.baseline.run
    if stored is None:
        return evaluate(gates, comparisons, calibration=session.calibration, policy=policy, **unpaired)
    floors = RunNoise.of(session.store, stored, session.calibration)
    rows = evaluate(gates, comparisons, calibration=floors, policy=policy, **unpaired)
    return tuple(floors.proved(row) for row in rows)


def judge_again(session: Session, sides: Sequence[SideRequest], reds: Sequence[GateRow]) -> tuple[GateRow, ...]:
    """The red rows, and no others, measured on fresh blocks in another order."""
    wanted = {row.case.case_id for row in reds} | {row.reference.case_id for row in reds if row.reference is not None}
    request = replace(session.request, only=tuple(sorted(wanted)), seed=session.request.seed + 1)
    second = measure_once(session, sides, _share(request, 1 - _FIRST_SHARE), wanted)
    named = {(row.case.case_id, row.gate.metric) for row in reds}
    cases = {row.case.case_id for row in reds}
    kept = [
        found
        for found in second.comparisons
        if (found.candidate.case_id, found.metric) in named
        or (found.candidate.case_id in cases and found.verdict == "invalid")
    ]
    return _rows(session, tuple(dict.fromkeys(row.gate for row in reds)), kept)


def make_report(
    session: Session, measured: Measurement, rows: tuple[GateRow, ...], told: Sequence[str], seconds: float
) -> GateReport:
    """Everything that the forms of the report say."""
    run = session.store.find_run(measured.runs["candidate"])
    notes = []
    if session.baseline.run is not None and session.timed:
        notes.append("Baseline and candidate were not interleaved: what changed on the machine in between is in it.")
    if session.calibration is not None and (flags := session.calibration.flags()):
        notes.append(f"The calibration was measured {flags}; renew it with: python -m harness calibrate --noise")
    tree = f"{run.git_sha[:9] or 'no commit'}{' with local changes' if run.git_dirty else ''}"
    return GateReport(
        suite=session.plan.suite.name,
        against=str(session.baseline),
        candidate=tree,
        machine=machine_line(run),
        command=repeat_command(session),
        rows=rows,
        commands=tuple(repeat_command(session, row) for row in rows),
        abilities=(*told, *abilities_of(rows, session.calibration)),
        notes=tuple(notes),
        runs=tuple(measured.runs.items()),
        unmatched=unmatched(session.gates, rows),
        seconds=seconds,
    )


def repeat_command(session: Session, row: GateRow | None = None) -> str:
    """The one line that measures this again: everything, or the model of one row."""
    request, arguments = session.request, session.arguments
    words = ["python", "-m", "harness", "gate", request.suite, "--against", session.baseline.canonical]
    words += ["--gates", arguments.gates] if arguments.gates is not None else []
    words += ["--exact"] if arguments.exact or (row is not None and row.gate.kind != "statistical") else []
    words += [word for axis, options in request.axes.items() for word in ("--axis", f"{axis}={','.join(options)}")]
    for name in request.models if row is None else (row.case.model,):
        words += ["--model", name]
    if arguments.blocks is not None:
        words += ["--blocks", str(arguments.blocks)]
    if arguments.budget is not None:
        words += ["--budget", f"{arguments.budget:g}"]
    words += ["--seed", str(request.seed), "--device", request.device]
    words += [word for plugin in request.plugins for word in ("--plugin", plugin)]
    return shlex.join(words)


def write_outputs(report: GateReport, arguments: argparse.Namespace) -> None:
    """Files asked for, annotations on stderr, and the table (or JSON, CSV, Markdown) on stdout."""
    for flag, render in (("markdown", to_markdown), ("junit", to_junit)):
        if (path := getattr(arguments, flag)) is not None:
            try:
                Path(path).write_text(render(report), encoding="utf-8")
            except OSError as error:
                raise UsageError(f"--{flag} '{path}' cannot be written: {error.strerror or error}") from error
    if arguments.annotations:
        sys.stderr.write(to_annotations(report))
    if arguments.output in ("json", "md"):
        sys.stdout.write(to_json_text(report) if arguments.output == "json" else to_markdown(report))
    else:
        print_table(to_table(report), arguments)
