"""The child process that executes cases: one JSON request per line on stdin, one JSON reply per line.

    python -m harness.worker

It holds the token only between a request and its reply; waiting for the next request blocks in a read, so that an idle
worker costs its siblings nothing. Whatever libraries print goes to stderr. A solo request is answered by a forked child
that has imported the framework but built nothing: its own peak memory is the case's, and its death is only the case's.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from harness.core import Case, CaseFailed, HarnessError, Iteration, ModelSource, Unsupported, Variant, Workload
from harness.process import PROTOCOL
from harness.ranges import nvtx_range
from harness.registry import METRICS, Backend, Engine, Session, backend_of, load_all, options_of
from harness.telemetry import difference, peak_rss_bytes, reset_peak_rss, rss_bytes, snapshot
from harness.texts import preload

# A worker is steady when the best time of the last third of its warm-up is no more than this below that of the third
# before: noise only ever adds time, so the best times show whether something still gets faster. Beyond the cap it is
# measured all the same and marked `not_steady`.
STEADY_TOLERANCE = 0.10
WARMUP_CAP = 3.0


@dataclass(slots=True)
class WorkerState:
    """What this process has prepared so far."""

    device: str = "cpu"
    seed: int = 0
    engines: dict[tuple[str, str], Engine] = field(default_factory=dict)
    sessions: dict[str, Session] = field(default_factory=dict)
    control: Callable[[], dict[str, float]] | None = None


def case_from(request: dict[str, Any]) -> Case:
    """The case that a request names by its texts."""
    return Case(Workload.parse(request["workload"]), request["model"], Variant.parse(request["variant"]))


def _raw(iteration: Iteration) -> list[Any]:
    return [iteration.start_ns, iteration.end_ns, list(iteration.token_ns)]


def _engine(state: WorkerState, case: Case, source: ModelSource) -> Engine:
    """A loaded engine; workloads of one model share it, but training changes weights and gets its own."""
    key = (case.model, case.workload.kind if case.workload.kind == "train_step" else "")
    if key not in state.engines:
        backend = backend_of(case.variant)
        state.engines[key] = backend.load(source, case.variant, state.device, state.seed)
    return state.engines[key]


def _is_oom(error: BaseException) -> bool:
    text = f"{type(error).__name__}: {error}".lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def warm_up(session: Session, seconds: float, min_iterations: int) -> tuple[list[Iteration], bool]:
    """Iterate with the exact shapes until the time is flat; returns the iterations and whether they became steady."""
    done: list[Iteration] = []
    started = time.perf_counter()
    while True:
        done.append(session.iterate())
        elapsed = time.perf_counter() - started
        if elapsed < seconds or len(done) < min_iterations:
            continue
        last = [iteration.seconds for iteration in done[1:] or done]
        third = max(len(last) // 3, 1)
        newest = min(last[-third:])
        before = min(last[-2 * third : -third] or last[-third:])
        if before / newest - 1.0 <= STEADY_TOLERANCE:
            return done, True
        if elapsed > WARMUP_CAP * seconds and len(done) >= WARMUP_CAP * min_iterations:
            return done, False


def _open(state: WorkerState, request: dict[str, Any]) -> dict[str, Any]:
    case = case_from(request)
    session = _engine(state, case, ModelSource(**request["source"])).session(case.workload)
    if state.control is None:
        state.control = backend_of(case.variant).control(state.device)
    with nvtx_range(f"warm-up/{case}"):
        warm, steady = warm_up(session, request["seconds"], request["iterations"])
    state.sessions[request["case_id"]] = session
    gc.collect()
    gc.freeze()  # what stays for the worker's life is not walked again
    return {
        "warmup": [_raw(iteration) for iteration in warm],
        "steady": steady,
        "work": asdict(session.work),
    }


def _slice(state: WorkerState, request: dict[str, Any]) -> dict[str, Any]:
    """One turn: the negative control where asked for, then iterations until both minima are reached.

    Between two telemetry readings; `cpu_ns` is the CPU time of this process so far, at both ends of the turn.
    """
    session = state.sessions[request["case_id"]]
    assert state.control is not None
    cpu_ns = time.process_time_ns()
    control = state.control() if request["control"] else {}
    done: list[Iteration] = []
    gc.disable()
    try:
        before = snapshot(state.device)
        with nvtx_range(request["label"]):
            until = time.perf_counter() + request["seconds"]
            while len(done) < request["iterations"] or time.perf_counter() < until:
                done.append(session.iterate())
        after = snapshot(state.device)
    finally:
        gc.enable()
        gc.collect()
    readings = {name: list(value) for name, value in difference(before, after).items()}
    return {
        "control": control,
        "iterations": [_raw(iteration) for iteration in done],
        "telemetry": readings,
        "cpu_ns": [cpu_ns, time.process_time_ns()],
    }


def check_evidence(case: Case, facts: dict[str, Any]) -> None:
    """Raise CaseFailed(wrong) if an option of the variant left no trace in what really ran."""
    for declared, value in options_of(case.variant):
        if case.variant.option(declared.axis) is not None and declared.evidence and not declared.evidence(facts):
            raise CaseFailed(f"{declared.axis}={value} was asked for but did not run", status="wrong")


def _solo(state: WorkerState, request: dict[str, Any]) -> dict[str, Any]:
    """Memory, facts and quality of one case in this process, which has done nothing before it."""
    case = case_from(request)
    baseline = _start_memory(state.device)
    started = time.perf_counter()
    engine = _engine(state, case, ModelSource(**request["source"]))
    whole = time.perf_counter() - started
    # An engine that first has to export the model and verify it says how long the loading itself took.
    measured = {"load_time": getattr(engine, "load_seconds", whole)}
    with getattr(engine, "cold_start", contextlib.nullcontext)():  # what compiles takes its full time
        session = engine.session(case.workload)
        iterations = [session.iterate() for _ in range(2)] if request["timed"] else []
    if request["timed"]:
        first, second = iterations
        if case.variant.option("compile") is not None:
            measured["compile_time"] = first.seconds - second.seconds
        measured |= _stop_memory(state.device, baseline)
    else:
        measured |= session.quality()
    kv_bytes = getattr(session, "kv_bytes", lambda: None)()
    if kv_bytes is not None:
        measured["kv_bytes"] = float(kv_bytes)
    facts = session.facts()
    check_evidence(case, facts)
    counted = {name: facts[name] for name in METRICS.keys() & facts.keys()}
    measured |= {name: float(value) for name, value in counted.items() if value is not None}
    if request.get("profile"):
        from harness.profiling import record

        facts["profile"] = record(session, Path(request["profile"]), state.device)
    return {"measured": measured, "facts": facts, "work": asdict(session.work)}


def _start_memory(device: str) -> int | None:
    if device == "cuda":
        torch = importlib.import_module("torch")
        torch.cuda.init()
        torch.cuda.reset_peak_memory_stats()
        return 0
    reset_peak_rss()
    return rss_bytes()


def _stop_memory(device: str, baseline: int | None) -> dict[str, float]:
    if device == "cuda":
        torch = importlib.import_module("torch")
        peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        return {"peak_bytes": float(peak), "reserved_bytes": float(reserved)}
    peak_rss = peak_rss_bytes()
    return {} if baseline is None or peak_rss is None else {"peak_bytes": float(peak_rss - baseline)}


def _forked(state: WorkerState, request: dict[str, Any]) -> dict[str, Any]:
    """Answer a solo request in a forked child; its crash is the case's failure, not this worker's."""
    with contextlib.suppress(ValueError, OSError, HarnessError):  # the child meets the same error and reports it
        preload(ModelSource(**request["source"]))
    for module in backend_of(Variant.parse(request["variant"])).preload:
        importlib.import_module(module)
    reader, writer = os.pipe()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reader)
        reply = answer(lambda: _solo(state, request))
        with os.fdopen(writer, "w") as pipe:
            json.dump(reply, pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        killed = os.WTERMSIG(status) == signal.SIGKILL
        name = signal.Signals(os.WTERMSIG(status)).name
        reason = "killed by the system, most likely out of memory" if killed else f"the process died of {name}"
        return {"error": {"status": "oom" if killed else "failed", "reason": reason}}
    return dict(json.loads(text)) if text else {"error": {"status": "failed", "reason": "the process ended silently"}}


def _hello(state: WorkerState, request: dict[str, Any]) -> dict[str, Any]:
    load_all(request["plugins"])
    state.device, state.seed = request["device"], request["seed"]
    backend: Backend = backend_of(Variant.parse(request["variant"]))
    for package in backend.packages:
        importlib.import_module(package)
    return {"pid": os.getpid(), "protocol": PROTOCOL}


def _check(state: WorkerState, request: dict[str, Any]) -> dict[str, Any]:
    """Load the user's weights, tokenizer and data once, so that a bad file is an error before measuring."""
    source = ModelSource(**request["source"])
    backend = backend_of(Variant())
    try:
        engine = backend.load(source, Variant(), "cpu", 0)
        engine.session(Workload.of("perplexity", batch=1, length=16, prefill=8))
    except (ValueError, OSError) as error:
        raise HarnessError(str(error)) from error
    return {}


