"""What one run offers in two metrics at once: its curves, one per variant along the parameter that the run sweeps.

    found = trade_off(context, place, run, Wish(x="tps"))     # open wishes are settled by what the run has
    found.curves; found.best()          # (variant, point) of all that no other point beats

A quality metric (kl, ppl, top1_agreement) may stand on an axis too: it is the variant's, measured apart. A case without
both metrics has no point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dashboard import choices
from dashboard.context import Context
from dashboard.rows import RunLine, SummaryLine
from reports.figures import AxisOf, Curve, ParetoPoint, frontier

FIRST = 3  # variants beside the reference where none were named
MAX_CURVES = 12
_UNITS = {"kl": "nats/token", "ppl": "perplexity", "top1_agreement": "ratio"}


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody wants to see; "" leaves the choice open."""

    workload: str = ""
    model: str = ""
    x: str = ""
    y: str = ""


@dataclass(frozen=True, slots=True)
class TradeOff:
    """The curves, the reference's first; what was chosen and what there is to choose from; quality by variant.

    `common`: the parameters of the workload that every point has alike. A point is labelled by the others.
    """

    workload: str
    model: str
    common: str
    x: AxisOf
    y: AxisOf
    curves: tuple[Curve, ...]
    workloads: tuple[str, ...]
    models: tuple[str, ...]
    metrics: tuple[str, ...]
    costs: Mapping[str, Mapping[str, float]]

    def best(self) -> list[tuple[str, ParetoPoint]]:
        """(variant, point) of every point that no other beats, over all curves."""
        points = [(curve.name, point) for curve in self.curves for point in curve.points]
        kept = frontier([(point.x, point.y) for _, point in points], self.x.better, self.y.better)
        return [points[place] for place in kept]

    def shown(self, variants: Sequence[str]) -> list[Curve]:
        """The curves that were named; else the reference's, and of the others first those that nothing beats."""
        if variants:
            return self._named([curve for curve in self.curves if curve.name in variants][:MAX_CURVES])
        sign = -1.0 if self.y.better == "higher" else 1.0
        unbeaten = {name for name, _ in self.best()}
        others = sorted(
            (curve for curve in self.curves if curve.name != "reference"),
            key=lambda curve: (curve.name not in unbeaten, min(sign * point.y for point in curve.points)),
        )
        return self._named([curve for curve in self.curves if curve.name == "reference"] + others[:FIRST])

    def _named(self, curves: Sequence[Curve]) -> list[Curve]:
        """Without labels where no curve has a second point: the names of the curves say which point is whose."""
        if any(len(curve.points) > 1 for curve in self.curves):
            return list(curves)
        return [Curve(curve.name, [replace(point, label="") for point in curve.points]) for curve in curves]


def trade_off(context: Context, place: choices.Place, run: RunLine, wish: Wish) -> TradeOff:
    """The points of a run for a wish."""
    every = choices.lines_of(context, place, (run.run_id,))
    timed = [line for line in every if line.median is not None and line.metric and line.metric not in choices.QUALITY]
    workloads = choices.distinct(choices.kind_of(line.workload) for line in timed)
    workload = wish.workload or choices.first_of(("decode", "generate", "prefill", "train_step"), workloads)
    of_kind = [line for line in timed if choices.kind_of(line.workload) == workload]
    models = choices.distinct(line.model for line in of_kind)
    model = wish.model or max(models, key=lambda name: sum(line.model == name for line in of_kind), default="")
    lines = [line for line in of_kind if line.model == model]
    costs = choices.quality_of(context, run.run_id, model)
    measured = choices.distinct(line.metric for line in lines)
    metrics = (*sorted(measured), *sorted({name for found in costs.values() for name in found}))
    x, y = _axes(wish, lines, measured)
    units = {line.metric: line.unit for line in lines} | _UNITS
    return TradeOff(
        workload,
        model,
        _common(lines),
        _axis(x, units),
        _axis(y, units),
        tuple(_curves(lines, x, y, costs)),
        workloads,
        models,
        metrics,
        costs,
    )


def _axes(wish: Wish, lines: Sequence[SummaryLine], metrics: Sequence[str]) -> tuple[str, str]:
    """The metrics of both axes: latency against throughput where batches were swept, else speed against memory."""
    batches = {choices.parameters(line.workload).get("batch") for line in lines}
    speed = choices.first_of(("tps", "prefill_tps", "train_tps"), metrics)
    x = wish.x or ("tpot" if len(batches) > 1 and "tpot" in metrics else speed)
    rest = [name for name in metrics if name != x]
    return x, wish.y or choices.first_of(("tps",) if x == "tpot" else ("peak_bytes", "kv_bytes", "disk_bytes"), rest)


def _axis(metric: str, units: Mapping[str, str]) -> AxisOf:
    return AxisOf(metric, units.get(metric, ""), "higher" if choices.better_of(metric) == "higher" else "lower")


def _curves(lines: Sequence[SummaryLine], x: str, y: str, costs: Mapping[str, Mapping[str, float]]) -> list[Curve]:
    """One curve per variant, the reference first; points in the order of the workload's parameters."""
    cells: dict[tuple[str, str], dict[str, SummaryLine]] = {}
    for line in lines:
        cells.setdefault((line.variant, line.workload), {})[line.metric] = line
    swept = _swept(lines)
    points: dict[str, list[tuple[tuple[int, ...], ParetoPoint]]] = {}
    for (variant, workload), by_metric in cells.items():
        cost = costs.get(variant, {})
        across, up = _value(by_metric, cost, x), _value(by_metric, cost, y)
        if across is None or up is None:
            continue
        given = choices.parameters(workload)
        label = ", ".join(f"{name} {given[name]}" for name in swept if name in given)
        point = ParetoPoint(label, across[0], up[0], across[1], across[2], up[1], up[2], cost.get("kl"))
        points.setdefault(variant, []).append((tuple(given.values()), point))
    names = sorted(points, key=lambda name: (name != "reference", name))
    return [Curve(name, [point for _, point in sorted(points[name], key=lambda pair: pair[0])]) for name in names]


def _swept(lines: Sequence[SummaryLine]) -> list[str]:
    """The parameters of the workload that are not the same in every case."""
    every = [choices.parameters(line.workload) for line in lines]
    names = choices.distinct(name for given in every for name in given)
    return [name for name in names if len({given.get(name) for given in every}) > 1]


def _common(lines: Sequence[SummaryLine]) -> str:
    swept = _swept(lines)
    given = choices.parameters(lines[0].workload) if lines else {}
    return ", ".join(f"{name} {value}" for name, value in given.items() if name not in swept)


def _value(
    by_metric: Mapping[str, SummaryLine], cost: Mapping[str, float], metric: str
) -> tuple[float, float | None, float | None] | None:
    """(median, low, high) of a metric of one case; quality metrics have no interval."""
    if metric in choices.QUALITY:
        return (cost[metric], None, None) if metric in cost else None
    line = by_metric.get(metric)
    return None if line is None or line.median is None else (line.median, line.low, line.high)
