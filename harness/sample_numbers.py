"""What made-up machines would measure: a small model of costs, of noise and of a history with two changes. Torch-free.

    machine = MACHINES[0]
    typical(case, machine)["seconds"]                # one iteration, without noise
    seconds = draw(case, machine, share=0.7, shared=shared, rng=rng)      # blocks x iterations, the first a warm-up

Numbers have the size and the spread of real ones, so that pages and tables can be judged by eye, and nothing else: no
claim may rest on them. Every option has an effect, known ones a plausible one and others one drawn from their name.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from harness.core import Case
from harness.registry import OPTIONS, find_option
from harness.stats import Values

WARMUP, TIMED, NUM_TURNS = 1, 8, 2  # iterations of a block; the timed ones in so many turns


@dataclass(frozen=True, slots=True)
class Machine:
    """A made-up machine. Rates in SI units; noise as relative standard deviations of blocks and of iterations.

    `hiccups`: the share of iterations that a neighbour makes half as long again.
    """

    machine_id: str
    device: str
    device_name: str
    cpu_model: str
    cores: int
    ram_bytes: int
    flops: float
    bandwidth: float
    step_seconds: float
    block_noise: float
    noise: float
    hiccups: float
    capabilities: frozenset[str]


_CPU = frozenset(
    {"cpu", "bf16", "cxx", "compile", "pkg:torch", "pkg:transformers", "pkg:onnxruntime", "pkg:onnx", "pkg:onnxscript"}
    | {"pkg:bitsandbytes"}
)
_CUDA = frozenset(
    {"cuda", "bf16", "bf16_fast", "triton", "cxx", "compile", "nvtx", "sm80", "pkg:torch", "pkg:triton"}
    | {"pkg:transformers", "pkg:bitsandbytes", "pkg:torchao"}
)
MACHINES = (
    Machine(
        machine_id="synthetic-laptop",
        device="cpu",
        device_name="synthetic CPU, 8 cores",
        cpu_model="synthetic CPU, 8 cores",
        cores=8,
        ram_bytes=16 << 30,
        flops=2.4e11,
        bandwidth=4.0e10,
        step_seconds=1.1e-3,
        block_noise=0.020,
        noise=0.030,
        hiccups=0.06,
        capabilities=_CPU,
    ),
    Machine(
        machine_id="synthetic-workstation",
        device="cuda",
        device_name="synthetic GPU, 24 GB",
        cpu_model="synthetic CPU, 16 cores",
        cores=16,
        ram_bytes=64 << 30,
        flops=6.0e13,
        bandwidth=7.5e11,
        step_seconds=2.6e-4,
        block_noise=0.004,
        noise=0.008,
        hiccups=0.0,
        capabilities=_CUDA,
    ),
    Machine(
        machine_id="synthetic-server",
        device="cpu",
        device_name="synthetic CPU, 32 cores",
        cpu_model="synthetic CPU, 32 cores",
        cores=32,
        ram_bytes=256 << 30,
        flops=1.6e12,
        bandwidth=1.8e11,
        step_seconds=7.0e-4,
        block_noise=0.008,
        noise=0.012,
        hiccups=0.01,
        capabilities=_CPU,
    ),
)


@dataclass(frozen=True, slots=True)
class Shape:
    """What costs depend on in a model."""

    num_params: int
    layers: int
    kv_heads: int
    heads: int
    head_dim: int

    @property
    def cache_bytes(self) -> int:
        """Of one position of one sequence, in fp32."""
        return 2 * self.layers * self.kv_heads * self.head_dim * 4


SHAPES: Mapping[str, Shape] = {
    "tiny": Shape(1_342_000, 4, 2, 4, 32),
    "minimind2-small": Shape(25_829_888, 8, 2, 8, 64),
    "minimind-3": Shape(63_912_192, 8, 4, 8, 96),
}
_OTHER_SHAPE = Shape(104_030_976, 16, 2, 8, 96)

# Factors on (overhead of a step, bytes of the weights, bytes of the cache that are moved, arithmetic).
_EFFECTS: Mapping[str, tuple[float, float, float, float]] = {
    "kv=prealloc": (0.97, 1.0, 0.35, 1.0),
    "kv=int8": (1.25, 1.0, 0.2, 1.0),
    "kv=paged": (1.15, 1.0, 0.4, 1.0),
    "norm=fused": (0.94, 1.0, 1.0, 0.99),
    "norm=triton": (0.90, 1.0, 1.0, 0.98),
    "norm=cpp": (0.88, 1.0, 1.0, 0.98),
    "sdpa=fused": (0.93, 1.0, 0.8, 0.9),
    "step=cpp": (0.25, 1.0, 0.6, 1.0),
    "compile=default": (0.6, 1.0, 0.9, 0.95),
    "precision=bf16": (1.05, 0.5, 0.5, 0.55),
    "precision=fp16": (1.05, 0.5, 0.5, 0.6),
    "quant=int8": (1.0, 0.28, 1.0, 0.8),
    "quant=int4": (1.05, 0.16, 1.0, 0.9),
    "attn=mha": (1.0, 1.1, 4.0, 1.1),
    "attn=mqa": (1.0, 0.95, 0.5, 0.98),
    "backend=llama_cpp": (0.2, 0.9, 0.5, 0.9),
    "backend=onnxruntime": (0.4, 1.0, 0.7, 0.9),
    "backend=transformers": (1.4, 1.0, 1.1, 1.05),
    "logits=last": (1.0, 1.0, 1.0, 0.85),
}
_LOSSES: Mapping[str, float] = {"quant=int8": 2e-4, "quant=int4": 2.1e-2, "precision=bf16": 6e-5, "kv=int8": 9e-4}


def chance(text: str) -> float:
    """A number from 0 to 1 that depends on the text alone."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 0xFFFFFFFF


