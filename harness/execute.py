"""One run from plan to finished rows: preflight, the run's row, measured peaks, the runner, the end. Torch-free.

run_id = execute(request, store, progress, warn)          # a new run
run_id = resume(store, "20261122T0315", progress, warn)   # the rest of an interrupted one
runs = measure(request, store, progress, warn, sides=(SideRequest("baseline", root=worktree), SideRequest("candidate")))
"""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.case_state import CaseState, Side, new_states
from harness.core import SOLO_BLOCK, CaseFailed, HarnessError, ModelSource, Sampling, UsageError, Variant
from harness.machine import capabilities, checkout, fingerprint, inspect_machine, preflight, versions
from harness.peaks import Peak
from harness.plan import Plan, make_plan
from harness.process import WorkerProcess
from harness.profiles import ARTIFACTS
from harness.registry import Work, load_all
from harness.runner import Progress, Runner, Schedule
from harness.schedule import fixed
from harness.schema import PeakRow, RunRow, RunStatus
from harness.store import Store
from harness.telemetry import usable_cpus

PEAKS_TIMEOUT = 300.0


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked for; stored with the run, so that it can be repeated and resumed.

    `only`: identities of the timed cases to keep, with their references and quality; empty for all. `repeat`: the line
    that repeats it where that is another verb than `run`.
    """

    suite: str
    device: str = "cpu"
    axes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    blocks: int | None = None
    seed: int = 0
    models: Sequence[str] = ()
    source: ModelSource | None = None
    budget_seconds: float | None = None
    timeout_seconds: float | None = None
    plugins: Sequence[str] = ()
    only: Sequence[str] = ()
    repeat: str = ""

    def plan(self) -> Plan:
        """The plan of this request on this machine. Raises UsageError."""
        load_all(self.plugins)
        found = make_plan(
            self.suite,
            device=self.device,
            capabilities=capabilities(self.device),
            seed=self.seed,
            asked=self.axes,
            source=self.source,
            models=self.models,
        )
        sampling: Sampling = found.sampling
        if self.blocks is not None:
            sampling = replace(sampling, blocks=self.blocks)
        if self.timeout_seconds is not None:
            sampling = replace(sampling, timeout_seconds=self.timeout_seconds)
        found = replace(found, sampling=sampling)
        return found.restricted(self.only) if self.only else found

    def command(self, verb: str = "run") -> str:
        """The one line that repeats the run; what the flags of another measuring verb have in common with it."""
        if self.repeat:
            return self.repeat
        words = ["python", "-m", "harness", verb, self.suite, "--device", self.device, "--seed", str(self.seed)]
        for axis, options in self.axes.items():
            words += ["--axis", f"{axis}={','.join(options)}"]
        for name in () if self.source is not None else self.models:
            words += ["--model", name]
        for flag, number in (
            ("blocks", self.blocks),
            ("budget", self.budget_seconds),
            ("timeout", self.timeout_seconds),
        ):
            if number is not None:
                words += [f"--{flag}", f"{number:g}"]
        if self.source is not None:
            for flag in ("preset", "weights", "tokenizer", "data"):
                if (value := getattr(self.source, flag)) is not None:
                    words += ["--model" if flag == "preset" else f"--{flag}", value]
        for plugin in self.plugins:
            words += ["--plugin", plugin]
        return shlex.join(words)

    def to_json(self) -> str:
        """For the run's row."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Request:
        """What `to_json` wrote."""
        fields_ = json.loads(text)
        if fields_.get("source") is not None:
            fields_["source"] = ModelSource(**fields_["source"])
        return cls(**fields_)


def _program() -> str:
    """What was started, without its folder: results are passed on, and the folder is nobody else's business."""
    path = Path(sys.argv[0])
    return path.parent.name if path.name == "__main__.py" else path.name


