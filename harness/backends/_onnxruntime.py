"""The ONNX Runtime engine: MiniMind exported by `minimind.export.onnx`, in fp32 or with dynamically quantised int8.

engine = load(ModelSource("tiny"), Variant.parse("backend=onnxruntime quant=ort-int8"), "cpu", seed=0)
engine.session(Workload.parse("decode(batch=1,context=128,new_tokens=32)")).iterate()

The file is made once per set of weights, in a process of its own. It is compared with the reference, a prompt and a
cached step at two batch sizes, before anything is timed, again whenever file or package has changed. The cache are the
runtime's own arrays, handed back as inputs without a copy; the graph writes them anew in every step. Refuses
(Unsupported): training, CUDA, mixtures of experts.

    python -m harness.backends._onnxruntime WEIGHTS.safetensors OUT.onnx     # what that process runs
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnxruntime import InferenceSession, OrtValue, SessionOptions

from harness.backends._exported import ExportedEngine, digest, exported, run_child, verified
from harness.backends._sessions import TorchEngine, TorchSession, work_of
from harness.backends._torch import MiniMindEngine, Weights
from harness.core import REFERENCE, CaseFailed, ModelSource, Unsupported, Variant, Workload
from harness.registry import Work
from harness.telemetry import reset_peak_rss
from minimind import costs
from minimind.assets import embedded_checkpoint
from minimind.checkpoint import load_weights, save_weights
from minimind.config import MiniMindConfig
from minimind.export import onnx as onnx_format
from minimind.model import MiniMindForCausalLM

PROVIDER = "CPUExecutionProvider"
TOLERANCE = 1e-4
CHECKED_TOKENS = 24


@dataclass(slots=True)
class Build:
    """What the options that this engine honours may set."""

    int8: bool = False
    threads: int | None = None


@dataclass(slots=True)
class Past:
    """The cache: all keys, then all values, [B, K, length, D] each."""

    values: list[OrtValue]
    length: int


class OnnxRuntimeEngine(ExportedEngine):
    """An ONNX file of one source in one variant, loaded in ONNX Runtime."""

    build: Build

    def __init__(self, source: ModelSource, variant: Variant, device: str, seed: int) -> None:
        weights = self.begin("onnxruntime", Build(), source, variant, device, seed)
        if self.config.use_moe:
            raise Unsupported("a mixture of experts is not exported to ONNX: its shapes depend on the data")
        path = exported_file(self.config, weights)
        self.inputs = ["input_ids", *onnx_format.past_names(self.config)]
        self.outputs = ["logits", *(name.replace("past", "present") for name in self.inputs[1:])]
        self.verified = verified(path, f"onnxruntime {onnxruntime.__version__}", lambda: self._verify(path))
        if self.build.int8:
            path = quantized_file(path)
        del weights
        self.path, self.file_bytes = path, path.stat().st_size
        reset_peak_rss()  # exporting and verifying are the laboratory's needs, not the engine's
        started = time.perf_counter()
        self.session_of(path)
        self.load_seconds = time.perf_counter() - started
        self._operations: dict[str, int] | None = None

    def session_options(self) -> SessionOptions:
        """Threads as asked for, everything else as the runtime has it: all graph optimisations, spinning threads."""
        options = SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        return options

    def session_of(self, path: Path) -> None:
        """Load a file into the runtime."""
        self.runtime = InferenceSession(str(path), self.session_options(), providers=[PROVIDER])

    @torch.inference_mode()
    def _verify(self, path: Path) -> dict[str, float]:
        """Compare with the reference at batch 1 and 2, a prompt and a cached step; raises CaseFailed (wrong)."""
        self.session_of(path)
        reference = self.reference()
        worst = 0.0
        for batch in (1, 2):
            length = min(CHECKED_TOKENS, self.config.max_position_embeddings)
            ids_BT = self.prompt(batch, length)
            own, other = self.new_state(batch, length), reference.new_state(batch, length)
            for piece in (ids_BT[:, :-1], ids_BT[:, -1:]):
                difference = (self.forward(piece, own) - reference.forward(piece, other)).abs().max()
                worst = max(worst, float(difference)) if torch.isfinite(difference) else float("inf")
        if worst > TOLERANCE:
            raise CaseFailed(f"the ONNX file is not the model: its logits differ by {worst:.3g}", status="wrong")
        del self.runtime
        return {"max_difference": worst}

    def session(self, workload: Workload) -> TorchSession:
        """As every engine of this family, without training."""
        if workload.kind == "train_step":
            raise Unsupported("backend onnxruntime cannot train")
        return super().session(workload)

    def new_state(self, batch: int, max_length: int) -> Past:
        return Past(self._empty(batch), 0)

    def _empty(self, batch: int) -> list[OrtValue]:
        shape = (batch, self.config.num_key_value_heads, 0, self.config.head_dim)
        return [OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32)) for _ in self.inputs[1:]]

    def rewind(self, state: Past, length: int) -> None:
        if length == 0:
            state.values = self._empty(state.values[0].shape()[0])
        elif length < state.length:
            kept = (np.ascontiguousarray(value.numpy()[:, :, :length]) for value in state.values)
            state.values = [OrtValue.ortvalue_from_numpy(array) for array in kept]
        state.length = min(state.length, length)

    def kv_bytes(self, state: Past) -> int:
        return sum(value.tensor_size_in_bytes() for value in state.values)

    def forward(self, ids_BT: torch.Tensor, state: Past) -> torch.Tensor:
        ids = OrtValue.ortvalue_from_numpy(ids_BT.contiguous().numpy())
        logits, *state.values = self.runtime.run_with_ort_values(
            self.outputs, dict(zip(self.inputs, (ids, *state.values), strict=True))
        )
        state.length += ids_BT.shape[1]
        return torch.from_numpy(logits.numpy())  # the runtime's memory, not a copy

    def work(self, workload: Workload) -> Work:
        return work_of(self.config, workload, 1 if self.build.int8 else 4, 4)

    def disk_bytes(self) -> int:
        return self.file_bytes

    def train_loss(self, ids_BT: torch.Tensor) -> torch.Tensor:
        raise Unsupported("backend onnxruntime cannot train")

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        raise Unsupported("backend onnxruntime has no torch parameters")

    def reference(self) -> TorchEngine:
        engine = MiniMindEngine(self.source, REFERENCE, "cpu", self.seed)
        torch.set_num_threads(self.threads)
        return engine

    def facts(self) -> dict[str, Any]:
        if self._operations is None:
            self._operations = self._profile()
        options = self.runtime.get_session_options()
        return {
            "weight_dtype": "int8" if self.build.int8 else "float32",
            "autocast": None,
            "compute_dtype": "int8" if self.build.int8 else "fp32",
            "threads": options.intra_op_num_threads,
            "threads_asked": self.build.threads,
            "num_params": costs.num_parameters(self.config),
            "trained": self.source.weights is not None or embedded_checkpoint(self.source.name) is not None,
            "cache": "arrays in and out",
            "library": f"onnxruntime {onnxruntime.__version__}",
            "providers": self.runtime.get_providers(),
            "graph_optimization": options.graph_optimization_level.name,
            "execution_mode": options.execution_mode.name,
            "opset": onnx_format.OPSET,
            "verified": self.verified,
            "graph_operations": self._operations,
        }

    def _profile(self) -> dict[str, int]:
        """Operators that one step really executed, by name, from the runtime's own profile of a second session."""
        timed = self.runtime
        with tempfile.TemporaryDirectory(prefix="minimind-profile-") as folder:
            options = self.session_options()
            options.enable_profiling, options.profile_file_prefix = True, f"{folder}/step"
            profiled = InferenceSession(str(self.path), options, providers=[PROVIDER])
            try:
                self.runtime = profiled
                self.forward(torch.tensor([[1]]), self.new_state(1, 1))
            finally:
                self.runtime = timed
            events = json.loads(Path(profiled.end_profiling()).read_text(encoding="utf-8"))
        names = Counter(
            event["args"]["op_name"]
            for event in events
            if event["name"].endswith("_kernel_time") and event["args"].get("provider") == PROVIDER
        )
        return dict(sorted(names.items()))


