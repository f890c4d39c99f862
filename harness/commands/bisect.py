"""`harness bisect`: find the commit that made a case worse."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from harness.bisect import (
    BisectResult,
    Decision,
    Judgement,
    Outcome,
    Search,
    Step,
    bisect,
    check_blocks,
    check_effect,
    check_metric,
    num_steps,
)
from harness.cli import EXIT_INCONCLUSIVE, EXIT_NOTHING, EXIT_OK
from harness.commands.run import request_of
from harness.commands.terminal import name_problems, open_store, print_table, progress_bar, warn
from harness.core import one_of
from harness.estimate import estimate_seconds
from harness.execute import Request
from harness.machine import checkout
from harness.plan import Plan
from harness.tables import Column, Table, to_json
from harness.worktree import Commit, checkout_worktree, find_commit, list_commits, own_repository

_EXITS: Mapping[Outcome, int] = {
    "found": EXIT_OK,
    "range": EXIT_INCONCLUSIVE,
    "not worse": EXIT_INCONCLUSIVE,
    "undecided": EXIT_INCONCLUSIVE,
    "unmeasured": EXIT_NOTHING,
}
_STYLES: Mapping[Decision, str] = {"good": "default", "bad": "red", "undecided": "yellow", "skipped": "magenta"}
_USUAL_BLOCKS = 4


def bisect_verb(arguments: argparse.Namespace) -> int:
    """Search, print the steps and the commit; 0 found, 3 nothing measured, 4 nothing found or several left."""
    started = time.monotonic()
    request = request_of(arguments, arguments.suite or "gate")
    plan = request.plan()
    max_blocks = check_blocks(arguments.blocks)
    check_effect(arguments.effect, arguments.metric)
    if arguments.metric is not None:
        check_metric(arguments.metric)
        one_of(f"metric of suite {plan.suite.name}", arguments.metric, [*plan.suite.metrics, "step_time"])
    repository = own_repository()
    commits = list_commits(repository, arguments.good, arguments.bad)
    good = find_commit(repository, arguments.good)
    store = open_store(arguments, create=True)
    steps = num_steps(len(commits))
    _announce(plan, good, commits, steps, arguments)
    with checkout_worktree(repository, good.sha) as root, progress_bar() as progress:
        search = Search(
            request,
            store,
            repository,
            good,
            root,
            steps,
            progress,
            _once(),
            effect=arguments.effect,
            metric=arguments.metric,
            gates=plan.suite.gates,
            max_blocks=max_blocks,
            deadline=None if arguments.budget is None else started + arguments.budget,
        )

        def measured(commit: Commit) -> Step:
            step = search.measure_step(commit)
            print(f"step {len(search.steps)} of about {steps}: {_said(step)}", file=sys.stderr, flush=True)
            return step

        result = bisect(commits, measured, time_left=search.time_left)
    name_problems(store)
    _print(result, good, commits[-1], replace(request, blocks=arguments.blocks), arguments)
    return _EXITS[result.outcome]


def _once() -> Callable[[str], None]:
    """`warn`, but every text only once: each step inspects the machine again."""
    told: set[str] = set()

    def told_once(text: str) -> None:
        if text.partition(":")[0] not in told:
            told.add(text.partition(":")[0])
            warn(text)

    return told_once


def _announce(plan: Plan, good: Commit, commits: Sequence[Commit], steps: int, arguments: argparse.Namespace) -> None:
    """How much work lies ahead, before it starts."""
    few = replace(plan, sampling=replace(plan.sampling, blocks=_USUAL_BLOCKS))
    timed = sum(len(group.timed()) for group in plan.groups)
    first = 2 * estimate_seconds(few)
    seconds = first + (steps - 1) * (first / max(timed, 1) + 10)
    print(
        f"{len(commits)} commits after {good.short} up to {commits[-1].short}: about {steps} steps of "
        f"{_USUAL_BLOCKS} blocks, about {_time(seconds)} (rough)",
        file=sys.stderr,
        flush=True,
    )
    if arguments.budget is not None and seconds > arguments.budget:
        warn(f"the budget of {_time(arguments.budget)} may end before the search: the answer is then a range")
    found = checkout()
    if arguments.bad == "HEAD" and found is not None and found.dirty:
        warn("what is not committed is not part of HEAD and is not measured")


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _said(step: Step) -> str:
    judged = next(iter(step.judgements), None)
    amount = f", {_change(judged)}" if judged is not None and judged.ratio is not None else ""
    reason = f" ({step.reason})" if step.reason else ""
    return f"{step.commit.short} {step.decision}{amount}{reason}: {step.commit.subject}"


def _change(found: Judgement) -> str:
    blocks = f" in {found.num_blocks} blocks" if found.num_blocks else ""
    return f"{found.metric} x {found.ratio:.3f}{blocks}"


def _ratio(found: Judgement | None) -> str:
    if found is None or found.ratio is None or found.low is None or found.high is None:
        return "-"
    return f"{found.ratio:.3f} [{found.low:.3f}, {found.high:.3f}]" if found.num_blocks else f"{found.ratio:.3f}"


def _named(found: Judgement) -> str:
    return f"{found.metric} of {found.case.model} {found.case.label} {found.case.variant}"


def _print(result: BisectResult, good: Commit, bad: Commit, request: Request, arguments: argparse.Namespace) -> None:
    first = result.steps[0]
    target = first.judgements[0] if first.decision == "bad" else None
    command = _command(result, good, bad, request, target, arguments.effect)
    sentence = _sentence(result, bad, good, arguments.effect)
    if arguments.output == "json":
        sys.stdout.write(to_json(_document(result, good, bad, request, target, arguments.effect, sentence, command)))
        return
    notes = [sentence]
    if target is not None:
        others = [found for found in first.judgements[1:] if found.decision == "bad"]
        notes += [f"also worse at {bad.short}: {_named(found)} x {found.ratio or 0:.3f}" for found in others]
    notes += [
        f"ratio: commit over {good.short} (good), both measured interleaved; 95% interval over blocks",
        f"repeat: {command}",
    ]
    table = _table_of_steps(result, target) if target is not None else _table_of_cases(first)
    followed = f": {_named(target)}" if target is not None else ""
    title = f"bisect of {request.suite}{followed}, worse by {arguments.effect:.1%} or more"
    print_table(replace(table, title=title, notes=notes), arguments)


def _table_of_steps(result: BisectResult, target: Judgement) -> Table:
    columns = [
        Column("step", right=True),
        Column("commit"),
        Column("ratio [95%]", right=True),
        Column("blocks", right=True),
        Column("decision"),
        Column("subject"),
    ]
    rows, records = [], []
    for number, step in enumerate(result.steps, 1):
        judged = next(iter(step.judgements), None)
        blocks = str(judged.num_blocks) if judged is not None else "-"
        decision = f"{step.decision}: {step.reason}" if step.reason else step.decision
        rows.append((str(number), step.commit.short, _ratio(judged), blocks, decision, step.commit.subject))
        records.append(
            {
                "step": number,
                "commit": step.commit.sha,
                "subject": step.commit.subject,
                **(judged.as_dict() if judged is not None else {}),
                "decision": step.decision,
                "reason": step.reason,
                "seconds": step.seconds,
            }
        )
    return Table("", columns, rows, records, styles=[_STYLES[step.decision] for step in result.steps])


def _table_of_cases(step: Step) -> Table:
    """Where nothing was found: what was measured of every case."""
    columns = [
        *map(Column, ("model", "workload", "variant", "metric")),
        Column("ratio [95%]", right=True),
        Column("blocks", right=True),
        Column("decision"),
    ]
    rows = [
        (
            *(found.case.model, found.case.label, found.case.variant, found.metric),
            *(_ratio(found), str(found.num_blocks)),
            f"{found.decision}: {found.reason}" if found.reason else found.decision,
        )
        for found in step.judgements
    ]
    return Table("", columns, rows, [found.as_dict() for found in step.judgements])


def _sentence(result: BisectResult, bad: Commit, good: Commit, effect: float) -> str:
    """The answer."""
    suspects = result.suspects
    first = result.steps[0]
    if result.outcome == "found":
        return f"first bad commit: {suspects[0].sha} {suspects[0].subject}"
    if result.outcome == "range":
        why = "time ran out" if result.stopped else "the others could not be measured or decided"
        names = ", ".join(f"{commit.short} ({commit.subject})" for commit in suspects[:5])
        more = f" and {len(suspects) - 5} more" if len(suspects) > 5 else ""
        return f"the first bad commit is one of {len(suspects)}, because {why}: {names}{more}"
    if result.outcome == "not worse":
        return f"nothing to find: {bad.short} is not worse than {good.short} by {effect:.1%}"
    if result.outcome == "undecided":
        return f"whether {bad.short} is worse than {good.short} by {effect:.1%} stays undecided: {first.reason}"
    return f"nothing could be measured at {bad.short}: {first.reason}"


def _command(
    result: BisectResult, good: Commit, bad: Commit, request: Request, target: Judgement | None, effect: float
) -> str:
    """What repeats the decisive measurement: the found commit against the one before it, else the whole search."""
    words = request.command("bisect")
    start, end = good.short, bad.short
    if result.outcome == "found":
        end = result.suspects[0].short
        start = f"{end}~1"
    metric = f" --metric {target.metric}" if target is not None else ""
    return f"{words} --good {start} --bad {end}{metric} --effect {effect:g}"


def _document(
    result: BisectResult,
    good: Commit,
    bad: Commit,
    request: Request,
    target: Judgement | None,
    effect: float,
    sentence: str,
    command: str,
) -> dict[str, Any]:
    def commit(of: Commit) -> dict[str, str]:
        return {"sha": of.sha, "subject": of.subject}

    return {
        "suite": request.suite,
        "good": commit(good),
        "bad": commit(bad),
        "outcome": result.outcome,
        "said": sentence,
        "culprit": commit(result.suspects[0]) if result.outcome == "found" else None,
        "suspects": [commit(suspect) for suspect in result.suspects],
        "stopped": result.stopped,
        "effect": effect,
        "followed": None if target is None else {**_identity(target), "metric": target.metric},
        "steps": [
            {
                **commit(step.commit),
                "decision": step.decision,
                "reason": step.reason,
                "seconds": step.seconds,
                "runs": dict(step.runs),
                "judgements": [found.as_dict() for found in step.judgements],
            }
            for step in result.steps
        ],
        "command": command,
    }


def _identity(found: Judgement) -> dict[str, str]:
    case = found.case
    return {"case_id": case.case_id, "model": case.model, "workload": case.workload, "variant": case.variant}
