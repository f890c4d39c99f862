"""Axis `spin`: a slowdown of known size, to find out how often a verdict sees it.

    harness run quickstart --axis spin=3          # every forward takes 3% longer than it does without

After each forward the worker waits, busily, for N percent of the time which that very forward took. So the factor is
1 + N/100 in a slow moment of the machine as in a fast one, the numbers stay as they are, and the wait lies between the
two clock readings of the iteration, once per decode step. What the session does between forwards (choosing the next
token, about 1% of an iteration) is not lengthened. Refused: training, and steps that do not pass through the model's
forward.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from harness.registry import EXACT, axis, option

if TYPE_CHECKING:
    import torch

    from harness.backends._torch import Build, Forward
    from minimind.model import MiniMindForCausalLM

axis("spin", reference="none", doc="An injected slowdown: a busy wait after each forward, for calibration.")

Clock = Callable[[], int]


class Spin:
    """Lengthens forwards by `percent` and counts, in `counts`: forwards, their own nanoseconds, those added."""

    def __init__(self, percent: float) -> None:
        self.percent = percent
        self.counts = {"forwards": 0, "own_ns": 0, "added_ns": 0}

    def wait(self, started_ns: int, clock: Clock) -> None:
        """Wait for `percent` of what has passed since `started_ns`."""
        ended_ns = now_ns = clock()
        until_ns = ended_ns + (ended_ns - started_ns) * self.percent / 100
        while now_ns < until_ns:
            now_ns = clock()
        self.counts["forwards"] += 1
        self.counts["own_ns"] += ended_ns - started_ns
        self.counts["added_ns"] += now_ns - ended_ns

    def facts(self) -> dict[str, Any]:
        """The target in percent, and the counts.

        NOTE: the counts themselves, not a copy: a session asks for these facts first and then runs one step to see its
        operations, which must be in them.
        """
        return {"spin_percent": self.percent, "spin": self.counts}


def added_share(facts: Mapping[str, Any]) -> float:
    """The share by which forwards were really lengthened; 0 where none was."""
    counts = facts.get("spin", {})
    return counts["added_ns"] / counts["own_ns"] if counts.get("own_ns") else 0.0


def _ran(facts: Mapping[str, Any]) -> bool:
    """Whether forwards were lengthened by at least what was asked for. An interruption can only make it more."""
    return added_share(facts) >= float(facts.get("spin_percent", math.inf)) / 100


@option(
    "spin",
    "N",
    stage="runtime",
    needs=("cpu",),
    excludes=("step=cpp", "cudagraph=on"),
    pattern=r"[1-9][0-9]?(\.[0-9])?|0\.[1-9]",
    numerics=EXACT,
    evidence=_ran,
)
def spin(build: Build, value: str) -> None:
    """Every forward N percent longer (one decimal at most): spin=3, spin=0.5."""
    lengthening = Spin(float(value))
    # On a GPU the host runs ahead, and its waiting would be hidden behind the kernels: hence `needs`.
    build.inference_only = build.inference_only or f"spin={value} lengthens the forwards of inference only"

    def wrap(inner: Forward, model: MiniMindForCausalLM) -> Forward:
        def forward(ids_BT: torch.Tensor, cache: Any, logits_to_keep: int) -> torch.Tensor:
            started_ns = time.perf_counter_ns()
            logits = inner(ids_BT, cache, logits_to_keep)
            lengthening.wait(started_ns, time.perf_counter_ns)
            return logits

        return forward

    build.wrap_forward(wrap)
    build.observe(lengthening.facts)
