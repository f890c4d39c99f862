"""Backend `vllm`: the same weights in vLLM's engine, inside the worker's own process, on a CPU."""

from __future__ import annotations

from harness.control import make_control
from harness.core import ModelSource, Variant
from harness.registry import Backend, Engine, backend


def _load(source: ModelSource, variant: Variant, device: str, seed: int) -> Engine:
    from harness.backends._vllm import load

    return load(source, variant, device, seed)


backend(
    Backend(
        name="vllm",
        load=_load,
        control=make_control,
        doc="vLLM on the CPU, in-process, compiled as by default, paged cache, no prefix caching; batches too.",
        axes=frozenset({"precision", "threads", "control"}),
        packages=("vllm",),
        preload=("harness.backends._vllm", "torch._dynamo"),
    )
)
