"""Where a history of runs changed its level, by how much, and between which runs. Torch-free.

    for change in change_points(medians):    # one number per run, in the order of their commits
        print(change.index, change.ratio)    # run 42 is the first at 1.07 times what was before

Penalised least squares on logarithms: the segmentation with the smallest sum of squares plus a penalty per change,
found exactly by optimal partitioning (Jackson et al. 2005; the problem that PELT, Killick et al. 2012, solves too).
Why not compare neighbours with a threshold: Hunter (Fleming et al. 2023), which searches by E-divisive means.
Single outliers are held to the level of their neighbours while searching; sizes are estimated from what was measured.
Refuses values that are not positive and finite (ValueError).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.stats import Values, independent_log_ratio, median

__all__ = ["ChangePoint", "change_points", "history_noise"]

_MAD_TO_SD = 1.482602218505602
_REACH = 3  # neighbours on each side whose median holds an outlier
_HELD = 2.0  # standard deviations from that median at which it is held
_PENALTY = 16.0  # of one change, in noise variances; docs/lab/2026-11-22-statistics.md has the false alarms
_SHORT = 6.0  # makes it (1 + 6/n) times that: with few runs the noise itself is badly known


@dataclass(frozen=True, slots=True)
class ChangePoint:
    """One change of level. `index` is the first run after it; it lies in index_low..index_high with the confidence.

    So what caused it came after run `index_low - 1` and no later than run `index_high`. ratio: the level after over the
    level before (each up to the next change), with its interval low..high.
    """

    index_low: int
    index: int
    index_high: int
    ratio: float
    low: float
    high: float


def change_points(
    values: Sequence[float] | Values, *, min_segment: int = 3, confidence: float = 0.95, noise: float | None = None
) -> list[ChangePoint]:
    """The changes of level along positive values, oldest first.

    min_segment: runs that a level must last; a shorter blip is an outlier. noise: standard deviation of a run's log
    value where it is known (from calibration), else estimated from the differences of neighbours, which the changes
    hardly touch. Size: Welch's t on both segments. Place: the likelihood interval of Hansen (2000), whose statistic is
    below x with probability (1 - exp(-x/2))**2.

    NOTE: runs whose noise is alike from run to run (a machine's slow days) look like changes; give `noise`, including
    the day's share, to keep the false alarms down. Raises ValueError for a min_segment below 2 and values as above.
    """
    found = np.asarray(values, dtype=np.float64)
    if min_segment < 2 or not np.all((found > 0) & np.isfinite(found)):
        raise ValueError(f"a history needs positive, finite values and min_segment >= 2, not {min_segment}")
    logs = np.log(found)
    sd = history_noise(found) if noise is None else noise
    if len(logs) < 2 * min_segment or not sd > 0:
        return []
    held = _held(logs - np.mean(logs), sd)
    penalty = _PENALTY * (1.0 + _SHORT / len(logs)) * sd**2
    starts = _partition(held, penalty, min_segment)
    edges = [0, *starts, len(logs)]
    changes = []
    for before, index, after in zip(edges, edges[1:], edges[2:], strict=False):
        low, high = _place(held[before:after], sd, confidence, min_segment)
        size = independent_log_ratio(found[before:index], found[index:after], confidence=confidence)
        changes.append(ChangePoint(before + low, index, before + high, size.ratio, size.low, size.high))
    return changes


def history_noise(values: Sequence[float] | Values) -> float:
    """Standard deviation of a run's log value, from the median absolute difference of neighbours: robust to changes.

    Where more than half the neighbours are equal (counts, bytes), from the mean absolute difference; 0 if all are.
    """
    steps = np.abs(np.diff(np.log(np.asarray(values, dtype=np.float64))))
    if len(steps) == 0:
        return 0.0
    usual = _MAD_TO_SD * median(steps)
    return (usual if usual > 0 else math.sqrt(math.pi / 2) * float(np.mean(steps))) / math.sqrt(2.0)


def _held(x: Values, sd: float) -> Values:
    """The values, held to within a few standard deviations of the median of their neighbours."""
    middle = np.array([np.median(x[max(0, i - _REACH) : i + _REACH + 1]) for i in range(len(x))])
    return np.clip(x, middle - _HELD * sd, middle + _HELD * sd)


def _partition(x: Values, penalty: float, min_segment: int) -> list[int]:
    """Where the segments of the best segmentation start, but for the first: optimal partitioning, quadratic in n."""
    n = len(x)
    sums = np.concatenate(([0.0], np.cumsum(x)))
    best, last = np.full(n + 1, np.inf), np.zeros(n + 1, dtype=np.int64)
    best[0] = -penalty
    for end in range(min_segment, n + 1):
        start = np.arange(end - min_segment + 1)
        # The sum of squares of all values is the same for every segmentation, so only the levels' part is needed.
        cost = best[start] - (sums[end] - sums[start]) ** 2 / (end - start) + penalty
        last[end] = int(np.argmin(cost))
        best[end] = cost[last[end]]
    starts = []
    end = int(last[n])
    while end > 0:
        starts.append(end)
        end = int(last[end])
    return starts[::-1]


def _place(x: Values, sd: float, confidence: float, min_segment: int) -> tuple[int, int]:
    """The first and last start of the second level that the likelihood does not exclude, within two segments."""
    index = np.arange(min_segment, len(x) - min_segment + 1)
    sums = np.cumsum(x)
    explained = sums[index - 1] ** 2 / index + (sums[-1] - sums[index - 1]) ** 2 / (len(x) - index)
    worst = -2.0 * math.log(1.0 - math.sqrt(confidence))
    kept = index[np.max(explained) - explained <= worst * sd**2]
    return int(kept[0]), int(kept[-1])
