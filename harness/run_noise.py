"""How far stored runs of the same code lie apart on one machine: what a baseline that was not interleaved needs.

    floors = RunNoise.of(store, baseline_run, calibration)     # a `gates.NoiseFloors`
    rows = tuple(floors.proved(row) for row in evaluate(gates, comparisons, calibration=floors))

Two stored runs share no blocks, so what the machine did between them is in their ratio, and no number of blocks takes
it out. Runs of one commit with one fingerprint show how much that is. Where fewer than three of them are stored, a red
row is inconclusive: it may be the machine. Times only; exact and bound gates pass through. Torch-free.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from harness.calibration import STATED_RATE
from harness.compare import Comparison
from harness.core import Workload
from harness.distributions import student_t_ppf
from harness.gate_rules import GateRow, NoiseFloors
from harness.schema import RunRow
from harness.store import Store

_LEAST_DF = 2  # three runs of one commit, or two each of two

Family = tuple[str, str, str]  # workload kind, model, metric


@dataclass(frozen=True, slots=True)
class RunSpread:
    """`sd` of the log of a metric from one run to another of the same code, from `df` degrees of freedom."""

    sd: float
    df: int

    @property
    def margin(self) -> float:
        """The relative change that two runs of the same code exceed in one comparison of a hundred."""
        return math.expm1(student_t_ppf(1 - STATED_RATE, self.df) * math.sqrt(2) * self.sd)


@dataclass(frozen=True, slots=True)
class RunNoise:
    """The floors of a calibration, widened to what separate runs need; `spreads` lacks a family of too few runs."""

    calibration: NoiseFloors | None
    spreads: Mapping[Family, RunSpread]
    commit: str

    @classmethod
    def of(cls, store: Store, baseline: RunRow, calibration: NoiseFloors | None) -> RunNoise:
        """From every finished run of the baseline's suite and fingerprint whose tree was clean."""
        return cls(calibration, _spreads(store, baseline), baseline.git_sha)

    def floor(self, comparison: Comparison) -> tuple[float, str] | None:
        """(margin, its source): the larger of the calibrated floor and of the spread between runs."""
        known = self.calibration.floor(comparison) if self.calibration is not None else None
        spread = self.spreads.get(_family(comparison.candidate.workload, comparison.candidate.model, comparison.metric))
        if spread is None or (known is not None and known[0] >= spread.margin):
            return known
        return spread.margin, f"spread between runs of the same code on this machine ({spread.df} degrees of freedom)"

    def proved(self, row: GateRow) -> GateRow:
        """The row; inconclusive if it is red and might be the machine's day as well."""
        family = _family(row.case.workload, row.case.model, row.gate.metric)
        if row.decision != "regressed" or row.p_value is None or family in self.spreads:
            return row
        instead = f"--against commit:{self.commit[:9]}" if self.commit else "a commit as the baseline"
        reason = (
            f"{row.reason}, but the baseline was measured at another time, and fewer than three stored runs of one "
            f"commit tell how far that alone moves this machine: measure both in turns with {instead}"
        )
        return replace(row, decision="inconclusive", reason=reason)


def _family(workload: str, model: str, metric: str) -> Family:
    return Workload.parse(workload).kind, model, metric


def _spreads(store: Store, baseline: RunRow) -> dict[Family, RunSpread]:
    commits = {run.run_id: run.git_sha for run in _comparable(store, baseline)}
    cases = {row["case_id"]: (row["workload"], row["model"]) for row in store.cases(baseline.run_id).to_pylist()}
    levels: dict[Family, dict[str, dict[str, dict[str, float]]]] = {}  # -> commit -> case -> run -> log level
    for row in store.summary().select(["run_id", "case_id", "metric", "median"]).to_pylist():
        if row["run_id"] in commits and row["case_id"] in cases and (row["median"] or 0) > 0:
            by_commit = levels.setdefault(_family(*cases[row["case_id"]], row["metric"]), {})
            runs = by_commit.setdefault(commits[row["run_id"]], {}).setdefault(row["case_id"], {})
            runs[row["run_id"]] = math.log(row["median"])
    found = {family: _pooled(by_commit) for family, by_commit in levels.items()}
    return {family: spread for family, spread in found.items() if spread.df >= _LEAST_DF}


def _comparable(store: Store, baseline: RunRow) -> Iterator[RunRow]:
    """One run a session: the two sides of one were interleaved, so they show nothing of the time between."""
    seen: set[str] = set()
    for run in store.runs():
        same = (run.suite, run.suite_version, run.fingerprint) == (
            baseline.suite,
            baseline.suite_version,
            baseline.fingerprint,
        )
        if same and run.status == "finished" and run.git_sha and not run.git_dirty and run.session not in seen:
            seen |= {run.session} - {""}
            yield run


def _pooled(by_commit: Mapping[str, Mapping[str, Mapping[str, float]]]) -> RunSpread:
    """All cases of a run move with the machine together, so the degrees of freedom are those of one case."""
    squares = df = 0.0
    for cases in by_commit.values():
        shared = [np.fromiter(runs.values(), dtype=np.float64) for runs in cases.values()]
        degrees = min(len(runs) for runs in shared) - 1
        if degrees > 0:
            squares += degrees * float(np.mean([np.var(runs, ddof=1) for runs in shared]))
            df += degrees
    return RunSpread(math.sqrt(squares / df) if df else math.nan, int(df))
