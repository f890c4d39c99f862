"""What a case held in memory: its measured peak beside what its weights and its cache explain.

    for found in footprints(context, place, run, "context"):
        print(found.name, found.x, found.peak, found.weights, found.cache, found.rest)
    line = one_line(found)
    predicted(line), reach_of(line, limit=16e9)     # for the figure, and the context that fits

Bytes. A part that was not recorded is None, never zero. No run counts its activations: they are part of the rest, and
what is said of them beyond the measured settings is the straight line through these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dashboard import choices
from dashboard.context import Context
from dashboard.rows import CaseLine, RunLine
from reports.figures import MemoryPoint, fit_line, reach

_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_POSITIONS = ("context", "prompt", "length", "new_tokens")


@dataclass(frozen=True, slots=True)
class Footprint:
    """One case. `x`: the parameter looked along; `others`: the rest of them; `positions`: tokens of each sequence."""

    case_id: str
    name: str
    model: str
    kind: str
    variant: str
    x: int
    others: str
    batch: int
    positions: int
    peak: float
    weights: float | None
    cache: float | None

    @property
    def cache_per_token(self) -> float | None:
        """Bytes of cache for one position of one sequence."""
        return None if self.cache is None or not self.positions else self.cache / (self.batch * self.positions)

    @property
    def rest(self) -> float | None:
        """Bytes of the peak beyond weights and cache: activations, the allocator, what loading needed."""
        return None if self.weights is None or self.cache is None else self.peak - self.weights - self.cache


def footprints(context: Context, place: choices.Place, run: RunLine, along: str) -> list[Footprint]:
    """Every case of a run with a measured peak and the parameter `along`, in the order of the plan."""
    values: dict[str, dict[str, float]] = {}
    for line in choices.lines_of(context, place, (run.run_id,), ("peak_bytes", "kv_bytes", "disk_bytes")):
        if line.median is not None:
            values.setdefault(line.case_id, {})[line.metric] = line.median
    found = []
    for case in context.query.cases(run.run_id):
        of_case = values.get(case.case_id, {})
        given = choices.parameters(case.workload)
        if "peak_bytes" not in of_case or along not in given:
            continue
        others = ", ".join(f"{name}={value}" for name, value in given.items() if name != along)
        positions = sum(given.get(name, 0) for name in _POSITIONS)
        found.append(
            Footprint(
                case.case_id,
                choices.case_name(case),
                case.model,
                choices.kind_of(case.workload),
                case.variant,
                given[along],
                others,
                max(given.get("batch", 1), 1),
                positions,
                of_case["peak_bytes"],
                _weights(case, of_case),
                of_case.get("kv_bytes"),
            )
        )
    return found


def _weights(case: CaseLine, values: Mapping[str, float]) -> float | None:
    """The weights as the engine stores them: their file, else so many numbers of so many bytes."""
    if "disk_bytes" in values:
        return values["disk_bytes"]
    stored = case.facts.get("disk_bytes")
    if isinstance(stored, int | float) and stored > 0:
        return float(stored)
    item = _ITEM_BYTES.get(str(case.facts.get("weight_dtype", "")))
    return float(case.num_params * item) if item and case.num_params else None


def predicted(line: Sequence[Footprint]) -> list[MemoryPoint]:
    """The settings of which every part is known, with the rest on its straight line; as it was, of fewer than three."""
    known = [(found, rest) for found in line if (rest := found.rest) is not None]
    fit = fit_line([float(found.x) for found, _ in known], [rest for _, rest in known])
    rests = [max(fit.intercept + fit.slope * found.x, 0.0) if fit else rest for found, rest in known]
    return [
        MemoryPoint(found.x, found.weights or 0.0, found.cache or 0.0, rest, found.peak)
        for (found, _), rest in zip(known, rests, strict=True)
    ]


def reach_of(line: Sequence[Footprint], limit: float | None) -> float | None:
    """Tokens of context that fit by memory alone, with everything growing as predicted, of one setting alone only the
    cache. None where that is not known."""
    points, last = predicted(line), line[-1]
    if len(points) != 1:
        return reach(points, limit)
    if limit is None or not last.cache_per_token or limit <= last.peak:
        return None
    return last.x + (limit - last.peak) / (last.cache_per_token * last.batch)


def one_line(found: Sequence[Footprint]) -> list[Footprint]:
    """Those that differ in x alone: of several settings of the other parameters the one with the most points."""
    by_others: dict[str, list[Footprint]] = {}
    for footprint in found:
        by_others.setdefault(footprint.others, []).append(footprint)
    best = max(by_others.values(), key=len, default=[])
    return sorted(best, key=lambda footprint: footprint.x)


def rounded(value: float) -> str:
    """Three digits that count: what is predicted is known no better."""
    return f"{float(f'{value:.3g}'):,.0f}"
