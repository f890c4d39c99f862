"""Gates as declared: read from `gates.toml`, and checked wherever they were written. Torch-free.

    file = load_gates(Path("gates.toml"))       # after registry.load_all: metrics and suites must be known

    suite = "gate"                # the suite that is measured
    budget = "10m"                # for both sides together
    margin = 0.01                 # of the statistical gates that name none
    limit = 0.03
    [[gate]]
    metric = "tps"
    workload = "decode*"
    [[gate]]
    metric = "ppl"
    kind = "bound"
    margin = 0.005

It refuses (UsageError naming the file, the gate, the bad value and what is allowed): text that is not TOML, unknown
keys and metrics, values of a wrong type, numbers that are negative or contradict each other, an exact gate on a metric
that has noise, a statistical one on a metric that has no blocks, and a file without a gate.
"""

from __future__ import annotations

import argparse
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from harness.cli import duration
from harness.core import Gate, GateKind, UsageError, one_of
from harness.registry import METRICS, SUITES, Metric

DEFAULT_LIMIT = 0.03
_TOP_KEYS = ("suite", "budget", "margin", "limit", "gate")
_TEXTS = ("metric", "kind", "workload", "model", "variant", "fails")
_NUMBERS = ("margin", "limit")
_FAILS = ("worse", "better", "change")


@dataclass(frozen=True, slots=True)
class GateFile:
    """What a file of gates says; its own margin and limit are already in the gates that named none."""

    path: Path
    gates: tuple[Gate, ...]
    suite: str | None = None
    budget_seconds: float | None = None


def load_gates(path: Path) -> GateFile:
    """Read and check a file of gates. Raises UsageError."""
    document = _read(path)
    for key in document:
        one_of(f"key in {path}", key, _TOP_KEYS)
    tables = document.get("gate", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"{path}: 'gate' must be tables, each headed [[gate]]")
    if not tables:
        raise UsageError(f"{path} has no [[gate]] table: nothing to gate")
    margin, limit = (_number(document, key, str(path)) for key in _NUMBERS)
    gates = []
    for number, table in enumerate(tables, 1):
        gate = _gate(table, f"{path}: gate {number}")
        if gate.kind == "statistical":
            gate = replace(
                gate,
                margin=margin if gate.margin is None else gate.margin,
                limit=limit if gate.limit is None else gate.limit,
            )
        gates.append(gate)
    check_gates(gates, str(path))
    suite = document.get("suite")
    if suite is not None:
        if not isinstance(suite, str):
            raise UsageError(f"{path}: suite = {suite!r} must be a name in quotes")
        one_of(f"suite in {path}", suite, list(SUITES))
    return GateFile(path, tuple(gates), suite, _budget(document.get("budget"), path))


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"gates '{path}' cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not TOML: it is not UTF-8 text (byte {error.start})") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not TOML: {error}") from error


def _budget(value: object, path: Path) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UsageError(f"{path}: budget = {value!r} must be a duration, for example '10m'")
    try:
        seconds = duration(str(value))
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"{path}: budget: {error}") from error
    if seconds == 0:
        raise UsageError(f"{path}: budget = {value!r} leaves no time to measure in")
    return seconds


def _number(table: Mapping[str, Any], key: str, where: str) -> float | None:
    """A finite number of at least 0; None where the key is absent."""
    value = table.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UsageError(f"{where}: {key} = {value!r} must be a number, for example 0.01")
    if value < 0:
        raise UsageError(f"{where}: {key} = {value:g} is negative; it must be 0 or more")
    return float(value)


def _gate(table: Mapping[str, Any], where: str) -> Gate:
    for key in table:
        one_of(f"key in {where}", key, [*_TEXTS, *_NUMBERS])
    for key in _TEXTS:
        if key in table and not (isinstance(table[key], str) and table[key]):
            raise UsageError(f"{where}: {key} = {table[key]!r} must be text in quotes")
    if "metric" not in table:
        raise UsageError(f"{where} names no metric. Known: {', '.join(sorted(METRICS))}")
    numbers = {key: _number(table, key, where) for key in _NUMBERS}
    return Gate(**{**table, **numbers})


def check_gates(gates: Sequence[Gate], source: str) -> None:
    """Raise UsageError naming `source` (a file or suite), the number of the gate and what is wrong with it."""
    for number, gate in enumerate(gates, 1):
        where = f"{source}: gate {number}"
        metric = METRICS[one_of(f"metric in {where}", gate.metric, list(METRICS))]
        one_of(f"kind in {where}", gate.kind, get_args(GateKind))
        one_of(f"value of fails in {where}", gate.fails, _FAILS)
        for key in _NUMBERS:
            _number({key: getattr(gate, key)}, key, where)
        if (wrong := _unfit(gate, metric) or _contradiction(gate)) is not None:
            raise UsageError(f"{where}: {wrong}")


def _unfit(gate: Gate, metric: Metric) -> str | None:
    """Why a gate of this kind cannot be had of this metric, or None."""
    if gate.kind == "exact" and not metric.exact:
        known = ", ".join(sorted(name for name, found in METRICS.items() if found.exact))
        return f"kind 'exact' needs a metric without noise, '{gate.metric}' has noise. Without noise: {known}"
    if gate.kind == "statistical" and not metric.timed:
        return (
            f"kind 'statistical' needs a metric timed in blocks, '{gate.metric}' is one value: use 'exact' or 'bound'"
        )
    if gate.kind == "bound" and metric.timed:
        return f"kind 'bound' needs a metric of one value, '{gate.metric}' is timed in blocks: use 'statistical'"
    if metric.better == "neither" and gate.fails != "change":
        return f"'{gate.metric}' has no better direction, so fails must be 'change', not '{gate.fails}'"
    return None


def _contradiction(gate: Gate) -> str | None:
    """Which of its own settings a gate contradicts, or None."""
    if gate.kind == "bound" and gate.margin is None and gate.limit is None:
        return "kind 'bound' needs a margin (largest relative worsening), a limit (largest value) or both"
    if gate.kind == "bound" and gate.fails != "worse":
        return f"kind 'bound' fails on what is worse, not on '{gate.fails}'"
    if gate.kind == "exact" and gate.limit is not None:
        return f"kind 'exact' has no limit ({gate.limit:g}); its tolerance is the margin"
    if gate.kind == "statistical" and gate.limit is not None and gate.limit < (gate.margin or 0.0):
        return f"limit {gate.limit:g} lies below the margin {gate.margin:g}; it must be at least that"
    return None
