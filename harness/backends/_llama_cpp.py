"""The llama.cpp engine: MiniMind's weights in a GGUF file, driven through llama-cpp-python's low-level calls.

engine = load(ModelSource("tiny"), Variant.parse("backend=llama_cpp quant=q8_0"), "cpu", seed=0)
engine.session(Workload.parse("decode(batch=1,context=128,new_tokens=32)")).iterate()

The file is written once per set of weights and number format, and its logits are compared with the reference before
anything is timed, again whenever the file or the library has changed. The cache has the dtype of the precision axis
(llama.cpp's own default would be fp16), and flash attention is left to llama.cpp except in fp32, where it would round
to fp16. Quantised variants keep their cache in fp32 and, inside llama.cpp, also quantise activations to 8 bits. Timed
work computes the logits of the last position only, which is all that llama.cpp's users ask for: compare its prefill
with `logits=last`. Refuses (Unsupported): timed batches, training, CUDA, configurations that GGUF's architectures do
not compute.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import torch
from llama_cpp._ggml import libggml

from harness.backends._exported import ExportedEngine, digest, distance, exported, verified
from harness.backends._sessions import TorchEngine, TorchSession, work_of
from harness.backends._torch import MiniMindEngine, Weights
from harness.core import REFERENCE, CaseFailed, ModelSource, Unsupported, Variant, Workload
from harness.registry import WORKLOADS, Work
from harness.telemetry import reset_peak_rss
from minimind import costs
from minimind.assets import embedded_checkpoint
from minimind.config import MiniMindConfig
from minimind.export import gguf as gguf_format

# What GGUF calls a dtype -> (ggml's number of it, bytes per value): the dtypes that the cache can have.
CACHE_TYPES = {"f32": (0, 4), "f16": (1, 2), "bf16": (30, 2)}
WEIGHT_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
COMPUTE_DTYPES = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "q8_0": "int8", "q4_0": "int8"}
# The file is wrong beyond these: logits of f32 (absolute), KL in nats per token of everything else.
TOLERANCE = 2e-4
MAX_KL = {"f16": 0.01, "bf16": 0.01, "q8_0": 0.02, "q4_0": 0.5}
CHECKED_TOKENS = 24
MAX_BATCH = 2048


@dataclass(slots=True)
class Build:
    """What the options that this engine honours may set.

    `file_type` is None where `precision` decides; `inference_only` says nothing new here: this engine never trains.
    """

    precision: str = "f32"
    file_type: str | None = None
    threads: int | None = None
    inference_only: str | None = None

    def cast(self, dtype: str) -> None:
        """The number format of matrices and cache."""
        self.precision = {"bfloat16": "bf16", "float16": "f16"}[dtype]


class _Context:
    """One llama.cpp context: the cache of one sequence, and what it logged while it was made."""

    def __init__(self, engine: LlamaCppEngine, max_length: int, on_tensor: Any = None) -> None:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = max_length
        params.n_batch = min(max_length, MAX_BATCH)
        params.n_threads = params.n_threads_batch = engine.threads
        params.type_k = params.type_v = CACHE_TYPES[engine.build.precision][0]
        # NOTE: with its flash attention llama.cpp rounds an fp32 cache to fp16 (logits off by 2e-3): fp32 goes without.
        auto, off = llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO, llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.flash_attn_type = off if engine.build.precision == "f32" else auto
        params.no_perf = True
        if on_tensor is not None:
            params.cb_eval = on_tensor
        with library_log() as self.log:
            self.pointer = llama_cpp.llama_init_from_model(engine.model, params)
        if not self.pointer:
            raise CaseFailed(f"llama.cpp made no context: {last_line(self.log)}")
        self.engine = engine  # keeps the model alive for as long as the context
        self.on_tensor = on_tensor
        self.length = 0
        weakref.finalize(self, llama_cpp.llama_free, self.pointer).atexit = False


@contextlib.contextmanager
def library_log() -> Iterator[list[str]]:
    """What llama.cpp logs meanwhile; afterwards it is silent. Its logger is one for the whole process."""
    pieces: list[str] = []
    listener = llama_cpp.llama_log_callback(lambda level, text, data: pieces.append(text.decode(errors="replace")))
    llama_cpp.llama_log_set(listener, None)
    try:
        yield pieces
    finally:
        llama_cpp.llama_log_set(_SILENCE, None)


_SILENCE = llama_cpp.llama_log_callback(lambda level, text, data: None)


def _pieces(ids_T: torch.Tensor, context: _Context) -> list[torch.Tensor]:
    """As many positions at a time as the context takes: more would abort the process."""
    limit = llama_cpp.llama_n_batch(context.pointer)
    return [ids_T[start : start + limit] for start in range(0, ids_T.shape[0], limit)]


def last_line(log: list[str]) -> str:
    """The last thing that the library said."""
    lines = "".join(log).strip().splitlines()
    return lines[-1] if lines else "it did not say why"


class LlamaCppEngine(ExportedEngine):
    """A GGUF of one source in one variant, loaded in llama.cpp."""

    build: Build

    def __init__(self, source: ModelSource, variant: Variant, device: str, seed: int) -> None:
        weights = self.begin("llama_cpp", Build(), source, variant, device, seed)
        self.file_type = self.build.file_type or self.build.precision
        self._report: dict[str, Any] | None = None
        llama_cpp.llama_backend_init()
        try:
            path = exported_file(self.config, weights, self.file_type)
        except ValueError as error:
            raise Unsupported(str(error)) from error
        del weights
        self.file_bytes = path.stat().st_size
        started = time.perf_counter()
        self._load(path)
        self.load_seconds = time.perf_counter() - started
        self.verified = verified(path, f"{library()} {system_info()}", self._verify)
        # Exporting and verifying are the laboratory's needs, not the engine's. The reference holds itself in a cycle.
        gc.collect()
        reset_peak_rss()

    def _load(self, path: Path) -> None:
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        # Read, not mapped: the file may be deleted afterwards, and memory is counted as any other engine's.
        params.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
        with library_log() as self.load_log:
            self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise CaseFailed(f"llama.cpp does not load the file: {last_line(self.load_log)}")
        weakref.finalize(self, llama_cpp.llama_model_free, self.model).atexit = False

    @torch.inference_mode()
    def _verify(self) -> dict[str, float]:
        """Compare with the reference on a short text, all positions; raises CaseFailed (wrong)."""
        ids_BT = self.prompt(1, min(CHECKED_TOKENS, self.config.max_position_embeddings))
        own = self.forward(ids_BT, self.new_state(1, ids_BT.shape[1]))
        reference = self.reference()
        found = distance(own, reference.forward(ids_BT, reference.new_state(1, ids_BT.shape[1])))
        difference, kl = found["max_difference"], found["kl"]
        good = difference <= TOLERANCE if self.file_type == "f32" else kl <= MAX_KL[self.file_type]
        if not good:  # also where it is not a number
            raise CaseFailed(
                f"the GGUF ({self.file_type}) is not the model: logits differ by {difference:.3g}, KL {kl:.3g} nats",
                status="wrong",
            )
        return found

    def session(self, workload: Workload) -> TorchSession:
        """As every engine of this family, without training, and timed for one sequence only."""
        if workload.kind == "train_step":
            raise Unsupported("backend llama_cpp cannot train")
        if workload["batch"] != 1 and WORKLOADS[workload.kind].timed:
            raise Unsupported(f"backend llama_cpp is timed with batch 1 only, not {workload['batch']}")
        return super().session(workload)

    def new_state(self, batch: int, max_length: int) -> list[_Context]:
        """A context per sequence: a batch, in untimed work, is one sequence after another."""
        return [_Context(self, max_length) for _ in range(batch)]

    def rewind(self, state: list[_Context], length: int) -> None:
        for context in state:
            if not llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(context.pointer), 0, length, -1):
                raise CaseFailed(f"llama.cpp cannot rewind its cache to {length}")
            context.length = min(context.length, length)

    def kv_bytes(self, state: list[_Context]) -> int:
        cells = sum(llama_cpp.llama_n_ctx(context.pointer) for context in state)
        return int(cells * costs.kv_bytes_per_token(self.config, CACHE_TYPES[self.build.precision][1]))

    def forward(self, ids_BT: torch.Tensor, state: list[_Context]) -> torch.Tensor:
        rows = [
            torch.cat([self._decode(piece, context, every=True) for piece in _pieces(ids_T, context)], dim=1)
            for ids_T, context in zip(ids_BT, state, strict=True)
        ]
        return torch.cat(rows)

    def next_logits(self, ids_BT: torch.Tensor, state: list[_Context]) -> torch.Tensor:
        rows = []
        for ids_T, context in zip(ids_BT, state, strict=True):
            *first, last = _pieces(ids_T, context)
            for piece in first:
                self._decode(piece, context, every=False)
            rows.append(self._decode(last, context, every=False))
        return torch.cat(rows) if len(rows) > 1 else rows[0]

    def _decode(self, ids_T: torch.Tensor, context: _Context, *, every: bool) -> torch.Tensor:
        """One llama_decode; logits [1, T or 1, V], copied out of the library's buffer."""
        num_new = ids_T.shape[0]
        tokens = ids_T.to(torch.int32).contiguous()
        pointer = ctypes.cast(tokens.data_ptr(), ctypes.POINTER(llama_cpp.llama_token))
        batch = llama_cpp.llama_batch_get_one(pointer, num_new)
        if every:
            wanted = (ctypes.c_int8 * num_new)(*[1] * num_new)
            batch.logits = ctypes.cast(wanted, ctypes.POINTER(ctypes.c_int8))
        if (code := llama_cpp.llama_decode(context.pointer, batch)) != 0:
            raise CaseFailed(f"llama_decode answered {code} for {num_new} tokens at position {context.length}")
        context.length += num_new
        num_rows = num_new if every else 1
        address = ctypes.cast(llama_cpp.llama_get_logits(context.pointer), ctypes.c_void_p).value
        if address is None:
            raise CaseFailed("llama.cpp gave no logits")
        buffer = (ctypes.c_float * (num_rows * self.config.vocab_size)).from_address(address)
        return torch.frombuffer(buffer, dtype=torch.float32).clone().view(1, num_rows, -1)

    def work(self, workload: Workload) -> Work:
        weight_bytes = llama_cpp.llama_model_size(self.model) / llama_cpp.llama_model_n_params(self.model)
        return work_of(self.config, workload, weight_bytes, CACHE_TYPES[self.build.precision][1], 1)

    def disk_bytes(self) -> int:
        return self.file_bytes

    def train_loss(self, ids_BT: torch.Tensor) -> torch.Tensor:
        raise Unsupported("backend llama_cpp cannot train")

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        raise Unsupported("backend llama_cpp has no torch parameters")

    def reference(self) -> TorchEngine:
        engine = MiniMindEngine(self.source, REFERENCE, "cpu", self.seed)
        torch.set_num_threads(self.threads)
        return engine

    def facts(self) -> dict[str, Any]:
        if self._report is None:
            self._report = self._observe()
        kinds = self._report["tensor_types"]
        matrices = max((kind for kind in kinds if kind != "f32"), key=lambda kind: kinds[kind], default="f32")
        return {
            "weight_dtype": WEIGHT_DTYPES.get(matrices, matrices),
            "autocast": None,
            "compute_dtype": COMPUTE_DTYPES[self.file_type],
            "num_params": llama_cpp.llama_model_n_params(self.model),
            "trained": self.source.weights is not None or embedded_checkpoint(self.source.name) is not None,
            "threads_asked": self.build.threads,
            "cache": "llama.cpp",
            "logits_to_keep": 1,
            "verified": self.verified,
            **self._report,
        }

    def _observe(self) -> dict[str, Any]:
        """What the library itself says: tensors and buffers of the file, and every operation of one decode step."""
        operations: dict[str, int] = {}
        describe = libggml.ggml_op_desc
        describe.argtypes, describe.restype = [ctypes.c_void_p], ctypes.c_char_p

        def see(tensor: int, ask: bool, data: object) -> bool:
            name = describe(tensor).decode()
            operations[name] = operations.get(name, 0) + 1
            return False  # asked for every node of the graph; none of their values is needed

        probe = _Context(self, 8, llama_cpp.ggml_backend_sched_eval_callback(see))
        self._decode(torch.tensor([1]), probe, every=False)
        load, context = "".join(self.load_log), "".join(probe.log)
        cache = re.search(r"K \((\w+)\).*V \((\w+)\)", context)
        return {
            "graph_operations": dict(sorted(operations.items())),
            "tensor_types": {kind: int(count) for kind, count in re.findall(r"type +(\w+): +(\d+) tensors", load)},
            "weight_buffers": re.findall(r"(\S+) model buffer size = +(\S+ \w+)", load),
            "cache_types": list(cache.groups()) if cache else [],
            "flash_attention": operations.get("FLASH_ATTN_EXT", 0) > 0,
            "file_type": llama_cpp.llama_ftype_name(llama_cpp.llama_model_ftype(self.model)).decode(),
            "threads": llama_cpp.llama_n_threads(probe.pointer),
            "library": library(),
            "system_info": system_info(),
        }


def library() -> str:
    """The package and its version."""
    return f"llama-cpp-python {llama_cpp.__version__}"


def system_info() -> str:
    """The instruction sets that llama.cpp was compiled for."""
    return str(llama_cpp.llama_print_system_info().decode().strip(" |"))


def exported_file(config: MiniMindConfig, weights: Weights, file_type: str) -> Path:
    """The model as GGUF in a number format, written where it was not before. Raises ValueError."""
    exporter = Path(gguf_format.__file__).read_text(encoding="utf-8")

    def make(path: Path) -> None:
        gguf_format.export_gguf(path, config, weights, dtype=file_type)

    return exported("gguf", f"{digest(config, weights, exporter)}-{file_type}.gguf", make)


def load(source: ModelSource, variant: Variant, device: str, seed: int) -> LlamaCppEngine:
    """Export `source` as GGUF in the variant's number format, load and verify it."""
    return LlamaCppEngine(source, variant, device, seed)
