"""Looking at results while blocks are still being measured, without more false alarms than promised. Torch-free.

    looks = Looks(blocks=(4, 8, 16), alpha=0.025)
    paired_log_ratio(a, b, confidence=looks.confidence(0))    # the interval to judge after four blocks
    decide_step(differences, effect=0.05, alpha=0.01, beta=0.01)   # "good", "bad" or "more": a step of bisect

A test repeated after every block at 5% raises far more than 5% false alarms. Lan and DeMets (1983) share the permitted
chance out over the looks, by how much of the planned number of blocks is in. The levels are computed for normal sums
and applied to p-values of Student's t (the significance-level approach: Jennison and Turnbull 2000, section 4.4), with
some of alpha held back, because t of few blocks is less alike from look to look than a normal sum;
docs/lab/2026-11-22-statistics.md measures that the promise is kept. Refuses looks that do not increase.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist
from typing import Literal, get_args

import numpy as np

from harness.stats import Values, VariancePrior, p_value_beyond, p_value_within, paired_log_ratio

__all__ = ["FIRST_BLOCKS", "MIN_BLOCKS", "Looks", "Spending", "Step", "decide_step"]

Spending = Literal["obrien-fleming", "pocock", "early"]
Step = Literal["good", "bad", "more"]
_NORMAL = NormalDist()
_NODES = 200  # of the quadrature over where the sum may stand; nominal levels to 1e-7
_REACH = 8.5  # standard deviations beyond which the sum is not expected
_EARLY = 0.3  # exponent of the power family (Kim and DeMets 1987): half is spent in the first tenth
MIN_BLOCKS = 2  # one block has no interval
FIRST_BLOCKS = 3  # below, a step of bisect is not judged: one degree of freedom says next to nothing
STUDENT_SHARE = 0.9  # of alpha that several looks at t may spend: simulated from 4 blocks on, all of it spends 1.07
_STEP_SHARE = 0.9  # a further share for looks after every block from 3 on: simulated, all of it spends 1.24


@dataclass(frozen=True, slots=True)
class Looks:
    """After how many blocks results are looked at, and what each look may spend of `alpha`.

    alpha: the chance of a false alarm in one direction over all looks together; a two-sided family is twice that.
    spending: `obrien-fleming` spends almost all of it at the last look, `pocock` about evenly, for clear cases to end
    early, `early` two thirds in the first quarter. Blocks lost to a disturbance: give the numbers that were
    reached, the last being the planned end.
    """

    blocks: tuple[int, ...] = (4, 8, 16)
    alpha: float = 0.025
    spending: Spending = "obrien-fleming"

    def __post_init__(self) -> None:
        increasing = all(a < b for a, b in zip((1, *self.blocks), self.blocks, strict=False))
        if not self.blocks or not increasing or not 0 < self.alpha < 0.5:
            raise ValueError(
                f"looks need increasing blocks from 2 and alpha below 0.5, not {self.blocks}, {self.alpha}"
            )
        if self.spending not in get_args(Spending):
            raise ValueError(f"unknown spending {self.spending!r}: {', '.join(get_args(Spending))}")

    def spent(self, look: int) -> float:
        """How much of alpha may be spent up to and including look 0, 1, ... (Lan and DeMets 1983)."""
        return _spent(self.blocks[look] / self.blocks[-1], self._usable, self.spending)

    @property
    def _usable(self) -> float:
        return self.alpha * (STUDENT_SHARE if len(self.blocks) > 1 else 1.0)

    def nominal_alpha(self, look: int) -> float:
        """The one-sided level of the test at this look (0 is the first)."""
        return _nominal_alphas(self.blocks, self._usable, self.spending)[look]

    def confidence(self, look: int) -> float:
        """Of the two-sided interval that is this look's test in both directions (Jennison and Turnbull 1989)."""
        return 1.0 - 2.0 * self.nominal_alpha(look)

    def upto(self, last: int) -> Looks:
        """The looks before that many blocks, and that one as the last."""
        last = max(last, MIN_BLOCKS)
        return replace(self, blocks=(*(look for look in self.blocks if MIN_BLOCKS <= look < last), last))

    def until(self, num_blocks: int) -> Looks:
        """The looks of what a deadline ended after that many blocks: that look was the last, and spends what is left.

        When time runs out has nothing to do with what was found, so this costs no false alarms.
        """
        return self.upto(min(num_blocks, self.blocks[-1]))

    def confidence_after(self, num_blocks: int) -> float:
        """The two-sided confidence at which to judge what ended after that many blocks, be it between two looks."""
        taken = self.upto(num_blocks).blocks
        rest = self.blocks[-1:] if taken[-1] < self.blocks[-1] else ()
        return replace(self, blocks=(*taken, *rest)).confidence(len(taken) - 1)