def _effect(axis: str, option: str) -> tuple[float, float, float, float]:
    name = f"{axis}={option}"
    factor = 0.9 + 0.25 * chance(name)
    return _EFFECTS.get(name, (factor, 0.3 if axis == "quant" else 1.0, 1.0, factor))


def typical(case: Case, machine: Machine) -> dict[str, float]:
    """What a case comes to on a machine without noise: seconds, tokens, flops, bytes, and its memory in bytes."""
    shape = SHAPES.get(case.model, _OTHER_SHAPE)
    overhead, weights, cache, arithmetic = 1.0, 1.0, 1.0, 1.0
    for axis, option in case.variant.choices:
        factors = _effect(axis, option)
        overhead, weights = overhead * factors[0], weights * factors[1]
        cache, arithmetic = cache * factors[2], arithmetic * factors[3]
    given = dict(case.workload.params)
    batch, kind = given.get("batch", 1), case.workload.kind
    if kind == "rms_norm":
        size = float(given["rows"] * given["calls"] * 512 * 8)
        seconds = given["calls"] * 6e-6 * overhead + size / machine.bandwidth * overhead
        return {"seconds": seconds, "tokens": 0.0, "flops": size, "bytes": size, "peak": 2e8 + size, "cache": 0.0}
    new = given.get("new_tokens", 0)
    before = given.get("context", given.get("prompt", given.get("length", 128)))
    positions = batch * (before + new)
    held = positions * shape.cache_bytes * (0.3 if case.variant.option("kv") == "int8" else 1.0)
    weight_bytes = 4.0 * shape.num_params * weights
    passes = max(new, 1)
    tokens = batch * (new if new else before)
    at_once = batch * (1 if kind == "decode" else before)
    flops = 2.0 * shape.num_params * (at_once + batch * (new if kind == "generate" else max(new - 1, 0)))
    flops += 4.0 * shape.layers * shape.heads * shape.head_dim * batch * before * (before if kind != "decode" else new)
    flops *= 3.0 if kind == "train_step" else 1.0
    moved = passes * (weight_bytes + 3.0 * cache * batch * before * shape.cache_bytes)
    seconds = passes * machine.step_seconds * overhead + moved / machine.bandwidth + flops * arithmetic / machine.flops
    activations = 6.0 * at_once * shape.heads * shape.head_dim * 4 * (shape.layers if kind == "train_step" else 1)
    peak = weight_bytes * (4.0 if kind == "train_step" else 1.0) + held + activations
    return {"seconds": seconds, "tokens": float(tokens), "flops": flops, "bytes": moved, "peak": peak, "cache": held}


