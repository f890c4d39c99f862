"""The rows of one made-up run: cases with every kind of trouble, samples in the order of a compacted file, telemetry.

    cases, samples, telemetry = measured(run, plan, machine, share=0.4, rng=np.random.default_rng(0))

Arms of a block share what the machine did in it, as real ones do, so that pairing by block pays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from harness import registry
from harness.core import SOLO_BLOCK, Case, Reading, Status
from harness.plan import Plan
from harness.registry import WORKLOADS
from harness.sample_numbers import NUM_TURNS, SHAPES, TIMED, WARMUP, Machine, draw, solo_metrics, timed_metrics, typical
from harness.schema import SCHEMAS, CaseRow, RunRow, case_table, reading_table
from harness.stats import Values

_TROUBLE: tuple[tuple[Status, str], ...] = (
    ("failed", "RuntimeError: expected a contiguous tensor <synthetic>, got strides (1, 512)"),
    ("oom", "out of memory: 26.1 GB asked for, 24.0 GB on the device"),
    ("timeout", "no answer within 120 seconds in block 2"),
    ("wrong", "norm=triton was asked for, but no Triton kernel ran"),
    ("not_steady", "still speeding up after its warm-up in 4 blocks"),
)


def measured(
    run: RunRow, plan: Plan, machine: Machine, *, share: float, rng: np.random.Generator
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """The cases, samples and telemetry of a run; of one that did not finish half the blocks."""
    blocks = plan.sampling.blocks if run.status == "finished" else max(1, plan.sampling.blocks // 2)
    shared = rng.normal(0.0, machine.block_noise, blocks) + rng.normal(0.0, machine.block_noise / 2)
    wanted = {*plan.suite.metrics, "step_time", "mfu", "mbu"}
    cases: list[CaseRow] = []
    series: dict[tuple[str, str], tuple[str, Values, str]] = {}
    troubled = int(rng.integers(0, 40))
    arms = [(group.name, case) for group in plan.groups for case in group.cases]
    for ordinal, (group, case) in enumerate(arms):
        status: Status = "skipped" if case.case_id in plan.skips else "ok"
        reason = plan.skips.get(case.case_id, "")
        if ordinal == troubled and status == "ok" and case.variant.choices:
            status, reason = _TROUBLE[int(rng.integers(len(_TROUBLE)))]
        timed = WORKLOADS[case.workload.kind].timed and status in ("ok", "not_steady")
        if timed:
            seconds = draw(case, machine, share=share, shared=shared, rng=rng)
            for metric, (unit, values) in timed_metrics(case, machine, seconds).items():
                if metric in wanted:
                    series[case.case_id, metric] = (unit, values, str(case.variant))
        if status in ("ok", "not_steady"):
            for metric, (unit, value) in solo_metrics(case, machine, rng).items():
                if metric in wanted:
                    series[case.case_id, metric] = (unit, np.array([[value]]), "")
        disturbed = {"1": "busy neighbour: others used 0.9 cores"} if timed and rng.random() < 0.02 else {}
        cases.append(_case_row(run, case, group, ordinal, status, reason, blocks if timed else 0, disturbed, machine))
    return case_table(run.run_id, cases, seq=0), _sample_rows(run.run_id, series), _readings(run, shared, rng)


def _case_row(
    run: RunRow,
    case: Case,
    group: str,
    ordinal: int,
    status: Status,
    reason: str,
    num_blocks: int,
    disturbed: Mapping[str, str],
    machine: Machine,
) -> CaseRow:
    shape, known = SHAPES.get(case.model), typical(case, machine)
    facts: dict[str, Any] = {
        "invalid_blocks": disturbed,
        "compute_dtype": case.variant.option("precision") or "fp32",
        "weight_dtype": "bfloat16" if case.variant.option("precision") == "bf16" else "float32",
        "disk_bytes": round(4 * (shape.num_params if shape else 0)),
        "num_key_value_heads": shape.kv_heads if shape else 0,
        "num_attention_heads": shape.heads if shape else 0,
        "trained": case.model == "tiny",
        "threads": machine.cores,
        "work": [int(known["tokens"]), int(known["flops"]), int(known["bytes"])],
    }
    if case.workload.kind == "perplexity":
        facts["data_fingerprint"] = "synthetic"
    return CaseRow(
        case.case_id,
        str(case.workload),
        case.model,
        str(case.variant),
        status,
        reason,
        suite=run.suite,
        group=group,
        ordinal=ordinal,
        num_params=shape.num_params if shape else 0,
        num_blocks=num_blocks,
        axes={name: case.variant.option(name) or axis.reference for name, axis in registry.AXES.items()},
        params=dict(case.workload.params),
        facts=facts if status in ("ok", "not_steady") else {},
        source={"name": case.model},
    )


def _sample_rows(run_id: str, series: Mapping[tuple[str, str], tuple[str, Values, str]]) -> pa.Table:
    """Rows in the order of a compacted file. `series`: (case, metric) -> unit, values [blocks, iterations], worker."""
    keys = sorted(series)
    shapes = [series[key][1].shape for key in keys]
    sizes = np.array([blocks * iterations for blocks, iterations in shapes], dtype=np.int64)
    of_series = np.repeat(np.arange(len(keys)), sizes)
    solo = np.array([shape == (1, 1) for shape in shapes])[of_series] if keys else np.zeros(0, bool)
    at = np.arange(len(of_series)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    per_block = np.array([iterations for _, iterations in shapes], dtype=np.int64)[of_series]
    within = at % per_block if keys else at
    block = np.where(solo, SOLO_BLOCK, at // per_block if keys else at)
    timed = np.maximum(within - WARMUP, 0)
    warm = (within < WARMUP) & ~solo
    names = {
        "case_id": [case_id for case_id, _ in keys],
        "metric": [metric for _, metric in keys],
        "unit": [series[key][0] for key in keys],
        "worker": [f"synthetic {series[key][2]}".strip() for key in keys],
    }
    numbers = {
        "value": np.concatenate([series[key][1].ravel() for key in keys]) if keys else np.zeros(0),
        "block": block,
        "turn": np.where(warm | solo, 0, timed * NUM_TURNS // TIMED),
        "iteration": np.where(warm | solo, 0, timed % (TIMED // NUM_TURNS)),
        "t_ns": np.where(solo, of_series, (block + 2) * 40_000_000_000 + of_series * 200_000_000 + within * 20_000_000),
    }
    codes = {"run_id": pa.array([run_id]), "phase": pa.array(["timed", "warmup"])}
    indices = {"run_id": np.zeros(len(of_series), np.int32), "phase": warm.astype(np.int32)}
    for name, values in names.items():
        codes[name], indices[name] = pa.array(values, pa.string()), of_series.astype(np.int32)
    columns = []
    for wanted in SCHEMAS["samples"]:
        if wanted.name in codes:
            coded = pa.DictionaryArray.from_arrays(pa.array(indices[wanted.name]), codes[wanted.name])
            columns.append(coded.cast(pa.string()))
        else:
            columns.append(pa.array(numbers[wanted.name], wanted.type))
    return pa.table(columns, schema=SCHEMAS["samples"])


def _readings(run: RunRow, shared: Values, rng: np.random.Generator) -> pa.Table:
    """Per block: what others used of the machine, and how long the fixed piece of work took."""
    rows = []
    for block, moved in enumerate(shared):
        t_ns = (block + 2) * 40_000_000_000
        rows.append(Reading(block, "slice", "other_cpu", float(rng.gamma(1.2, 0.02)), "cores", t_ns))
        rows.append(Reading(block, "slice", "steal", float(rng.gamma(1.0, 0.002)), "cores", t_ns))
        rows.append(Reading(block, "control", "matmul_fp32", float(0.004 * np.exp(moved)), "s", t_ns))
    return reading_table(run.run_id, rows)
