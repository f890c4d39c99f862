"""The torch engine: builds a MiniMind in one variant, stage by stage, and offers it to the sessions.

engine = load(ModelSource("tiny"), Variant.parse("kv=prealloc"), "cpu", seed=0)
engine.session(Workload.parse("decode(batch=1,context=128,new_tokens=32)")).iterate()
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from harness.backends._compile import CompileRecord, cold_caches
from harness.backends._sessions import TorchEngine, TorchSession, stored_bytes, work_of
from harness.core import REFERENCE, HarnessError, ModelSource, Unsupported, Variant, Workload, one_of
from harness.registry import Work, options_of
from harness.telemetry import usable_cpus
from minimind.assets import embedded_checkpoint
from minimind.attention import convert_heads
from minimind.cache import new_cache
from minimind.checkpoint import load_weights
from minimind.config import PRESETS, MiniMindConfig
from minimind.model import MiniMindForCausalLM

Weights = dict[str, torch.Tensor]
# (ids [B, T], cache, logits_to_keep) -> logits [B, T or logits_to_keep, V]: a cached forward in inference.
Forward = Callable[[torch.Tensor, Any, int], torch.Tensor]


@dataclass(slots=True)
class Build:
    """What the options of a variant transform. Before the module stage there is only `config` and `weights`.

    `weight_bytes` and `kv_bytes` are bytes per value where an option stores them in another way than in the model's
    dtype; they are the base of MBU. `logits_to_keep` is that of the timed workloads (0: every position).
    `inference_only` says why the variant cannot be trained, `without_decode` why it has no meaning in a workload that
    takes no decode steps, where that is so.
    """

    config: MiniMindConfig
    weights: Weights
    device: str
    source: ModelSource
    model: MiniMindForCausalLM | None = None
    cache_kind: str = "cat"
    autocast: str | None = None
    compile_mode: str | None = None
    threads: int | None = None
    bare_loop: bool = False
    logits_to_keep: int = 0
    weight_bytes: float | None = None
    kv_bytes: float | None = None
    inference_only: str | None = None
    without_decode: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    wrappers: list[Callable[[Forward, MiniMindForCausalLM], Forward]] = field(default_factory=list)
    observers: list[Callable[[], dict[str, Any]]] = field(default_factory=list)

    def built(self) -> MiniMindForCausalLM:
        """The model; an error in the option that asks for it before the module stage."""
        if self.model is None:
            raise HarnessError("the model does not exist before the module stage")
        return self.model

    def wrap_forward(self, wrapper: Callable[[Forward, MiniMindForCausalLM], Forward]) -> None:
        """Put something around the cached forward of inference; the wrapper gets what it wraps, and the finished model.

        Wrappers nest in the order of their options: the last one is called first.
        """
        self.wrappers.append(wrapper)

    def observe(self, facts: Callable[[], dict[str, Any]]) -> None:
        """Add facts that are only known once something has run: called whenever a session's facts are asked for."""
        self.observers.append(facts)

    def convert_heads(self, num_key_value_heads: int) -> None:
        """Config stage: give the model another number of key/value heads, converted from its own weights."""
        self.config, self.weights = convert_heads(self.config, self.weights, num_key_value_heads)

    def replace_modules(self, kind: type[nn.Module], replacement: Callable[[Any], nn.Module]) -> None:
        """Module stage: replace every module of this kind by what `replacement` makes of it."""
        for parent in list(self.built().modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, kind):
                    setattr(parent, name, replacement(child))

    def set_attention(self, name: str) -> None:
        """Module stage: choose the attention of every layer."""
        self.built().set_attention(name)

    def cast(self, dtype: str) -> None:
        """Cast stage: convert weights and buffers."""
        self.built().to(getattr(torch, dtype))


def weights_of(source: ModelSource, seed: int) -> tuple[MiniMindConfig, Weights]:
    """Config and fp32 weights: the user's file, the embedded trained checkpoint, or random from the seed."""
    name = source.preset or source.name
    path = source.weights or embedded_checkpoint(name)
    if path is not None:
        config, weights = load_weights(path)
        # NOTE: a file may hold 16-bit weights; the reference computes in fp32 all the same, options cast from there.
        return config, {name: weight.float() for name, weight in weights.items()}
    config = PRESETS[one_of("model", name, list(PRESETS))]
    torch.manual_seed(seed)
    return config, dict(MiniMindForCausalLM(config).state_dict())


