"""Why a number is what it is: work that must be done against what the machine can do, and how both grow with length.

    bound = bound_of(case, store.calibration(run.fingerprint))       # Bound(name="memory", memory_share=0.98, ...)
    growth = growth_of(cases, "tpot", "context")                     # fit of TPOT against context, and of its bytes
    growth.effective_bytes, growth.analytic_bytes                    # per token at each context

Counts of work (FLOPs and bytes per iteration) are those that the cases recorded with their times (`facts.work`); peaks
are those that calibration measured on the same machine and versions. What is not recorded is None, never guessed.
Torch-free.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harness.compare import Measured
from harness.schema import PeakRow
from reports.figures import Fit, fit_line
from reports.sources import Point, kind_of, parameter, point_of

BoundName = Literal["compute", "memory", "dispatch", "kernels", "unknown"]
_EXPLAINED = 0.6  # of a step's time by one roof: then that roof is the reason
_MANY_CALLS = 50  # in a step: below that, dispatching them is not what takes the time
_TOO_GOOD = 1.05  # a share of a peak above this says that the peak was measured too low


@dataclass(frozen=True, slots=True)
class Work:
    """What one iteration does at least: tokens that count, FLOPs, bytes that must move."""

    tokens: float
    flops: float
    bytes: float


@dataclass(frozen=True, slots=True)
class Bound:
    """What limits a step. Shares are of the step's time; `operations` are calls per step that the host dispatches.

    `kernels`: few calls that reach neither roof; `unknown`: neither roof, and the calls were not counted. `rest`:
    seconds per step that neither roof explains.
    """

    name: BoundName
    seconds: float
    compute_share: float | None
    memory_share: float | None
    operations: int | None
    rest: float

    @property
    def peak_too_low(self) -> bool:
        """Whether a share above 100% says that calibration was disturbed."""
        return any(share is not None and share > _TOO_GOOD for share in (self.compute_share, self.memory_share))


@dataclass(frozen=True, slots=True)
class Growth:
    """A metric against a length, for one variant, with what the work alone would cost.

    `fit`: seconds (or bytes) against the length; `analytic`: bytes per token against it. `effective_bytes`: what the
    measured bandwidth would have moved in each measured time, None where there is no bandwidth.
    `num_values`: block values that the fit goes through.
    """

    variant: str
    model: str
    lengths: tuple[int, ...]
    points: tuple[Point, ...]
    fit: Fit | None
    analytic_bytes: tuple[float | None, ...]
    effective_bytes: tuple[float | None, ...]
    flops: tuple[float | None, ...]
    num_values: int
    analytic: Fit | None
    bandwidth: float | None

    @property
    def slope_ratio(self) -> float | None:
        """How many times the bytes that a position adds are paid for: the time's slope at the measured bandwidth."""
        if self.fit is None or self.analytic is None or not self.bandwidth or self.analytic.slope <= 0:
            return None
        return self.fit.slope * self.bandwidth / self.analytic.slope


def work_of(case: Measured) -> Work | None:
    """The work of one iteration; None where it was not recorded."""
    found = case.facts.get("work")
    if not isinstance(found, list) or len(found) != 3 or not all(isinstance(part, int | float) for part in found):
        return None
    return Work(*map(float, found))


def steps_of(case: Measured) -> int:
    """Steps of the model in one iteration: one per new token in decoding, else one."""
    kind = kind_of(case.workload)
    return (parameter(case.workload, "new_tokens") or 1) if kind in ("decode", "generate") else 1


def operations_of(case: Measured) -> int | None:
    """Operator calls of one step, as counted while it ran; None where they were not."""
    found = case.facts.get("operations")
    counts = [count for count in found.values() if isinstance(count, int)] if isinstance(found, dict) else []
    return sum(counts) if counts else None


def top_operations(case: Measured, most: int = 5) -> list[tuple[str, int]]:
    """The operators called most often in one step."""
    found = case.facts.get("operations")
    pairs = [(str(name), count) for name, count in found.items() if isinstance(count, int)] if found else []
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:most]


def nearest_peak(peaks: Sequence[PeakRow], kind: str, *, size: float = 0.0, dtype: str = "") -> PeakRow | None:
    """The measured peak of a kind: of a data type for arithmetic, at the nearest size (by ratio) for bandwidth."""
    found = [row for row in peaks if row.kind == kind and (not dtype or row.dtype == dtype) and row.value > 0]
    if not found:
        return None
    if size <= 0:
        return max(found, key=lambda row: row.value)
    return min(found, key=lambda row: abs(math.log(max(row.size_bytes, 1) / size)))


