"""The vLLM engine: a Transformers folder of MiniMind's weights in vLLM's scheduler, model and kernels, on a CPU.

engine = load(ModelSource("tiny"), Variant.parse("backend=vllm precision=bf16"), "cpu", seed=0)
engine.session(Workload.parse("decode(batch=1,context=128,new_tokens=32)")).iterate()

Engine, scheduler and model live in this process, where the harness owns the threads and sees memory and operations. One
step of the engine is one forward and its greedy tokens; a prompt is computed anew in every iteration (no prefix
caching). Quality is measured through vLLM's own cache: the prompt's logits, then steps whose tokens a logits processor
forces. The logits are compared with the reference before anything is timed, again whenever folder or package has
changed. Refuses (Unsupported): training, CUDA, what Transformers' Llama and Qwen3 do not compute, prompts that exceed
one step's budget.

Legend: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import vllm
from vllm import EngineArgs, SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.executor import Executor
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from harness.backends._exported import ExportedEngine, digest, distance, exported, verified
from harness.backends._perplexity import SAMPLE_TOKENS, PerplexitySession
from harness.backends._sessions import TorchEngine, TorchSession, work_of
from harness.backends._torch import MiniMindEngine, Weights
from harness.core import REFERENCE, CaseFailed, Iteration, ModelSource, Unsupported, Variant, Workload
from harness.ranges import nvtx_range
from harness.registry import Work
from harness.telemetry import reset_peak_rss
from harness.texts import decoded
from minimind import costs
from minimind.assets import embedded_checkpoint
from minimind.config import MiniMindConfig
from minimind.export import transformers as transformers_format

COMPUTE_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
POOL_TOKENS = 16384  # the longest sequence, and all sequences of a batch together
SPARE_TOKENS = 256  # vLLM keeps a block of the cache for itself
# The engine is wrong beyond these: logits of fp32 (absolute), KL in nats per token of 16-bit formats.
TOLERANCE = 2e-4
MAX_KL = 0.01
CHECKED_TOKENS = 24
# NOTE: the end of one engine destroys the process groups of all in this process, so none ends before the process does.
_LOADED: list[LLMEngine] = []


@dataclass(slots=True)
class Build:
    """What the options that this engine honours may set. `inference_only` says nothing new: it never trains."""

    dtype: str = "float32"
    threads: int | None = None
    inference_only: str | None = None

    def cast(self, dtype: str) -> None:
        """The number format of weights, activations and cache."""
        self.dtype = dtype


class ForcedTokens(AdapterLogitsProcessor):  # type: ignore[misc]
    """Makes a request "choose" given tokens, so that a text is scored step by step through the cache."""

    def is_argmax_invariant(self) -> bool:
        """No: it decides the argmax."""
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> Any:
        """What vLLM calls with a request's tokens so far and its next logits; None where nothing is forced."""
        forced: list[int] | None = (params.extra_args or {}).get("forced")
        if forced is None:
            return None

        def force(output_ids: list[int], logits_V: torch.Tensor) -> torch.Tensor:
            only_V = torch.full_like(logits_V, float("-inf"))
            only_V[forced[len(output_ids)]] = 0.0
            return only_V

        return force


class VllmSession(TorchSession):
    """A timed workload: requests given to the engine, and the engine's steps until they are done."""

    engine: VllmEngine

    def __init__(self, engine: VllmEngine, workload: Workload) -> None:
        super().__init__(engine, workload)
        depth = workload["prompt" if workload.kind == "generate" else "context"]
        # The first new token comes with the prompt; decoding counts those after it.
        self.extra = {"prefill": 1, "decode": 1, "generate": 0}[workload.kind]
        self.new_tokens = self.extra + (0 if workload.kind == "prefill" else workload["new_tokens"])
        engine.check_room(workload["batch"], depth, max(self.new_tokens, 2))  # `step` takes two
        self.ids_BT = engine.prompt(workload["batch"], depth)
        self.state = engine.runtime

    def iterate(self) -> Iteration:
        """The requests from their arrival, or (decode) from their first token on; token times where they stream."""
        times: list[int] = []
        run = Requests(self.engine, self.ids_BT, self.new_tokens)
        kind = self.workload.kind

        def rest() -> None:
            with nvtx_range("decode"):
                while run.unfinished():
                    run.step()
                    times.append(time.perf_counter_ns())

        def body() -> None:
            with nvtx_range("prefill"):
                run.add()
                while not run.started():
                    run.step()
            times.append(time.perf_counter_ns())
            rest()

        if kind == "decode":
            run.add()
            while not run.started():
                run.step()
            whole = self.timed(rest)
        else:
            whole = self.timed(body)
        self.outputs = run.tokens()[:, self.extra if kind == "decode" else 0 :]
        return Iteration(whole.start_ns, whole.end_ns, tuple(times) if kind == "generate" else ())

    def step(self) -> None:
        """A prompt and one step after it."""
        run = Requests(self.engine, self.ids_BT, 2)
        run.add()
        while run.unfinished():
            run.step()