class _NoInit(TorchFunctionMode):
    """Leaves new parameters as they are. On meta their random start would be worth nothing and import half of torch."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


class MiniMindEngine(TorchEngine):
    """MiniMind in one variant."""

    def __init__(self, source: ModelSource, variant: Variant, device: str, seed: int) -> None:
        self.source, self.variant, self.seed = source, variant, seed
        self.device = torch.device(device)
        config, weights = weights_of(source, source.seed)
        build = Build(config=config, weights=weights, device=device, source=source)
        chosen = options_of(variant)
        for declared, value in chosen:
            if declared.stage == "config":
                declared.apply(build, value)
        # On meta first, then the loaded tensors themselves: the weights are never in memory twice.
        with torch.device("meta"), _NoInit():
            build.model = MiniMindForCausalLM(build.config)
        build.model.load_state_dict(build.weights, assign=True)
        build.model.eval().to(self.device)
        for declared, value in chosen:
            if declared.stage not in ("backend", "config"):
                declared.apply(build, value)
        build.weights = {}
        torch.set_num_threads(build.threads or len(usable_cpus()))
        self.build, self.config = build, build.config
        self.model = build.built()
        self.autocast, self.bare_loop = build.autocast, build.bare_loop
        self.inference_only = build.inference_only
        self.compile_record = None if build.compile_mode is None else CompileRecord(build.compile_mode)
        self._call: Any = self._compiled(self.model)
        self._last_state: Any = None
        self._forward: Forward = self._plain_forward
        for wrapper in build.wrappers:
            self._forward = wrapper(self._forward, self.model)

    def _compiled(self, module: nn.Module) -> Any:
        """The module through torch.compile in the variant's mode; as it is where the variant does not compile."""
        return module if self.compile_record is None else self.compile_record.compiled(module)

    def compiled_graphs(self) -> int:
        """Graphs compiled for this engine so far."""
        return 0 if self.compile_record is None else self.compile_record.graphs

    def cold_start(self) -> AbstractContextManager[None]:
        """Inside, whatever compiles does so without code left on disk by an earlier process."""
        return contextlib.nullcontext() if self.compile_record is None else cold_caches()

    def new_state(self, batch: int, max_length: int) -> Any:
        with self.computing():
            # The model would ask its head for the dtype, and a quantised head has none that a cache could use.
            dtype = getattr(torch, self.autocast) if self.autocast else self.weight_dtype()
            # NOTE: a compiled step is guarded against a full buffer, whose view would be contiguous, and would be
            # compiled again for the last position; one spare position makes that never happen.
            spare = 0 if self.compile_record is None else 1
            state = new_cache(
                self.config, kind=self.build.cache_kind, batch_size=batch, max_length=max_length + spare, dtype=dtype,
                device=self.device,
            )  # fmt: skip
        if self.compile_record is not None:
            self.compile_record.keep_in_place(state)
        self._last_state = state
        return state

    def session(self, workload: Workload) -> TorchSession:
        decodes = workload.kind in ("decode", "generate", "perplexity")
        if not decodes and self.build.without_decode is not None:
            raise Unsupported(self.build.without_decode)
        return super().session(workload)

    def rewind(self, state: Any, length: int) -> None:
        state.rewind(length)

    def kv_bytes(self, state: Any) -> int:
        return int(state.nbytes)

    def _plain_forward(self, ids_BT: torch.Tensor, state: Any, logits_to_keep: int) -> torch.Tensor:
        logits: torch.Tensor = self._call(ids_BT, cache=state, logits_to_keep=logits_to_keep).logits
        return logits

    def forward(self, ids_BT: torch.Tensor, state: Any) -> torch.Tensor:
        return self._forward(ids_BT, state, 0)

    def next_logits(self, ids_BT: torch.Tensor, state: Any) -> torch.Tensor:
        return self._forward(ids_BT, state, self.build.logits_to_keep)

    def work(self, workload: Workload) -> Work:
        both = self.weight_dtype().itemsize
        weight_bytes = self.build.weight_bytes or both
        kv_bytes = self.build.kv_bytes or (2 if self.autocast else both)
        return work_of(self.config, workload, weight_bytes, kv_bytes, self.build.logits_to_keep)

    def norm(self) -> Callable[[torch.Tensor], torch.Tensor]:
        norm: Callable[[torch.Tensor], torch.Tensor] = self._compiled(self.model.model.norm)
        return norm

    def disk_bytes(self) -> int:
        return stored_bytes(self.model.state_dict().values())

    def train_loss(self, ids_BT: torch.Tensor) -> torch.Tensor:
        self.model.train()
        out = self._call(ids_BT, labels=ids_BT)
        loss: torch.Tensor = out.loss + out.aux_loss
        return loss

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.model.parameters()

    def reference(self) -> TorchEngine:
        threads = torch.get_num_threads()
        engine = MiniMindEngine(self.source, REFERENCE, str(self.device), self.seed)
        torch.set_num_threads(threads)
        return engine

    def facts(self) -> dict[str, Any]:
        modules: dict[str, int] = {}
        for module in self.model.modules():
            modules[type(module).__name__] = modules.get(type(module).__name__, 0) + 1
        common = self.compute_facts()
        return {
            **common,
            "modules": modules,
            "attention": self.model.model.attention.name,
            "cache": self.build.cache_kind if self._last_state is None else self._last_state.kind,
            "cache_class": None if self._last_state is None else type(self._last_state).__name__,
            "num_attention_heads": self.config.num_attention_heads,
            "num_key_value_heads": self.config.num_key_value_heads,
            "attn_weights": "checkpoint" if common["trained"] else "random",
            "threads_asked": self.build.threads,
            "compiled_graphs": 0,
            **({} if self.compile_record is None else self.compile_record.facts()),
            "loop": "bare" if self.bare_loop else "harness",
            "logits_to_keep": self.build.logits_to_keep,
            **self.build.facts,
            **{name: value for observer in self.build.observers for name, value in observer().items()},
        }


def load(source: ModelSource, variant: Variant, device: str, seed: int) -> MiniMindEngine:
    """Build the model of `source` in `variant` on `device`; `seed` chooses the prompts."""
    return MiniMindEngine(source, variant, device, seed)
