"""Backend `transformers`: the same weights in Hugging Face Transformers' own Llama, Qwen3 or Qwen3Moe model, eager."""

from __future__ import annotations

from harness.control import make_control
from harness.core import ModelSource, Variant
from harness.registry import Backend, Engine, backend


def _load(source: ModelSource, variant: Variant, device: str, seed: int) -> Engine:
    from harness.backends._transformers import load

    return load(source, variant, device, seed)


backend(
    Backend(
        name="transformers",
        load=_load,
        control=make_control,
        doc="Hugging Face Transformers' model of the same architecture and weights, eager, DynamicCache, SDPA.",
        axes=frozenset({"precision", "threads", "control"}),
        packages=("transformers",),
        preload=("harness.backends._transformers", "torch._dynamo"),
    )
)