class Requests:
    """A batch of greedy requests of fixed length in the engine."""

    def __init__(self, engine: VllmEngine, ids_BT: torch.Tensor, new_tokens: int) -> None:
        self.runtime = engine.runtime
        self.names = [f"{next(engine.names)}" for _ in range(ids_BT.shape[0])]
        self.prompts = [{"prompt_token_ids": ids} for ids in ids_BT.tolist()]
        self.params = greedy_params(new_tokens)
        self.chosen: dict[str, list[int]] = {name: [] for name in self.names}

    def add(self) -> None:
        """Hand the requests to the engine."""
        for name, prompt in zip(self.names, self.prompts, strict=True):
            self.runtime.add_request(name, prompt, self.params)

    def step(self) -> None:
        """One step of the engine."""
        for output in self.runtime.step():
            self.chosen[output.request_id] += output.outputs[0].token_ids

    def started(self) -> bool:
        """Whether every request has its first token."""
        return all(self.chosen.values())

    def unfinished(self) -> bool:
        """Whether there is more to do."""
        return bool(self.runtime.has_unfinished_requests())

    def tokens(self) -> torch.Tensor:
        """The chosen tokens, [B, T]."""
        return torch.tensor([self.chosen[name] for name in self.names])


def greedy_params(new_tokens: int, **more: Any) -> SamplingParams:
    """Greedy sampling of exactly so many tokens, which nobody turns into text; each step's outputs are the new ones."""
    chosen: dict[str, Any] = {"output_kind": RequestOutputKind.DELTA, **more}
    return SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True, detokenize=False, **chosen)


class VllmPerplexity(PerplexitySession):
    """Held-out text: a prompt scored in one go and then forced steps, all through vLLM's own cache."""

    engine: VllmEngine

    def _logits(self, engine: TorchEngine) -> Iterator[torch.Tensor]:
        if not isinstance(engine, VllmEngine):
            yield from super()._logits(engine)
            return
        logits_BTV = engine.scored(self.ids[:, :-1], self.cut).double()
        yield logits_BTV[:, : self.cut]
        for place in range(self.cut, logits_BTV.shape[1]):
            yield logits_BTV[:, place : place + 1]

    def step(self) -> None:
        """One prefill and one step."""
        self.engine.scored(self.ids[:1, : self.cut + 1], self.cut)

    def sample(self) -> dict[str, str]:
        """The end of the first sequence's prompt and what vLLM, choosing greedily, writes after it."""
        prompt_1T, source = self.ids[:1, : self.cut], self.engine.source
        run = Requests(self.engine, prompt_1T, SAMPLE_TOKENS)
        run.add()
        while run.unfinished():
            run.step()
        return {
            "sample_prompt": decoded(source, prompt_1T[0, -SAMPLE_TOKENS:].tolist()),
            "sample_text": decoded(source, run.tokens()[0].tolist()),
        }


