"""Sessions for engines whose tensors are torch's: what one iteration of each workload is, written once.

An engine gives the primitives of `TorchEngine`; the loops, the clock and the ranges are here, so that two engines are
timed by the same code. Between the two clock readings of an iteration stand only the model's steps, one NVTX range per
phase and, at both ends, a device synchronisation (a no-op on a CPU).
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from harness.backends._operations import counted_operations, profiled_operations
from harness.core import CaseFailed, Iteration, ModelSource, Unsupported, Workload
from harness.ranges import nvtx_range
from harness.registry import Work
from harness.texts import held_out_ids, prompt_ids
from minimind import costs
from minimind.assets import embedded_checkpoint
from minimind.config import MiniMindConfig

DTYPE_NAMES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def work_of(
    config: MiniMindConfig, workload: Workload, weight_bytes: float, kv_bytes: float, logits_to_keep: int = 0
) -> Work:
    """Tokens, FLOPs and bytes of one iteration, from the model's own cost accounting (one source for MFU and MBU)."""
    params = dict(workload.params)
    batch = params["batch"]
    if workload.kind in ("prefill", "perplexity"):
        length = params["context" if workload.kind == "prefill" else "length"]
        moved = costs.weight_bytes(config, weight_bytes) + batch * length * costs.kv_bytes_per_token(config, kv_bytes)
        return Work(batch * length, costs.prefill_flops(config, batch, length, 0, logits_to_keep), moved)
    if workload.kind == "train_step":
        return Work(batch * params["length"], costs.train_flops(config, batch, params["length"]), 0.0)
    depth = params["context"] if workload.kind == "decode" else params["prompt"]
    steps = range(depth, depth + params["new_tokens"])
    flops = sum(costs.decode_flops(config, batch, context) for context in steps)
    moved = sum(costs.decode_bytes(config, batch, context, weight_bytes, kv_bytes) for context in steps)
    return Work(batch * params["new_tokens"], flops, moved)


def stored_bytes(tensors: Iterable[Any]) -> int:
    """Bytes of the tensors among `tensors`, shared storage once: what a file of them takes, less its header."""
    plain = [part for tensor in tensors if isinstance(tensor, torch.Tensor) for part in _plain_tensors(tensor)]
    storages = {part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in plain}
    return sum(storages.values())


