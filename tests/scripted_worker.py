"""Workers that answer from a script, and a small laboratory around them, for testing the runner without processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness import registry
from harness.case_state import CaseState, Side, new_states
from harness.core import Grid, Sampling, Suite, Variant, Workload
from harness.plan import Plan, make_plan
from harness.process import PROTOCOL, WorkerDied
from harness.runner import Runner
from harness.store import RunRow, Store

DECODE, PREFILL = Workload.of("decode", context=8, new_tokens=4), Workload.of("prefill", context=8)
CALM: dict[str, list[Any]] = {"other_cpu": [0.0, "cores"], "wall": [1.0, "s"]}
BUSY: dict[str, list[Any]] = {"other_cpu": [1000.0, "cores"], "wall": [1.0, "s"]}
Script = Callable[["Stub", dict[str, Any]], dict[str, Any]]


class Stub:
    """Stands in for a WorkerProcess: answers from a script, remembers what it was asked."""

    every: list[Stub]
    script: Script

    def __init__(
        self,
        name: str,
        *,
        device: str,
        variant: Variant,
        seed: int,
        plugins: Sequence[str] = (),
        root: Path | None = None,
    ) -> None:
        self.name, self.variant, self.seed, self.root = name, variant, seed, root
        self.asked: list[dict[str, Any]] = []
        self.alive, self.closed = True, False
        Stub.every.append(self)

    def ready(self, timeout: float) -> dict[str, Any]:
        self.ask({"do": "hello"}, timeout=timeout)
        return {"protocol": PROTOCOL}

    def ask(self, request: dict[str, Any], *, timeout: float) -> dict[str, Any]:
        if not self.alive:
            raise WorkerDied("asked after its death")
        self.asked.append(request)
        return Stub.script(self, request)

    def die(self, reason: str = "died of SIGSEGV", **status: Any) -> None:
        self.alive = False
        raise WorkerDied(reason, **status)

    def kill(self) -> None:
        self.alive = False

    def close(self) -> None:
        self.closed, self.alive = True, False


def plain(worker: Stub, request: dict[str, Any]) -> dict[str, Any]:
    """A worker to which nothing happens: iterations of 1 s, 2 s and 3 s."""
    work = {"tokens": 4, "flops": 1e9, "bytes": 1e6}
    second = 1_000_000_000
    if request["do"] == "solo":
        facts = {"num_params": 7, "threads": 64, "compute_dtype": "fp32"}
        return {"measured": {"peak_bytes": 5.0, "kv_bytes": 6.0, "ppl": 2.0}, "facts": facts, "work": work}
    if request["do"] == "open":
        return {"load_time": 0.5, "warmup": [[0, 4 * second, []]], "steady": True, "work": work}
    if request["do"] == "slice":
        iterations = [[0, second, []], [second, 3 * second, []], [3 * second, 6 * second, []]]
        return {"control": {"tiny": 1e-3}, "iterations": iterations, "telemetry": CALM}
    return {}


def asked_for(request: dict[str, Any], do: str, text: str = "") -> bool:
    """Whether this is such a request, for a case whose workload or variant holds the text."""
    return bool(request["do"] == do) and text in f"{request.get('workload')} {request.get('variant')}"


def play(script: Script) -> None:
    """What all workers answer from now on."""
    Stub.script = staticmethod(script)  # type: ignore[assignment]


class Lab:
    """A store, a plan of kv=cat against kv=prealloc, and the runner over them."""

    def __init__(self, folder: Path, *workloads: Workload, blocks: int = 2, axes: Any = None) -> None:
        grid = Grid(("tiny",), workloads or (DECODE,), axes or {"kv": ("cat", "prealloc")})
        sampling = Sampling(blocks=blocks, timeout_seconds=9.0)
        suite = Suite("lab", "x", {"cpu": (grid,)}, ("tps", "tpot", "ttft", "peak_bytes", "kv_bytes", "ppl"), sampling)
        registry.SUITES["lab"] = suite
        capabilities = frozenset({"cpu", "bf16", "compile", "pkg:torch"})
        try:
            self.plan: Plan = make_plan("lab", device="cpu", capabilities=capabilities, seed=5)
        finally:
            del registry.SUITES["lab"]
        self.store = Store.open(folder / "store", create=True)
        self.states = new_states(self.plan)
        self.progress: list[float] = []
        self.writer = self.store.begin(RunRow(suite="lab"))

    def run(self, **options: Any) -> Lab:
        sides = [Side(self.writer, self.states)]
        Runner(self.plan, sides, progress=lambda done, text: self.progress.append(done), **options).run()
        return self

    def state(self, variant: str, workload: str = "decode") -> CaseState:
        (found,) = [
            state
            for state in self.states.values()
            if str(state.case.variant) == variant and state.case.workload.kind == workload
        ]
        return found

    def samples(self, **where: Any) -> list[dict[str, Any]]:
        rows = self.store.samples(self.writer.run_id).to_pylist()
        return [row for row in rows if all(row[name] == value for name, value in where.items())]

    def rows(self) -> dict[str, dict[str, Any]]:
        cases = self.store.cases(self.writer.run_id).to_pylist()
        return {f"{row['workload'].split('(')[0]} {row['variant']}": row for row in cases}
