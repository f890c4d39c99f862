"""Which block comes next, and in which order its arms run. Torch-free.

    order_of(block=0, count=2, seed=7)      # [1, 0]: the first half of the block; the second is its reverse
    Runner(plan, sides, schedule=fixed)     # as many blocks of every group as the sampling says
    Runner(plan, sides, schedule=adaptive(Looks((4, 8, 16)), decided))      # until every case is decided

A schedule is a generator over a runner: it yields (group, block, cases), and by the time it is resumed the block is
done and the states of the sides hold its turns.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

from harness.case_state import CaseState
from harness.compare import paired_estimate, prior_of
from harness.core import Case
from harness.plan import Group
from harness.sequential import MIN_BLOCKS, Looks
from harness.stats import Estimate

if TYPE_CHECKING:
    from harness.runner import Runner, Schedule

Arm = TypeVar("Arm")


def williams(count: int) -> list[list[int]]:
    """A Williams design: orders of `count` arms in which each follows each other equally often (Williams 1949)."""
    first, low, high = [0], 1, count - 1
    while len(first) < count:
        if len(first) % 2:
            first.append(low)
            low += 1
        else:
            first.append(high)
            high -= 1
    square = [[(arm + shift) % count for arm in first] for shift in range(count)]
    return square if count % 2 == 0 else square + [row[::-1] for row in square]


def order_of(block: int, count: int, seed: int) -> list[int]:
    """The order of `count` arms in the first half of a block; the second half is its reverse (ABBA for two arms)."""
    relabel = list(range(count))
    random.Random(f"arms:{seed}").shuffle(relabel)
    design = williams(count)
    return [relabel[arm] for arm in design[block % len(design)]]


def opening_order(block: int, count: int, seed: int) -> list[int]:
    """The order in which a block starts and warms up its workers: crossed with `order_of`, so that neither leans.

    An arm that is always opened first keeps what that does to it in every block (docs/lab, 2026-11-22, the gate here).
    """
    return order_of(block // len(williams(count)), count, seed + 1)


def turns_of(order: Sequence[Arm], passes: int) -> list[Arm]:
    """Who takes each turn of a block: each pass goes through the arms and back (A B B A), so that drift cancels."""
    return [*order, *reversed(order)] * passes


def fixed(runner: Runner) -> Iterator[tuple[Group, int, Collection[Case]]]:
    """Every block of every group; with a deadline, none that would end after it, but one of each whatever it takes."""
    for block in range(runner.plan.sampling.blocks):
        for group in runner.plan.groups:
            started = time.monotonic()
            yield group, block, runner.live(group)
            now = time.monotonic()
            if runner.deadline is not None and block > 0 and now + (now - started) > runner.deadline:
                return


def pairs(runner: Runner, group: Group) -> dict[Case, tuple[CaseState, CaseState]]:
    """What a group compares: the first side with the second, or the baseline arm with each other arm."""
    first, last = runner.sides[0].states, runner.sides[-1].states
    live = runner.live(group)
    if len(runner.sides) > 1:
        return {case: (first[case.case_id], last[case.case_id]) for case in live}
    references = {(c.workload, c.model): first[c.case_id] for c in live if c.variant == group.baseline}
    return {
        case: (references[case.workload, case.model], first[case.case_id])
        for case in live
        if case.variant != group.baseline and (case.workload, case.model) in references
    }


def adaptive(
    looks: Looks, decided: Callable[[Case, Estimate], bool], pool: Callable[[Case], Hashable] = lambda case: None
) -> Schedule:
    """Blocks until every pair is decided at a look, the last look is taken, or the deadline would be passed.

    `decided` judges step time, candidate over reference, with the interval of the look. What is decided gets no more
    blocks; of what is left the group with the widest interval comes first, so that it has most when time runs out.
    Cases of one `pool` lend each other their noise; at the end those of one metric do (`compare_pairs`).
    """

    def schedule(runner: Runner) -> Iterator[tuple[Group, int, Collection[Case]]]:
        groups = list(runner.plan.groups)
        closed: set[Case] = set()
        cost: dict[str, float] = {}  # seconds per case of a group's last block
        ends = [min(look, runner.plan.sampling.blocks) for look in looks.blocks]
        for start, end in pairwise((0, *dict.fromkeys(ends))):
            for block in range(start, end):
                for group in groups:
                    compared = [case for case in pairs(runner, group) if case not in closed]
                    places = {(case.workload, case.model) for case in compared}
                    cases = [
                        case
                        for case in runner.live(group)
                        if case in compared
                        or (case.variant == group.baseline and (case.workload, case.model) in places)
                    ]
                    started = time.monotonic()
                    expected = cost.get(group.name, 0.0) * len(cases)
                    late = runner.deadline is not None and started + expected > runner.deadline
                    if not cases or (late and block >= MIN_BLOCKS):
                        continue
                    yield group, block, cases
                    cost[group.name] = (time.monotonic() - started) / len(cases)
            widths = _judge(runner, looks.confidence_after(end), decided, pool, closed)
            groups.sort(key=lambda group: -widths.get(group.name, 0.0))

    return schedule


def _judge(
    runner: Runner,
    confidence: float,
    decided: Callable[[Case, Estimate], bool],
    pool: Callable[[Case], Hashable],
    closed: set[Case],
) -> dict[str, float]:
    """Close what is decided; the widest interval left in each group, as a log ratio."""
    every = {group.name: pairs(runner, group) for group in runner.plan.groups}
    noise: dict[Hashable, list[Estimate | None]] = {}
    for of_group in every.values():
        for case, (a, b) in of_group.items():
            noise.setdefault(pool(case), []).append(paired_estimate(a.valid_turns(), b.valid_turns()))
    priors = {name: prior_of(estimates) for name, estimates in noise.items()}
    widths: dict[str, float] = {}
    for name, of_group in every.items():
        for case, (a, b) in of_group.items():
            prior = priors[pool(case)]
            estimate = paired_estimate(a.valid_turns(), b.valid_turns(), confidence=confidence, prior=prior)
            if case in closed or estimate is None:
                continue
            if estimate.num_blocks > 1 and decided(case, estimate):
                closed.add(case)
            else:
                width = math.log(estimate.high / estimate.low) if estimate.low > 0 else math.inf
                widths[name] = max(widths.get(name, 0.0), width)
    return widths