def bandwidth_of(case: Measured) -> float | None:
    """The read bandwidth in bytes/s that the case's `mbu` counts against."""
    work, share, seconds = work_of(case), point_of(case, "mbu"), point_of(case, "step_time")
    if work is None or share is None or seconds is None or not share.value or not seconds.value:
        return None
    return work.bytes / seconds.value / share.value


def bound_of(case: Measured, peaks: Sequence[PeakRow] = ()) -> Bound | None:
    """What limits a case's step; None where its time, its work or every peak is unknown."""
    work, whole = work_of(case), point_of(case, "step_time")
    if work is None or whole is None or not whole.value:
        return None
    compute, memory = point_of(case, "mfu"), point_of(case, "mbu")
    compute_share = compute.value if compute else None
    memory_share = memory.value if memory else None
    if compute_share is None and "quant=" not in case.variant:  # products of fewer bits have a peak of their own
        peak = nearest_peak(peaks, "matmul", dtype=str(case.facts.get("compute_dtype", "")) or "?")
        compute_share = work.flops / peak.value / whole.value if peak else None
    if memory_share is None:
        peak = nearest_peak(peaks, "read", size=work.bytes / steps_of(case))
        memory_share = work.bytes / peak.value / whole.value if peak else None
    shares = [share for share in (compute_share, memory_share) if share is not None]
    if not shares:
        return None
    seconds, explained = whole.value / steps_of(case), min(max(shares), 1.0)
    operations = operations_of(case)
    name: BoundName = "unknown"
    if operations is not None:
        name = "dispatch" if operations >= _MANY_CALLS else "kernels"
    if max(shares) >= _EXPLAINED:
        name = "compute" if compute_share == max(shares) else "memory"
    return Bound(name, seconds, compute_share, memory_share, operations, seconds * (1 - explained))


def growth_of(cases: Sequence[Measured], metric: str, length: str) -> Growth | None:
    """A metric of one variant against a workload's parameter; None for fewer than two lengths."""
    found = {
        size: (case, point)
        for case in cases
        if (size := parameter(case.workload, length)) is not None and (point := point_of(case, metric)) is not None
    }
    if len(found) < 2:
        return None
    lengths = tuple(sorted(found))
    points = tuple(found[size][1] for size in lengths)
    works = [(work_of(found[size][0]), steps_of(found[size][0])) for size in lengths]
    per_step = tuple(work.bytes / steps if work else None for work, steps in works)
    flops = tuple(work.flops / steps if work else None for work, steps in works)
    bandwidths = [rate for size in lengths if (rate := bandwidth_of(found[size][0])) is not None]
    bandwidth = sorted(bandwidths)[len(bandwidths) // 2] if bandwidths else None
    effective = tuple(point.value * bandwidth if bandwidth and metric == "tpot" else None for point in points)
    first = found[lengths[0]][0]
    return Growth(
        first.variant,
        first.model,
        lengths,
        points,
        _fit_blocks([(size, found[size][0]) for size in lengths], metric),
        per_step,
        effective,
        flops,
        sum(point.n for point in points),
        _fit_known(lengths, per_step),
        bandwidth,
    )


def _fit_blocks(cases: Sequence[tuple[int, Measured]], metric: str) -> Fit | None:
    """A line through every block's value: blocks are what is replicated. None for fewer than three lengths."""
    if len(cases) < 3:
        return None
    pairs = [(float(size), value) for size, case in cases for value in case.series[metric].blocks.values()]
    return fit_line([x for x, _ in pairs], [y for _, y in pairs])


def _fit_known(lengths: Sequence[int], values: Sequence[float | None]) -> Fit | None:
    pairs = [(float(size), value) for size, value in zip(lengths, values, strict=True) if value is not None]
    return fit_line([x for x, _ in pairs], [y for _, y in pairs])


@dataclass(frozen=True, slots=True)
class Split:
    """Memory of one case in bytes: weights as they lie in a file, the cache, and what is left of the measured peak."""

    length: int
    weights: float
    kv: float
    peak: float

    @property
    def rest(self) -> float:
        """Activations, buffers, and copies of weights made while loading: all that was not counted."""
        return self.peak - self.weights - self.kv


def split_of(case: Measured, length: str) -> Split | None:
    """The split of a case's measured peak; None where peak, cache or weights were not recorded."""
    size, peak, cache = parameter(case.workload, length), point_of(case, "peak_bytes"), point_of(case, "kv_bytes")
    weights = case.facts.get("disk_bytes")
    if size is None or peak is None or cache is None or not isinstance(weights, int | float):
        return None
    return Split(size, float(weights), cache.value, peak.value)
