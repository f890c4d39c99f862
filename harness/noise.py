"""Where the noise of a measurement comes from, and a model of it that makes more of the same. Torch-free, numpy only.

    blocks = blocks_from_store(store, [run_id])                  # family of cases -> its A/A blocks
    parts = variance_components(blocks["decode"])                # machine, process, turn, iteration
    supported_effect_for_budget(parts, seconds_per_block=4.0, budget=60.0, margin=0.01)
    model = fit_noise("decode", blocks["decode"])                # JSON-able; model.log_turns(rng, ...) simulates

Everything is on the natural logarithm of seconds, so that 0.01 reads as 1%. The model keeps what was measured and does
not assume a distribution: turns are drawn as stretches of consecutive measured turns, with their heavy tails, their
autocorrelation and their flips between two speeds. It refuses data in which two arms never shared a block.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.aa_blocks import Block, blocks_from_store, changed_hands
from harness.compare import location
from harness.core import UsageError
from harness.power import supported_effect
from harness.store import Store

Values = NDArray[np.float64]
PASS = 4  # turns of one mirrored pass of two arms: A B B A
STRETCH = 5 * PASS  # consecutive measured turns that are drawn together
_MAX_DEVIATIONS = 400  # quantiles that stand for all deviations of iterations
_MAD_TO_SD = 1.482602218505602
_RESAMPLES = 400  # bootstrap of a block's location: its error within 4%


@dataclass(frozen=True, slots=True)
class Components:
    """Standard deviations on the log scale, outermost first, and what an effect is judged by.

    `run`: the machine from run to run; `block`: both arms together from block to block; `process`: one worker process
    from the next, the rest taken away; `drift`: the machine between the halves of a block; `turn`: within an arm;
    `iteration`: within a turn. `difference`: of a block's log difference between two equal arms, all of the above that
    does not cancel. `switch`: how much longer a turn takes that follows another arm's (log). `slow`, `slow_share`,
    `flips`: where turns have two speeds, how much slower the slow one is (log), its share, and the share of neighbours
    that differ in it; else 0. NaN: not enough data to tell.
    """

    run: float
    block: float
    process: float
    drift: float
    turn: float
    iteration: float
    difference: float
    switch: float
    slow: float
    slow_share: float
    flips: float
    num_runs: int
    num_blocks: int
    num_turns: int


def _robust_sd(values: Values) -> float:
    return _MAD_TO_SD * float(np.median(np.abs(values - np.median(values)))) if len(values) > 1 else math.nan


def _log_medians(block: Block) -> Values:
    return np.array([math.log(statistics.median(turn)) for turn in block.seconds])


def _switches(blocks: Sequence[Block]) -> dict[str, float]:
    """Of each run, the median over its blocks of (turns after another arm's) - (turns after their own)."""
    found: dict[str, list[float]] = {block.run: [] for block in blocks}
    for block in blocks:
        logs, changed = _log_medians(block), changed_hands(block.arms)
        if changed.sum() > 1 and not changed.all():
            found[block.run].append(float(np.median(logs[changed]) - np.median(logs[~changed])))
    return {run: float(np.median(values)) if values else 0.0 for run, values in found.items()}


def pair_differences(logs: Values, arms: Sequence[int]) -> Values:
    """Arm 1 - arm 0 of each pair of turns, along the last axis; a pass holds two. An unfinished pass is left out."""
    num = len(arms) // PASS
    order = np.asarray(arms[: num * PASS]).reshape(-1, 2)
    if num == 0 or not np.all(order.sum(axis=1) == 1):
        raise ValueError("a pair holds one turn of each of two arms")
    sign = np.where(order == 1, 1.0, -1.0)
    return np.asarray((logs[..., : num * PASS].reshape(*logs.shape[:-1], -1, 2) * sign).sum(axis=-1))


def _residuals(block: Block, switch: float) -> tuple[Values, float]:
    """Turns without the cost of switching and without their arm's median; and the block's level."""
    logs = _log_medians(block) - switch * changed_hands(block.arms)
    order = np.asarray(block.arms)
    levels = [float(np.median(logs[order == arm])) for arm in (0, 1)]
    return logs - np.where(order == 1, levels[1], levels[0]), (levels[0] + levels[1]) / 2


def _levels(blocks: Sequence[Block], found: Sequence[float]) -> dict[str, Values]:
    """Of each run, its blocks' levels as the machine moved them: how fast a case is by itself is taken away."""
    of_case: dict[str, list[float]] = {}
    for block, level in zip(blocks, found, strict=True):
        of_case.setdefault(block.case, []).append(level)
    levels: dict[str, list[float]] = {}
    for block, level in zip(blocks, found, strict=True):
        levels.setdefault(block.run, []).append(level - float(np.mean(of_case[block.case])))
    return {run: np.array(values) for run, values in levels.items()}


def _deviations(blocks: Sequence[Block]) -> Values:
    """Iterations about their turn's median, scaled up for the degree of freedom that the median took."""
    found = [np.zeros(0)]
    for block in blocks:
        for turn in block.seconds:
            if len(turn) > 1:
                scale = math.sqrt(len(turn) / (len(turn) - 1))
                found.append((np.log(turn) - math.log(statistics.median(turn))) * scale)
    return np.concatenate(found)


def _iteration_sd(blocks: Sequence[Block]) -> float:
    """From the differences of successive iterations, which a trend within the turn leaves alone; NaN without any."""
    steps = [math.log(b / a) for block in blocks for turn in block.seconds for a, b in pairwise(turn)]
    return _robust_sd(np.array(steps)) / math.sqrt(2) if steps else math.nan


def _two_speeds(residuals: Sequence[Values]) -> tuple[float, float, float]:
    """(log ratio of the speeds, share of slow turns, share of flips) by 2-means; zeros where one bump explains all.

    Each block is cut in two by itself, and the medians over blocks count. Two bumps are real if their centres lie more
    than three of their own robust standard deviations apart; by this measure the halves of a normal distribution lie
    2.3 apart.
    """
    found = []
    for series in residuals:
        low, high = (float(q) for q in np.quantile(series, (0.1, 0.9)))
        for _ in range(50):
            slow = series > (low + high) / 2
            if min(slow.sum(), (~slow).sum()) < 2:
                break
            low, high = float(np.median(series[~slow])), float(np.median(series[slow]))
        if 2 <= slow.sum() <= len(series) - 2:
            spread = math.sqrt((_robust_sd(series[~slow]) ** 2 + _robust_sd(series[slow]) ** 2) / 2)
            found.append((high - low, float(slow.mean()), float(np.mean(slow[1:] != slow[:-1])), spread))
    if not found:
        return 0.0, 0.0, 0.0
    distance, share, flips, spread = (float(v) for v in np.median(found, axis=0))
    return (distance, share, flips) if distance > 3.0 * spread else (0.0, 0.0, 0.0)


def _checked(blocks: Sequence[Block]) -> Sequence[Block]:
    if not blocks:
        raise UsageError("no blocks: the noise is fitted to blocks in which two equal arms took turns")
    for block in blocks:
        if len(block.arms) != len(block.seconds) or set(block.arms) != {0, 1} or not all(block.seconds):
            raise UsageError(f"a block of run {block.run} does not hold turns of two arms, each with its iterations")
    return blocks


def variance_components(blocks: Sequence[Block], *, seed: int = 0) -> Components:
    """The variance of A/A blocks split by the level at which it arises, by moments of robust scales (nested ANOVA).

    Each level's variance is what is left of the variance of its means after that of the levels below is taken away
    (Searle, Casella & McCulloch 1992, chapter 3), never below zero. A block's own error is bootstrapped from its
    passes. Raises UsageError for no blocks, or for blocks without two arms.
    """
    _checked(blocks)
    rng = np.random.default_rng(seed)
    switches = _switches(blocks)
    parts = [_residuals(block, switches[block.run]) for block in blocks]
    residuals = [series for series, _ in parts]
    runs = sorted({block.run for block in blocks})
    levels = _levels(blocks, [level for _, level in parts])
    differences = [pair_differences(_log_medians(block), block.arms) for block in blocks]
    found = np.array([float(location(d)) for d in differences])
    passes = [d.reshape(-1, 2) for d in differences]
    drawn = [p[rng.integers(len(p), size=(_RESAMPLES, len(p)))].reshape(_RESAMPLES, -1) for p in passes]
    errors = np.array([np.var(location(d)) for d in drawn])
    between = float(np.var(found, ddof=1)) if len(found) > 1 else math.nan
    process = _root((between - float(errors.mean())) / 2)
    iteration = _iteration_sd(blocks)
    per_turn = float(np.mean([len(turn) for block in blocks for turn in block.seconds]))
    own = 0.0 if math.isnan(iteration) else iteration**2 * _median_variance(per_turn)
    within = [float(np.var(level, ddof=1)) for level in levels.values() if len(level) > 1]
    below = process**2 / 2 + float(errors.mean()) / 4
    block_sd = _root(float(np.mean(within)) - below) if within else math.nan
    num_blocks = len(blocks) / len(runs)
    means = [float(level.mean()) for level in levels.values()]
    per_run = 0.0 if math.isnan(block_sd) else (block_sd**2 + below) / num_blocks
    slow, slow_share, flips = _two_speeds(residuals)
    return Components(
        run=_root(float(np.var(means, ddof=1)) - per_run) if len(runs) > 1 else math.nan,
        block=block_sd,
        process=process,
        drift=_robust_sd(np.array([np.median(s[len(s) // 2 :]) - np.median(s[: len(s) // 2]) for s in residuals])),
        turn=_root(_robust_sd(np.concatenate(residuals)) ** 2 - own),
        iteration=iteration,
        difference=_root(between),
        switch=float(np.mean(list(switches.values()))),
        slow=slow,
        slow_share=slow_share,
        flips=flips,
        num_runs=len(runs),
        num_blocks=len(blocks),
        num_turns=sum(len(block.arms) for block in blocks),
    )


def _median_variance(count: float) -> float:
    """Of the median of so many standard normal values, within 3%: 1 for one, pi / (2 count) for many."""
    return math.pi / (2 * count + math.pi - 2 if round(count) % 2 else 2 * count + 2.2)


def _root(variance: float) -> float:
    return math.sqrt(max(variance, 0.0)) if not math.isnan(variance) else math.nan


def supported_effect_for_budget(
    components: Components,
    *,
    seconds_per_block: float,
    budget: float,
    margin: float,
    alpha: float = 0.025,
    power: float = 0.95,
) -> float:
    """The smallest slowdown (0.03: 3%) that the blocks of so many seconds show as beyond the margin; inf if none can.

    One-sided level alpha. `seconds_per_block` counts all that a case takes in a block: its share of the start, warm-up
    and turns; `budget` is the case's share of the whole. `power.supported_effect` answers; this is the noise before
    anything is measured.
    """
    blocks = int(budget / seconds_per_block)
    if blocks < 2 or math.isnan(components.difference):
        return math.inf
    return supported_effect(components.difference, blocks, margin=margin, alpha=alpha, power=power)


@dataclass(frozen=True, slots=True)
class NoiseModel:
    """The noise of one family of cases: enough to simulate a worker's turns. All on the log scale, without arms.

    `seconds`: a typical iteration; `iterations`: in a turn; `block`, `correlation`: level of the machine from block to
    block, and how alike neighbouring blocks are; `process`, `switch`: see Components; `turns`: measured turns about
    their arm's median, one row per block; `deviations`: iterations about their turn's median.
    """

    family: str
    seconds: float
    iterations: int
    block: float
    correlation: float
    process: float
    switch: float
    turns: tuple[tuple[float, ...], ...]
    deviations: tuple[float, ...]

    def to_json(self) -> str:
        """One line of JSON; `from_json` reads it back without loss."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> NoiseModel:
        """The model that `to_json` wrote. Raises ValueError or TypeError for another text."""
        fields: dict[str, Any] = json.loads(text)
        turns = tuple(tuple(row) for row in fields.pop("turns"))
        return cls(turns=turns, deviations=tuple(fields.pop("deviations")), **fields)

    def levels(self, rng: np.random.Generator, *, num: int, blocks: int) -> Values:
        """[num, blocks]: the machine's log level in successive blocks, a first-order autoregression."""
        steps = rng.standard_normal((num, blocks)) * self.block
        fresh = math.sqrt(1 - self.correlation**2)
        for k in range(1, blocks):
            steps[:, k] = self.correlation * steps[:, k - 1] + fresh * steps[:, k]
        return steps

    def residuals(
        self, rng: np.random.Generator, *, shape: tuple[int, ...], num_turns: int, stretch: int = STRETCH
    ) -> Values:
        """[*shape, num_turns]: stretches of consecutive measured turns, each from a place drawn at random.

        A moving block bootstrap (Kuensch 1989): what a machine does within a stretch stays together. Stretches begin
        where a pass does, so that what goes with the place in a pass cancels as it did on the machine.
        """
        pool = np.array([row[: min(map(len, self.turns))] for row in self.turns])
        pieces = -(-num_turns // stretch)
        row = rng.integers(0, len(pool), (*shape, pieces, 1))
        place = PASS * rng.integers(0, pool.shape[1] // PASS, (*shape, pieces, 1)) + np.arange(stretch)
        drawn = pool[row, place % pool.shape[1]]
        return np.asarray(drawn.reshape(*shape, pieces * stretch)[..., :num_turns])

    def log_turns(
        self,
        rng: np.random.Generator,
        arms: Sequence[int],
        *,
        num: int,
        blocks: int,
        effects: Sequence[float] = (0.0, 0.0),
        processes: int | None = None,
    ) -> Values:
        """[num, blocks, turns]: log seconds of `num` simulated comparisons in which the arms take the turns `arms`.

        `effects`: log effect of each arm. `processes`: how many fresh workers an arm has over all blocks (None: one a
        block, as the runner does; 1: one for the whole comparison, as tools do that run one side after the other).
        """
        order = np.asarray(arms)
        workers = blocks if processes is None else processes
        holder = np.arange(blocks) * workers // blocks
        offsets = rng.standard_normal((num, workers, len(effects))) * self.process + np.asarray(effects)
        logs = self.residuals(rng, shape=(num, blocks), num_turns=len(order))
        logs += self.levels(rng, num=num, blocks=blocks)[:, :, None] + math.log(self.seconds)
        logs += self.switch * changed_hands(arms) if len(set(arms)) > 1 else 0.0
        return np.asarray(logs + offsets[:, holder][:, :, order])

    def iterate(self, rng: np.random.Generator, log_turns: Values, *, iterations: int | None = None) -> Values:
        """[*log_turns.shape, iterations]: seconds of the iterations; each turn's median stays what it was."""
        count = self.iterations if iterations is None else iterations
        if count == 1 or not self.deviations:
            return np.repeat(np.exp(log_turns)[..., None], count, axis=-1)
        drawn = rng.choice(np.asarray(self.deviations), (*log_turns.shape, count))
        return np.asarray(np.exp(log_turns[..., None] + drawn - np.median(drawn, axis=-1, keepdims=True)))


def fit_noise(family: str, blocks: Sequence[Block], *, seed: int = 0) -> NoiseModel:
    """The model of the noise in A/A blocks of one family of cases. Raises UsageError as `variance_components` does.

    Fewer than two blocks cannot tell a process from its turns: its spread is then 0, and the model too quiet.
    """
    parts = variance_components(blocks, seed=seed)
    switches = _switches(blocks)
    found = [_residuals(block, switches[block.run]) for block in blocks]
    logs = np.concatenate([_log_medians(block) for block in blocks])
    counts = [len(turn) for block in blocks for turn in block.seconds]
    levels = list(_levels(blocks, [level for _, level in found]).values())
    return NoiseModel(
        family=family,
        seconds=float(np.exp(np.median(logs))),
        iterations=max(round(float(np.mean(counts))), 1),
        block=_or_zero(parts.block),
        correlation=_correlation(levels),
        process=_or_zero(parts.process),
        switch=parts.switch,
        turns=tuple(tuple(round(float(v), 5) for v in series) for series, _ in found),
        deviations=tuple(round(float(v), 5) for v in _thinned(_deviations(blocks))),
    )


def _thinned(values: Values) -> Values:
    return (
        values
        if len(values) <= _MAX_DEVIATIONS
        else np.quantile(values, (np.arange(_MAX_DEVIATIONS) + 0.5) / _MAX_DEVIATIONS)
    )


def _or_zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def _correlation(levels: Sequence[Values]) -> float:
    """Of neighbouring blocks' levels, pooled over runs; 0 where there are too few or they alternate."""
    centred = [level - level.mean() for level in levels if len(level) > 3]
    total = sum(float((c * c).sum()) for c in centred)
    return min(max(sum(float((c[1:] * c[:-1]).sum()) for c in centred) / total, 0.0), 0.95) if total else 0.0


def fit_noise_from_store(store: Store, run_ids: Sequence[str]) -> dict[str, NoiseModel]:
    """One model per family of cases from A/A runs of the store. Raises UsageError if they hold no two equal arms."""
    found = blocks_from_store(store, run_ids)
    if not found:
        raise UsageError(f"no two equal arms took turns in {', '.join(run_ids) or 'no run'}: measure with control=aa")
    return {family: fit_noise(family, blocks) for family, blocks in found.items()}
