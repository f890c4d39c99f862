"""What one gate says of one metric of one case: the rule of each kind, before and after Holm. Torch-free.

    row = judged(gate, reference, candidate, comparison, calibration=None, policy=0.01)
    row = decided(row)                               # statistical rows only: those with a p_value
    row.decision, row.reason                                         # "regressed", "the whole interval lies beyond..."

Harm is a change in the direction that the gate minds, so that one rule serves metrics of either direction. On the log
scale throughout: 3% slower and 3% fewer tokens per second are the same harm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from harness.compare import Comparison, Measured
from harness.core import Gate
from harness.gate_file import DEFAULT_LIMIT
from harness.registry import METRICS
from harness.stats import Estimate, minimum_detectable_effect, p_value_beyond, supported_effect

Decision = Literal["regressed", "improved", "passed", "inconclusive", "invalid", "skipped"]
BROKEN = frozenset({"failed", "oom", "wrong", "timeout"})
RAN = frozenset({"ok", "not_steady"})
_PASS_POWER = 0.99  # a limit wider than declared is the change that would have been shown so surely
_MOST_SUPPORTED = 0.5  # where only more than this is excluded nothing was, and the declared limit stays
_MAX_BLOCKS = 1000
_WORDS = {"worse": "a worsening", "better": "an improvement", "change": "a change"}


class NoiseFloors(Protocol):
    """What calibration knows of this machine: how far unchanged code appears to differ."""

    def floor(self, comparison: Comparison) -> tuple[float, str] | None:
        """(relative change, its source in words) for the family of the compared case; None where it is unknown."""
        ...


@dataclass(frozen=True, slots=True)
class GateRow:
    """One gate's word on one metric of one case.

    `margin` and `limit` are relative changes, except the limit of a bound gate: a value of the metric. An empty source
    means that there is none. `effect` and the estimate are changes of the metric relative to the baseline. `first` is
    the earlier measurement of a row that was red and measured again.
    """

    gate: Gate
    case: Measured
    reference: Measured | None
    decision: Decision
    reason: str
    unit: str = ""
    baseline_value: float | None = None
    candidate_value: float | None = None
    estimate: Estimate | None = None
    margin: float = 0.0
    margin_source: str = "policy"
    limit: float | None = None
    limit_source: str = ""
    minimum_detectable_effect: float | None = None
    p_value: float | None = None
    adjusted_p: float | None = None
    first: GateRow | None = None

    @property
    def metric(self) -> str:
        """The metric's name; `status` where the row is about a case that did not run on both sides."""
        both = self.reference is not None and {self.reference.status, self.case.status} <= RAN
        return self.gate.metric if both else "status"

    @property
    def effect(self) -> float | None:
        """The relative change of the metric; None where no ratio can be formed."""
        if self.estimate is not None:
            return self.estimate.ratio - 1
        return _change(self.baseline_value, self.candidate_value)

    @property
    def measured(self) -> bool:
        """Whether anything was measured for it, be it unfit to be judged."""
        seen = (self.case, self.reference)
        return self.candidate_value is not None or any(case and case.facts.get("invalid_blocks") for case in seen)

    def as_dict(self) -> dict[str, Any]:
        """Flat, for JSON, CSV and JUnit properties."""
        estimate = self.estimate
        return {
            "decision": self.decision,
            "kind": self.gate.kind,
            "metric": self.metric,
            "model": self.case.model,
            "workload": self.case.workload,
            "variant": self.case.variant,
            "reference_variant": self.reference.variant if self.reference else None,
            "case_id": self.case.case_id,
            "unit": self.unit,
            "baseline": self.baseline_value,
            "candidate": self.candidate_value,
            "effect": self.effect,
            "low": estimate.low - 1 if estimate else None,
            "high": estimate.high - 1 if estimate else None,
            "confidence": estimate.confidence if estimate else None,
            "num_blocks": estimate.num_blocks if estimate else None,
            "method": estimate.method if estimate else "single value",
            "minimum_detectable_effect": self.minimum_detectable_effect,
            "margin": self.margin,
            "margin_source": self.margin_source,
            "limit": self.limit,
            "limit_source": self.limit_source,
            "p_value": self.p_value,
            "adjusted_p": self.adjusted_p,
            "fails": self.gate.fails,
            "reason": self.reason,
            "baseline_run": self.reference.run_id if self.reference else None,
            "candidate_run": self.case.run_id,
            "first": self.first.as_dict() if self.first else None,
        }


def _change(reference: float | None, candidate: float | None) -> float | None:
    if reference is None or candidate is None:
        return None
    if candidate == reference:
        return 0.0
    return candidate / reference - 1 if reference else None