def _plain_tensors(tensor: torch.Tensor) -> list[torch.Tensor]:
    """What really holds the numbers: a wrapper such as torchao's quantised weight has no storage of its own."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in _plain_tensors(getattr(tensor, name))]


class TorchEngine(ABC):
    """The primitives that an engine with torch tensors offers. `state` is the engine's own KV cache object.

    `config` is the model's shape after the variant's changes, `autocast` the dtype of autocast if it is on;
    `inference_only` says why the variant cannot be trained, where that is so.
    """

    source: ModelSource
    config: MiniMindConfig
    device: torch.device
    seed: int
    autocast: str | None = None
    bare_loop: bool = False
    inference_only: str | None = None

    @abstractmethod
    def new_state(self, batch: int, max_length: int) -> Any:
        """An empty KV cache for `batch` sequences of at most `max_length` tokens."""

    @abstractmethod
    def rewind(self, state: Any, length: int) -> None:
        """Forget all but the first `length` tokens of the cache."""

    @abstractmethod
    def kv_bytes(self, state: Any) -> int:
        """Bytes allocated for the cache now."""

    @abstractmethod
    def forward(self, ids_BT: torch.Tensor, state: Any) -> torch.Tensor:
        """Logits [B, T, V] of `ids_BT` after the cache's tokens; the cache grows by T."""

    def next_logits(self, ids_BT: torch.Tensor, state: Any) -> torch.Tensor:
        """As `forward`, in timed workloads: logits [B, n, V] of at least the last position."""
        return self.forward(ids_BT, state)

    def norm(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """The model's final norm as the variant has it. Raises Unsupported where an engine cannot run it alone."""
        raise Unsupported("this backend cannot run a norm alone")

    @abstractmethod
    def train_loss(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """Scalar loss, auxiliary loss included, with `ids_BT` as its own labels, in training mode."""

    @abstractmethod
    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """The trainable parameters."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What this engine is made of: modules, cache, heads."""

    @abstractmethod
    def reference(self) -> TorchEngine:
        """The reference variant of the same weights, for quality."""

    def weight_dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next(self.parameters()).dtype

    def disk_bytes(self) -> int:
        """Bytes that the model's weights take in a file of this engine's format."""
        return stored_bytes(self.parameters())

    def compute_facts(self) -> dict[str, Any]:
        """The facts that every engine of this family has."""
        weights = str(self.weight_dtype()).removeprefix("torch.")
        return {
            "weight_dtype": weights,
            "autocast": self.autocast,
            "compute_dtype": DTYPE_NAMES[self.autocast or weights],
            "threads": torch.get_num_threads(),
            "num_params": sum(parameter.numel() for parameter in self.parameters()),
            "trained": self.source.weights is not None or embedded_checkpoint(self.source.name) is not None,
        }

    def computing(self) -> AbstractContextManager[Any]:
        """The context of every forward: autocast, or nothing."""
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=getattr(torch, self.autocast))

    def prompt(self, batch: int, length: int) -> torch.Tensor:
        """Token ids [B, T] of real text, the same for every variant of one seed."""
        return torch.tensor(prompt_ids(self.source, batch, length, self.seed, self.config.vocab_size)).to(self.device)

    def held_out(self, batch: int, length: int) -> tuple[torch.Tensor, str]:
        """Held-out token ids [B, T] and their fingerprint."""
        ids, fingerprint = held_out_ids(self.source, batch, length, self.config.vocab_size)
        return torch.tensor(ids).to(self.device), fingerprint

    def work(self, workload: Workload) -> Work:
        """Tokens, FLOPs and bytes of one iteration."""
        weight_bytes = self.weight_dtype().itemsize
        return work_of(self.config, workload, weight_bytes, 2 if self.autocast else weight_bytes)

    def session(self, workload: Workload) -> TorchSession:
        """Prepare a workload; raises Unsupported for a kind that this family does not know."""
        from harness.backends._perplexity import PerplexitySession  # which builds on this file

        kinds: dict[str, type[TorchSession]] = {
            "prefill": PrefillSession,
            "decode": DecodeSession,
            "generate": GenerateSession,
            "train_step": TrainSession,
            "perplexity": PerplexitySession,
            "rms_norm": NormSession,
        }
        if workload.kind not in kinds:
            raise Unsupported(f"this backend has no workload {workload.kind}")
        if workload.kind == "train_step" and self.inference_only is not None:
            raise Unsupported(self.inference_only)
        return kinds[workload.kind](self, workload)

    def synchronize(self) -> None:
        """Wait until the device is idle."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class TorchSession(ABC):
    """One workload on one engine. `outputs` are the greedy tokens of the last iteration, where there are any."""

    def __init__(self, engine: TorchEngine, workload: Workload) -> None:
        self.engine = engine
        self.workload = workload
        self.work = self.work_done()
        self.outputs: torch.Tensor | None = None
        self.state: Any = None

    def work_done(self) -> Work:
        """Tokens, FLOPs and bytes of one iteration."""
        return self.engine.work(self.workload)

    @abstractmethod
    def iterate(self) -> Iteration:
        """Run the workload once and say when."""

    @abstractmethod
    def step(self) -> None:
        """The smallest part of an iteration that shows what runs: one forward or one step. Untimed."""

    def quality(self) -> dict[str, float]:
        """Quality metrics; only quality workloads have them."""
        raise CaseFailed(f"workload {self.workload.kind} has no quality metrics")

    def timed(self, body: Callable[[], None]) -> Iteration:
        """Clock around `body`, the device idle at both ends."""
        self.engine.synchronize()
        start = time.perf_counter_ns()
        body()
        self.engine.synchronize()
        return Iteration(start, time.perf_counter_ns())

    def facts(self) -> dict[str, Any]:
        """The engine's facts, the operations of one step by name, and a digest of the greedy tokens."""
        facts = {**self.engine.facts(), "disk_bytes": self.engine.disk_bytes()}
        compiled = bool(facts.get("compiled_graphs"))
        if not compiled:
            facts |= counted_operations(self.step)
        if compiled or self.engine.device.type == "cuda":
            facts |= profiled_operations(self.step)
        if self.outputs is not None:
            facts["outputs"] = hashlib.sha256(str(self.outputs.tolist()).encode()).hexdigest()[:16]
        return facts

    def kv_bytes(self) -> int | None:
        """Bytes of the KV cache after the last iteration, where there is one."""
        return None if self.state is None else self.engine.kv_bytes(self.state)


def greedy(logits_BTV: torch.Tensor) -> torch.Tensor:
    """The most likely next token of every sequence, [B, 1]."""
    return logits_BTV[:, -1].argmax(dim=-1, keepdim=True)


class PrefillSession(TorchSession):
    """A whole prompt into an empty cache. The cache object stands ready before the clock starts, as in a server."""

    def __init__(self, engine: TorchEngine, workload: Workload) -> None:
        super().__init__(engine, workload)
        self.ids = engine.prompt(workload["batch"], workload["context"])
        self.state = engine.new_state(workload["batch"], workload["context"])

    @torch.inference_mode()
    def iterate(self) -> Iteration:
        """One prefill, up to the first greedy token."""
        self.engine.rewind(self.state, 0)

        def body() -> None:
            with nvtx_range("prefill"), self.engine.computing():
                self.outputs = greedy(self.engine.next_logits(self.ids, self.state))

        return self.timed(body)

    def step(self) -> None:
        """One prefill."""
        self.iterate()


class DecodeSession(TorchSession):
    """Greedy steps at a context depth. The prompt is prefilled once; every iteration starts from the same cache."""

    def __init__(self, engine: TorchEngine, workload: Workload) -> None:
        super().__init__(engine, workload)
        self.context, self.new_tokens = workload["context"], workload["new_tokens"]
        ids = engine.prompt(workload["batch"], self.context)
        self.state = engine.new_state(workload["batch"], self.context + self.new_tokens)
        with torch.inference_mode(), engine.computing():
            self.first = greedy(engine.next_logits(ids, self.state))

    @torch.inference_mode()
    def iterate(self) -> Iteration:
        """`new_tokens` steps without a host synchronisation in between."""
        self.engine.rewind(self.state, self.context)
        tokens = [self.first]
        forward, state = self.engine.next_logits, self.state

        def body() -> None:
            with nvtx_range("decode"), self.engine.computing():
                for _ in range(self.new_tokens):
                    tokens.append(greedy(forward(tokens[-1], state)))

        iteration = self._bare(tokens) if self.engine.bare_loop else self.timed(body)
        self.outputs = torch.cat(tokens[1:], dim=1)
        return iteration

    def _bare(self, tokens: list[torch.Tensor]) -> Iteration:
        """The loop as anyone would write it by hand, for the `overhead` suite."""
        forward, state = self.engine.next_logits, self.state
        start = time.perf_counter_ns()
        with self.engine.computing():
            for _ in range(self.new_tokens):
                logits = forward(tokens[-1], state)
                tokens.append(logits[:, -1].argmax(dim=-1, keepdim=True))
        if self.engine.device.type == "cuda":
            torch.cuda.synchronize()
        return Iteration(start, time.perf_counter_ns())

    @torch.inference_mode()
    def step(self) -> None:
        """One decode step at the start of the context."""
        self.engine.rewind(self.state, self.context)
        with self.engine.computing():
            self.engine.next_logits(self.first, self.state)


class GenerateSession(TorchSession):
    """A request as its user sees it: prefill, then every token on the host before the next step."""

    def __init__(self, engine: TorchEngine, workload: Workload) -> None:
        super().__init__(engine, workload)
        self.ids = engine.prompt(workload["batch"], workload["prompt"])
        self.length = workload["prompt"] + workload["new_tokens"]
        self.state = engine.new_state(workload["batch"], self.length)

    @torch.inference_mode()
    def iterate(self) -> Iteration:
        """One generation of fixed length; token times are those of their arrival on the host."""
        self.engine.rewind(self.state, 0)
        times: list[int] = []
        tokens: list[torch.Tensor] = []

        def emit(token: torch.Tensor) -> torch.Tensor:
            tokens.append(token.cpu())
            times.append(time.perf_counter_ns())
            return token

        def body() -> None:
            with self.engine.computing():
                with nvtx_range("prefill"):
                    token = emit(greedy(self.engine.next_logits(self.ids, self.state)))
                with nvtx_range("decode"):
                    for _ in range(self.workload["new_tokens"] - 1):
                        token = emit(greedy(self.engine.next_logits(token, self.state)))

        whole = self.timed(body)
        self.outputs = torch.cat(tokens, dim=1)
        return Iteration(whole.start_ns, whole.end_ns, tuple(times))

    @torch.inference_mode()
    def step(self) -> None:
        """One prefill and one decode step."""
        self.engine.rewind(self.state, 0)
        with self.engine.computing():
            self.engine.next_logits(greedy(self.engine.next_logits(self.ids, self.state)), self.state)


class TrainSession(TorchSession):
    """Whole optimisation steps with AdamW's defaults; the engine's weights change, so it is never shared."""

    def __init__(self, engine: TorchEngine, workload: Workload) -> None:
        super().__init__(engine, workload)
        self.ids = engine.prompt(workload["batch"], workload["length"])
        self.optimizer = torch.optim.AdamW(engine.parameters(), lr=5e-4)
        # Gradients below fp16's smallest number would be lost; in other formats the scaler passes everything through.
        self.scaler = torch.amp.GradScaler(engine.device.type, enabled=engine.autocast == "float16")

    def iterate(self) -> Iteration:
        """Forward, backward, clip, update, zero_grad."""

        def body() -> None:
            with nvtx_range("forward"), self.engine.computing():
                loss = self.engine.train_loss(self.ids)
            with nvtx_range("backward"):
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            with nvtx_range("update"):
                self.scaler.unscale_(self.optimizer)
                torch.nn.utils.clip_grad_norm_(self.engine.parameters(), 1.0)
                self.scaler.step(self.optimizer)
                self.scaler.update()
                self.optimizer.zero_grad(set_to_none=True)

        return self.timed(body)

    def step(self) -> None:
        """One optimisation step."""
        self.iterate()


class NormSession(TorchSession):
    """The norm alone, where the rest of the model cannot hide it: from a few rows to more than the cache holds."""

    def __init__(self, engine: TorchEngine, workload: Workload) -> None:
        super().__init__(engine, workload)
        self.norm = engine.norm()
        generator = torch.Generator().manual_seed(engine.seed)
        rows = torch.randn(workload["rows"], engine.config.hidden_size, generator=generator)
        self.rows = rows.to(engine.device, engine.weight_dtype())

    def work_done(self) -> Work:
        """Rows in, rows out and the weight, for every call; the arithmetic does not count (it is not a product)."""
        calls, rows = self.workload["calls"], self.workload["rows"]
        values = (2 * rows + 1) * self.engine.config.hidden_size
        return Work(calls * rows, 0.0, calls * values * self.engine.weight_dtype().itemsize)

    @torch.inference_mode()
    def iterate(self) -> Iteration:
        """`calls` norms of the same rows; results are dropped."""

        def body() -> None:
            with nvtx_range("rms_norm"), self.engine.computing():
                for _ in range(self.workload["calls"]):
                    self.norm(self.rows)

        return self.timed(body)

    @torch.inference_mode()
    def step(self) -> None:
        """One norm."""
        with self.engine.computing():
            self.norm(self.rows)
