"""Backend `torch`: the reference model of `minimind/` with its options applied, eager or compiled."""

from __future__ import annotations

from harness.control import make_control
from harness.core import ModelSource, Variant
from harness.registry import Backend, Engine, backend


def _load(source: ModelSource, variant: Variant, device: str, seed: int) -> Engine:
    from harness.backends._torch import load

    return load(source, variant, device, seed)


backend(
    Backend(
        name="torch",
        load=_load,
        control=make_control,
        doc="MiniMind's reference model in PyTorch, with every axis.",
        packages=("torch",),
        preload=("harness.backends._torch", "torch._dynamo"),  # counting operations needs the latter
    )
)
