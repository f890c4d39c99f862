"""Runs without hardware: workers that answer from a noise model, and thousands of comparisons at once. Torch-free.

    machine = ScriptedMachine(model, seed=1, slower={"candidate": 0.03})
    baseline, candidate = simulate(plan, store, machine)          # two runs of one session, written by the real Runner
    judged = judge(differences, fresh, GateRule())                # the same rule on arrays: num comparisons at once

`simulate` lets the real runner, store, comparison and gates decide on simulated turns: no process is started and no
time passes. `judge` applies the gate's rule to arrays of block differences, for figures that take thousands of
comparisons; tests hold the two together on the same seeds. The scripted machine knows no memory, no quality and no
failure: a suite's other metrics are constants.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.case_state import Side, new_states
from harness.compare import location
from harness.core import Variant
from harness.distributions import student_t_ppf
from harness.noise import NoiseModel, Values, pair_differences
from harness.plan import Plan
from harness.process import PROTOCOL, WorkerDied
from harness.runner import Runner, Schedule
from harness.schedule import fixed, turns_of
from harness.schema import RunRow
from harness.sequential import Looks
from harness.store import Store

_NAME = re.compile(r"(?:(?P<side>\w+)-)?(?:solo|b(?P<block>\d+)-.*)")
_SERIES = 1024  # turns drawn ahead for a place in a block; more start it again
_WORK = {"tokens": 4.0, "flops": 1e9, "bytes": 1e6}
_FACTS = {"num_params": 1, "threads": 1, "compute_dtype": "fp32"}
_CALM = {"other_cpu": [0.0, "cores"], "wall": [1.0, "s"]}
_WARM_SECONDS = 0.5


@dataclass(slots=True)
class ScriptedMachine:
    """The machine that all scripted workers share: one clock, one noise, and who held the token last.

    `slower`: by how much a worker is slower than the model, keyed by side, by variant, or by `side workload`. A case's
    noise in a block depends on nothing but the seed, the case and the block.
    """

    model: NoiseModel
    seed: int = 0
    slower: Mapping[str, float] = field(default_factory=dict)
    now_ns: int = 0
    holder: dict[str, str] = field(default_factory=dict)
    taken: dict[str, int] = field(default_factory=dict)
    series: dict[str, Values] = field(default_factory=dict)

    def __call__(
        self,
        name: str,
        *,
        device: str,
        variant: Variant,
        seed: int,
        plugins: Sequence[str] = (),
        root: Path | None = None,
    ) -> ScriptedWorker:
        """A new worker: what `Runner(start=...)` asks for."""
        return ScriptedWorker(name, variant, self)

    def effect(self, side: str, variant: Variant, workload: str) -> float:
        """The log of how many times longer this worker takes."""
        keys = dict.fromkeys((side, str(variant), f"{side} {workload}"))
        return sum(math.log1p(self.slower[key]) for key in keys if key in self.slower)

    def turn(self, worker: ScriptedWorker, request: Mapping[str, Any]) -> list[list[Any]]:
        """[start_ns, end_ns, tokens] of the iterations of the next turn of this case in this block."""
        place = f"{request['model']} {request['workload']} b{worker.block}"
        if place not in self.series:
            self.series = {place: self.block_series(place)}  # one place at a time: it never comes back
            self.holder, self.taken = {}, {}
        number = self.taken.get(place, 0)
        self.taken[place] = number + 1
        log = math.log(self.model.seconds) + float(self.series[place][number % _SERIES])
        log += self.offset(place, worker.side, worker.variant, request["workload"])
        log += self.model.switch * (self.holder.get(place) != worker.name)
        self.holder[place] = worker.name
        rng = self._rng(place, f"turn {number}")
        return [self._advance(seconds) for seconds in self.model.iterate(rng, np.array(log)).tolist()]

    def block_series(self, place: str) -> Values:
        """What the machine adds to the turns of a case in a block, whoever takes them."""
        rng = self._rng(place, "machine")
        level = float(rng.standard_normal()) * self.model.block
        return level + self.model.residuals(rng, shape=(), num_turns=_SERIES)

    def offset(self, place: str, side: str, variant: Variant, workload: str) -> float:
        """What a worker of this side adds to all its turns in a block: its process and its effect."""
        process = float(self._rng(place, f"process {side} {variant}").standard_normal()) * self.model.process
        return process + self.effect(side, variant, workload)

    def _rng(self, *texts: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, *(zlib.crc32(text.encode()) for text in texts)])

    def _advance(self, seconds: float) -> list[Any]:
        start = self.now_ns
        self.now_ns += max(round(seconds * 1e9), 1)
        return [start, self.now_ns, []]


class ScriptedWorker:
    """Stands in for a WorkerProcess: the same requests and replies, the times from the scripted machine."""

    def __init__(self, name: str, variant: Variant, machine: ScriptedMachine) -> None:
        found = _NAME.fullmatch(name)
        self.name, self.variant, self.machine = name, variant, machine
        self.side = (found["side"] or "") if found else ""
        self.block = int(found["block"] or -1) if found else -1
        self.alive = True

    def ready(self, timeout: float) -> dict[str, Any]:
        """Imports nothing."""
        return {"protocol": PROTOCOL}

    def ask(self, request: dict[str, Any], *, timeout: float) -> dict[str, Any]:
        """The answer to `solo`, `open` or `slice`; `hello` and others have nothing to say."""
        if not self.alive:
            raise WorkerDied("asked after its end")
        if request["do"] == "solo":
            return {"measured": {}, "facts": dict(_FACTS), "work": dict(_WORK)}
        if request["do"] == "open":
            warm = self.machine._advance(_WARM_SECONDS)
            return {"warmup": [warm], "steady": True, "work": dict(_WORK)}
        if request["do"] == "slice":
            iterations = self.machine.turn(self, request)
            busy = sum(end - start for start, end, _ in iterations)
            return {"control": {}, "iterations": iterations, "telemetry": dict(_CALM), "cpu_ns": [0, busy]}
        return {}

    def tell(self, request: dict[str, Any]) -> None:
        """Nothing to wait for."""

    def kill(self) -> None:
        """It ends."""
        self.alive = False

    def close(self) -> None:
        """It ends."""
        self.alive = False


def simulate(
    plan: Plan,
    store: Store,
    machine: ScriptedMachine,
    *,
    sides: Sequence[str] = ("baseline", "candidate"),
    schedule: Schedule = fixed,
) -> tuple[str, ...]:
    """Run the plan on the scripted machine, interleaved; the run id of each side, all of one session.

    NOTE: give slices of at least 0.1 s; shorter ones are judged by the real machine's load, which is not simulated.
    """
    row = RunRow(suite=plan.suite.name, seed=plan.seed, device=plan.device, device_name="scripted")
    session = f"scripted-{machine.seed}" if len(sides) > 1 else ""
    narrowed = plan.by_variant() if len(sides) > 1 else plan
    opened = [Side(store.begin(replace(row, session=session, side=name)), new_states(narrowed), name) for name in sides]
    Runner(narrowed, opened, start=machine, schedule=schedule).run()
    for side in opened:
        side.writer.finish("finished")
    return tuple(side.writer.run_id for side in opened)


# The rule on arrays ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GateRule:
    """A statistical gate on one of `rows` cases: looks with alpha spending, margin, limit, confirmation.

    `looks.alpha` is shared by the rows (Holm's first step; of the few that are red, each has it whole). `limit`: the
    slowdown that must be excluded for a case to pass, and to stop early. `confirm`: a red case is measured again on
    fresh blocks and must be red again.
    """

    looks: Looks = field(default_factory=Looks)
    margin: float = 0.01
    limit: float = 0.03
    rows: int = 1
    confirm: bool = True


@dataclass(frozen=True, slots=True)
class Judged:
    """Of each simulated comparison: the largest margin at which it would still be red (log scale, -inf: none), whether
    it passed, and how many blocks were measured, those of the confirmation included."""

    score: Values
    passed: NDArray[np.bool_]
    blocks: NDArray[np.int64]


def judge(differences: Values, fresh: Values, rule: GateRule) -> Judged:
    """Apply the rule to log block differences [num, blocks], and to [num, blocks] fresh ones for the red.

    Needs as many blocks as the last look. A comparison stops at the look at which it is red or has passed.
    """
    first = _looks(differences, rule)
    if not rule.confirm:
        return first
    again = _looks(fresh, replace(rule, rows=1))
    red = first.score > math.log1p(rule.margin)
    return Judged(
        np.minimum(first.score, again.score),
        np.where(red, again.passed & (again.score <= math.log1p(rule.margin)), first.passed),
        first.blocks + np.where(red, again.blocks, 0),
    )


def _looks(differences: Values, rule: GateRule) -> Judged:
    num = len(differences)
    score, passed = np.full(num, -math.inf), np.zeros(num, dtype=bool)
    used, going = np.zeros(num, dtype=np.int64), np.ones(num, dtype=bool)
    for look, count in enumerate(rule.looks.blocks):
        seen = differences[:, :count]
        error = seen.std(axis=1, ddof=1) / math.sqrt(count)
        nominal = rule.looks.nominal_alpha(look)
        low = seen.mean(axis=1) - student_t_ppf(1 - nominal / rule.rows, count - 1.0) * error
        high = seen.mean(axis=1) + student_t_ppf(1 - nominal, count - 1.0) * error
        score = np.where(going & ~passed, np.maximum(score, low), score)
        used = np.where(going, count, used)
        passed |= going & (high < math.log1p(rule.limit)) & (score <= math.log1p(rule.margin))
        going &= ~passed & (score <= math.log1p(rule.margin))
    return Judged(score, passed, used)


def block_differences(
    model: NoiseModel, rng: np.random.Generator, *, num: int, blocks: int, passes: int, effect: float = 0.0
) -> Values:
    """[num, blocks]: simulated log differences of interleaved blocks, candidate slower by `effect` (0.03: 3%)."""
    arms = turns_of((0, 1), passes)
    logs = model.log_turns(rng, arms, num=num, blocks=blocks, effects=(0.0, math.log1p(effect)))
    return location(pair_differences(logs, arms))
