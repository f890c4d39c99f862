"""The ONNX Runtime GenAI engine: a graph made by the package's own model builder, driven through its Generator.

engine = load(ModelSource("tiny"), Variant.parse("backend=onnxruntime_genai quant=genai-int4"), "cpu", seed=0)
engine.session(Workload.parse("decode(batch=1,context=128,new_tokens=32)")).iterate()

The model folder is made once per set of weights and precision, from a Transformers folder, in a process of its own. Its
logits are compared with the reference before anything is timed, again whenever folder or package has changed. Timed
decoding and generation use the package's own greedy search; no token ends them. The cache is one buffer of the final
length, written in place. Refuses (Unsupported): batches (the package cannot rewind them), training, CUDA, what
Transformers' Llama and Qwen3 do not compute.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir
import onnxruntime_genai as genai
import psutil
import torch

from harness.backends._exported import ExportedEngine, digest, distance, exported, run_child, verified
from harness.backends._sessions import DecodeSession, GenerateSession, TorchEngine, TorchSession, work_of
from harness.backends._torch import MiniMindEngine, Weights
from harness.core import REFERENCE, CaseFailed, Iteration, ModelSource, Unsupported, Variant, Workload
from harness.ranges import nvtx_range
from harness.registry import Work
from harness.telemetry import reset_peak_rss
from minimind import costs
from minimind.assets import embedded_checkpoint
from minimind.config import MiniMindConfig
from minimind.export.transformers import export_transformers
from minimind.tokenizer import load_tokenizer

COMPUTE_DTYPES = {"fp32": "fp32", "int8": "int8", "int4": "int8"}  # activations are quantised to int8 for both
WEIGHT_DTYPES = {"fp32": "float32", "int8": "int8", "int4": "int4"}
WEIGHT_BYTES = {"fp32": 4.0, "int8": 1 + 4 / 32, "int4": 0.5 + 4 / 32}  # groups of 32 share an fp32 scale
# The folder is wrong beyond these: logits of fp32 (absolute), KL in nats per token of everything else.
TOLERANCE = 1e-4
MAX_KL = {"int8": 0.05, "int4": 1.0}
CHECKED_TOKENS = 24


@dataclass(slots=True)
class Build:
    """What the options that this engine honours may set. `precision` is the model builder's word."""

    precision: str = "fp32"
    threads: int | None = None


class GenAIDecode(DecodeSession):
    """Decoding by the package's own loop: the step's logits never leave it, tokens are fetched after the clock."""

    def iterate(self) -> Iteration:
        """`new_tokens` steps from the same cache."""
        self.engine.rewind(self.state, self.context)
        first = self.first.int().numpy()

        def body() -> None:
            with nvtx_range("decode"):
                self.state.append_tokens(first)
                for _ in range(self.new_tokens):
                    self.state.generate_next_token()  # the first one finds its logits computed

        iteration = self.timed(body)
        self.outputs = torch.tensor(self.state.get_sequence(0)[self.context + 1 :]).long().unsqueeze(0)
        return iteration


class GenAIGenerate(GenerateSession):
    """A request by the package's own loop, every token fetched before the next step."""

    def iterate(self) -> Iteration:
        """One generation of fixed length; token times are those of their arrival."""
        self.engine.rewind(self.state, 0)
        ids = self.ids.int().numpy()
        times: list[int] = []
        tokens: list[int] = []

        def emit() -> None:
            self.state.generate_next_token()
            tokens.append(int(self.state.get_next_tokens()[0]))
            times.append(time.perf_counter_ns())

        def body() -> None:
            with nvtx_range("prefill"):
                self.state.append_tokens(ids)
                emit()
            with nvtx_range("decode"):
                for _ in range(self.workload["new_tokens"] - 1):
                    emit()

        whole = self.timed(body)
        self.outputs = torch.tensor([tokens])
        return Iteration(whole.start_ns, whole.end_ns, tuple(times))