def run_row(request: Request, plan: Plan) -> RunRow:
    """The row of the `runs` table: the machine, the versions, the commit, the command."""
    machine, found, git = inspect_machine(request.device), versions(), checkout()
    threads = len(usable_cpus())
    return RunRow(
        suite=plan.suite.name,
        suite_version=plan.suite.version,
        git_sha=git.sha if git else "",
        git_dirty=bool(git and git.dirty),
        argv=json.dumps([_program(), *sys.argv[1:]]),
        command=request.command(),
        seed=request.seed,
        machine_id=machine.machine_id,
        device=request.device,
        device_name=machine.device_name,
        cpu_model=machine.cpu_model,
        cores=machine.cores,
        threads=threads,
        ram_bytes=machine.ram_bytes,
        os=machine.os,
        python=machine.python,
        torch=found.torch or "",
        triton=found.triton or "",
        cuda=found.cuda or "",
        driver=found.driver or "",
        packages=json.dumps(dict(found.packages)),
        fingerprint=fingerprint(machine, found, request.device, threads=threads),
        plan=request.to_json(),
    )


def measured_peaks(store: Store, device: str, *, fresh: bool = False) -> list[Peak]:
    """The machine's measured peaks: from the store if its fingerprint is known, else measured and kept."""
    threads = len(usable_cpus())
    key = fingerprint(inspect_machine(device), versions(), device, threads=threads)
    rows = [] if fresh else store.calibration(key)
    if not rows:
        worker = WorkerProcess("peaks", device=device, variant=Variant(), seed=0)
        try:
            worker.ready(PEAKS_TIMEOUT)
            result = worker.ask({"do": "peaks", "threads": threads}, timeout=PEAKS_TIMEOUT)
        finally:
            worker.close()
        now = time.time_ns()
        rows = [
            PeakRow(p["kind"], p["value"], p["unit"], p["dtype"], p["size_bytes"], p["threads"], now)
            for p in result["peaks"]
        ]
        store.save_calibration(key, rows)
    return [
        Peak(row.kind, row.dtype, row.size_bytes, row.threads, row.value, row.unit)  # type: ignore[arg-type]
        for row in rows
    ]


def check_source(source: ModelSource) -> None:
    """Raise UsageError with the reason if the user's weights, tokenizer and data do not load and fit together."""
    worker = WorkerProcess("check", device="cpu", variant=Variant(), seed=0)
    try:
        worker.ready(PEAKS_TIMEOUT)
        worker.ask({"do": "check", "source": asdict(source)}, timeout=PEAKS_TIMEOUT)
    except CaseFailed as error:
        raise UsageError(f"{source.weights or source.data or source.tokenizer}: {error}") from error
    finally:
        worker.close()


def check_fit(device: str, warn: Callable[[str], None]) -> None:
    """Preflight: raise HarnessError where no number from this machine would mean anything now, warn of the rest."""
    findings = preflight(device, len(usable_cpus()))
    refused = [f"{finding.name}: {finding.message}" for finding in findings if finding.level == "refuse"]
    if refused:
        raise HarnessError("this machine is not fit to measure now: " + "; ".join(refused))
    for finding in findings:
        if finding.level == "warn":
            warn(f"{finding.name}: {finding.message}")


@dataclass(frozen=True, slots=True)
class SideRequest:
    """One side of a session. `root`: the folder whose code its workers run (None: this), checked out at `git_sha`."""

    name: str = ""
    root: Path | None = None
    git_sha: str = ""
    git_dirty: bool = False


def execute(request: Request, store: Store, progress: Progress, warn: Callable[[str], None]) -> str:
    """Measure what was asked for; returns the id of the run. Raises UsageError before anything is written."""
    (run_id,) = measure(request, store, progress, warn).values()
    return run_id


