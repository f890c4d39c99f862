"""Executes a plan on this machine by the protocol of MEASURING section 3 and stores every number. Torch-free.

First a solo pass (memory, facts, quality: one forked process per case), then blocks. Each block starts one fresh worker
per arm, warms all of them up, and passes the token: for each model and workload the arms run in a balanced order and
then in the reverse of it, so that a linear drift cancels. A slice beside a busy neighbour, or whose negative control
moved, is repeated; if it stays so, the block is invalid for that case and the case row says why.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness.control import control_moved
from harness.core import SOLO_BLOCK, Case, CaseFailed, Iteration, Phase, Reading, Sample, Status
from harness.peaks import Peak, peak_bandwidth, peak_flops
from harness.plan import Group, Plan
from harness.process import WorkerProcess
from harness.registry import AXES, METRICS, Metric, Record, Work, backend_of
from harness.schema import CaseRow
from harness.store import RunWriter
from harness.telemetry import busy_neighbour, usable_cpus

RETRIES_PER_BLOCK = 6  # disturbed slices that are repeated; a machine that stays busy must not hold a run up for ever
PAUSE_SECONDS = 1.0
START_SECONDS = 120.0  # for a worker's imports, whatever time the user gives one step of a case
CONTROL_TOLERANCE_HISTORY = 4
Progress = Callable[[float, str], None]


@dataclass(slots=True)
class CaseState:
    """What is known of a case while its run goes on; `row()` is what the store keeps of it."""

    case: Case
    group: str
    ordinal: int
    source: Mapping[str, Any]
    status: Status = "ok"
    reason: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    work: Work | None = None
    blocks: set[int] = field(default_factory=set)
    invalid_blocks: dict[int, str] = field(default_factory=dict)
    unsteady: int = 0
    solo_done: bool = False

    def fail(self, error: CaseFailed) -> None:
        """Keep the first failure; later ones are its consequences."""
        if self.status == "ok":
            self.status, self.reason = error.status, str(error)

    def row(self, suite: str) -> CaseRow:
        """The row of the `cases` table."""
        status: Status = self.status
        reason = self.reason
        if status == "ok" and self.unsteady * 2 > max(len(self.blocks), 1):
            status, reason = "not_steady", f"still speeding up after its warm-up in {self.unsteady} blocks"
        return CaseRow(
            case_id=self.case.case_id,
            workload=str(self.case.workload),
            model=self.case.model,
            variant=str(self.case.variant),
            status=status,
            reason=reason,
            suite=suite,
            group=self.group,
            ordinal=self.ordinal,
            num_params=int(self.facts.get("num_params", 0)),
            num_blocks=len(self.blocks),
            axes={name: self.case.variant.option(name) or axis.reference for name, axis in AXES.items()},
            params=dict(self.case.workload.params),
            facts={
                **self.facts,
                "invalid_blocks": {str(block): why for block, why in self.invalid_blocks.items()},
                "unsteady_blocks": self.unsteady,
                "solo_done": self.solo_done,
                "work": None if self.work is None else [self.work.tokens, self.work.flops, self.work.bytes],
            },
            source=self.source,
        )


def williams(count: int) -> list[list[int]]:
    """A Williams design: orders of `count` arms in which each follows each other equally often (Williams 1949)."""
    first, low, high = [0], 1, count - 1
    while len(first) < count:
        if len(first) % 2:
            first.append(low)
            low += 1
        else:
            first.append(high)
            high -= 1
    square = [[(arm + shift) % count for arm in first] for shift in range(count)]
    return square if count % 2 == 0 else square + [row[::-1] for row in square]


def order_of(block: int, count: int, seed: int) -> list[int]:
    """The order of `count` arms in the first half of a block; the second half is its reverse (ABBA for two arms)."""
    relabel = list(range(count))
    random.Random(f"arms:{seed}").shuffle(relabel)
    design = williams(count)
    return [relabel[arm] for arm in design[block % len(design)]]


@contextlib.contextmanager
def machine_lock() -> Iterator[None]:
    """Held while a block runs, so that two runs at once on one machine take turns instead of disturbing each other."""
    path = Path(tempfile.gettempdir()) / "minimind-bench.lock"
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
    except PermissionError:  # another user's file in a sticky folder: it may not be created again, but it can be locked
        handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@dataclass(slots=True)
class Runner:
    """One run under way."""

    plan: Plan
    writer: RunWriter
    states: dict[str, CaseState]
    peaks: Sequence[Peak] = ()
    plugins: Sequence[str] = ()
    progress: Progress = lambda done, text: None
    deadline: float | None = None
    total_units: int = 1
    done_units: int = 0
    retries: int = 0
    workers: list[WorkerProcess] = field(default_factory=list)
    controls: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    def run(self) -> None:
        """Solo passes and blocks that are not done yet; workers are buried whatever happens."""
        self.total_units = max(self._count_units(), 1)
        try:
            self._write(list(self.states.values()))
            self._solo_passes()
            for block in range(self.plan.sampling.blocks):
                for group in self.plan.groups:
                    started = time.monotonic()
                    self._block(group, block)
                    took = time.monotonic() - started
                    if self.deadline is not None and block > 0 and time.monotonic() + took > self.deadline:
                        return
        finally:
            for worker in self.workers:
                worker.kill()
                worker.close()

    def _count_units(self) -> int:
        turns = 2 * self.plan.sampling.passes * self.plan.sampling.blocks
        return sum(len(group.cases) + turns * len(self._live(group)) for group in self.plan.groups)

    def _advance(self, text: str, units: int = 1) -> None:
        self.done_units += units
        self.progress(min(self.done_units / self.total_units, 1.0), text)

    def _live(self, group: Group) -> list[Case]:
        return [case for case in group.timed() if self.states[case.case_id].status == "ok"]

    def _write(
        self, states: Sequence[CaseState], samples: Sequence[Sample] = (), telemetry: Sequence[Reading] = ()
    ) -> None:
        rows = [state.row(self.plan.suite.name) for state in states]
        self.writer.write(cases=rows, samples=samples, telemetry=telemetry)

    def _start(self, name: str, case: Case, seed: int) -> WorkerProcess:
        worker = WorkerProcess(name, device=self.plan.device, variant=case.variant, seed=seed, plugins=self.plugins)
        self.workers.append(worker)
        return worker

    def _stop(self, worker: WorkerProcess) -> None:
        worker.close()
        self.workers.remove(worker)

    def _request(self, do: str, case: Case, **extra: Any) -> dict[str, Any]:
        return {
            "do": do,
            "case_id": case.case_id,
            "workload": str(case.workload),
            "model": case.model,
            "variant": str(case.variant),
            "source": dict(self.states[case.case_id].source),
            **extra,
        }

    # Solo passes ------------------------------------------------------------------------------------------------

    def _solo_passes(self) -> None:
        """Memory, facts and quality, case by case; a case that breaks here is never timed."""
        worker: WorkerProcess | None = None
        for group in self.plan.groups:
            for case in group.cases:
                state = self.states[case.case_id]
                self._advance(f"memory and quality: {case}")
                if state.status != "ok" or state.solo_done:
                    continue
                try:
                    if worker is None or not worker.alive:
                        worker = None
                        worker = self._greeted("solo", case, self.plan.seed)
                except CaseFailed as error:
                    state.fail(error)
                    self._write([state])
                    continue
                self._write([state], self._solo(worker, case, state))
        if worker is not None:
            self._stop(worker)

    def _greeted(self, name: str, case: Case, seed: int) -> WorkerProcess:
        """A new worker that has imported what it needs. Raises CaseFailed, and leaves none behind, if it cannot."""
        worker = self._start(name, case, seed)
        try:
            worker.ready(START_SECONDS)
        except CaseFailed:
            worker.kill()
            self._stop(worker)
            raise
        return worker

    def _solo(self, worker: WorkerProcess, case: Case, state: CaseState) -> list[Sample]:
        request = self._request("solo", case, timed=case in self._timed_cases())
        try:
            result = worker.ask(request, timeout=self.plan.sampling.timeout_seconds)
        except CaseFailed as error:
            state.fail(error)
            return []
        state.facts, state.work, state.solo_done = result["facts"], Work(**result["work"]), True
        record = Record(case.workload, state.work, measured=result["measured"])
        return [
            self._sample(case, metric, value, block=SOLO_BLOCK, worker="solo", t_ns=time.monotonic_ns())
            for metric in self._metrics(case, timed=False)
            if (value := metric.compute(record)) is not None
        ]

    def _timed_cases(self) -> set[Case]:
        return {case for group in self.plan.groups for case in group.timed()}

    # Blocks -----------------------------------------------------------------------------------------------------

    def _block(self, group: Group, block: int) -> None:
        """One block of one group: fresh workers, warm-up, two turns per case, one write."""
        cases = [case for case in self._live(group) if block not in self.states[case.case_id].blocks]
        arms = [arm for arm in group.arms if any(case.variant == arm for case in cases)]
        if not cases:
            self._advance(f"block {block + 1}: done before", 2 * len(self._live(group)))
            return
        samples: list[Sample] = []
        telemetry: list[Reading] = []
        self.retries = RETRIES_PER_BLOCK
        for case in cases:
            self.states[case.case_id].invalid_blocks.pop(block, None)
        with machine_lock():
            workers = self._open_arms(cases, arms, block, samples)
            places = list(dict.fromkeys((case.model, case.workload) for case in cases))
            first = order_of(block, len(arms), self.plan.seed)
            for model, workload in places:
                for turn, position in enumerate((*first, *reversed(first)) * self.plan.sampling.passes):
                    case = Case(workload, model, arms[position])
                    self._advance(f"block {block + 1}/{self.plan.sampling.blocks}: {case}")
                    if case.case_id in workers:
                        self._turn(workers, case, block, turn, samples, telemetry)
            for worker in set(workers.values()):
                if worker in self.workers:
                    self._stop(worker)
        for case in cases:
            if self.states[case.case_id].status == "ok":
                self.states[case.case_id].blocks.add(block)
        self._write([self.states[case.case_id] for case in cases], samples, telemetry)

    def _open_arms(
        self, cases: Sequence[Case], arms: Sequence[Any], block: int, samples: list[Sample]
    ) -> dict[str, WorkerProcess]:
        """One worker per arm (importing side by side, warming up one after the other); case_id -> worker."""
        seed = self.plan.seed * 1000 + block
        opened: dict[str, WorkerProcess] = {}
        pending = {arm: [case for case in cases if case.variant == arm] for arm in arms}
        starting = {arm: self._start(f"b{block}-{arm}", pending[arm][0], seed) for arm in arms}
        for arm in arms:
            worker, greeted = starting[arm], False
            for case in pending[arm]:
                try:
                    if not worker.alive:
                        worker, greeted = self._start(f"b{block}-{arm}", case, seed), False
                    if not greeted:
                        worker.ready(START_SECONDS)
                        greeted = True
                    samples += self._warm(worker, case, self.states[case.case_id], block)
                    opened[case.case_id] = worker
                except CaseFailed as error:
                    self.states[case.case_id].fail(error)
                    if not greeted:
                        worker.kill()  # the next case gets a fresh one
                    self._bury(opened, worker, block)
        return opened

    def _bury(self, workers: dict[str, WorkerProcess], worker: WorkerProcess, block: int) -> None:
        """If the worker is dead: the block is lost for the other cases that it had opened, and only the block."""
        for case_id in [name for name, holder in workers.items() if holder is worker and not worker.alive]:
            self.states[case_id].invalid_blocks[block] = "its worker process died in this block"
            del workers[case_id]

    def _warm(self, worker: WorkerProcess, case: Case, state: CaseState, block: int) -> list[Sample]:
        sampling = self.plan.sampling
        request = self._request("open", case, seconds=sampling.warmup_seconds, iterations=sampling.min_iterations)
        result = worker.ask(request, timeout=sampling.timeout_seconds)
        state.work = Work(**result["work"])
        state.unsteady += not result["steady"]
        return self._samples(case, result["warmup"], block, worker.name, 0, "warmup")

    def _turn(
        self,
        workers: dict[str, WorkerProcess],
        case: Case,
        block: int,
        turn: int,
        samples: list[Sample],
        telemetry: list[Reading],
    ) -> None:
        """One slice of one case, repeated while a neighbour or the control spoils it."""
        worker, state, sampling = workers[case.case_id], self.states[case.case_id], self.plan.sampling
        label = f"{self.plan.suite.name}/{case}/block {block}/turn {turn}"
        request = self._request(
            "slice", case, seconds=sampling.slice_seconds, iterations=sampling.min_iterations, label=label
        )
        while True:
            try:
                result = worker.ask(request, timeout=sampling.timeout_seconds)
            except CaseFailed as error:
                state.fail(error)
                self._bury(workers, worker, block)
                return
            why = self._disturbed(case, result)
            repeat = why is not None and self.retries > 0
            telemetry += self._readings(case, result, block, worker.name, turn)
            phase: Phase = "warmup" if repeat else "timed"
            samples += self._samples(case, result["iterations"], block, worker.name, turn, phase)
            if not repeat:
                break
            self.retries -= 1
            time.sleep(PAUSE_SECONDS)
        if why is not None:
            state.invalid_blocks[block] = why
        if self._busy(case, result) is None:  # once a turn: repetitions must not outvote the run's history
            self.controls.setdefault(str(case.variant), []).append(result["control"])

    def _disturbed(self, case: Case, result: Mapping[str, Any]) -> str | None:
        """Why this slice is no measurement of the case alone, or None."""
        if backend_of(case.variant).scripted:
            return None
        if (reason := self._busy(case, result)) is not None:
            return reason
        history = self.controls.get(str(case.variant), [])
        return control_moved(history, result["control"]) if len(history) >= CONTROL_TOLERANCE_HISTORY else None

    def _busy(self, case: Case, result: Mapping[str, Any]) -> str | None:
        values = {name: (value, unit) for name, (value, unit) in result["telemetry"].items()}
        cores = len(usable_cpus())
        threads = int(self.states[case.case_id].facts.get("threads", cores))
        return busy_neighbour(values, cores=cores, threads=threads)

    # Rows -------------------------------------------------------------------------------------------------------

    def _metrics(self, case: Case, *, timed: bool) -> list[Metric]:
        found = [METRICS[name] for name in dict.fromkeys((*self.plan.suite.metrics, "step_time"))]
        return [metric for metric in found if metric.timed == timed and metric.applies(case.workload)]

    def _samples(
        self, case: Case, raw: Sequence[Any], block: int, worker: str, turn: int, phase: Phase
    ) -> list[Sample]:
        state = self.states[case.case_id]
        assert state.work is not None
        dtype = state.facts.get("compute_dtype", "fp32")
        threads = int(state.facts.get("threads", 0))
        steps = case.workload["new_tokens"] if case.workload.kind == "decode" else 1
        flops = peak_flops(self.peaks, dtype, threads)
        bandwidth = peak_bandwidth(self.peaks, state.work.bytes / steps, threads)
        rows: list[Sample] = []
        for number, (start, end, tokens) in enumerate(raw):
            iteration = Iteration(start, end, tuple(tokens))
            record = Record(case.workload, state.work, iteration, {}, flops, bandwidth)
            for metric in self._metrics(case, timed=True):
                value = metric.compute(record)
                if value is not None:
                    rows.append(
                        self._sample(
                            case,
                            metric,
                            value,
                            block=block,
                            worker=worker,
                            t_ns=start,
                            turn=turn,
                            iteration=number,
                            phase=phase,
                        )
                    )
        return rows

    def _sample(
        self,
        case: Case,
        metric: Metric,
        value: float,
        *,
        block: int,
        worker: str,
        t_ns: int,
        turn: int = 0,
        iteration: int = 0,
        phase: Literal["warmup", "timed"] = "timed",
    ) -> Sample:
        return Sample(case.case_id, metric.name, float(value), metric.unit, block, worker, turn, iteration, phase, t_ns)

    def _readings(self, case: Case, result: Mapping[str, Any], block: int, worker: str, turn: int) -> list[Reading]:
        t_ns = result["iterations"][0][0]
        telemetry = [("slice", name, value, unit) for name, (value, unit) in result["telemetry"].items()]
        control = [("control", name, seconds, "s") for name, seconds in result["control"].items()]
        return [
            Reading(block, source, name, float(value), unit, t_ns, worker, case.case_id, turn)
            for source, name, value, unit in (*telemetry, *control)
        ]


def new_states(plan: Plan) -> dict[str, CaseState]:
    """The state of every case of a plan before anything ran; what cannot run is already skipped with its reason."""
    states: dict[str, CaseState] = {}
    for group in plan.groups:
        for case in group.cases:
            if case.case_id not in states:
                source = asdict(plan.sources[case.model])
                state = CaseState(case, group.name, len(states), source)
                if (reason := plan.skips.get(case.case_id)) is not None:
                    state.status, state.reason = "skipped", reason
                states[case.case_id] = state
    return states
