"""Comparisons of what the store holds: B against A with an interval, a verdict, and the quality beside it. Torch-free.

    rows = compare_within(measured_cases(store, run_id))          # every variant against its reference, paired by block
    rows = compare_pairs([(measured_cases(store, a)[0], measured_cases(store, b)[0])], metrics=["tps"])  # of two runs

Within a run, and between the runs of one session, the arms shared their blocks, so differences are paired and drift
cancels. Other runs share nothing: their comparison treats blocks as independent, and what changed on the machine in
between is in the ratio. Which runs are meant is read by `harness.sides`.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from harness.core import SOLO_BLOCK, Better, VerdictName, Workload
from harness.registry import METRICS, WORKLOADS, Metric, workload_label
from harness.stats import (
    Estimate,
    Values,
    VariancePrior,
    Verdict,
    independent_log_ratio,
    paired_log_ratio,
    variance_prior,
    verdict,
)
from harness.store import Store

DEFAULT_MARGIN = 0.01
CONFIDENCE = 0.95
MarginOf = Callable[["Measured", str], tuple[float, str]]  # case, metric -> relative margin, where it comes from
ConfidenceOf = Callable[[int], float]  # number of blocks -> two-sided confidence
ROBUST_PASSES = 5  # from here on the median of a block's passes, before that their mean


@dataclass(frozen=True, slots=True)
class Series:
    """One metric of one case in one run: `block_value` of each valid block, or the solo pass's single value.

    `turns`: of each block, the median of each turn.
    """

    blocks: Mapping[int, float]
    unit: str
    single: bool
    turns: Mapping[int, Mapping[int, float]] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """The number shown in tables: the median over blocks."""
        return statistics.median(self.blocks.values())

    @property
    def positive(self) -> bool:
        """Whether a ratio can be formed: every value is finite and above zero."""
        return all(value > 0 and math.isfinite(value) for value in self.blocks.values())


@dataclass(frozen=True, slots=True)
class Measured:
    """One case of one run as stored, with the series of all its metrics."""

    run_id: str
    case_id: str
    workload: str
    model: str
    variant: str
    status: str
    reason: str
    group: str
    facts: Mapping[str, Any]
    series: Mapping[str, Series]
    session: str = ""

    def interleaved_with(self, other: Measured) -> bool:
        """Whether block k of both ran at the same time, in turns: one run, or two of one session."""
        return self.run_id == other.run_id or (self.session != "" and self.session == other.session)

    def blocks_of(self, metric: str) -> Collection[int]:
        """The numbers of the valid blocks that have the metric."""
        return self.series[metric].blocks if metric in self.series else ()

    @property
    def label(self) -> str:
        """The workload's short name."""
        parsed = Workload.parse(self.workload)
        return workload_label(parsed) if parsed.kind in WORKLOADS else self.workload

    @property
    def headline(self) -> str | None:
        """The metric shown first for this workload, else a timed one that the case has, else any.

        Where no timed block is left it stays the workload's own, shown as missing rather than replaced by memory.
        """
        kind = WORKLOADS.get(Workload.parse(self.workload).kind)
        if kind is not None and kind.headline in self.series:
            return kind.headline
        timed = next((name for name, series in self.series.items() if not series.single), None)
        if timed is None and kind is not None and kind.timed:
            return kind.headline
        return timed or next(iter(self.series), None)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One metric of one case against the same of another."""

    reference: Measured
    candidate: Measured
    metric: str
    unit: str
    better: Better
    reference_value: float | None
    candidate_value: float | None
    estimate: Estimate | None
    verdict: VerdictName
    reason: str = ""
    minimum_detectable_effect: float | None = None
    blocks_to_decide: int | None = None
    paired: bool = True
    margin: float = DEFAULT_MARGIN
    margin_source: str = "policy"

    @property
    def levels(self) -> tuple[float | None, float | None]:
        """Both values as the ratio has them: their middle, with the ratio between them.

        The medians of the two sides may come from blocks in which the machine ran at different speeds, and may then
        even order them against the paired ratio.
        """
        a, b = self.reference_value, self.candidate_value
        if self.estimate is None or not a or not b:
            return a, b
        middle, half = math.sqrt(a * b), math.sqrt(self.estimate.ratio)
        return middle / half, middle * half

    def as_dict(self) -> dict[str, Any]:
        """Flat, for JSON and CSV."""
        estimate = self.estimate
        return {
            "model": self.candidate.model,
            "workload": self.candidate.workload,
            "reference_variant": self.reference.variant,
            "variant": self.candidate.variant,
            "metric": self.metric,
            "unit": self.unit,
            "better": self.better,
            "reference": self.reference_value,
            "candidate": self.candidate_value,
            "ratio": estimate.ratio if estimate else _ratio(self.reference_value, self.candidate_value),
            "low": estimate.low if estimate else None,
            "high": estimate.high if estimate else None,
            "confidence": estimate.confidence if estimate else None,
            "num_blocks": estimate.num_blocks if estimate else None,
            "method": estimate.method if estimate else "single value",
            "verdict": self.verdict,
            "reason": self.reason,
            "minimum_detectable_effect": self.minimum_detectable_effect,
            "blocks_to_decide": self.blocks_to_decide,
            "margin": self.margin,
            "margin_source": self.margin_source,
            "paired": self.paired,
            "reference_run": self.reference.run_id,
            "candidate_run": self.candidate.run_id,
        }


def _ratio(reference: float | None, candidate: float | None) -> float | None:
    return candidate / reference if reference and candidate is not None else None


def block_value(turns: Mapping[int, float]) -> float:
    """A worker's number in one block from its turns' medians: their mean, on the log scale.

    The median keeps outliers within a turn from counting; the mean over turns uses all of them, where the median over
    all iterations jumps between the two speeds of a machine whose cores are shared (docs/lab, 2026-11-22, A/A: the
    spread of block differences fell from 11.5% to 8.6% and from 22.8% to 17.6%).
    """
    medians = list(turns.values())
    if len(medians) == 1:
        return medians[0]
    positive = all(value > 0 and math.isfinite(value) for value in medians)
    return statistics.geometric_mean(medians) if positive else statistics.fmean(medians)


def block_difference(reference: Mapping[int, float], candidate: Mapping[int, float]) -> float:
    """log(candidate / reference) of one block from the medians of its turns, all above zero.

    Turns pair in their order (ABBA: each with its neighbour), and `location` is what the pairs say together.
    """
    a, b = (np.log([turns[number] for number in sorted(turns)]) for turns in (reference, candidate))
    if len(a) != len(b):  # a turn was lost on one side: what is left does not pair
        return float(np.mean(b) - np.mean(a))
    return float(location(b - a))


def location(pairs: Values) -> Values:
    """A block's difference, along the last axis, from the differences of its successive pairs of turns.

    Which arm comes first alternates from pair to pair, so a linear drift cancels in any two that follow each other. Of
    few passes the mean counts; of many the median over all such twos, so that those which a neighbour or a change of
    clock speed hit do not (docs/lab, 2026-11-22, the gate here).
    """
    if pairs.shape[-1] < 2 * ROBUST_PASSES:
        return np.asarray(pairs.mean(axis=-1))
    return np.asarray(np.median((pairs[..., 1:] + pairs[..., :-1]) / 2, axis=-1))


def paired_estimate(
    reference: Mapping[int, Mapping[int, float]],
    candidate: Mapping[int, Mapping[int, float]],
    *,
    confidence: float = CONFIDENCE,
    prior: VariancePrior | None = None,
) -> Estimate | None:
    """The ratio over the blocks that both have (block -> turn -> median); None where there is none."""
    shared = sorted(reference.keys() & candidate.keys())
    if not shared:
        return None
    ratios = np.exp([block_difference(reference[block], candidate[block]) for block in shared])
    return paired_log_ratio(np.ones(len(shared)), ratios, confidence=confidence, prior=prior)


def measured_cases(store: Store, run_id: str) -> list[Measured]:
    """All cases of a run in the order of its plan, with their series, invalid blocks left out."""
    by_case: dict[str, dict[str, dict[int, dict[int, list[float]]]]] = {}
    units: dict[str, str] = {}
    samples = store.samples(run_id)
    columns = [samples[name].to_pylist() for name in ("case_id", "metric", "block", "turn", "value", "unit", "phase")]
    for case_id, metric, block, turn, value, unit, phase in zip(*columns, strict=True):
        if phase == "timed":
            turns = by_case.setdefault(case_id, {}).setdefault(metric, {}).setdefault(block, {})
            turns.setdefault(turn, []).append(value)
            units[metric] = unit
    run = store.run(run_id)
    session = run.session if run is not None else ""
    found = []
    for row in sorted(store.cases(run_id).to_pylist(), key=lambda row: row["ordinal"]):
        facts = json.loads(row["facts"] or "{}")
        invalid = {int(block) for block in facts.get("invalid_blocks", {})}
        series = {
            metric: _series(blocks, invalid, units[metric])
            for metric, blocks in by_case.get(row["case_id"], {}).items()
            if set(blocks) - invalid
        }
        found.append(
            Measured(
                run_id,
                row["case_id"],
                row["workload"],
                row["model"],
                row["variant"],
                row["status"],
                row["reason"] or "",
                row["group"],
                facts,
                series,
                session,
            )
        )
    return found


def _series(blocks: Mapping[int, Mapping[int, Sequence[float]]], invalid: set[int], unit: str) -> Series:
    turns = {
        block: {turn: statistics.median(values) for turn, values in of_block.items()}
        for block, of_block in blocks.items()
        if block not in invalid
    }
    values = {block: block_value(medians) for block, medians in turns.items()}
    return Series(values, unit, single=set(blocks) == {SOLO_BLOCK}, turns=turns)


def _pairs_within(cases: Sequence[Measured]) -> list[tuple[Measured, Measured]]:
    """(reference, candidate) of every case: the baseline of a group is the first variant of its place."""
    first: dict[tuple[str, str, str], Measured] = {}
    pairs = []
    for case in cases:
        place = (case.group, case.model, case.workload)
        reference = first.setdefault(place, case)
        if reference is not case:
            pairs.append((reference, case))
    return pairs


def compare_within(
    cases: Sequence[Measured],
    *,
    metrics: Iterable[str] | None = None,
    margin: float | MarginOf = DEFAULT_MARGIN,
) -> list[Comparison]:
    """Every case of a run against its reference, one comparison per metric (all metrics unless named)."""
    return compare_pairs(_pairs_within(cases), metrics=metrics, margin=margin)


def compare_pairs(
    pairs: Sequence[tuple[Measured, Measured]],
    *,
    metrics: Iterable[str] | None,
    margin: float | MarginOf = DEFAULT_MARGIN,
    confidence: float | ConfidenceOf = CONFIDENCE,
) -> list[Comparison]:
    """Comparisons of given pairs; the variance of few blocks is steadied by all pairs of the same metric.

    `margin`: one for all ("policy"), or by case and metric with its source; `confidence`: one for all, or by the number
    of blocks (looks, see `harness.sequential`).
    """
    margin_of: MarginOf = margin if callable(margin) else lambda case, metric: (margin, "policy")
    confidence_of: ConfidenceOf = confidence if callable(confidence) else lambda num_blocks: confidence
    wanted = None if metrics is None else set(metrics)
    found = []
    priors: dict[tuple[str, int], VariancePrior | None] = {}
    for reference, candidate in pairs:
        shared = [name for name in reference.series if name in candidate.series]
        headlines = [name for name in (candidate.headline, reference.headline) if name]
        for name in dict.fromkeys((*shared, *headlines)) or ["status"]:
            if wanted is None or name in wanted:
                last = max((*reference.blocks_of(name), *candidate.blocks_of(name)), default=0)
                if (name, last) not in priors:
                    priors[name, last] = _prior(pairs, name, last)
                found.append(_compare(reference, candidate, name, priors[name, last], margin_of, confidence_of))
    return found


def _prior(pairs: Sequence[tuple[Measured, Measured]], metric: str, last: int) -> VariancePrior | None:
    """What all pairs tell of the noise up to block `last`: what was known at the look that a case ended with.

    Later blocks of the others must not undo what was decided then (docs/lab, 2026-11-23, a decision that was undone).
    """
    estimates = []
    for reference, candidate in pairs:
        a, b = reference.series.get(metric), candidate.series.get(metric)
        if a and b and not a.single and reference.interleaved_with(candidate) and a.positive and b.positive:
            turns = [{block: of for block, of in side.turns.items() if block <= last} for side in (a, b)]
            estimates.append(paired_estimate(*turns))
    return prior_of(estimates)


def prior_of(estimates: Iterable[Estimate | None]) -> VariancePrior | None:
    """What the noise of these paired estimates says of each one's; those of one block say nothing."""
    told = [estimate for estimate in estimates if estimate is not None and estimate.num_blocks > 1]
    return variance_prior([e.sd**2 for e in told], [e.num_blocks - 1.0 for e in told])


