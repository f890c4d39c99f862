"""Plugin: upstream MiniMind's own model code as a backend, to measure the reference against it.

Upstream's files are not part of this repository. Fetch them once, beside the checkout's root:

    mkdir .upstream
    git -C PATH/TO/minimind show 83e52f6:model/model_minimind.py > .upstream/v2.py    # MiniMind2
    git -C PATH/TO/minimind show d65ef2c:model/model_minimind.py > .upstream/v3.py    # MiniMind-3
    python -m harness run reference --plugin docs/lab/upstream_backend.py --device cpu
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from harness.control import make_control
from harness.core import Grid, ModelSource, Sampling, Suite, Unsupported, Variant, Workload
from harness.registry import Backend, Engine, backend, suite

FOLDER = Path(__file__).resolve().parents[2] / ".upstream"


def _upstream(generation: int) -> Any:
    path = FOLDER / f"v{generation}.py"
    if not path.is_file():
        raise Unsupported(f"upstream's model_minimind.py is not at {path}; the plugin's docstring says how to get it")
    name = f"upstream_v{generation}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def _load(source: ModelSource, variant: Variant, device: str, seed: int) -> Engine:
    import torch

    from harness.backends._sessions import TorchEngine
    from harness.backends._torch import MiniMindEngine, weights_of
    from harness.core import REFERENCE

    class UpstreamEngine(TorchEngine):
        """Upstream's forward, its tuples of keys and values, its training loss plus auxiliary loss."""

        def __init__(self) -> None:
            self.source, self.seed, self.device = source, seed, torch.device(device)
            self.config, weights = weights_of(source, source.seed)
            code = _upstream(self.config.generation)
            fields = {k: v for k, v in self.config.to_dict().items() if k not in ("generation", "rope_scaling")}
            self.model = code.MiniMindForCausalLM(code.MiniMindConfig(**fields))
            self.model.load_state_dict(weights)
            self.model.train(False).to(self.device)
            torch.set_num_threads(os.cpu_count() or 1)

        def new_state(self, batch: int, max_length: int) -> Any:
            return {"past": None}

        def rewind(self, state: Any, length: int) -> None:
            past = state["past"]
            state["past"] = [(k[:, :length], v[:, :length]) for k, v in past] if past and length else None

        def kv_bytes(self, state: Any) -> int:
            return sum(k.nbytes + v.nbytes for k, v in state["past"] or ())

        def forward(self, ids_BT: Any, state: Any) -> Any:
            out = self.model(ids_BT, past_key_values=state["past"], use_cache=True)
            state["past"] = out.past_key_values
            return out.logits

        def train_loss(self, ids_BT: Any) -> Any:
            self.model.train()
            out = self.model(ids_BT, labels=ids_BT)
            return out.loss + out.aux_loss

        def parameters(self) -> Any:
            return self.model.parameters()

        def reference(self) -> TorchEngine:
            return MiniMindEngine(source, REFERENCE, device, seed)

        def facts(self) -> dict[str, Any]:
            return {**self.compute_facts(), "threads_asked": None, "cache": "upstream's tuples"}

    return UpstreamEngine()


backend(
    Backend(
        name="upstream",
        load=_load,
        control=make_control,
        doc="Upstream MiniMind's own model code (not shipped; see docs/lab/upstream_backend.py).",
        axes=frozenset({"control"}),
        packages=("transformers",),
    )
)


SUITE = Suite(
    name="reference",
    doc="The reference model against upstream's own code of the same generation.",
    grids={
        "cpu": (
            Grid(
                models=("minimind2-small", "minimind-3"),
                workloads=(
                    Workload.of("prefill", context=128),
                    Workload.of("decode", context=128, new_tokens=8),
                    Workload.of("train_step", batch=2, length=64),
                    Workload.of("perplexity", batch=2, length=64, prefill=48),
                ),
                axes={"backend": ("upstream", "torch")},
            ),
        )
    },
    metrics=("ttft", "tps", "tpot", "train_tps", "peak_bytes", "kl", "top1_agreement"),
    sampling=Sampling(blocks=6, passes=3, slice_seconds=0.2, min_iterations=1, warmup_seconds=0.2),
)

suite(
    Suite(
        name="composition",
        doc="The best composition of options against Transformers' eager model of the same weights, fp32.",
        grids={
            "cpu": (
                Grid(
                    models=("minimind2-small",),
                    workloads=(
                        Workload.of("decode", context=1000, new_tokens=8),
                        Workload.of("decode", context=128, new_tokens=8),
                        Workload.of("prefill", context=128),
                        Workload.of("perplexity", batch=2, length=64, prefill=48),
                    ),
                    axes={"backend": ("transformers", "torch")},
                    extra=(
                        Variant.parse("kv=prealloc sdpa=fused"),
                        Variant.parse("kv=prealloc norm=fused sdpa=fused"),
                        Variant.parse("kv=prealloc norm=fused sdpa=fused compile=default"),
                    ),
                ),
            )
        },
        metrics=("ttft", "tps", "tpot", "peak_bytes", "kl", "top1_agreement"),
        sampling=Sampling(blocks=5, passes=3, slice_seconds=0.15, min_iterations=1, warmup_seconds=0.15),
    )
)