def not_running(gate: Gate, reference: Measured, candidate: Measured) -> GateRow:
    """The row of two cases of which at least one did not run."""
    decision: Decision = "invalid"
    ran = reference.status in RAN
    said = f"{candidate.status}: {candidate.reason}" if candidate.reason else candidate.status
    if ran and candidate.status in BROKEN:
        decision, reason = "regressed", f"{said}; the baseline runs"
    elif ran:
        reason = f"{said}; the baseline runs"
    elif candidate.status in RAN:
        decision, reason = "skipped", f"nothing to compare with: in the baseline {reference.status}: {reference.reason}"
    elif candidate.status == reference.status == "skipped":
        decision, reason = "skipped", said
    else:
        reason = f"{said}; in the baseline {reference.status}: {reference.reason}"
    return GateRow(gate, candidate, reference, decision, reason)


def judged(
    gate: Gate,
    reference: Measured,
    candidate: Measured,
    comparison: Comparison | None,
    *,
    calibration: NoiseFloors | None,
    policy: float,
) -> GateRow | None:
    """The row of two cases that ran, before the correction for the number of rows; None if neither has the metric."""
    a, b = reference.series.get(gate.metric), candidate.series.get(gate.metric)
    disturbed = any(case.facts.get("invalid_blocks") for case in (reference, candidate))
    if a is None and b is None and not (disturbed and gate.kind == "statistical"):
        return None
    values = (a.median if a else None, b.median if b else None)
    if gate.kind == "statistical" and comparison is not None:
        values = comparison.levels
    row = GateRow(
        gate,
        candidate,
        reference,
        "invalid",
        "no block of it is fit to be judged" if a is None and b is None else "not recorded on both sides",
        unit=declared.unit if (declared := METRICS.get(gate.metric)) is not None else "",
        baseline_value=values[0],
        candidate_value=values[1],
        estimate=comparison.estimate if comparison is not None else None,
        margin=gate.margin or 0.0,
        limit=gate.limit,
    )
    if gate.kind == "statistical":
        return row if comparison is None else _statistical(row, comparison, calibration, policy)
    texts = [case.facts.get("data_fingerprint") for case in (reference, candidate)]
    if texts[0] != texts[1]:
        return replace(row, reason="the two were measured on different held-out text")
    return _exact(row) if gate.kind == "exact" else _bound(row)


def _harm(gate: Gate, change: float) -> float:
    """A change of the metric (any scale that is 0 for none) as a harm: positive where the gate minds it."""
    if gate.fails == "change":
        return abs(change)
    declared = METRICS.get(gate.metric)
    sign = -1.0 if declared is not None and declared.better == "higher" else 1.0
    return sign * change if gate.fails == "worse" else -sign * change


def _exact(row: GateRow) -> GateRow:
    a, b = row.baseline_value, row.candidate_value
    if a is None or b is None:
        return row
    if not (math.isfinite(a) and math.isfinite(b)):
        return replace(row, decision="invalid" if not math.isfinite(a) else "regressed", reason=f"{a:g} is now {b:g}")
    harm = _harm(row.gate, b - a)
    source = "policy" if row.gate.margin is not None else "exact: equal or better"
    row = replace(row, margin_source=source, minimum_detectable_effect=0.0)
    if harm > row.margin * abs(a):
        return replace(row, decision="regressed", reason=f"{a:g} became {b:g}; exact, so it is no noise")
    return replace(
        row,
        decision="improved" if harm < 0 and -harm > row.margin * abs(a) else "passed",
        reason="equal" if harm == 0 else f"{a:g} became {b:g}",
    )


def _bound(row: GateRow) -> GateRow:
    """Quality: at most so much worse than the baseline (margin), and no value beyond the limit."""
    a, b = row.baseline_value, row.candidate_value
    if b is None or (a is None and row.gate.limit is None):
        return row
    gate, better = row.gate, METRICS[row.gate.metric].better
    margin_source, limit_source = ("" if value is None else "policy" for value in (gate.margin, gate.limit))
    row = replace(row, margin_source=margin_source, limit_source=limit_source, minimum_detectable_effect=0.0)
    if not math.isfinite(b):
        return replace(row, decision="regressed", reason=f"the value is {b}")
    if gate.limit is not None and _harm(gate, b - gate.limit) > 0:
        side = "below" if better == "higher" else "above"
        return replace(row, decision="regressed", reason=f"{b:.6g} lies {side} the bound of {gate.limit:g}")
    if gate.margin is not None and (a is None or not math.isfinite(a)):
        return replace(row, reason="the baseline has no value to hold its margin against")
    if gate.margin is not None and a is not None and _harm(gate, b - a) > gate.margin * abs(a):
        reason = f"{a:.6g} became {b:.6g}, worse by more than {gate.margin:.2%}"
        return replace(row, decision="regressed", reason=reason)
    return replace(row, decision="passed", reason="within its bounds")