def history(case: Case, share: float) -> float:
    """The factor on a case's time at a share of the commits: prefill improves at 0.35, decode regresses at 0.65."""
    factor = 0.91 if case.workload.kind == "prefill" and share >= 0.35 else 1.0
    if case.workload.kind in ("decode", "generate") and case.variant.option("kv") is None and share >= 0.65:
        factor *= 1.07
    return factor


def draw(case: Case, machine: Machine, *, share: float, shared: Values, rng: np.random.Generator) -> Values:
    """Seconds of every iteration, [blocks, WARMUP + TIMED]: `shared` is what all arms of a block have in common."""
    blocks = len(shared)
    base = typical(case, machine)["seconds"] * history(case, share)
    own = rng.normal(0.0, machine.block_noise / 2, (blocks, 1))
    spread = rng.normal(0.0, machine.noise, (blocks, WARMUP + TIMED))
    slow = np.where(rng.random(spread.shape) < machine.hiccups, math.log(1.5), 0.0)
    found = base * np.exp(shared[:, None] + own + spread + slow)
    found[:, :WARMUP] *= 1.4
    return np.asarray(found)


def timed_metrics(case: Case, machine: Machine, seconds: Values) -> dict[str, tuple[str, Values]]:
    """metric -> (unit, values) of the timed metrics that these iterations come to."""
    given, known = dict(case.workload.params), typical(case, machine)
    kind, per_second = case.workload.kind, 1.0 / seconds
    found = {"step_time": ("s", seconds)}
    if kind in ("decode", "generate"):
        found["tps"] = ("tokens/s", known["tokens"] * per_second)
        found["tpot"] = ("s", seconds / given["new_tokens"])
    if kind == "generate":
        found["ttft"] = ("s", seconds / (given["new_tokens"] + 4))
    if kind == "decode":
        found["mbu"] = ("ratio", known["bytes"] / machine.bandwidth * per_second)
    if kind == "prefill":
        found["ttft"] = ("s", seconds)
        found["prefill_tps"] = ("tokens/s", known["tokens"] * per_second)
    if kind == "train_step":
        found["train_tps"] = ("tokens/s", known["tokens"] * per_second)
    if kind in ("prefill", "train_step"):
        found["mfu"] = ("ratio", known["flops"] / machine.flops * per_second)
    if kind == "rms_norm":
        found["bandwidth"] = ("bytes/s", known["bytes"] * per_second)
    return found


def solo_metrics(case: Case, machine: Machine, rng: np.random.Generator) -> dict[str, tuple[str, float]]:
    """metric -> (unit, value) of what a solo pass finds: memory, and quality where the workload is made for it."""
    known = typical(case, machine)
    if case.workload.kind == "perplexity":
        loss = sum(_loss(axis, option) for axis, option in case.variant.choices)
        return {
            "ppl": ("perplexity", 82.6 * math.exp(loss)),
            "kl": ("nats/token", loss),
            "top1_agreement": ("ratio", 1.0 - min(0.9, 1.6 * math.sqrt(loss) / 3)),
        }
    shape = SHAPES.get(case.model, _OTHER_SHAPE)
    weights = math.prod(_effect(axis, option)[1] for axis, option in case.variant.choices)
    peak = known["peak"] * (1.0 + 0.02 * rng.random())
    return {
        "peak_bytes": ("bytes", float(round(peak))),
        "reserved_bytes": ("bytes", float(math.ceil(peak / (2 << 20)) * (2 << 20))),
        "kv_bytes": ("bytes", float(round(known["cache"]))),
        "disk_bytes": ("bytes", float(round(4 * shape.num_params * weights))),
        "load_time": ("s", float(0.3 + 0.3 * rng.random())),
        "launches_per_step": ("count", float(12 * shape.layers)),
        "graph_breaks": ("count", 0.0),
    }


def _loss(axis: str, option: str) -> float:
    """Nats per token that an option costs."""
    if f"{axis}={option}" in _LOSSES:
        return _LOSSES[f"{axis}={option}"]
    declared = OPTIONS.get((axis, option)) or find_option(axis, option)
    if declared is None or declared.numerics.kind == "exact":
        return 0.0
    return 1e-6 if declared.numerics.kind == "close" else 1e-3 * (1 + 20 * chance(f"{axis}={option}"))