def measure(
    request: Request,
    store: Store,
    progress: Progress,
    warn: Callable[[str], None],
    *,
    sides: Sequence[SideRequest] = (SideRequest(),),
    schedule: Schedule = fixed,
    profile: bool = False,
) -> dict[str, str]:
    """Measure the sides interleaved with each other; returns side name -> run id. Several sides share one session.

    `profile`: the solo pass also records profiles beside the store (`harness.profiles`). The plan is this code's; a
    case that a side's code does not know fails there. Raises UsageError before anything is written.
    """
    deadline = _deadline(request)
    plan = replace(request, only=()).plan()
    if len(sides) > 1:  # each case is compared with itself on the other side: its variant needs no reference
        plan = plan.by_variant()
    plan = plan.restricted(request.only) if request.only else plan
    store.check_writable()
    check_fit(request.device, warn)
    if request.source is not None:
        check_source(request.source)
    progress(0.0, "measuring this machine's peaks")
    peaks = measured_peaks(store, request.device)
    row = run_row(request, plan)
    session = f"{time.time_ns():x}" if len(sides) > 1 else ""
    opened: list[Side] = []
    with _finishing(opened):
        for side in sides:
            own = replace(row, session=session, side=side.name)
            if side.root is not None:
                own = replace(own, git_sha=side.git_sha, git_dirty=side.git_dirty)
            opened.append(Side(store.begin(own), new_states(plan), side.name, side.root))
        profiles = store.path / ARTIFACTS if profile else None
        Runner(plan, opened, peaks, request.plugins, progress, deadline, schedule, profiles=profiles).run()
    return {side.name: side.writer.run_id for side in opened}


def resume(store: Store, reference: str, progress: Progress, warn: Callable[[str], None]) -> str:
    """Complete an interrupted run without repeating what it holds. Raises UsageError if it cannot be."""
    run = store.find_run(reference)
    if run.status == "finished":
        raise UsageError(f"run {run.run_id} is finished; there is nothing to resume")
    if store.is_live(run):
        raise UsageError(f"run {run.run_id} is still going on (process {run.pid})")
    request = Request.from_json(run.plan)
    plan = request.plan()
    here = inspect_machine(request.device).machine_id
    if run.machine_id != here:
        raise UsageError(f"run {run.run_id} was begun on machine {run.machine_id}; this is {here}")
    store.check_writable()
    if run.session:
        raise UsageError(f"run {run.run_id} is one side of a session of several; such runs cannot be completed")
    check_fit(request.device, warn)
    peaks = measured_peaks(store, request.device)
    states = new_states(plan)
    _restore(store, run.run_id, states)
    sides = [Side(store.reopen(run.run_id), states)]
    with _finishing(sides):
        Runner(plan, sides, peaks, request.plugins, progress, _deadline(request)).run()
    return run.run_id


def _restore(store: Store, run_id: str, states: Mapping[str, CaseState]) -> None:
    done = store.done_blocks(run_id)
    for row in store.cases(run_id).to_pylist():
        state = states.get(row["case_id"])
        if state is None:
            continue
        facts: dict[str, Any] = json.loads(row["facts"] or "{}")
        state.solo_done = bool(facts.pop("solo_done", False))
        state.unsteady = int(facts.pop("unsteady_blocks", 0))
        state.invalid_blocks = {int(block): why for block, why in facts.pop("invalid_blocks", {}).items()}
        work = facts.pop("work", None)
        state.work = None if work is None else Work(*work)
        state.facts = facts
        state.blocks = done.get(row["case_id"], set()) - {SOLO_BLOCK}
        if row["status"] not in ("ok", "not_steady"):
            state.status, state.reason = row["status"], row["reason"]


def _deadline(request: Request) -> float | None:
    return None if request.budget_seconds is None else time.monotonic() + request.budget_seconds


@contextlib.contextmanager
def _finishing(sides: Sequence[Side]) -> Iterator[None]:
    """Whatever ends the measurement is written into the row of every side that has begun."""
    status: RunStatus = "failed"
    try:
        yield
        status = "finished"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        with contextlib.ExitStack() as every:  # one side that cannot be finished does not leave the other open
            for side in sides:
                every.callback(side.writer.finish, status)
