"""What a gate can detect on this machine, said before it measures and repeated beside its verdicts. Torch-free.

    forecast(plan, gates, calibration, budget_seconds=600.0)    # ["12 of 16 blocks fit into 10 min: slowdowns from..."]
    abilities_of(rows, calibration)                             # what was detectable, how often verdicts are wrong

Where the machine was never calibrated it says that, and nothing else: a promise needs measured noise.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.calibration import Floor, NoiseCalibration, Rate
from harness.core import Case, Gate
from harness.gate_file import DEFAULT_LIMIT
from harness.gates import GateRow, applicable
from harness.plan import Plan

UNCALIBRATED = (
    "Not calibrated: margins are those of the policy, and what can be detected here is not known beforehand. "
    "Calibrate with: python -m harness calibrate --noise"
)


def margin_of(calibration: NoiseCalibration | None, case: Case, gate: Gate, policy: float, num_blocks: int) -> float:
    """The margin of a gate on a case before its comparison is made: as `gates.evaluate` will find it."""
    declared = policy if gate.margin is None else gate.margin
    floor = None if calibration is None else calibration.floor_for(str(case.workload), case.model, gate.metric)
    return declared if floor is None else max(declared, floor.margin(num_blocks))


def forecast(
    plan: Plan, gates: Sequence[Gate], calibration: NoiseCalibration | None, budget_seconds: float | None
) -> list[str]:
    """What the blocks that fit into the budget will detect, in sentences; none where only exact gates are asked for."""
    judged = _statistical_cases(plan, gates)
    if not judged:
        return []
    if calibration is None:
        return [UNCALIBRATED]
    floors = {
        (case, gate): floor
        for case, gate in judged
        if (floor := calibration.floor_for(str(case.workload), case.model, gate.metric)) is not None
    }
    if not floors:
        return [UNCALIBRATED]
    unknown = sorted({f"{case.workload.kind} on {case.model}" for case, gate in judged if (case, gate) not in floors})
    blocks = _blocks_within(plan, floors, budget_seconds)
    found: dict[str, tuple[float, float]] = {}
    for (_, gate), floor in floors.items():
        policy = plan.suite.margin if gate.margin is None else gate.margin
        limit = DEFAULT_LIMIT if gate.limit is None else gate.limit
        found[f"{floor.family} ({gate.metric})"] = floor.detectable(blocks, policy), limit
    effects = ", ".join(f"{effect:.1%} of {name}" for name, (effect, _) in sorted(found.items()))
    lines = [f"{blocks} blocks detect slowdowns from {effects} (in 4 of 5 cases)."]
    if short := {name: effect for name, (effect, limit) in found.items() if effect > limit}:
        shown = ", ".join(f"{name}: {effect:.1%}" for name, effect in sorted(short.items()))
        lines.append(f"Within this budget the declared limit is out of reach here; what is supported instead: {shown}.")
    if unknown:
        lines.append(f"Not calibrated: {', '.join(unknown)}.")
    return lines


def _statistical_cases(plan: Plan, gates: Sequence[Gate]) -> list[tuple[Case, Gate]]:
    statistical = [gate for gate in gates if gate.kind == "statistical"]
    return [
        (case, gate)
        for group in plan.groups
        for case in group.timed()
        if case.case_id not in plan.skips
        for gate in applicable(statistical, case.workload, case.model, str(case.variant)).values()
    ]


def _blocks_within(plan: Plan, floors: dict[tuple[Case, Gate], Floor], budget_seconds: float | None) -> int:
    """How many blocks of every case fit into the budget, at least 2."""
    most = plan.sampling.blocks
    if budget_seconds is None:
        return max(most, 2)
    seconds = {case: floor.block_seconds for (case, _), floor in floors.items()}
    known = [value for value in seconds.values() if value == value]
    if not known:
        return max(most, 2)
    one_block = sum(known) / len(known) * sum(len(group.timed()) for group in plan.groups)
    return max(2, min(most, int(0.8 * budget_seconds / one_block)))


def abilities_of(rows: Sequence[GateRow], calibration: NoiseCalibration | None) -> list[str]:
    """What was detectable in these rows, and how often verdicts like these are wrong, as measured on this machine."""
    effects = sorted(
        row.minimum_detectable_effect
        for row in rows
        if row.p_value is not None and row.minimum_detectable_effect is not None
    )
    lines = []
    if effects:
        middle = effects[len(effects) // 2]
        lines.append(
            f"Detectable (in 4 of 5 cases) with what was measured: changes from {effects[0]:.1%}, "
            f"in the middle {middle:.1%}, at worst {effects[-1]:.1%}."
        )
    if calibration is None:
        return lines
    families = {
        (floor.family, floor.metric): floor
        for row in rows
        if row.p_value is not None
        and (floor := calibration.floor_for(row.case.workload, row.case.model, row.gate.metric)) is not None
    }
    return [*lines, *_rates(list(families.values()))]


def _rates(floors: Sequence[Floor]) -> list[str]:
    """The measured false alarms and power of these families together."""
    alarms = sum((floor.red for floor in floors), Rate(0, 0))
    if not alarms.trials:
        return []
    low, high = alarms.interval
    day = min(floor.measured_at for floor in floors)
    text = (
        f"Calibrated {day:%Y-%m-%d}: {alarms.hits} of {alarms.trials} comparisons of unchanged code were red "
        f"(95% interval {low:.1%} to {high:.1%})"
    )
    by_effect: dict[float, Rate] = {}
    for floor in floors:
        for effect, rate in floor.power.items():
            by_effect[effect] = by_effect.get(effect, Rate(0, 0)) + rate
    found = [
        f"{rate.hits} of {rate.trials} at +{effect:.0%}" for effect, rate in sorted(by_effect.items()) if rate.trials
    ]
    return [text + (f"; injected slowdowns that were red: {', '.join(found)}." if found else ".")]
