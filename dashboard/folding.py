"""From the columns of an answer to the rows of `dashboard.rows`: what is left to do outside of SQL.

    run_line(found, run_id, 49, 6, 0, 0.02, 0.01, 0.07).geomean         # exp(0.02), with its interval
    cells([("fused", "cat", "ok", "", 7)])                              # one MatrixCell

A number that is not finite becomes None: it could neither be drawn nor sent.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from dashboard.loading import Loaded
from dashboard.rows import MatrixCell, NoiseLine, RunLine
from dashboard.series import Identity
from harness.calibration import NoiseCalibration, margin_for

_MAX_REASONS = 5
_MIN_RUNS_OF_NOISE = 3


def run_line(
    found: Loaded,
    run_id: str,
    num_ok: int | None,
    num_skipped: int | None,
    num_failed: int | None,
    change: float | None,
    half: float | None,
    noise: float | None,
) -> RunLine:
    """One row of the list; `change` and `half`: logarithm of the geometric mean and half the width of its interval."""
    run = found.runs[run_id]
    return RunLine(
        run.run_id,
        run.started_at,
        run.finished_at,
        run.status,
        run.suite,
        run.git_sha,
        run.git_dirty,
        found.subjects.get(run.git_sha, ""),
        run.machine_id,
        run.device,
        run.device_name,
        run.cpu_model,
        num_ok or 0,
        num_skipped or 0,
        num_failed or 0,
        None if change is None else math.exp(change),
        None if change is None or half is None else math.exp(change - half),
        None if change is None or half is None else math.exp(change + half),
        noise,
        run.command,
        run.session,
        run.side,
    )


def noise_line(
    what: Identity,
    calibration: NoiseCalibration | None,
    metric: str,
    unit: str,
    num_runs: int,
    num_blocks: int,
    run_to_run: float | None,
    drift: float | None,
    within: float | None,
) -> NoiseLine:
    """One series' noise with the floor of its family; spread and drift only of enough runs."""
    families = {(floor.workload, floor.model, floor.metric) for floor in (calibration.floors if calibration else ())}
    floor, source = None, ""
    if (what.kind, what.model, metric) in families:
        floor, source = margin_for(calibration, what.kind, what.model, metric, 0.0, blocks=max(num_blocks, 2))
    enough = num_runs >= _MIN_RUNS_OF_NOISE
    return NoiseLine(
        what.case_id,
        what.workload,
        what.model,
        what.variant,
        metric,
        unit,
        num_runs,
        num_blocks,
        finite(run_to_run) if enough else None,
        math.expm1(drift) if enough and drift is not None and math.isfinite(drift) else None,
        finite(within),
        floor,
        source,
    )


def cells(counts: Iterable[tuple[str, str, str, str, int]]) -> tuple[MatrixCell, ...]:
    """Counts by status and reason, in order, folded into one cell per place."""
    places: dict[tuple[str, str], tuple[dict[str, int], list[str]]] = {}
    for row, column, status, reason, num in counts:
        by_status, reasons = places.setdefault((row, column), ({}, []))
        known = status if status in ("ok", "skipped", "wrong") else "failed"
        by_status[known] = by_status.get(known, 0) + num
        if reason and status != "ok" and reason not in reasons and len(reasons) < _MAX_REASONS:
            reasons.append(reason)
    found = [
        MatrixCell(
            row, column, by.get("ok", 0), by.get("skipped", 0), by.get("failed", 0), by.get("wrong", 0), tuple(reasons)
        )
        for (row, column), (by, reasons) in places.items()
    ]
    return tuple(sorted(found, key=lambda cell: (_natural(cell.row), _natural(cell.column))))


def _natural(value: str) -> tuple[int, str]:
    """Sorts numbers by size, before texts."""
    return (int(value), "") if value.isdecimal() else (sys.maxsize, value)


def mapping(text: str | None) -> Mapping[str, Any]:
    """A stored JSON object; empty where it is none."""
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def finite(value: float | None) -> float | None:
    """The value, None where it is no finite number."""
    return value if value is not None and math.isfinite(value) else None
