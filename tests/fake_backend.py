"""A backend with a scripted clock, for testing plan, runner, store and verdicts without a model: give it as a plugin.

Axis `fake` decides what a case does: nothing special, be 10% slower, run out of memory, die, hang, lack evidence.

A file `fake.json` in the folder that a worker runs in says what that code does, so that two commits can differ:
`{"factor": {"decode": 1.05}, "ppl": 2.1, "broken": ["prefill"]}`: how much longer steps take, PPL, what fails.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.core import Gate, Grid, Iteration, ModelSource, Sampling, Suite, Variant, Workload
from harness.registry import Backend, Work, axis, backend, lossy, option, suite

axis("fake", reference="plain", doc="What the scripted backend does.")


def _nothing(build: Any, value: str) -> None:
    """Scripted behaviour of the fake backend."""


for _name in ("slow", "oom", "raise", "die", "hang", "unsteady"):
    option("fake", _name, stage="runtime", backends=("fake",), numerics=lossy(None))(_nothing)
option("fake", "unproved", stage="runtime", backends=("fake",), numerics=lossy(None), evidence=lambda facts: False)(
    _nothing
)


def _code() -> dict[str, Any]:
    """What the code in this folder does."""
    path = Path("fake.json")
    return json.loads(path.read_text()) if path.exists() else {}


class FakeSession:
    """Advances a clock of its own: 1 ms a repetition, 1.1 ms if slow, plus a little deterministic noise."""

    def __init__(self, variant: Variant, workload: Workload, seed: int) -> None:
        self.behaviour = variant.option("fake") or "plain"
        self.workload, self.code = workload, _code()
        self.work = Work(tokens=dict(workload.params).get("new_tokens", 1), flops=1e6, bytes=1e6)
        self.now = 0
        self.count = 0
        self.step_ns = int(1e6 * (1.1 if self.behaviour == "slow" else 1.0) * (1 + 0.002 * (seed % 3)))
        self.step_ns = int(self.step_ns * self.code.get("factor", {}).get(workload.kind, 1.0))

    def iterate(self) -> Iteration:
        """One repetition of scripted length; also sleeps a little, so that slices end."""
        if self.behaviour == "oom":
            raise MemoryError("can't allocate memory: scripted")
        if self.behaviour == "raise" or self.workload.kind in self.code.get("broken", ()):
            raise RuntimeError("scripted failure")
        if self.behaviour == "die":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.behaviour == "hang":
            time.sleep(3600)
        time.sleep(0.002)
        start, self.count = self.now, self.count + 1
        speedup = max(5 - self.count, 1) if self.behaviour == "unsteady" else 1
        self.now += self.step_ns * speedup
        return Iteration(start, self.now)

    def facts(self) -> dict[str, Any]:
        """Constant facts."""
        return {"num_params": 7, "threads": 1, "outputs": "same", "trained": False}

    def quality(self) -> dict[str, float]:
        """A perplexity that depends on the code alone."""
        if self.workload.kind in self.code.get("broken", ()):
            raise RuntimeError("scripted failure")
        return {"ppl": self.code.get("ppl", 2.0), "kl": 0.0, "top1_agreement": 1.0}

    def kv_bytes(self) -> int:
        """A constant."""
        return 1024


class FakeEngine:
    """Gives scripted sessions."""

    def __init__(self, variant: Variant, seed: int) -> None:
        self.variant, self.seed = variant, seed

    def session(self, workload: Workload) -> FakeSession:
        """A session of any workload with `new_tokens`."""
        return FakeSession(self.variant, workload, self.seed)


def _load(source: ModelSource, variant: Variant, device: str, seed: int) -> FakeEngine:
    return FakeEngine(variant, seed)


def _control(device: str) -> Callable[[], Mapping[str, float]]:
    return lambda: {"tiny": 1e-3}


backend(
    Backend(
        name="fake",
        load=_load,  # type: ignore[arg-type]
        control=_control,  # type: ignore[arg-type]
        doc="A scripted clock.",
        axes=frozenset({"fake", "control"}),
        scripted=True,
    )
)


def _suite(name: str, *options: str, blocks: int = 4) -> None:
    grid = Grid(
        models=("tiny",),
        workloads=(Workload.of("decode", context=8, new_tokens=4),),
        axes={"backend": ("fake",), "fake": ("plain", *options)},
    )
    sampling = Sampling(blocks=blocks, slice_seconds=0.01, min_iterations=3, warmup_seconds=0.01, timeout_seconds=20)
    metrics = ("tps", "tpot", "peak_bytes", "kv_bytes")
    suite(Suite(name=name, doc="Scripted.", grids={"cpu": (grid,)}, metrics=metrics, sampling=sampling))


_suite("fake_slow", "slow")
_suite("fake_faults", "oom", "raise", "die", "unproved", "unsteady", blocks=2)
_suite("fake_hang", "hang", blocks=2)
_suite("fake_long", "slow", blocks=40)


def _gate_suite() -> None:
    workloads = (Workload.of("decode", context=8, new_tokens=4), Workload.of("prefill", context=8))
    fake = {"backend": ("fake",)}
    grids = (Grid(("tiny",), workloads, fake), Grid(("tiny",), (Workload.of("perplexity"),), fake))
    gates = (
        Gate("tps", workload="decode*"),
        Gate("ttft", workload="prefill*"),
        Gate("kv_bytes", kind="exact"),
        Gate("ppl", kind="bound", margin=0.005),
    )
    sampling = Sampling(
        blocks=2, slice_seconds=0.01, min_iterations=2, warmup_seconds=0.01, timeout_seconds=20, looks=(2,)
    )
    metrics = ("tps", "ttft", "kv_bytes", "ppl", "kl")
    suite(Suite("fake_gate", "Scripted.", {"cpu": grids}, metrics, sampling, gates=gates))


_gate_suite()
