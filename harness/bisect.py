"""Which commit made a case worse: a binary search in which every step is measured against the good commit. Torch-free.

    result = bisect(commits, measure_step)             # pure: commits oldest first, measure_step(commit) -> Step
    result.outcome, result.suspects                    # "found", (Commit(...),)

    with checkout_worktree(repository, good.sha) as root:
        search = Search(request, store, repository, good, root, ...)   # measures both commits in one session
        result = bisect(commits, search.measure_step)

The bad commit is measured first: without a real difference there is nothing to find. Each step is a sequential test
(`harness.sequential`) that ends as soon as the blocks so far decide, at least 3 and at most `max_blocks`. The permitted
chance of a wrong turn is shared out over the expected steps. A commit that cannot be measured, or stays undecided, is
passed over, as `git bisect skip` does; the answer may then be several commits.

It refuses (UsageError) metrics that are one noisy value per run, and an effect of 0 where there is noise.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from harness.compare import Comparison, Measured, block_difference, compare_pairs, measured_cases
from harness.core import Case, Gate, UsageError, Workload, one_of
from harness.execute import Request, SideRequest, measure
from harness.gates import applicable
from harness.plan import Group
from harness.registry import METRICS, WORKLOADS
from harness.runner import Progress, Runner
from harness.sequential import FIRST_BLOCKS, decide_step
from harness.stats import VariancePrior, variance_prior
from harness.store import Store
from harness.worktree import Commit, checkout_worktree

ERROR_RATE = 0.05  # chance of any wrong turn in the whole search
MAX_BLOCKS = 16
_RAN = frozenset({"ok", "not_steady"})

Decision = Literal["good", "bad", "undecided", "skipped"]
Outcome = Literal["found", "range", "not worse", "undecided", "unmeasured"]


@dataclass(frozen=True, slots=True)
class Judgement:
    """One metric of one case at a commit against the good one. `harm`: how much worse, as a relative change."""

    case: Measured
    metric: str
    decision: Decision
    reason: str
    harm: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    num_blocks: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Flat, for JSON and CSV."""
        return {
            "case_id": self.case.case_id,
            "model": self.case.model,
            "workload": self.case.workload,
            "variant": self.case.variant,
            "metric": self.metric,
            "ratio": self.ratio,
            "low": self.low,
            "high": self.high,
            "num_blocks": self.num_blocks,
            "decision": self.decision,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class Rule:
    """What counts as worse, the permitted chance of a wrong answer either way, and the most blocks of a step."""

    effect: float
    error_rate: float = 0.01
    max_blocks: int = MAX_BLOCKS


@dataclass(frozen=True, slots=True)
class Step:
    """What was found at one commit: the decision, what it rests on (the followed case first), and its stored runs."""

    commit: Commit
    decision: Decision
    reason: str = ""
    judgements: tuple[Judgement, ...] = ()
    runs: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class BisectResult:
    """The end of a search. `suspects`: the first bad commit is one of these, oldest first; empty if nothing was found.

    `stopped`: whether time ran out before the search was through.
    """

    outcome: Outcome
    suspects: tuple[Commit, ...]
    steps: tuple[Step, ...]
    stopped: bool = False


def bisect(
    commits: Sequence[Commit],
    measure_step: Callable[[Commit], Step],
    *,
    time_left: Callable[[], bool] = lambda: True,
) -> BisectResult:
    """Find the first bad commit. `commits`: oldest first, from the one after the good commit to the bad one.

    `time_left` is asked before every step but the first.
    """
    steps = [measure_step(commits[-1])]
    ends: dict[Decision, Outcome] = {"good": "not worse", "undecided": "undecided", "skipped": "unmeasured"}
    if (outcome := ends.get(steps[0].decision)) is not None:
        return BisectResult(outcome, (), tuple(steps))
    low, high, unknown, stopped = -1, len(commits) - 1, set[int](), False
    while (place := _next_place(low, high, unknown)) is not None:
        if stopped := not time_left():
            break
        steps.append(measure_step(commits[place]))
        if steps[-1].decision == "bad":
            high = place
        elif steps[-1].decision == "good":
            low = place
        else:
            unknown.add(place)
    suspects = tuple(commits[low + 1 : high + 1])
    return BisectResult("found" if len(suspects) == 1 else "range", suspects, tuple(steps), stopped)


def _next_place(low: int, high: int, unknown: Collection[int]) -> int | None:
    """The middle of the widest gap between what is known or was passed over; None if nothing lies between.

    With nothing passed over it is the middle. Commits that do not run tend to lie together: the widest gap leads out of
    them in few steps, where the nearest neighbour would try them one by one.
    """
    marks = [low, *sorted(place for place in unknown if low < place < high), high]
    left, right = max(itertools.pairwise(marks), key=lambda gap: gap[1] - gap[0])
    return (left + right) // 2 if right - left > 1 else None


def num_steps(num_commits: int) -> int:
    """How many commits a search measures if none has to be passed over: the bad one, then half of what is left."""
    return 1 + math.ceil(math.log2(num_commits))


# Judging -----------------------------------------------------------------------------------------------------------


def check_metric(name: str) -> None:
    """Raise UsageError if a search cannot follow this metric."""
    metric = METRICS[one_of("metric", name, list(METRICS))]
    if metric.better == "neither":
        raise UsageError(f"metric '{name}' has no better direction, so it cannot get worse")
    if not metric.timed and not metric.exact:
        raise UsageError(
            f"metric '{name}' is one value with noise per run; a search needs one timed in blocks or exact"
        )


def check_effect(effect: float, metric: str | None) -> None:
    """Raise UsageError for an effect that is none: 0 is one only where nothing is noise."""
    exact = metric in METRICS and METRICS[metric].exact
    if not (0 < effect < 1 or (effect == 0 and exact)):
        raise UsageError(f"--effect {effect:g}: give the smallest change that counts, for example 0.03 for 3%")


def differences_of(reference: Measured, candidate: Measured, metric: str) -> list[float]:
    """log(candidate / reference) of every block that both have, positive where it is worse; none for single values."""
    a, b = reference.series.get(metric), candidate.series.get(metric)
    if a is None or b is None or a.single or b.single or not (a.positive and b.positive):
        return []
    sign = 1 if METRICS[metric].better == "lower" else -1
    return [sign * block_difference(a.turns[k], b.turns[k]) for k in sorted(a.turns.keys() & b.turns.keys())]


def judge(
    reference: Measured, candidate: Measured, metric: str, rule: Rule, *, prior: VariancePrior | None = None
) -> Judgement:
    """Whether a metric got worse by the rule's effect, as far as the blocks so far say; measures nothing.

    prior: what other cases and steps tell of the noise. The interval is that of `compare`, at 95% and without it.
    """
    found = compare_pairs([(reference, candidate)], metrics=[metric], margin=rule.effect)
    for case, where in ((reference, "at the good commit "), (candidate, "")):
        if case.status not in _RAN:
            return Judgement(candidate, metric, "skipped", f"{where}{case.status}: {case.reason}")
    timed = any(not series.single for case in (reference, candidate) for series in case.series.values())
    if not found and METRICS[metric].timed and not timed:
        return Judgement(candidate, metric, "undecided", "no block was measured")
    if not found:
        return Judgement(candidate, metric, "skipped", f"'{metric}' was not recorded")
    (row,) = found
    if row.verdict == "invalid":
        return Judgement(candidate, metric, "undecided", row.reason)
    if row.estimate is None:
        return _judge_exact(row, rule.effect)
    differences = differences_of(reference, candidate, metric)
    rate, blocks = rule.error_rate, rule.max_blocks
    step = decide_step(differences, effect=rule.effect, alpha=rate, beta=rate, prior=prior, max_blocks=blocks)
    return Judgement(
        candidate,
        metric,
        "undecided" if step == "more" else step,
        f"{len(differences)} blocks do not decide" if step == "more" else "",
        math.expm1(statistics.fmean(differences)),
        row.estimate.ratio,
        row.estimate.low,
        row.estimate.high,
        len(differences),
    )


def _judge_exact(row: Comparison, effect: float) -> Judgement:
    """A metric without noise: two values decide. From 0 every change is beyond any effect."""
    before, after = row.reference_value, row.candidate_value
    assert before is not None and after is not None
    change = after - before if row.better == "lower" else before - after
    harm = change / abs(before) if before else math.copysign(math.inf, change) if change else 0.0
    ratio = after / before if before else None
    said = f"{before:g} became {after:g}" if change else f"{before:g} on both sides"
    return Judgement(row.candidate, row.metric, "bad" if harm > effect else "good", said, harm, ratio, ratio, ratio)


def _metrics_of(case: Measured, metric: str | None, gates: Sequence[Gate]) -> list[str]:
    """What is followed of a case: the metric named, else what gates say, else its own headline."""
    workload = Workload.parse(case.workload)
    kind = WORKLOADS[workload.kind]
    if metric is not None:
        names = [metric]
    elif gates:
        names = list(applicable(gates, workload, case.model, case.variant))
    else:
        names = [kind.headline]
    usable = [METRICS[name] for name in dict.fromkeys(names)]
    return [
        found.name
        for found in usable
        if found.applies(workload) and (kind.timed if found.timed else found.exact) and found.better != "neither"
    ]


# Measuring ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Search:
    """Measures steps. The first one looks at every gated case; the one that got worst is followed from then on.

    `good_root`: a worktree of the good commit. `deadline`: of `time.monotonic()`; a step in progress ends undecided.
    """

    request: Request
    store: Store
    repository: Path
    good: Commit
    good_root: Path
    num_steps: int
    progress: Progress
    warn: Callable[[str], None]
    effect: float = 0.03
    metric: str | None = None
    gates: Sequence[Gate] = ()
    max_blocks: int = MAX_BLOCKS
    deadline: float | None = None
    target: Judgement | None = None
    steps: list[Step] = field(default_factory=list)
    noise: list[tuple[str, float, float]] = field(default_factory=list)

    def time_left(self) -> bool:
        """Whether another step may begin."""
        return self.deadline is None or time.monotonic() < self.deadline

    def measure_step(self, commit: Commit) -> Step:
        """Measure a commit against the good one, in blocks, until it is decided. Raises HarnessError as `measure` does.

        Both are worktrees with names of one length, so that neither side's environment is longer.
        """
        started = time.monotonic()
        request = self._request()
        repeat = f"{request.command('bisect')} --good {self.good.short} --bad {commit.short}"
        with checkout_worktree(self.repository, commit.sha) as folder:
            runs = measure(
                replace(request, repeat=repeat),
                self.store,
                lambda done, text: self._show(done, f"{commit.short} {text}"),
                self.warn,
                sides=(
                    SideRequest("baseline", root=self.good_root, git_sha=self.good.sha),
                    SideRequest("candidate", root=folder, git_sha=commit.sha),
                ),
                schedule=self._until_decided,
            )
        found = self._judgements(runs["baseline"], runs["candidate"], remember=True)
        step = self._step(commit, found, runs, time.monotonic() - started)
        self.steps.append(step)
        return step

    def _step(self, commit: Commit, found: Sequence[Judgement], runs: Mapping[str, str], seconds: float) -> Step:
        """The decision on a commit; the first one that is bad chooses what is followed."""
        order: tuple[Decision, ...] = ("bad", "undecided", "good", "skipped")
        worst = sorted(found, key=lambda one: (order.index(one.decision), -(one.harm or 0.0)))
        if not worst:
            return Step(commit, "skipped", "no case has such a metric", (), runs, seconds)
        if self.target is None and worst[0].decision == "bad":
            self.target = worst[0]
        return Step(commit, worst[0].decision, worst[0].reason, tuple(worst), runs, seconds)

    def _request(self) -> Request:
        request = replace(self.request, blocks=self.max_blocks, budget_seconds=None)
        if self.target is None or not WORKLOADS[Workload.parse(self.target.case.workload).kind].timed:
            return request
        return replace(request, only=(self.target.case.case_id,))

    def _show(self, done: float, text: str) -> None:
        num_done = len(self.steps)
        self.progress(min((num_done + done) / max(self.num_steps, num_done + 1), 1.0), text)

    def _until_decided(self, runner: Runner) -> Iterator[tuple[Group, int, Collection[Case]]]:
        """A schedule: block after block of the cases that are still undecided, until one is bad or all are decided."""
        baseline, candidate = (side.writer.run_id for side in runner.sides)
        took = 0.0
        for block in range(self.max_blocks):
            if self.deadline is not None and block > 0 and time.monotonic() + took > self.deadline:
                return
            found = self._judgements(baseline, candidate)
            if any(judgement.decision == "bad" for judgement in found):  # the others need not be known so well
                return
            open_ids = {judgement.case.case_id for judgement in found if judgement.decision == "undecided"}
            live = [(group, runner.live(group)) for group in runner.plan.groups]
            chosen = [(group, [case for case in cases if case.case_id in open_ids]) for group, cases in live]
            if not any(cases for _, cases in chosen):
                return
            started = time.monotonic()
            for group, cases in chosen:
                if cases:
                    yield group, block, cases
            took = time.monotonic() - started

    def _judgements(self, baseline: str, candidate: str, *, remember: bool = False) -> list[Judgement]:
        """What the two runs say so far of everything that is followed."""
        references = {case.case_id: case for case in measured_cases(self.store, baseline)}
        pairs = [
            (references[case.case_id], case, metric)
            for case in measured_cases(self.store, candidate)
            for metric in _metrics_of(case, self.metric, self.gates)
            if self.target is None or (case.case_id, metric) == (self.target.case.case_id, self.target.metric)
        ]
        rate = ERROR_RATE / self.num_steps / (max(len(pairs), 1) if self.target is None else 1)
        rule = Rule(self.effect, rate, self.max_blocks)
        noise = [*self.noise, *_noise_of(pairs)]
        if remember:
            self.noise = noise
        metrics = {metric for _, _, metric in pairs}
        priors = {name: variance_prior(*_columns(noise, name)) for name in metrics}
        return [judge(a, b, metric, rule, prior=priors[metric]) for a, b, metric in pairs]


def _noise_of(pairs: Sequence[tuple[Measured, Measured, str]]) -> list[tuple[str, float, float]]:
    """(metric, variance of a block's difference, its degrees of freedom) of every pair with at least two blocks."""
    found = [(metric, differences_of(a, b, metric)) for a, b, metric in pairs]
    return [(metric, statistics.variance(d), len(d) - 1.0) for metric, d in found if len(d) >= 2]


def _columns(noise: Sequence[tuple[str, float, float]], metric: str) -> tuple[list[float], list[float]]:
    mine = [(variance, df) for name, variance, df in noise if name == metric]
    return [variance for variance, _ in mine], [df for _, df in mine]


def check_blocks(blocks: int | None) -> int:
    """The most blocks of a step. Raises UsageError for fewer than a decision takes."""
    if blocks is not None and blocks < FIRST_BLOCKS:
        raise UsageError(f"--blocks {blocks}: a step takes at least {FIRST_BLOCKS} blocks to decide")
    return blocks or MAX_BLOCKS