class VllmEngine(ExportedEngine):
    """A Transformers folder of one source, loaded in vLLM in the variant's number format."""

    build: Build

    def __init__(self, source: ModelSource, variant: Variant, device: str, seed: int) -> None:
        weights = self.begin("vllm", Build(), source, variant, device, seed)
        try:
            self.folder = exported_folder(self.config, weights)
        except ValueError as error:
            raise Unsupported(str(error)) from error
        del weights
        self.names = itertools.count()
        started = time.perf_counter()
        self.runtime = self._load()
        self.load_seconds = time.perf_counter() - started
        self.verified = verified(self.folder, f"vllm {vllm.__version__} {self.build.dtype}", self._verify)
        reset_peak_rss()  # exporting and verifying are the laboratory's needs, not the engine's

    def _load(self) -> Any:
        """The folder in an engine of this process, with vLLM's defaults except what a fixed workload must not have."""
        arguments = EngineArgs(
            model=str(self.folder),
            skip_tokenizer_init=True,
            dtype=self.build.dtype,
            max_model_len=min(self.config.max_position_embeddings, POOL_TOKENS),
            kv_cache_memory_bytes=self._pool_bytes(),
            enable_prefix_caching=False,  # a repeated prompt would cost nothing
            max_logprobs=-1,
            logprobs_mode="raw_logits",
            logits_processors=[ForcedTokens],
            disable_log_stats=True,
        )
        config = arguments.create_engine_config()
        # NOTE: unless an environment variable says otherwise vLLM puts the model of a CPU into a process of its own,
        # bound to cores of its choice. The harness sets threads and measures memory in this one.
        config.parallel_config.distributed_executor_backend = "uni"
        set_num_threads = torch.set_num_threads
        try:
            _LOADED.append(LLMEngine(config, Executor.get_class(config), log_stats=False, multiprocess_mode=False))
            return _LOADED[-1]
        finally:
            torch.set_num_threads = set_num_threads  # NOTE: vLLM replaces it by a function that does nothing
            torch.set_num_threads(self.threads)

    def _pool_bytes(self) -> int:
        size = getattr(torch, self.build.dtype).itemsize
        return int((POOL_TOKENS + SPARE_TOKENS) * costs.kv_bytes_per_token(self.config, size))

    @torch.inference_mode()
    def _verify(self) -> dict[str, float]:
        """Compare a prompt and cached steps with the reference; raises CaseFailed (wrong)."""
        reference = self.reference()
        ids_BT = self.prompt(1, min(CHECKED_TOKENS, self.config.max_position_embeddings))
        own = self.scored(ids_BT, ids_BT.shape[1] - 4)
        found = distance(own, reference.forward(ids_BT, reference.new_state(1, ids_BT.shape[1]))[:, : own.shape[1]])
        difference, kl = found["max_difference"], found["kl"]
        good = difference <= TOLERANCE if self.build.dtype == "float32" else kl <= MAX_KL
        if not good:  # also where it is not a number
            raise CaseFailed(
                f"vLLM's model ({self.build.dtype}) is not the model: logits differ by {difference:.3g}, "
                f"KL {kl:.3g} nats",
                status="wrong",
            )
        return found

    def session(self, workload: Workload) -> TorchSession:
        """Requests of fixed length, and quality; without training."""
        if workload.kind == "train_step":
            raise Unsupported("backend vllm cannot train")
        if workload.kind == "perplexity":
            self.check_room(1, workload["length"], SAMPLE_TOKENS)  # row by row
            return VllmPerplexity(self, workload)
        if workload.kind not in ("prefill", "decode", "generate"):
            raise Unsupported(f"this backend has no workload {workload.kind}")
        return VllmSession(self, workload)

    def check_room(self, batch: int, depth: int, new_tokens: int) -> None:
        """Raises Unsupported where the prompts do not go into one step, or the sequences not into the cache."""
        budget = self.runtime.vllm_config.scheduler_config.max_num_batched_tokens
        if batch * depth > budget:
            raise Unsupported(f"vLLM takes {budget} tokens in a step, not {batch} prompts of {depth}")
        block = self.runtime.vllm_config.cache_config.block_size
        length = -(-(depth + new_tokens) // block) * block
        if depth + new_tokens > self.runtime.model_config.max_model_len or batch * length > POOL_TOKENS:
            raise Unsupported(f"{batch} sequences of {depth + new_tokens} tokens exceed vLLM's cache as built here")

    def scored(self, ids_BT: torch.Tensor, cut: int) -> torch.Tensor:
        """Logits [B, T, V] of every position: of the first `cut` as a prompt, of the others in forced steps."""
        return torch.stack([self._scored_row(ids, cut) for ids in ids_BT.tolist()])

    def _scored_row(self, ids: list[int], cut: int) -> torch.Tensor:
        steps = len(ids) - cut
        forced = [*ids[cut:], 0]
        params = greedy_params(
            steps + 1,
            output_kind=RequestOutputKind.FINAL_ONLY,
            prompt_logprobs=-1,
            logprobs=-1,
            flat_logprobs=True,
            extra_args={"forced": forced},
        )
        self.runtime.add_request(f"{next(self.names)}", {"prompt_token_ids": ids[:cut]}, params)
        outputs: list[Any] = []
        while self.runtime.has_unfinished_requests():
            outputs += self.runtime.step()
        (output,) = outputs
        if list(output.outputs[0].token_ids) != forced:
            raise CaseFailed("vLLM did not follow the forced tokens")
        rows = [self._dense(output.prompt_logprobs, 1, cut), self._dense(output.outputs[0].logprobs, 0, steps + 1)]
        return torch.cat(rows)

    def _dense(self, flat: Any, first: int, last: int) -> torch.Tensor:
        """Rows `first` to `last` - 1 of vLLM's flat lists of (token, logit), [rows, V]."""
        if first == last:
            return torch.empty(0, self.config.vocab_size)
        begin, end = flat.start_indices[first], flat.end_indices[last - 1]
        shape = (last - first, -1)  # every row has the whole vocabulary and, once more, the row's own token
        tokens = torch.tensor(flat.token_ids[begin:end]).view(shape)
        logits = torch.tensor(flat.logprobs[begin:end]).view(shape)
        dense = torch.full((last - first, self.config.vocab_size), float("nan"))
        return dense.scatter_(1, tokens, logits)

    def new_state(self, batch: int, max_length: int) -> Any:
        raise Unsupported("backend vllm keeps its cache to itself")

    def rewind(self, state: Any, length: int) -> None:
        raise Unsupported("backend vllm keeps its cache to itself")

    def forward(self, ids_BT: torch.Tensor, state: Any) -> torch.Tensor:
        raise Unsupported("backend vllm takes requests, not single forwards")

    def kv_bytes(self, state: Any) -> int:
        return self._pool_bytes()

    def work(self, workload: Workload) -> Work:
        size = getattr(torch, self.build.dtype).itemsize
        return work_of(self.config, workload, size, size, 1)

    def disk_bytes(self) -> int:
        return (self.folder / "model.safetensors").stat().st_size

    def train_loss(self, ids_BT: torch.Tensor) -> torch.Tensor:
        raise Unsupported("backend vllm cannot train")

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        raise Unsupported("backend vllm has its own parameters")

    def reference(self) -> TorchEngine:
        engine = MiniMindEngine(self.source, REFERENCE, "cpu", self.seed)
        torch.set_num_threads(self.threads)
        return engine

    def facts(self) -> dict[str, Any]:
        config = self.runtime.vllm_config
        (seen,) = self.runtime.apply_model(observed)
        return {
            **seen,
            "num_params": costs.num_parameters(self.config),  # vLLM's own are partly packed for oneDNN and gone
            "autocast": None,
            "compute_dtype": COMPUTE_DTYPES[seen["weight_dtype"]],
            "threads": torch.get_num_threads(),
            "threads_asked": self.build.threads,
            "trained": self.source.weights is not None or embedded_checkpoint(self.source.name) is not None,
            "cache": "paged",
            "block_size": config.cache_config.block_size,
            "step_budget": config.scheduler_config.max_num_batched_tokens,
            "compilation": config.compilation_config.mode.name,
            "compiler": config.compilation_config.backend,
            "logits_to_keep": 1,
            "library": f"vllm {vllm.__version__}",
            "verified": self.verified,
        }


def observed(model: torch.nn.Module) -> dict[str, Any]:
    """What vLLM's model is made of: class, dtypes of its parameters, compiled parts, attention and its cache."""
    dtypes = Counter(str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters())
    attention = [module for module in model.modules() if hasattr(module, "impl") and hasattr(module, "kv_cache")]
    caches = [module.kv_cache for module in attention]
    compiled = [
        getattr(module, "compiled", False) or getattr(module, "aot_compiled_fn", None) for module in model.modules()
    ]
    return {
        "model_class": type(model).__name__,
        "weight_dtype": dtypes.most_common(1)[0][0],
        "compiled_graphs": sum(map(bool, compiled)),
        "attention": sorted({type(module.impl).__name__ for module in attention}),
        "cache_dtypes": sorted({str(cache.dtype).removeprefix("torch.") for cache in caches}),
    }


def exported_folder(config: MiniMindConfig, weights: Weights) -> Path:
    """The model as Transformers reads it, in fp32, written where it was not before. Raises ValueError."""
    exporter = Path(transformers_format.__file__).read_text(encoding="utf-8")

    def make(path: Path) -> None:
        transformers_format.export_transformers(path, config, weights)

    return exported("transformers", digest(config, weights, exporter), make)


def load(source: ModelSource, variant: Variant, device: str, seed: int) -> VllmEngine:
    """Export `source` where needed, load it with the options of `variant` and verify it."""
    return VllmEngine(source, variant, device, seed)
