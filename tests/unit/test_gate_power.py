"""What a gate promises before it measures: from measured noise only, and never more than the budget holds."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from harness import registry
from harness.calibration import Bound, Floor, NoiseCalibration, Rate
from harness.compare import Measured
from harness.core import Gate
from harness.gate_power import UNCALIBRATED, abilities_of, forecast, margin_of
from harness.gate_rules import GateRow
from harness.plan import Plan, make_plan

registry.load_all()
GATES = (Gate("tps", workload="decode*"), Gate("kv_bytes", "exact"))


def floor(**changes: Any) -> Floor:
    fields: dict[str, Any] = {
        "workload": "decode",
        "model": "tiny",
        "metric": "tps",
        "sd": Bound(0.014, 0.012, 0.016),
        "df": 90,
        "floors": {8: Bound(0.01, 0.008, 0.015), 16: Bound(0.005, 0.004, 0.007)},
        "block_seconds": 3.0,
        "blocks": 8,
        "measured_at": datetime(2026, 11, 20, tzinfo=UTC),
        **changes,
    }
    return Floor(**fields)


def known(*floors: Floor) -> NoiseCalibration:
    return NoiseCalibration("f", "m", "cpu", floors)


@pytest.fixture
def plan() -> Plan:
    return make_plan("gate", device="cpu", capabilities=frozenset({"cpu", "pkg:torch"}), models=("tiny",))


def test_without_a_calibration_nothing_is_promised(plan: Plan) -> None:
    assert forecast(plan, GATES, None, 600.0) == [UNCALIBRATED]
    assert forecast(plan, GATES, known(floor(model="other")), 600.0) == [UNCALIBRATED]
    assert forecast(plan, GATES[1:], None, 600.0) == []  # what has no noise needs no promise


def test_the_budget_decides_how_many_blocks_are_promised(plan: Plan) -> None:
    """Four timed cases of 3 s: 16 blocks fit into ten minutes, 4 into one."""
    (whole,) = forecast(plan, GATES, known(floor()), 600.0)
    assert whole.startswith("16 blocks detect slowdowns from") and "decode on tiny (tps)" in whole
    short = forecast(plan, GATES, known(floor()), 60.0)
    assert short[0].startswith("4 blocks detect")
    assert "out of reach here" in short[1]  # 3% cannot be shown by 4 blocks of 1.4% noise
    assert forecast(plan, GATES, known(floor()), None) == [whole]
    assert forecast(plan, GATES, known(floor()), 0.1)[0].startswith("2 blocks")


def test_families_without_a_floor_are_named(plan: Plan) -> None:
    told = forecast(plan, (*GATES, Gate("ttft")), known(floor()), 600.0)
    assert told[-1] == "Not calibrated: prefill on tiny."


def test_the_margin_on_the_way_is_the_larger_of_policy_and_floor(plan: Plan) -> None:
    case = plan.groups[0].timed()[0]
    assert margin_of(None, case, GATES[0], 0.01, 8) == 0.01
    assert margin_of(known(floor()), case, GATES[0], 0.01, 8) == 0.015
    assert margin_of(known(floor()), case, GATES[0], 0.01, 16) == 0.01
    assert margin_of(known(floor()), case, replace(GATES[0], margin=0.2), 0.01, 8) == 0.2


def test_how_often_verdicts_are_wrong_is_told_beside_them() -> None:
    case = Measured("r", "a", "decode(batch=1,context=8,new_tokens=4)", "tiny", "reference", "ok", "", "g", {}, {})
    row = GateRow(GATES[0], case, case, "passed", "", minimum_detectable_effect=0.02, p_value=0.5)
    rates = {"red": Rate(0, 200), "power": {0.03: Rate(58, 60), 0.05: Rate(60, 60)}}
    told = abilities_of([row, replace(row, minimum_detectable_effect=0.04)], known(floor(**rates)))
    assert "changes from 2.0%" in told[0] and "at worst 4.0%" in told[0]
    assert "0 of 200 comparisons of unchanged code were red (95% interval 0.0% to 1.8%)" in told[1]
    assert "58 of 60 at +3%, 60 of 60 at +5%" in told[1] and "2026-11-20" in told[1]
    assert len(abilities_of([row], None)) == 1
    assert abilities_of([replace(row, p_value=None)], known(floor(**rates))) == []
