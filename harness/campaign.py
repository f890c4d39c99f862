"""What a noise calibration measures: which arms in which blocks. Torch-free.

    suite = noise_suite(request.plan(), ("3", "5"))            # each case beside its A/A arm and slower ones
    campaign = Campaign(("3", "5"))
    with offered(suite):
        measure(replace(request, suite=suite.name), store, progress, warn, schedule=campaign)

A block measures one case and one partner of it, two arms in turns, exactly as a gate does: the same case again
(`control=aa`) or an injected slowdown (`spin=N`). As many blocks in a row as a comparison has make a round; what the
gate's rule makes of the rounds is in `harness.verdict_rates`. Refuses (UsageError) a suite without timed cases and
slowdowns that are no numbers.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from harness.core import Case, Grid, Suite, UsageError, Variant, Workload
from harness.plan import Group, Plan
from harness.registry import METRICS, OPTIONS, SUITES

if TYPE_CHECKING:
    from harness.runner import Runner

BUSY = "busy"  # the word for a busy neighbour among the injections
NEIGHBOUR_SHARE = 0.5
BUSY_FROM = 1_000_000  # block numbers from here on were measured beside a busy neighbour
_ENOUGH_DF, _ENOUGH_FALSE, _ENOUGH_POWER = 90, 200, 100

_SPINNING = """
import os, sys, time
share, parent = float(sys.argv[1]), int(sys.argv[2])
while os.getppid() == parent:
    until = time.perf_counter() + 0.02 * share
    while time.perf_counter() < until:
        pass
    time.sleep(0.02 * (1 - share))
"""


def injections(text: str) -> tuple[str, ...]:
    """`1,2,3,5` as options of axis spin, the largest first, `busy` last. Raises UsageError naming a bad word."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    pattern = OPTIONS["spin", "N"].pattern or ""
    for word in words:
        if word != BUSY and not re.fullmatch(pattern, word):
            raise UsageError(
                f"'{word}' in --inject is no slowdown: give percent from 0.1 to 99.9 with at most one decimal, "
                f"for example 1,2,3,5; or {BUSY} for a busy neighbour"
            )
    numbers = sorted({word for word in words if word != BUSY}, key=float, reverse=True)
    return (*numbers, *([BUSY] if BUSY in words else []))


def noise_suite(plan: Plan, percents: Sequence[str]) -> Suite:
    """The suite that measures the noise of another: beside each timed case its A/A arm and its slower arms.

    Raises UsageError for a suite without timed cases.
    """
    places: dict[Variant, dict[str, dict[Workload, None]]] = {}
    for group in plan.groups:
        for case in group.timed():
            if case.case_id not in plan.skips:
                places.setdefault(case.variant, {}).setdefault(case.model, {})[case.workload] = None
    grids = []
    for variant, models in places.items():
        spun = (variant.with_choice("spin", word) for word in percents if word != BUSY)
        arms = (variant.with_choice("control", "aa"), *spun)
        axes = {axis: (option,) for axis, option in variant.choices}
        alike: dict[tuple[Workload, ...], list[str]] = {}
        for model, workloads in models.items():
            alike.setdefault(tuple(workloads), []).append(model)
        grids += [Grid(tuple(names), workloads, axes, extra=arms) for workloads, names in alike.items()]
    if not grids:
        raise UsageError(f"suite '{plan.suite.name}' has no timed case here, so there is no noise to measure")
    return replace(
        plan.suite,
        name=f"noise-{plan.suite.name}",
        doc=f"A/A and injected slowdowns over {plan.suite.name}.",
        grids={plan.device: tuple(grids)},
        metrics=tuple(name for name in plan.suite.metrics if METRICS[name].timed),
        sampling=plan.sampling,
    )


@contextlib.contextmanager
def offered(suite: Suite) -> Iterator[None]:
    """Inside, the suite can be asked for by its name, as if it had been declared."""
    SUITES[suite.name] = suite
    try:
        yield
    finally:
        del SUITES[suite.name]


