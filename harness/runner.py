"""Executes a plan on this machine by the protocol of MEASURING section 3 and stores every number. Torch-free.

First a solo pass (memory, facts, quality: one forked process per case), then blocks. Each block starts one fresh worker
per arm, warms all of them up, and passes the token: for each model and workload the arms run in a balanced order and
then in the reverse of it, so that a linear drift cancels. An arm is a variant on a side: a run has one side, a session
of two commits has two, whose workers run different code. Which block comes next is the schedule's business.

A slice beside a busy neighbour, or whose negative control moved, is repeated; if it stays so, the block is invalid for
that case and the case row says why. Slices too short to be judged one by one are judged together.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from harness.case_state import CaseState, Side
from harness.catalog import make_folder
from harness.control import control_moved
from harness.core import SOLO_BLOCK, Case, CaseFailed, Iteration, Phase, Reading, Sample, Variant
from harness.peaks import Peak, peak_bandwidth, peak_flops
from harness.plan import Group, Plan
from harness.process import PROTOCOL, Start, Worker, WorkerProcess, machine_lock
from harness.registry import METRICS, Metric, Record, Work, backend_of
from harness.schedule import fixed, opening_order, order_of, turns_of
from harness.telemetry import Snapshot, busy_neighbour, difference, snapshot, usable_cpus

RETRIES_PER_BLOCK = 6  # disturbed slices that are repeated; a machine that stays busy must not hold a run up for ever
PAUSE_SECONDS = 1.0
START_SECONDS = 120.0  # for a worker's imports, whatever time the user gives one step of a case
CONTROL_TOLERANCE_HISTORY = 4
CONTROL_EVERY_SECONDS = 0.25  # of an arm's slices; the control takes some 25 ms
JUDGED_SECONDS = 0.1  # from here on /proc/stat, which counts in ticks of 10 ms, can tell of one slice who disturbed it
Progress = Callable[[float, str], None]
Schedule = Callable[["Runner"], Iterator[tuple[Group, int, Collection[Case]]]]


class Seat(NamedTuple):
    """One case on one side: what one worker of a block has prepared."""

    side: Side
    case: Case

    @property
    def state(self) -> CaseState:
        """What is known of the case on its side."""
        return self.side.states[self.case.case_id]

    @property
    def key(self) -> tuple[str, str]:
        """Side and case by name."""
        return self.side.name, self.case.case_id


@dataclass(slots=True)
class Block:
    """A block under way: its number, who sits where, what it has recorded on each side.

    `cpu_ns`: CPU time of each worker at the beginning of its first turn in a place and at the end of its last.
    """

    number: int
    workers: dict[tuple[str, str], Worker] = field(default_factory=dict)
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    telemetry: dict[str, list[Reading]] = field(default_factory=dict)
    cpu_ns: dict[str, tuple[int, int]] = field(default_factory=dict)
    retries: int = RETRIES_PER_BLOCK


@dataclass(slots=True)
class Runner:
    """One run, or one session of several sides, under way."""

    plan: Plan
    sides: Sequence[Side]
    peaks: Sequence[Peak] = ()
    plugins: Sequence[str] = ()
    progress: Progress = lambda done, text: None
    deadline: float | None = None
    schedule: Schedule = fixed
    start: Start | None = None
    profiles: Path | None = None  # the folder that gets the profiles of timed cases; None records none
    total_units: int = 1
    done_units: int = 0
    workers: list[Worker] = field(default_factory=list)
    controls: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    def run(self) -> None:
        """Solo passes and blocks that are not done yet; workers are buried whatever happens."""
        self.total_units = max(self._count_units(), 1)
        try:
            for side in self.sides:
                self._write(side, list(side.states.values()))
            self._solo_passes()
            for group, block, cases in self.schedule(self):
                self._block(group, block, cases)
        finally:
            for worker in self.workers:
                worker.kill()
                worker.close()

    def live(self, group: Group) -> list[Case]:
        """The timed cases of a group that have not failed on any side."""
        return [case for case in group.timed() if all(side.states[case.case_id].status == "ok" for side in self.sides)]

    def _count_units(self) -> int:
        turns = 2 * self.plan.sampling.passes * self.plan.sampling.blocks
        return len(self.sides) * sum(len(group.cases) + turns * len(self.live(group)) for group in self.plan.groups)

    def _advance(self, text: str, units: int = 1) -> None:
        self.done_units += units
        self.progress(min(self.done_units / self.total_units, 1.0), text)

    def _write(
        self,
        side: Side,
        states: Sequence[CaseState],
        samples: Sequence[Sample] = (),
        telemetry: Sequence[Reading] = (),
    ) -> None:
        rows = [state.row(self.plan.suite.name) for state in states]
        side.writer.write(cases=rows, samples=samples, telemetry=telemetry)

    def _start(self, name: str, side: Side, case: Case, seed: int) -> Worker:
        start: Start = self.start or WorkerProcess
        worker = start(
            f"{side.name}-{name}" if side.name else name,
            device=self.plan.device,
            variant=case.variant,
            seed=seed,
            plugins=self.plugins,
            root=side.root,
        )
        self.workers.append(worker)
        return worker

    def _ready(self, worker: Worker) -> None:
        """Wait for its imports. Raises CaseFailed if they fail, or if its code speaks another protocol than ours."""
        spoken = (worker.ready(START_SECONDS) or {}).get("protocol")
        if spoken != PROTOCOL:
            raise CaseFailed(
                f"the code under measurement speaks worker protocol {spoken}, this harness {PROTOCOL}: "
                "compare commits from after the change of protocol"
            )

    def _stop(self, worker: Worker) -> None:
        worker.close()
        self.workers.remove(worker)

    def _request(self, do: str, seat: Seat, **extra: Any) -> dict[str, Any]:
        return {
            "do": do,
            "case_id": seat.case.case_id,
            "workload": str(seat.case.workload),
            "model": seat.case.model,
            "variant": str(seat.case.variant),
            "source": dict(seat.state.source),
            **extra,
        }

    # Solo passes ------------------------------------------------------------------------------------------------

    def _solo_passes(self) -> None:
        """Memory, facts and quality, case by case; a case that breaks here is never timed."""
        timed = {case for group in self.plan.groups for case in group.timed()}
        for side in self.sides:
            worker: Worker | None = None
            engine = ""
            for case in dict.fromkeys(case for group in self.plan.groups for case in group.cases):
                seat = Seat(side, case)
                self._advance(f"memory and quality: {case}")
                if seat.state.status != "ok" or seat.state.solo_done:
                    continue
                samples: list[Sample] = []
                try:
                    # NOTE: a worker's forks inherit what an engine did to the process (vLLM patches torch)
                    if worker is not None and worker.alive and engine != backend_of(case.variant).name:
                        self._stop(worker)
                        worker = None
                    if worker is None or not worker.alive:
                        worker, engine = None, backend_of(case.variant).name
                        worker = self._greeted("solo", seat)
                    samples = self._solo(worker, seat, timed=case in timed)
                except CaseFailed as error:
                    seat.state.fail(error)
                self._write(side, [seat.state], samples)
            if worker is not None:
                self._stop(worker)

    def _greeted(self, name: str, seat: Seat) -> Worker:
        """A new worker that has imported what it needs. Raises CaseFailed, and leaves none behind, if it cannot."""
        worker = self._start(name, seat.side, seat.case, self.plan.seed)
        try:
            self._ready(worker)
        except CaseFailed:
            worker.kill()
            self._stop(worker)
            raise
        return worker

    def _solo(self, worker: Worker, seat: Seat, *, timed: bool) -> list[Sample]:
        case, state = seat.case, seat.state
        request = self._request("solo", seat, timed=timed)
        if timed and self.profiles is not None:
            folder = self.profiles / seat.side.writer.run_id
            make_folder(folder)
            request["profile"] = str((folder / case.case_id).resolve())
        result = worker.ask(request, timeout=self.plan.sampling.timeout_seconds)
        state.facts, state.work, state.solo_done = result["facts"], Work(**result["work"]), True
        record = Record(case.workload, state.work, measured=result["measured"])
        return [
            _sample(case, metric, value, block=SOLO_BLOCK, worker="solo", t_ns=time.monotonic_ns())
            for metric in self._metrics(case, timed=False)
            if (value := metric.compute(record)) is not None
        ]

    # Blocks -----------------------------------------------------------------------------------------------------

    def _block(self, group: Group, number: int, chosen: Collection[Case]) -> None:
        """One block of one group: fresh workers, warm-up, the turns of each case, one write a side."""
        seats = [
            Seat(side, case) for case in chosen for side in self.sides if number not in side.states[case.case_id].blocks
        ]
        if not seats:
            self._advance(f"block {number + 1}: done before", 2 * self.plan.sampling.passes * len(chosen))
            return
        block = Block(number)
        for seat in seats:
            seat.state.invalid_blocks.pop(number, None)
        with machine_lock() if self.start is None else contextlib.nullcontext():  # a scripted worker disturbs nobody
            arms = [(side, arm) for arm in group.arms for side in self.sides]
            arms = [arm for arm in arms if any((seat.side, seat.case.variant) == arm for seat in seats)]
            self._open_arms(seats, [arms[p] for p in opening_order(number, len(arms), self.plan.seed)], block)
            order = order_of(number, len(arms), self.plan.seed)
            for model, workload in dict.fromkeys((seat.case.model, seat.case.workload) for seat in seats):
                in_order = [Seat(arms[p][0], Case(workload, model, arms[p][1])) for p in order]
                self._place([seat for seat in in_order if seat in seats], block)
            for worker in set(block.workers.values()):
                if worker in self.workers:
                    self._stop(worker)
        for side in self.sides:
            states = [seat.state for seat in seats if seat.side is side]
            for state in states:
                if state.status == "ok":
                    state.blocks.add(number)
            self._write(side, states, block.samples.get(side.name, ()), block.telemetry.get(side.name, ()))

    def _open_arms(self, seats: Sequence[Seat], arms: Sequence[tuple[Side, Variant]], block: Block) -> None:
        """One worker per arm, importing side by side, warming up one after the other."""
        seed = self.plan.seed * 1000 + block.number
        pending = [[seat for seat in seats if (seat.side, seat.case.variant) == arm] for arm in arms]
        names = [f"b{block.number}-{variant}" for _, variant in arms]
        starting = [self._start(name, *mine[0], seed) for name, mine in zip(names, pending, strict=True)]
        for worker, mine, name in zip(starting, pending, names, strict=True):
            greeted = False
            for seat in mine:
                try:
                    if not worker.alive:
                        worker, greeted = self._start(name, *seat, seed), False
                    if not greeted:
                        self._ready(worker)
                        greeted = True
                    self._warm(worker, seat, block)
                    block.workers[seat.key] = worker
                except CaseFailed as error:
                    seat.state.fail(error)
                    if not greeted:
                        worker.kill()  # the next case gets a fresh one
                    self._bury(block, worker)

    def _bury(self, block: Block, worker: Worker) -> None:
        """If the worker is dead: the block is lost for the other cases that it had opened, and only the block."""
        sides = {side.name: side for side in self.sides}
        for key in [key for key, holder in block.workers.items() if holder is worker and not worker.alive]:
            side, case_id = key
            sides[side].states[case_id].invalid_blocks[block.number] = "its worker process died in this block"
            del block.workers[key]

    def _warm(self, worker: Worker, seat: Seat, block: Block) -> None:
        sampling = self.plan.sampling
        request = self._request("open", seat, seconds=sampling.warmup_seconds, iterations=sampling.min_iterations)
        result = worker.ask(request, timeout=sampling.timeout_seconds)
        seat.state.work = Work(**result["work"])
        seat.state.unsteady += not result["steady"]
        self._record(seat, block, result["warmup"], worker.name, 0, "warmup")

    def _place(self, seats: Sequence[Seat], block: Block) -> None:
        """All turns of one model and workload."""
        sampling = self.plan.sampling
        stride = max(1, round(CONTROL_EVERY_SECONDS / max(sampling.slice_seconds, 1e-3)))
        before = snapshot(self.plan.device)
        due: dict[tuple[str, str], int] = {}
        last: Seat | None = None
        for turn, seat in enumerate(turns_of(seats, sampling.passes)):
            self._advance(f"block {block.number + 1}/{sampling.blocks}: {seat.case}")
            if seat.key in block.workers:
                # Not in every turn: then only where hands change, which leaves the caches cold anyway. Before an arm's
                # second turn in a row it would cost that arm alone (docs/lab, 2026-11-22, the gate here).
                cold = stride == 1 or len(seats) == 1 or seat is not last
                control = cold and turn >= due.get(seat.key, 0)
                if control:
                    due[seat.key] = turn + stride * len(seats)
                self._turn(seat, block, turn, control=control)
            last = seat
        if sampling.slice_seconds < JUDGED_SECONDS:
            self._judge_together([seat for seat in seats if seat.key in block.workers], block, before)
        block.cpu_ns.clear()

    def _turn(self, seat: Seat, block: Block, turn: int, *, control: bool) -> None:
        """One slice of one case, repeated while a neighbour or the control spoils it."""
        worker, state, sampling = block.workers[seat.key], seat.state, self.plan.sampling
        request = self._request(
            "slice",
            seat,
            seconds=sampling.slice_seconds,
            iterations=sampling.min_iterations,
            label=f"{self.plan.suite.name}/{seat.case}/block {block.number}/turn {turn}",
            control=control,
        )
        while True:
            try:
                result = worker.ask(request, timeout=sampling.timeout_seconds)
            except CaseFailed as error:
                state.fail(error)
                self._bury(block, worker)
                return
            first, last = result.get("cpu_ns", (0, 0))
            block.cpu_ns[worker.name] = block.cpu_ns.get(worker.name, (first, last))[0], last
            why = self._disturbed(seat, result)
            repeat = why is not None and block.retries > 0
            readings = block.telemetry.setdefault(seat.side.name, [])
            readings += _readings(seat.case, result, block.number, worker.name, turn)
            self._record(seat, block, result["iterations"], worker.name, turn, "warmup" if repeat else "timed")
            if not repeat:
                break
            block.retries -= 1
            time.sleep(PAUSE_SECONDS)
        if why is not None:
            state.invalid_blocks[block.number] = why
        if result["control"] and self._busy(seat, result) is None:  # once a turn: repetitions must not outvote history
            self.controls.setdefault(str(seat.case.variant), []).append(result["control"])

    def _disturbed(self, seat: Seat, result: Mapping[str, Any]) -> str | None:
        """Why this slice is no measurement of the case alone, or None."""
        if backend_of(seat.case.variant).scripted:
            return None
        if (reason := self._busy(seat, result)) is not None:
            return reason
        history = self.controls.get(str(seat.case.variant), [])
        return control_moved(history, result["control"]) if len(history) >= CONTROL_TOLERANCE_HISTORY else None

    def _busy(self, seat: Seat, result: Mapping[str, Any]) -> str | None:
        if self.plan.sampling.slice_seconds < JUDGED_SECONDS:
            return None
        return self._neighbour(seat, {name: (value, unit) for name, (value, unit) in result["telemetry"].items()})

    def _neighbour(self, seat: Seat, values: Mapping[str, tuple[float, str]]) -> str | None:
        cores = len(usable_cpus())
        return busy_neighbour(values, cores=cores, threads=int(seat.state.facts.get("threads", cores)))

    def _judge_together(self, seats: Sequence[Seat], block: Block, before: Snapshot) -> None:
        """All turns of a place as one window, seen by this process: the workers' own time is not a neighbour's.

        From the first turn's beginning to the last one's end: threads spin on for a while when their slice is over.
        """
        workers_ns = sum(last - first for first, last in block.cpu_ns.values())
        values = difference(before, snapshot(self.plan.device))
        if "other_cpu" in values:
            others = values["other_cpu"][0] - workers_ns * 1e-9 / values["wall"][0]
            values["other_cpu"] = (max(0.0, others), "cores")
        for seat in seats:
            if not backend_of(seat.case.variant).scripted and (why := self._neighbour(seat, values)) is not None:
                seat.state.invalid_blocks.setdefault(block.number, why)

    # Rows -------------------------------------------------------------------------------------------------------

    def _metrics(self, case: Case, *, timed: bool) -> list[Metric]:
        found = [METRICS[name] for name in dict.fromkeys((*self.plan.suite.metrics, "step_time"))]
        return [metric for metric in found if metric.timed == timed and metric.applies(case.workload)]

    def _record(self, seat: Seat, block: Block, raw: Sequence[Any], worker: str, turn: int, phase: Phase) -> None:
        """The iterations of a slice as samples of every metric; the turn's median for the schedule."""
        case, state = seat.case, seat.state
        assert state.work is not None
        dtype = state.facts.get("compute_dtype", "fp32")
        threads = int(state.facts.get("threads", 0))
        steps = case.workload["new_tokens"] if case.workload.kind == "decode" else 1
        flops = peak_flops(self.peaks, dtype, threads)
        bandwidth = peak_bandwidth(self.peaks, state.work.bytes / steps, threads)
        metrics = self._metrics(case, timed=True)
        rows = block.samples.setdefault(seat.side.name, [])
        for number, (start, end, tokens) in enumerate(raw):
            record = Record(case.workload, state.work, Iteration(start, end, tuple(tokens)), {}, flops, bandwidth)
            rows += [
                _sample(
                    case,
                    metric,
                    value,
                    block=block.number,
                    worker=worker,
                    t_ns=start,
                    turn=turn,
                    iteration=number,
                    phase=phase,
                )
                for metric in metrics
                if (value := metric.compute(record)) is not None
            ]
        if phase == "timed":
            median = statistics.median(end - start for start, end, _ in raw) * 1e-9
            state.turns.setdefault(block.number, {})[turn] = median


def _sample(
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


def _readings(case: Case, result: Mapping[str, Any], block: int, worker: str, turn: int) -> list[Reading]:
    t_ns = result["iterations"][0][0]
    telemetry = [("slice", name, value, unit) for name, (value, unit) in result["telemetry"].items()]
    control = [("control", name, seconds, "s") for name, seconds in result["control"].items()]
    return [
        Reading(block, source, name, float(value), unit, t_ns, worker, case.case_id, turn)
        for source, name, value, unit in (*telemetry, *control)
    ]
