"""Axis `cudagraph`: whether a decode step is launched kernel by kernel or replayed as one CUDA graph.

    harness run kv_cache --device cuda --axis kv=prealloc --axis cudagraph=on

On a small model a GPU waits for the host to launch the next kernel; `launches_per_step` shows how often. A graph holds
fixed addresses and sizes: hence kv=prealloc, and attention over the cache's whole buffer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.registry import axis, close, option

if TYPE_CHECKING:
    import torch

    from harness.backends._torch import Build, Forward
    from minimind.model import MiniMindForCausalLM

axis("cudagraph", reference="off", doc="Decode steps: kernels launched one by one, or replayed as one CUDA graph.")


@option(
    "cudagraph",
    "on",
    stage="runtime",
    needs=("cuda",),
    requires=("kv=prealloc", "compile=off"),
    numerics=close(fp32=1e-3, bf16=0.25),
    evidence=lambda facts: facts.get("graph_replays", 0) > 0 and facts["graph_replays"] == facts["single_steps"],
)
def on(build: Build, value: str) -> None:
    """One decode step is captured per cache and replayed; attention always runs over the whole preallocated buffer."""
    from harness.core import Unsupported
    from minimind.cache import PreallocCache
    from minimind.static_step import GraphedStep

    if build.config.use_moe:
        raise Unsupported("cudagraph=on: a mixture of experts asks the device which experts have work at every step")
    build.without_decode = "cudagraph=on captures a decode step, and this workload has none"
    counted = {"graph_replays": 0, "single_steps": 0}
    steps: dict[int, GraphedStep] = {}

    def wrap(inner: Forward, model: MiniMindForCausalLM) -> Forward:
        def forward(ids_BT: torch.Tensor, cache: PreallocCache, logits_to_keep: int) -> torch.Tensor:
            if ids_BT.shape[1] != 1:
                return inner(ids_BT, cache, logits_to_keep)
            counted["single_steps"] += 1
            step = steps.get(id(cache))
            if step is None:  # the step keeps its cache alive, so that no other can have the same id
                step = steps[id(cache)] = GraphedStep(model, cache)
            logits = step(ids_BT)
            counted["graph_replays"] += 1
            return logits

        return forward

    build.wrap_forward(wrap)
    build.observe(lambda: dict(counted))
