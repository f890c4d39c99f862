"""A scripted backend with noise and injected slowdowns, for testing calibration: give it as a plugin.

Its clock runs by a script: a block's two arms differ by 1% (standard deviation), the same way every time, and `spin=N`
makes a step N percent longer. Suite `noisy` measures it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from harness.core import Grid, Iteration, ModelSource, Sampling, Suite, Variant, Workload
from harness.registry import OPTIONS, Backend, Work, backend, suite

for _key in (("control", "aa"), ("spin", "N")):
    OPTIONS[_key] = replace(OPTIONS[_key], backends=OPTIONS[_key].backends | {"noisy"})


class NoisySession:
    """Steps of about a millisecond of a clock of its own."""

    def __init__(self, variant: Variant, workload: Workload, seed: int) -> None:
        self.work = Work(tokens=4, flops=1e6, bytes=1e6)
        self.percent = float(variant.option("spin") or 0)
        noise = random.Random(f"{seed} {variant.option('control')} {workload} {self.percent > 0}").gauss(0.0, 0.007)
        self.own_ns = int(1e6 * (1 + noise))
        self.now, self.count = 0, 0

    def iterate(self) -> Iteration:
        """One repetition; also sleeps a little, so that slices end."""
        time.sleep(0.001)
        start, self.count = self.now, self.count + 1
        self.now += int(self.own_ns * (1 + self.percent / 100))
        return Iteration(start, self.now)

    def facts(self) -> dict[str, Any]:
        """Constant facts, and those of the slowdown."""
        own = self.own_ns * self.count
        counts = {"forwards": self.count, "own_ns": own, "added_ns": own * self.percent / 100 + 1}
        return {"num_params": 7, "threads": 1, "spin_percent": self.percent, "spin": counts}

    def quality(self) -> dict[str, float]:
        """None is asked for."""
        return {}


class NoisyEngine:
    """Gives scripted sessions."""

    def __init__(self, variant: Variant, seed: int) -> None:
        self.variant, self.seed = variant, seed

    def session(self, workload: Workload) -> NoisySession:
        """A session of any workload."""
        return NoisySession(self.variant, workload, self.seed)


def _load(source: ModelSource, variant: Variant, device: str, seed: int) -> NoisyEngine:
    return NoisyEngine(variant, seed)


def _control(device: str) -> Callable[[], Mapping[str, float]]:
    return lambda: {"tiny": 1e-3}


backend(
    Backend(
        name="noisy",
        load=_load,  # type: ignore[arg-type]
        control=_control,  # type: ignore[arg-type]
        doc="A scripted clock with noise.",
        axes=frozenset({"control", "spin"}),
        scripted=True,
    )
)

_WORKLOADS = (Workload.of("decode", context=8, new_tokens=4), Workload.of("prefill", context=8))
_SAMPLING = Sampling(blocks=4, slice_seconds=0.004, min_iterations=2, warmup_seconds=0.004, timeout_seconds=20)
suite(
    Suite(
        name="noisy",
        doc="Scripted noise.",
        grids={"cpu": (Grid(("tiny",), _WORKLOADS, {"backend": ("noisy",)}),)},
        metrics=("tps", "ttft"),
        sampling=_SAMPLING,
    )
)
suite(
    Suite(
        name="untimed",
        doc="Nothing to time.",
        grids={"cpu": (Grid(("tiny",), (Workload.of("perplexity"),), {"backend": ("noisy",)}),)},
        metrics=("ppl",),
        sampling=_SAMPLING,
    )
)