def _spent(fraction: float, alpha: float, spending: Spending) -> float:
    if spending == "pocock":
        return alpha * math.log1p((math.e - 1.0) * fraction)
    if spending == "early":
        return float(alpha * fraction**_EARLY)
    return 2.0 * _NORMAL.cdf(-_NORMAL.inv_cdf(1.0 - alpha / 2.0) / math.sqrt(fraction))


@lru_cache(maxsize=256)
def _nominal_alphas(blocks: tuple[int, ...], alpha: float, spending: Spending) -> tuple[float, ...]:
    """The recursion of Armitage, McPherson and Rowe (1969): the density of the sum, had no look stopped before.

    `density` at `nodes` is that of the sum of `blocks[look]` unit normals within the region that goes on; the next
    bound is where what crosses it is what the look may spend.
    """
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    levels: list[float] = []
    at, mass = np.zeros(1), np.ones(1)  # where the sum stands, and with what probability
    before, spent = 0, 0.0
    for count in blocks:
        step = math.sqrt(count - before)
        total = _spent(count / blocks[-1], alpha, spending)
        bound = _bound(at, mass, step, max(total - spent, 1e-15), _REACH * math.sqrt(count))
        levels.append(_NORMAL.cdf(-bound / math.sqrt(count)))
        low = -_REACH * math.sqrt(count)
        new = 0.5 * (bound - low) * nodes + 0.5 * (bound + low)
        gap = (new[:, None] - at[None, :]) / step
        density = np.exp(-0.5 * gap**2) / (step * math.sqrt(2.0 * math.pi)) @ mass
        at, mass = new, density * weights * 0.5 * (bound - low)
        before, spent = count, total
    return tuple(levels)


def _bound(at: Values, mass: Values, step: float, spend: float, high: float) -> float:
    """The bound that the sum crosses with probability `spend`, by bisection."""
    low = -high
    places, chances = at.tolist(), mass.tolist()
    for _ in range(40):
        middle = 0.5 * (low + high)
        crossing = math.fsum(
            m * 0.5 * math.erfc((middle - x) / (step * math.sqrt(2.0))) for x, m in zip(places, chances, strict=True)
        )
        low, high = (middle, high) if crossing > spend else (low, middle)
    return high


def decide_step(
    differences: Sequence[float] | Values,
    *,
    effect: float,
    alpha: float,
    beta: float,
    prior: VariancePrior | None = None,
    max_blocks: int = 24,
) -> Step:
    """One step of a bisection: this commit is `good` (as the good end), `bad` (worse by `effect`), or it takes `more`.

    differences: log(this commit / the good end) of each block, positive is worse. Two tests run side by side after
    every block from the third on: "not worse at all", refuted with at most the chance alpha if true (a false `bad`),
    and "worse by the effect or more", refuted with at most beta (a false `good`). A change in between may refute both;
    the nearer end is the answer. `more` at max_blocks means that the step cannot be decided within its budget.
    prior: what other cases or steps tell of the noise; it halves the blocks where they are few. Raises ValueError for
    an effect that is not above 0 and for more blocks than were planned.
    """
    num_blocks = len(differences)
    if not (effect > 0 and max_blocks >= FIRST_BLOCKS and num_blocks <= max_blocks):
        raise ValueError(f"no step for an effect of {effect} and {num_blocks} of at most {max_blocks} blocks")
    if num_blocks < FIRST_BLOCKS:
        return "more"
    counts, look = tuple(range(FIRST_BLOCKS, max_blocks + 1)), num_blocks - FIRST_BLOCKS
    shift = np.exp(np.asarray(differences, dtype=np.float64))
    found = paired_log_ratio(np.ones(num_blocks), shift, prior=prior, method="t")
    worse = p_value_beyond(found, margin=0.0, better="lower")
    better = p_value_within(found, limit=effect, better="lower")
    bad = worse < Looks(counts, _STEP_SHARE * alpha, "early").nominal_alpha(look)
    good = better < Looks(counts, _STEP_SHARE * beta, "early").nominal_alpha(look)
    if bad and good:
        return "bad" if found.ratio > math.sqrt(1.0 + effect) else "good"
    return "bad" if bad else "good" if good else "more"
