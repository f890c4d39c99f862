"""What gates say of comparisons: which case is judged by which gate, and red, green or undecided. Torch-free.

    rows = evaluate(gates, compare_sides(baseline, candidate), calibration=None)
    exit_code(rows)                                  # 0 green, 1 regressed, 3 nothing measured, 4 undecided

A statistical gate is red only if the whole interval lies beyond the margin on the bad side, twice: the second time on
fresh blocks, and with Holm's correction over all statistical rows of what both say together. It is green if the
interval's bad end lies within the limit, or within what so much noise and so few blocks support where that is more:
then the row says so; where it is more than half, nothing was shown and the row is undecided. Exact and bound gates have
no noise and no interval. Of several gates that match a case and metric the first one judges.

A case that broke in the candidate and not in the baseline is a regression, whatever its numbers. Nothing disappears: a
case that was measured nowhere, or on one side only, is a row with its reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from harness.cli import EXIT_INCONCLUSIVE, EXIT_NOTHING, EXIT_OK, EXIT_REGRESSED
from harness.compare import Comparison, Measured
from harness.core import Gate, UsageError, Workload
from harness.gate_file import DEFAULT_LIMIT, GateFile, check_gates, load_gates
from harness.gate_rules import RAN, Decision, GateRow, NoiseFloors, decided, judged, not_running, settled
from harness.multiplicity import holm
from harness.registry import METRICS, WORKLOADS, workload_label

__all__ = [
    "DEFAULT_LIMIT",
    "Decision",
    "GateFile",
    "GateRow",
    "NoiseFloors",
    "applicable",
    "check_gates",
    "confirmed",
    "describe",
    "evaluate",
    "exit_code",
    "gates_of",
    "load_gates",
    "red",
    "settled",
    "unmatched",
]


def applicable(gates: Sequence[Gate], workload: Workload, model: str, variant: str) -> dict[str, Gate]:
    """Metric -> the gate that judges it in such a case: the first whose patterns match."""
    found: dict[str, Gate] = {}
    texts = [str(workload)] + ([workload_label(workload)] if workload.kind in WORKLOADS else [])
    for gate in gates:
        declared = METRICS.get(gate.metric)
        if gate.metric in found or (declared is not None and not declared.applies(workload)):
            continue
        place = any(fnmatchcase(text, gate.workload) for text in texts)
        if place and fnmatchcase(model, gate.model) and fnmatchcase(variant, gate.variant):
            found[gate.metric] = gate
    return found


def _gates_of_case(gates: Sequence[Gate], case: Measured) -> dict[str, Gate]:
    return applicable(gates, Workload.parse(case.workload), case.model, case.variant)


def evaluate(
    gates: Sequence[Gate],
    comparisons: Sequence[Comparison],
    *,
    calibration: NoiseFloors | None = None,
    policy: float = 0.01,
    missing: Sequence[Measured] = (),
    new: Sequence[Measured] = (),
) -> tuple[GateRow, ...]:
    """One row for each case and gated metric, in the order of the comparisons.

    Statistical rows are judged one by one; what is red must be measured again (`red`, `confirmed`), and there the
    number of rows is corrected for. policy: the margin of gates that name none (the suite's). missing: cases of the
    baseline that the candidate lacks. new: the other way round.
    """
    pairs: dict[tuple[str, str], dict[str, Comparison]] = {}
    for comparison in comparisons:
        key = (comparison.reference.case_id, comparison.candidate.case_id)
        pairs.setdefault(key, {})[comparison.metric] = comparison
    rows: list[GateRow] = []
    for found in pairs.values():
        one = next(iter(found.values()))
        chosen = _gates_of_case(gates, one.candidate)
        if {one.reference.status, one.candidate.status} <= RAN:
            for metric, gate in chosen.items():
                row = judged(
                    gate, one.reference, one.candidate, found.get(metric), calibration=calibration, policy=policy
                )
                rows += [] if row is None else [row]
        elif chosen:
            rows.append(not_running(next(iter(chosen.values())), one.reference, one.candidate))
    rows += _unpaired(gates, missing, "invalid", "missing: the candidate has no such case")
    rows += _unpaired(gates, new, "skipped", "new: the baseline has no such case")
    return tuple(row if row.p_value is None else decided(row) for row in rows)


def _unpaired(gates: Sequence[Gate], cases: Sequence[Measured], decision: Decision, reason: str) -> list[GateRow]:
    """One row for each case of one side only that a gate is about."""
    chosen = [(case, next(iter(_gates_of_case(gates, case).values()), None)) for case in cases]
    return [GateRow(gate, case, None, decision, reason) for case, gate in chosen if gate is not None]


def unmatched(gates: Sequence[Gate], rows: Sequence[GateRow]) -> tuple[Gate, ...]:
    """The gates that judged nothing: a metric that is not recorded here, a pattern that no case matches."""
    used = {row.gate for row in rows}
    return tuple(gate for gate in gates if gate not in used)


def red(rows: Sequence[GateRow]) -> tuple[GateRow, ...]:
    """The rows that must be measured again before they fail: statistical ones that are red and have no first yet."""
    return tuple(row for row in rows if _is_unconfirmed(row))


def _is_unconfirmed(row: GateRow) -> bool:
    return row.decision == "regressed" and row.p_value is not None and row.first is None


def confirmed(rows: Sequence[GateRow], again: Sequence[GateRow], *, alpha: float = 0.05) -> tuple[GateRow, ...]:
    """The rows with each red one replaced by its second measurement, the first kept beside it.

    It stays red only if it is red again, and if among so many rows that is no chance: an unchanged row is red with
    probability p twice over with p squared, so the square of the larger p-value is a p-value of both measurements
    together, and Holm (1979) corrects it over all statistical rows. `alpha` is the chance that any unchanged row fails.
    One whose second measurement is missing or unfit is inconclusive, and so is one that passes only a limit wider than
    the declared one: too few blocks to take the first measurement back.
    """
    second = {(row.case.case_id, row.metric): row for row in again}
    found = []
    for row in rows:
        if not _is_unconfirmed(row):
            found.append(row)
            continue
        case_id = row.case.case_id
        repeat = second.get((case_id, row.metric)) or second.get((case_id, "status"))
        if repeat is None or repeat.decision in ("invalid", "skipped"):
            why = repeat.reason if repeat else "it was not measured again"
            found.append(replace(row, decision="inconclusive", reason=f"red, but not confirmed: {why}", first=row))
        elif repeat.decision == "regressed":
            found.append(replace(repeat, first=row))
        elif repeat.decision == "passed" and repeat.limit_source != "policy":
            why = f"on fresh blocks {repeat.reason}, which does not exclude the declared limit"
            found.append(replace(repeat, decision="inconclusive", reason=f"red at first; {why}", first=row))
        else:
            found.append(replace(repeat, reason=f"{repeat.reason}; was red at first, not on fresh blocks", first=row))
    both = [_joint(row) if _twice(row) else math.nan if row.p_value is None else 1.0 for row in found]
    adjusted = holm(both)
    return tuple(
        _red_twice(replace(row, adjusted_p=p), alpha) if _twice(row) else row
        for row, p in zip(found, adjusted, strict=True)
    )


def _twice(row: GateRow) -> bool:
    return row.decision == "regressed" and row.p_value is not None and row.first is not None


def _joint(row: GateRow) -> float:
    """The p-value of both measurements of a red row; a stored baseline is in both, so those are not independent."""
    assert row.p_value is not None and row.first is not None and row.first.p_value is not None
    shared = row.reference is not None and row.first.reference is not None
    same = shared and row.reference.run_id == row.first.reference.run_id  # type: ignore[union-attr]
    return max(row.p_value, row.first.p_value) ** (1 if same else 2)


def _red_twice(row: GateRow, alpha: float) -> GateRow:
    assert row.adjusted_p is not None
    said = f"{row.reason}; red twice, the second time on fresh blocks (adjusted p = {row.adjusted_p:.2g})"
    if row.adjusted_p <= alpha:
        return replace(row, reason=said)
    return replace(row, decision="inconclusive", reason=f"{said}, but among so many rows that may be chance")


def exit_code(rows: Sequence[GateRow]) -> int:
    """1 if anything regressed, 3 if nothing was measured, 4 if anything is undecided or disturbed, else 0."""
    decisions = {row.decision for row in rows}
    if "regressed" in decisions:
        return EXIT_REGRESSED
    if not any(row.measured for row in rows):
        return EXIT_NOTHING
    return EXIT_INCONCLUSIVE if decisions & {"inconclusive", "invalid"} else EXIT_OK


def describe(gate: Gate) -> str:
    """A gate in a few words: `exact kv_bytes of decode*`."""
    places: Mapping[str, str] = {"": gate.workload, "model ": gate.model, "variant ": gate.variant}
    where = ", ".join(f"{name}{text}" for name, text in places.items() if text != "*")
    return f"{gate.kind} {gate.metric}" + (f" of {where}" if where else "")


def gates_of(gates: Sequence[Gate], source: str) -> Sequence[Gate]:
    """The gates of a suite, checked. Raises UsageError where there is none or one is wrong."""
    if not gates:
        raise UsageError(f"{source} declares no gates; give a file with --gates FILE")
    check_gates(gates, source)
    return gates
