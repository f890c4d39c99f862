"""How near the cases of a run come to what their machine can do: ceilings from its peaks, points from what was counted.

    ceilings = ceilings_of(choices.peaks_of(context, run.run_id))
    for found in reached(context, place, run, ceilings):
        print(found.point.name, found.point.intensity, found.point.rate, found.mbu)

FLOP/s, bytes/s, FLOP per byte. Operations and bytes are the session's own count (its fact `work`); a case without one,
or without a measured time, has no point.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dashboard import choices
from dashboard.context import Context
from dashboard.rows import CaseLine, RunLine
from harness.schema import PeakRow
from reports.figures import Ceiling, RoofPoint


@dataclass(frozen=True, slots=True)
class Reached:
    """One case: its point, bytes per second, and the shares of the peaks that the run recorded."""

    case: CaseLine
    point: RoofPoint
    bandwidth: float
    mfu: float | None
    mbu: float | None


def ceilings_of(peaks: Sequence[PeakRow]) -> list[Ceiling]:
    """Memory by its largest working set, a cache that beats it by a fifth, and arithmetic by number format."""
    reads = sorted((peak for peak in peaks if peak.kind == "read"), key=lambda peak: peak.size_bytes)
    found = []
    if reads:
        chosen = {reads[-1].size_bytes: reads[-1]}
        fastest = max(reads, key=lambda peak: peak.value)
        if fastest.value > 1.2 * reads[-1].value:
            chosen[fastest.size_bytes] = fastest
        for size, peak in sorted(chosen.items(), reverse=True):
            found.append(Ceiling(f"read {size / 1e6:.0f} MB", "bandwidth", peak.value, _source(peak)))
    best: dict[str, PeakRow] = {}
    for peak in peaks:
        if peak.kind == "matmul" and (peak.dtype not in best or peak.value > best[peak.dtype].value):
            best[peak.dtype] = peak
    return found + [Ceiling(f"matmul {name}", "compute", peak.value, _source(peak)) for name, peak in best.items()]


def _source(peak: PeakRow) -> str:
    return f"measured, {peak.threads} threads" if peak.threads else "measured"


def reached(context: Context, place: choices.Place, run: RunLine, ceilings: Sequence[Ceiling]) -> list[Reached]:
    """Every timed case of a run whose operations and bytes are counted, in the order of the plan."""
    values: dict[str, dict[str, float]] = {}
    for line in choices.lines_of(context, place, (run.run_id,), ("step_time", "mfu", "mbu")):
        if line.median is not None and line.status == "ok":
            values.setdefault(line.case_id, {})[line.metric] = line.median
    found = []
    cases = context.query.cases(run.run_id)
    alike = len({case.model for case in cases if case.case_id in values}) == 1
    for case in cases:
        work, of_case = case.facts.get("work"), values.get(case.case_id, {})
        seconds = of_case.get("step_time", 0.0)
        if not (isinstance(work, list) and len(work) == 3 and all(isinstance(part, int | float) for part in work)):
            continue
        tokens, operations, moved = (float(part) for part in work)
        if not (seconds > 0 and operations > 0 and moved > 0):
            continue
        bounds = _bounds(case, moved / max(tokens, 1.0), ceilings)
        name = f"{choices.workload_name(case.workload)}, {case.variant}" if alike else choices.case_name(case)
        point = RoofPoint(name, operations / moved, operations / seconds, "analytic", bounds)
        found.append(Reached(case, point, moved / seconds, of_case.get("mfu"), of_case.get("mbu")))
    return found


def _bounds(case: CaseLine, moved: float, ceilings: Sequence[Ceiling]) -> tuple[str, ...]:
    """The arithmetic of its number format, and the memory by the working set nearest to its weights' size.

    `moved`: bytes of a token, for where the weights' size is not known. Where the arithmetic of its format was not
    measured, as for whole numbers of 8 bits, all that was measured counts, so the fastest.
    """
    compute = [ceiling.name for ceiling in ceilings if ceiling.kind == "compute"]
    own = [f"matmul {case.facts.get('compute_dtype', '')}"]
    arithmetic = own if own[0] in compute and case.axes.get("quant", "none") == "none" else compute
    weights = case.facts.get("disk_bytes")
    size = float(weights) if isinstance(weights, int | float) and weights > 0 else moved
    reads = [ceiling for ceiling in ceilings if ceiling.kind == "bandwidth"]
    nearest = min(reads, key=lambda ceiling: abs(math.log(_megabytes(ceiling) * 1e6 / size)), default=None)
    return (*([nearest.name] if nearest else []), *arithmetic)


def _megabytes(ceiling: Ceiling) -> float:
    """The working set of a memory ceiling, which its name tells."""
    return max(float(ceiling.name.split(" ")[1]), 1.0)
