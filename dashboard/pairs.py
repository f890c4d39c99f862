"""What can be set against what: for every axis, pairs of its options that one run measured side by side.

    table = axis_pairs(query, machine_id="")
    table["norm"][0].a, table["norm"][0].b      # "20261122T...-ab12cd/reference", "20261122T...-ab12cd/norm=fused"

A pair is two variants of one run that differ in one axis only and share cases; of several runs the newest that has most
of them counts. The axes of the design card are always there, measured or not. Reads summaries, never samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from dashboard.filters import Filter
from dashboard.query import Query
from dashboard.rows import RunLine, SummaryLine
from harness import registry

CARD = ("norm", "kv", "precision", "attn", "quant", "compile")  # the questions that the laboratory was built for
CARD_PAIRS = {("quant", "int8", "int4")}  # offered although neither option is the reference
LOOKED_AT = 60  # newest runs


@dataclass(frozen=True, slots=True)
class Pair:
    """Two options of an axis as two sides of a comparison; `others`: what both have besides, "" if nothing."""

    axis: str
    option_a: str
    option_b: str
    others: str
    run: RunLine
    variant_a: str
    variant_b: str
    num_cases: int

    @property
    def a(self) -> str:
        """Side A as text."""
        return f"{self.run.run_id}/{self.variant_a}"

    @property
    def b(self) -> str:
        """Side B as text."""
        return f"{self.run.run_id}/{self.variant_b}"


def axis_pairs(query: Query, machine_id: str = "") -> dict[str, tuple[Pair, ...]]:
    """Axis -> its pairs, those of the design card first; an axis of the card without any has an empty tuple."""
    which = Filter().with_value("machine", machine_id)
    runs = {line.run_id: line for line in query.runs(which, limit=LOOKED_AT).rows}
    metrics = sorted({kind.headline for kind in registry.WORKLOADS.values() if kind.timed})
    by_run: dict[str, list[SummaryLine]] = {}
    for line in query.summary(list(runs), metrics):
        if line.status == "ok":
            by_run.setdefault(line.run_id, []).append(line)
    best: dict[tuple[str, str, str], Pair] = {}
    for run_id, run in runs.items():  # the newest first
        for pair in _pairs_of(run, by_run.get(run_id, ())):
            key = (pair.axis, pair.option_a, pair.option_b)
            if key not in best or _rank(pair) < _rank(best[key]):
                best[key] = pair
    order = list(dict.fromkeys([*CARD, *registry.AXES]))
    found = {axis: tuple(_wanted(axis, best.values())) for axis in order}
    return {axis: pairs for axis, pairs in found.items() if pairs or axis in CARD}


def suites_with(axis: str) -> tuple[str, ...]:
    """The suites that vary an axis: what to run where nothing of it was measured."""
    return tuple(
        suite.name
        for suite in registry.SUITES.values()
        if any(len(grid.axes.get(axis, ())) > 1 for grids in suite.grids.values() for grid in grids)
    )


def _pairs_of(run: RunLine, lines: Sequence[SummaryLine]) -> Iterable[Pair]:
    places: dict[str, set[tuple[str, str]]] = {}
    axes_of: dict[str, Mapping[str, str]] = {}
    for line in lines:
        places.setdefault(line.variant, set()).add((line.model, line.workload))
        axes_of[line.variant] = line.axes
    for one, other in combinations(sorted(places), 2):
        differing = _differing(axes_of[one], axes_of[other])
        shared = len(places[one] & places[other])
        if len(differing) != 1 or not shared:
            continue
        axis = differing[0]
        first, second = sorted((one, other), key=lambda variant: _option_rank(axis, _option(axes_of[variant], axis)))
        others = " ".join(
            f"{name}={value}"
            for name, value in sorted(axes_of[first].items())
            if name != axis and value != registry.AXES[name].reference
        )
        yield Pair(
            axis, _option(axes_of[first], axis), _option(axes_of[second], axis), others, run, first, second, shared
        )


def _differing(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    names = sorted({*one, *other} & registry.AXES.keys())
    return [name for name in names if _option(one, name) != _option(other, name)]


def _option(axes: Mapping[str, str], axis: str) -> str:
    return axes.get(axis) or registry.AXES[axis].reference


def _option_rank(axis: str, option: str) -> tuple[bool, bool, str]:
    """The reference first; INT8 before INT4, as the card asks."""
    return option != registry.AXES[axis].reference, not option.startswith("int8"), option


def _rank(pair: Pair) -> tuple[bool, int]:
    """Pairs with nothing else changed first, then those with more cases; the newest of equals stays."""
    return bool(pair.others), -pair.num_cases


def _wanted(axis: str, pairs: Iterable[Pair]) -> list[Pair]:
    """The pairs with the reference, and those that the card asks for."""
    reference = registry.AXES[axis].reference if axis in registry.AXES else ""
    mine = [
        pair
        for pair in pairs
        if pair.axis == axis and (pair.option_a == reference or (axis, pair.option_a, pair.option_b) in CARD_PAIRS)
    ]
    return sorted(mine, key=lambda pair: (pair.option_a == reference, "-" in pair.option_b, pair.option_b))