def exported_file(config: MiniMindConfig, weights: Weights) -> Path:
    """The model as ONNX in fp32, traced in another process where it was not made before."""
    exporter = Path(onnx_format.__file__).read_text(encoding="utf-8")

    def make(path: Path) -> None:
        stored = path.with_suffix(".safetensors")
        save_weights(stored, config, weights)
        run_child("-m", "harness.backends._onnxruntime", str(stored), str(path))

    return exported("onnx", f"{digest(config, weights, exporter)}.onnx", make)


def quantized_file(path: Path) -> Path:
    """The same in int8, quantised in another process: weights per output channel, activations as they come."""

    def make(target: Path) -> None:
        run_child("-m", "harness.backends._onnxruntime", str(path), str(target))

    return exported("onnx", f"{path.stem}-int8-{onnxruntime.__version__}.onnx", make)


def main(source: str, target: str) -> None:
    """In a process of its own: export a safetensors file, or quantise an ONNX file."""
    if source.endswith(".onnx"):
        from onnxruntime.quantization import QuantType, quantize_dynamic

        folded = f"{target}.folded.onnx"  # the head is the transposed embedding: only a constant can be quantised
        options = SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = folded
        InferenceSession(source, options, providers=[PROVIDER])
        quantize_dynamic(
            folded, target, op_types_to_quantize=["MatMul", "Gather"], per_channel=True, weight_type=QuantType.QInt8
        )
        return
    config, weights = load_weights(source)
    model = MiniMindForCausalLM(config).eval()
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    onnx_format.export_onnx(model, target)


def load(source: ModelSource, variant: Variant, device: str, seed: int) -> OnnxRuntimeEngine:
    """Export `source` where needed, verify the file and load it with the options of `variant`."""
    return OnnxRuntimeEngine(source, variant, device, seed)


if __name__ == "__main__":
    main(*sys.argv[1:])
