"""The torch engine: builds a MiniMind in one variant, stage by stage, and offers it to the sessions.

engine = load(ModelSource("tiny"), Variant.parse("kv=prealloc"), "cpu", seed=0)
engine.session(Workload.parse("decode(batch=1,context=128,new_tokens=32)")).iterate()
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from harness.backends._sessions import TorchEngine, TorchSession, stored_bytes, work_of
from harness.core import REFERENCE, HarnessError, ModelSource, Unsupported, Variant, Workload, one_of
from harness.registry import Work, options_of
from harness.telemetry import usable_cpus
from minimind.assets import embedded_checkpoint
from minimind.attention import convert_heads
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
    `inference_only` says why the variant cannot be trained, where that is so.
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
    """Config and weights of a source: the user's file, the embedded trained checkpoint, or random from the seed."""
    name = source.preset or source.name
    path = source.weights or embedded_checkpoint(name)
    if path is not None:
        return load_weights(path)
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
        self._call: Any = self.model
        self.compiled_graphs: Callable[[], int] = lambda: 0
        if build.compile_mode is not None:
            self._compile()
        self._forward: Forward = self._plain_forward
        for wrapper in build.wrappers:
            self._forward = wrapper(self._forward, self.model)

    def _compiled(self, module: nn.Module) -> Any:
        """The module through torch.compile in the variant's mode; as it is where the variant does not compile."""
        mode = self.build.compile_mode
        return module if mode is None else torch.compile(module, mode=None if mode == "default" else mode, dynamic=None)

    def _compile(self) -> None:
        from torch._dynamo.utils import counters

        self._call = self._compiled(self.model)
        before = int(counters["stats"]["unique_graphs"])  # the counter is the whole process's
        self.compiled_graphs = lambda: int(counters["stats"]["unique_graphs"]) - before

    def new_state(self, batch: int, max_length: int) -> Any:
        with self.computing():
            # The model would ask its head for the dtype, and a quantised head has none that a cache could use.
            dtype = getattr(torch, self.autocast) if self.autocast else self.weight_dtype()
            return self.model.new_cache(
                kind=self.build.cache_kind, batch_size=batch, max_length=max_length, dtype=dtype, device=self.device
            )

    def session(self, workload: Workload) -> TorchSession:
        if workload.kind == "train_step" and self.build.inference_only is not None:
            raise Unsupported(self.build.inference_only)
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
        return {
            **self.compute_facts(),
            "modules": modules,
            "attention": self.model.model.attention.name,
            "cache": self.build.cache_kind,
            "num_attention_heads": self.config.num_attention_heads,
            "num_key_value_heads": self.config.num_key_value_heads,
            "threads_asked": self.build.threads,
            "compiled_graphs": self.compiled_graphs(),
            "loop": "bare" if self.bare_loop else "harness",
            "logits_to_keep": self.build.logits_to_keep,
            **self.build.facts,
            **{name: value for observer in self.build.observers for name, value in observer().items()},
        }


def load(source: ModelSource, variant: Variant, device: str, seed: int) -> MiniMindEngine:
    """Build the model of `source` in `variant` on `device`; `seed` chooses the prompts."""
    return MiniMindEngine(source, variant, device, seed)