def pairs_only(plan: Plan) -> Plan:
    """The plan with two arms a group: what one block of a calibration runs."""
    groups = []
    for group in plan.groups:
        arms = group.arms[:2]
        groups.append(replace(group, arms=arms, cases=tuple(case for case in group.cases if case.variant in arms)))
    return replace(plan, groups=tuple(groups))


@contextlib.contextmanager
def busy_neighbour(share: float = NEIGHBOUR_SHARE) -> Iterator[None]:
    """A child process that uses this share of one core, 20 ms at a time, inside the context; it outlives no parent."""
    child = subprocess.Popen([sys.executable, "-c", _SPINNING, str(share), str(os.getpid())])
    try:
        yield
    finally:
        child.kill()
        child.wait()


@dataclass(slots=True)
class Campaign:
    """A schedule: rounds of A/A and of one injection after the other, until enough is known or time is over.

    `rounds`: at most so many; `seconds`: of each group, how long its blocks took.
    """

    injected: tuple[str, ...]
    rounds: int | None = None
    seconds: dict[str, list[float]] = field(default_factory=dict)
    num_cases: dict[str, int] = field(default_factory=dict)
    families: dict[str, set[tuple[str, str]]] = field(default_factory=dict)

    def cycle(self) -> list[str]:
        """What the rounds measure in turn: A/A every other time."""
        return [word for other in self.injected for word in ("aa", other)] or ["aa"]

    def __call__(self, runner: Runner) -> Iterator[tuple[Group, int, Sequence[Case]]]:
        """The blocks of a run, for `execute.measure`."""
        blocks, cycle = runner.plan.sampling.blocks, self.cycle()
        for number in itertools.count():
            if number == self.rounds or (number % len(cycle) == 0 and self._enough(number, runner)):
                return
            word = cycle[number % len(cycle)]
            with busy_neighbour() if word == BUSY else contextlib.nullcontext():
                for block in range(number * blocks, (number + 1) * blocks):
                    for group in runner.plan.groups:
                        cases = chosen_cases(runner.live(group), group, word)
                        if not cases:
                            continue
                        started = time.monotonic()
                        taken = self.seconds.setdefault(group.name, [])
                        if taken and runner.deadline is not None and started + taken[-1] > runner.deadline:
                            return
                        yield group, block + (BUSY_FROM if word == BUSY else 0), cases
                        taken.append(time.monotonic() - started)
                        self.num_cases[group.name] = len(cases) // 2
                        self.families[group.name] = {(case.workload.kind, case.model) for case in cases}

    def _enough(self, number: int, runner: Runner) -> bool:
        """Whether every rate and every floor is known well; only numbers of blocks decide, never their values."""
        blocks, cycle = runner.plan.sampling.blocks, self.cycle()
        rounds = number // len(cycle)
        places = sum(len(chosen_cases(runner.live(group), group, "aa")) // 2 for group in runner.plan.groups)
        num_false = rounds * places * max(len(self.injected), 1)
        degrees = rounds * max(len(self.injected), 1) * blocks - 1
        power = rounds * places if self.injected else _ENOUGH_POWER
        return degrees >= _ENOUGH_DF and num_false >= _ENOUGH_FALSE and power >= _ENOUGH_POWER

    def block_seconds(self) -> dict[tuple[str, str], float]:
        """Workload kind and model -> seconds of one block of one case and its partner, start of workers included."""
        found: dict[tuple[str, str], float] = {}
        for name, taken in self.seconds.items():
            if taken:
                for family in self.families[name]:
                    found[family] = statistics.median(taken) / max(self.num_cases[name], 1)
        return found


def chosen_cases(live: Sequence[Case], group: Group, word: str) -> list[Case]:
    """The cases of a block: those of the group's first arm and of one partner, where both can run."""
    partner = _partner(group.baseline, word)
    here = {(case.model, case.workload, case.variant) for case in live}
    both = [case for case in live if (case.model, case.workload, group.baseline) in here]
    both = [case for case in both if (case.model, case.workload, partner) in here]
    return [case for case in both if case.variant in (group.baseline, partner)]


def _partner(variant: Variant, word: str) -> Variant:
    return variant.with_choice("control", "aa") if word in ("aa", BUSY) else variant.with_choice("spin", word)