def _peaks(state: WorkerState, request: dict[str, Any]) -> dict[str, Any]:
    from harness.peaks import measure_peaks

    return {"peaks": [asdict(peak) for peak in measure_peaks(state.device, request["threads"])]}


def answer(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The case boundary: whatever breaks inside becomes a reply with a status and a reason, never a lost row."""
    try:
        return {"result": work()}
    except CaseFailed as error:
        return {"error": {"status": error.status, "reason": str(error)}}
    except Unsupported as error:
        return {"error": {"status": "skipped", "reason": str(error)}}
    except HarnessError as error:
        return {"error": {"status": "failed", "reason": str(error)}}
    except Exception as error:  # noqa: BLE001 - the one broad except of the tree
        status = "oom" if _is_oom(error) else "failed"
        where = traceback.format_exc(limit=-4)
        first_line = (str(error).splitlines() or [""])[0]
        return {"error": {"status": status, "reason": f"{type(error).__name__}: {first_line}", "trace": where}}


@contextlib.contextmanager
def private_stdout() -> Iterator[IO[str]]:
    """The reply channel: the real stdout under another number, while everything else that prints goes to stderr."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    yield channel
    channel.close()


def main() -> None:
    """Serve requests until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    state = WorkerState()
    handlers: dict[str, Callable[[WorkerState, dict[str, Any]], dict[str, Any]]] = {
        "hello": _hello,
        "open": _open,
        "slice": _slice,
        "check": _check,
        "peaks": _peaks,
    }
    with private_stdout() as channel:
        for line in sys.stdin:
            request = json.loads(line)
            if request["do"] == "solo":
                reply = _forked(state, request)
            else:
                handler = handlers[request["do"]]
                reply = answer(lambda handler=handler, request=request: handler(state, request))  # type: ignore[misc]
            channel.write(json.dumps(reply) + "\n")
            channel.flush()


if __name__ == "__main__":
    main()