class GenAIEngine(ExportedEngine):
    """A model folder of one source in one variant, loaded in ONNX Runtime GenAI. A state is its Generator."""

    build: Build

    def __init__(self, source: ModelSource, variant: Variant, device: str, seed: int) -> None:
        weights = self.begin("onnxruntime_genai", Build(), source, variant, device, seed)
        try:
            self.folder = model_folder(self.config, weights, self.build.precision)
        except ValueError as error:
            raise Unsupported(str(error)) from error
        del weights
        self.verified = verified(self.folder, f"onnxruntime-genai {genai.__version__}", self._verify)
        reset_peak_rss()  # exporting and verifying are the laboratory's needs, not the engine's
        before = psutil.Process().num_threads()
        started = time.perf_counter()
        self.model = self._load()
        self.load_seconds = time.perf_counter() - started
        # The package has no getter. A pool of N makes N - 1 threads: the caller is the other.
        self.pool_threads = psutil.Process().num_threads() - before + 1
        self._operations: dict[str, int] | None = None

    def _load(self, **session_options: Any) -> Any:
        """The folder in the runtime, with the asked-for threads and no token that ends a text."""
        decoder = {"session_options": {"intra_op_num_threads": self.threads, **session_options}}
        config = genai.Config(str(self.folder))
        config.overlay(json.dumps({"model": {"decoder": decoder}}))
        return genai.Model(config)

    @torch.inference_mode()
    def _verify(self) -> dict[str, float]:
        """Compare a prompt and a cached step with the reference; raises CaseFailed (wrong)."""
        self.model = self._load()
        reference = self.reference()
        ids_BT = self.prompt(1, min(CHECKED_TOKENS, self.config.max_position_embeddings))
        states = self.new_state(1, ids_BT.shape[1]), reference.new_state(1, ids_BT.shape[1])
        pieces = ids_BT[:, :-1], ids_BT[:, -1:]
        own = torch.cat(
            [self.forward(piece, states[0]).double() for piece in pieces], dim=1
        )  # copied: it is one buffer
        found = distance(own, torch.cat([reference.forward(piece, states[1]) for piece in pieces], dim=1))
        difference, kl = found["max_difference"], found["kl"]
        precision = self.build.precision
        good = difference <= TOLERANCE if precision == "fp32" else kl <= MAX_KL[precision]
        if not good:  # also where it is not a number
            raise CaseFailed(
                f"the GenAI model ({precision}) is not the model: logits differ by {difference:.3g}, KL {kl:.3g} nats",
                status="wrong",
            )
        del self.model
        return found

    def session(self, workload: Workload) -> TorchSession:
        """As every engine of this family, for one sequence and without training."""
        if workload.kind == "train_step":
            raise Unsupported("backend onnxruntime_genai cannot train")
        if workload["batch"] != 1:
            raise Unsupported(f"backend onnxruntime_genai is driven with batch 1 here, not {workload['batch']}")
        own: dict[str, type[TorchSession]] = {"decode": GenAIDecode, "generate": GenAIGenerate}
        return own[workload.kind](self, workload) if workload.kind in own else super().session(workload)

    def new_state(self, batch: int, max_length: int) -> Any:
        if batch != 1:
            raise Unsupported(f"backend onnxruntime_genai is driven with batch 1 here, not {batch}")
        params = genai.GeneratorParams(self.model)
        # One more for the last token, which its search appends, and one so that it never counts itself done.
        params.set_search_options(max_length=max_length + 2, batch_size=1, do_sample=False)
        return genai.Generator(self.model, params)

    def rewind(self, state: Any, length: int) -> None:
        if length < state.token_count():
            state.rewind_to(length)

    def kv_bytes(self, state: Any) -> int:
        return sum(
            int(state.get_output(f"present.{layer}.{part}").nbytes)
            for layer in range(self.config.num_hidden_layers)
            for part in ("key", "value")
        )

    def forward(self, ids_BT: torch.Tensor, state: Any) -> torch.Tensor:
        state.append_tokens(ids_BT.int().numpy())
        return torch.from_numpy(state.get_output("logits"))

    def next_logits(self, ids_BT: torch.Tensor, state: Any) -> torch.Tensor:
        state.append_tokens(ids_BT.int().numpy())
        return torch.from_numpy(state.get_logits())

    def work(self, workload: Workload) -> Work:
        return work_of(self.config, workload, WEIGHT_BYTES[self.build.precision], 4)

    def disk_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.glob("model.onnx*"))

    def train_loss(self, ids_BT: torch.Tensor) -> torch.Tensor:
        raise Unsupported("backend onnxruntime_genai cannot train")

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        raise Unsupported("backend onnxruntime_genai has no torch parameters")

    def reference(self) -> TorchEngine:
        engine = MiniMindEngine(self.source, REFERENCE, "cpu", self.seed)
        torch.set_num_threads(self.threads)
        return engine

    def facts(self) -> dict[str, Any]:
        if self._operations is None:
            self._operations = self._profile()
        graph = onnx_ir.load(self.folder / "model.onnx").graph
        precision = self.build.precision
        return {
            "weight_dtype": WEIGHT_DTYPES[precision],
            "weight_bits": sorted({node.attributes["bits"].value for node in graph if "bits" in node.attributes}),
            "autocast": None,
            "compute_dtype": COMPUTE_DTYPES[precision],
            "threads": self.pool_threads,
            "threads_asked": self.build.threads,
            "num_params": costs.num_parameters(self.config),
            "trained": self.source.weights is not None or embedded_checkpoint(self.source.name) is not None,
            "cache": "one buffer, in place",
            "library": f"onnxruntime-genai {genai.__version__}",
            "providers": [self.model.device_type],
            "opset": graph.opset_imports.get(""),
            "verified": self.verified,
            "graph_operations": self._operations,
        }

    def _profile(self) -> dict[str, int]:
        """Operators that one step really executed, by name, from the runtime's profile of a second model."""
        timed = self.model
        with tempfile.TemporaryDirectory(prefix="minimind-profile-") as folder:
            try:
                self.model = self._load(enable_profiling=f"{folder}/step")
                self.forward(torch.tensor([[1]]), self.new_state(1, 1))
            finally:
                self.model = timed  # the profile is written when its model goes
            events = json.loads(next(Path(folder).iterdir()).read_text(encoding="utf-8"))
        names = Counter(event["args"]["op_name"] for event in events if event["name"].endswith("_kernel_time"))
        return dict(sorted(names.items()))


def model_folder(config: MiniMindConfig, weights: Weights, precision: str) -> Path:
    """GenAI's folder of this model, built in another process where it was not made before. Raises ValueError."""

    def make(path: Path) -> None:
        hub = path.with_suffix(".transformers")
        export_transformers(hub, config, weights, tokenizer=load_tokenizer())
        run_child(
            *("-m", "onnxruntime_genai.models.builder", "-i", str(hub), "-o", str(path), "-p", precision),
            *("-e", "cpu", "-c", str(path.with_suffix(".cache")), "--extra_options", "hf_token=false"),
        )
        written = path / "genai_config.json"
        values = json.loads(written.read_text(encoding="utf-8"))
        values["model"]["eos_token_id"] = []  # workloads have a fixed number of tokens
        written.write_text(json.dumps(values, indent=1), encoding="utf-8")

    name = digest(config, weights, genai.__version__)
    return exported("genai", f"{name}-{precision}", make)


def load(source: ModelSource, variant: Variant, device: str, seed: int) -> GenAIEngine:
    """Build the model folder of `source` where needed, verify it and load it with the options of `variant`."""
    return GenAIEngine(source, variant, device, seed)