def why_invalid(reference: Measured, candidate: Measured) -> str | None:
    """Why no verdict can be had from two cases, whatever their numbers, or None."""
    for case in (reference, candidate):
        if case.status != "ok":
            return f"{case.variant}: {case.status}: {case.reason}"
        invalid = case.facts.get("invalid_blocks", {})
        timed = [series for series in case.series.values() if not series.single]
        if invalid and len(invalid) > max((len(series.blocks) for series in timed), default=0):
            return f"{case.variant}: {len(invalid)} blocks were disturbed: {next(iter(invalid.values()))}"
    ours, theirs = (case.facts.get("data_fingerprint") for case in (reference, candidate))
    return None if ours == theirs else "the two were measured on different held-out text"


def _compare(
    reference: Measured,
    candidate: Measured,
    name: str,
    prior: VariancePrior | None,
    margin_of: MarginOf,
    confidence_of: ConfidenceOf,
) -> Comparison:
    declared = METRICS.get(name)
    better: Better = declared.better if declared else "neither"
    a, b = reference.series.get(name), candidate.series.get(name)
    margin, margin_source = margin_of(candidate, name)
    paired = reference.interleaved_with(candidate)
    invalid = why_invalid(reference, candidate)
    if invalid is None and a and b and not (a.single or b.single) and not (a.positive and b.positive):
        invalid = "a ratio needs finite values above zero"
    estimate: Estimate | None = None
    if invalid is None and a is not None and b is not None and not (a.single or b.single):
        if paired:
            confidence = confidence_of(len(a.turns.keys() & b.turns.keys()))
            estimate = paired_estimate(a.turns, b.turns, confidence=confidence, prior=prior)
        else:
            estimate = independent_log_ratio(list(a.blocks.values()), list(b.blocks.values()), confidence=CONFIDENCE)
    found = _verdict(estimate, a, b, margin, invalid, declared)
    return Comparison(
        reference,
        candidate,
        name,
        (b or a).unit if (b or a) else "",  # type: ignore[union-attr]
        better,
        a.median if a else None,
        b.median if b else None,
        estimate,
        found.name,
        found.reason,
        found.minimum_detectable_effect,
        found.blocks_to_decide,
        paired,
        margin,
        margin_source,
    )


def _verdict(
    estimate: Estimate | None,
    a: Series | None,
    b: Series | None,
    margin: float,
    invalid: str | None,
    declared: Metric | None,
) -> Verdict:
    """The verdict on an estimate; single values have no interval, so only an exact metric can be called changed."""
    if invalid is not None or a is None or b is None:
        return Verdict("invalid", math.nan, None, invalid or "nothing was measured")
    better: Better = declared.better if declared else "neither"
    if estimate is not None:
        return verdict(estimate, margin=margin, better=better)
    if not (a.single and b.single):
        return Verdict("invalid", math.nan, None, "no block was measured in both")
    if b.median == a.median or abs(b.median - a.median) <= max(
        margin * abs(a.median), declared.resolution if declared else 0.0
    ):
        return Verdict("equivalent", math.nan, None, "single values")
    if declared and declared.exact and better != "neither":
        improved = (b.median > a.median) == (better == "higher")
        return Verdict("improved" if improved else "regressed", math.nan, None, "exact values")
    return Verdict("inconclusive", math.nan, None, "a single value on each side has no interval")
