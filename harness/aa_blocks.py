"""Blocks in which two equal arms took turns: what noise is fitted to, read from a store or made up. Torch-free.

    found = blocks_from_store(store, [run_id])          # family of cases -> its blocks
    blocks = synthetic_blocks(rng, process=0.01, turn=0.1, switch=0.2)      # with known components, for tests

Equal arms are those of one run that differ in nothing but the axis `control`, and the same case in the runs of one
session. Blocks that were disturbed are left out; a case that has no equal is, too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.core import SOLO_BLOCK, Variant, Workload
from harness.registry import WORKLOADS, workload_label
from harness.store import Store


@dataclass(frozen=True, slots=True)
class Block:
    """The turns of two equal arms in one block, in the order in which they ran: whose, and the iterations' seconds.

    Cases of one family (two variants, say) may differ in speed; `case` tells them apart.
    """

    run: str
    arms: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]
    case: str = ""


def changed_hands(arms: Sequence[int]) -> NDArray[np.bool_]:
    """Which turns follow a turn of another arm; the first follows none of its own."""
    order = np.asarray(arms)
    return np.concatenate([[True], order[1:] != order[:-1]])


def blocks_from_store(store: Store, run_ids: Sequence[str]) -> dict[str, list[Block]]:
    """Family (`model workload`) -> its A/A blocks: arms of one run that differ in nothing but the axis `control`, and
    the same case in the runs of one session. Disturbed blocks are left out."""
    cases: dict[tuple[str, str, str], list[tuple[str, str, str]]] = {}
    turns: dict[tuple[str, str], dict[int, dict[int, list[tuple[int, float]]]]] = {}
    for run_id in run_ids:
        run = store.find_run(run_id)
        for row in store.cases(run.run_id).to_pylist():
            if row["status"] == "ok":
                plain = {axis: option for axis, option in Variant.parse(row["variant"]).choices if axis != "control"}
                key = (run.session or run.run_id, _family(row), json.dumps(plain, sort_keys=True))
                invalid = set(json.loads(row["facts"] or "{}").get("invalid_blocks", {}))
                turns[run.run_id, row["case_id"]] = _turns(store, run.run_id, row["case_id"], invalid)
                cases.setdefault(key, []).append((run.run_id, row["case_id"], str(row["variant"])))
    found: dict[str, list[Block]] = {}
    for (session, family, plain_variant), members in cases.items():
        if len(members) == 2:
            first, second = (turns[run_id, case_id] for run_id, case_id, _ in members)
            for block in sorted(set(first) & set(second)):
                merged = _merged(session, plain_variant, first[block], second[block])
                found.setdefault(family, []).append(merged)
    return found


def _family(row: Mapping[str, Any]) -> str:
    workload = Workload.parse(row["workload"])
    return f"{row['model']} {workload_label(workload) if workload.kind in WORKLOADS else row['workload']}"


def _turns(store: Store, run_id: str, case_id: str, invalid: set[str]) -> dict[int, dict[int, list[tuple[int, float]]]]:
    rows = store.samples(run_id, case_id=case_id, metric="step_time")
    found: dict[int, dict[int, list[tuple[int, float]]]] = {}
    columns = [rows[name].to_pylist() for name in ("block", "turn", "iteration", "value", "phase")]
    for block, turn, iteration, value, phase in zip(*columns, strict=True):
        if phase == "timed" and block != SOLO_BLOCK and str(block) not in invalid:
            found.setdefault(block, {}).setdefault(turn, []).append((iteration, value))
    return found


def _merged(
    run: str, case: str, first: Mapping[int, list[tuple[int, float]]], second: Mapping[int, list[tuple[int, float]]]
) -> Block:
    """One block of two arms; a turn's number says when it ran."""
    ran = sorted([(turn, 0, rows) for turn, rows in first.items()] + [(turn, 1, rows) for turn, rows in second.items()])
    arms = tuple(arm for _, arm, _ in ran)
    return Block(run, arms, tuple(tuple(value for _, value in sorted(rows)) for _, _, rows in ran), case)


def synthetic_blocks(
    rng: np.random.Generator,
    *,
    runs: int = 1,
    blocks: int = 8,
    passes: int = 25,
    iterations: int = 2,
    seconds: float = 0.02,
    run: float = 0.0,
    block: float = 0.0,
    process: float = 0.0,
    turn: float = 0.0,
    iteration: float = 0.0,
    switch: float = 0.0,
    slow: float = 0.0,
    flips: float = 0.0,
) -> list[Block]:
    """A/A blocks with these components (log scale), to test what reads them or to ask what another machine would allow.

    `slow`, `flips`: a second speed, and the chance of each turn to change between the two (a Markov chain).
    """
    found = []
    for number in range(runs):
        at = math.log(seconds) + run * rng.standard_normal()
        for k in range(blocks):
            arms = ((0, 1, 1, 0) if k % 2 == 0 else (1, 0, 0, 1)) * passes
            logs = at + block * rng.standard_normal() + (process * rng.standard_normal(2))[list(arms)]
            state = (rng.integers(2) + np.cumsum(rng.random(len(arms)) < flips)) % 2
            logs += switch * changed_hands(arms) + slow * state + turn * rng.standard_normal(len(arms))
            drawn = np.exp(logs[:, None] + iteration * rng.standard_normal((len(arms), iterations)))
            found.append(Block(str(number), arms, tuple(tuple(map(float, row)) for row in drawn)))
    return found