def _statistical(row: GateRow, comparison: Comparison, calibration: NoiseFloors | None, policy: float) -> GateRow:
    """Margin, limit, p-value and what the interval alone says; the p-values of all rows are corrected afterwards."""
    margin, source = row.gate.margin if row.gate.margin is not None else policy, "policy"
    floor = calibration.floor(comparison) if calibration is not None else None
    if floor is not None and floor[0] > margin:
        margin, source = floor
    row = replace(row, margin=margin, margin_source=source, limit=None)
    estimate = row.estimate
    if comparison.verdict == "invalid" or estimate is None:
        return replace(row, decision="invalid", reason=comparison.reason or "no block was measured in both")
    if not estimate.df > 0 or math.isnan(estimate.sd):
        reason = f"{estimate.num_blocks} block has no interval; measure more (--blocks, --budget)"
        return replace(row, decision="inconclusive", reason=reason, minimum_detectable_effect=math.inf)
    limit, supported = declared_limit(row.gate), _supported_limit(estimate, margin)
    if supported > _MOST_SUPPORTED:
        supported = 0.0
    return replace(
        row,
        decision="inconclusive",
        reason="",
        limit=max(limit, supported),
        limit_source="policy" if limit >= supported else f"what {estimate.num_blocks} blocks support here",
        minimum_detectable_effect=minimum_detectable_effect(estimate, margin=margin),
        p_value=_p_value(row.gate, estimate, margin),
    )


def _p_value(gate: Gate, estimate: Estimate, margin: float) -> float:
    """Of "the true change that the gate minds is at most the margin"; doubled where it minds both directions."""
    if gate.fails == "change":
        sides = [p_value_beyond(estimate, margin=margin, better=better) for better in ("lower", "higher")]
        return min(2 * min(sides), 1.0)
    return p_value_beyond(estimate, margin=margin, better=METRICS[gate.metric].better, side=gate.fails)


def declared_limit(gate: Gate) -> float:
    """The change that a passing case of a statistical gate has excluded, relative: 0.03 is 3%."""
    return max(DEFAULT_LIMIT, gate.margin or 0.0) if gate.limit is None else gate.limit


def _supported_limit(estimate: Estimate, margin: float) -> float:
    """The least harm that this noise and these blocks would show beyond the margin nearly always."""
    blocks, alpha = estimate.num_blocks, (1 - estimate.confidence) / 2
    return supported_effect(estimate.sd, blocks, margin=margin, alpha=alpha, power=_PASS_POWER, df=estimate.df)


def _log(ratio: float) -> float:
    return math.log(ratio) if ratio > 0 else -math.inf


@dataclass(frozen=True, slots=True)
class _Harm:
    """An estimate as harm on the log scale: 0 is no change, positive is what the gate minds."""

    centre: float
    low: float
    high: float

    @classmethod
    def of(cls, gate: Gate, estimate: Estimate) -> _Harm:
        centre, low, high = (_log(ratio) for ratio in (estimate.ratio, estimate.low, estimate.high))
        if gate.fails == "change":
            return cls(abs(centre), low if centre >= 0 else -high, max(high, -low))
        return cls(centre, low, high) if _harm(gate, 1.0) > 0 else cls(-centre, -high, -low)

    def blocks_to_decide(self, estimate: Estimate, margin: float, limit: float) -> int | None:
        """About how many blocks would bring this estimate beyond the margin or within the limit; None for very many."""
        room = max(self.centre - math.log1p(margin), math.log1p(limit) - self.centre)
        blocks = math.ceil((1.96 * estimate.sd / room) ** 2) if room > 0 else _MAX_BLOCKS
        return max(blocks, estimate.num_blocks + 1) if blocks < _MAX_BLOCKS else None


def settled(gate: Gate, estimate: Estimate, margin: float) -> bool:
    """Whether more blocks cannot be needed: red by the interval of this look, or within the limit that was declared.

    For looks on the way. The wider limit that few blocks support is no reason to stop measuring.
    """
    harm, limit = _Harm.of(gate, estimate), max(declared_limit(gate), margin)
    return harm.low > math.log1p(margin) or harm.high <= math.log1p(limit)


def decided(row: GateRow) -> GateRow:
    """The decision on a statistical row from its interval, whose confidence is that of the look."""
    estimate, gate, limit = row.estimate, row.gate, row.limit
    assert estimate is not None and limit is not None
    harm, margin = _Harm.of(gate, estimate), math.log1p(row.margin)
    if harm.low > margin:
        reason = f"the whole interval lies beyond the margin of {row.margin:.1%}"
        return replace(row, decision="regressed", reason=reason)
    if harm.high < -margin and gate.fails != "change":
        return replace(row, decision="improved", reason=f"the whole interval lies beyond {row.margin:.1%}")
    if harm.high <= math.log1p(limit):
        return replace(row, decision="passed", reason=f"{_WORDS[gate.fails]} of more than {limit:.1%} is excluded")
    blocks = harm.blocks_to_decide(estimate, row.margin, declared_limit(gate))
    more = f"about {blocks} blocks would decide" if blocks else "no sensible number of blocks would decide"
    reason = f"neither beyond the margin of {row.margin:.1%} nor within the limit of {limit:.1%}; {more}"
    return replace(row, decision="inconclusive", reason=reason)
