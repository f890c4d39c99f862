"""What connects the C++ kernels of `kernels/cpu` and `kernels.quantized_linear` to a build. Imports torch.

native_step(build)              # one-token forwards through kernels.decode_step
native_quantize(build, "int8")  # linear layers, head and embedding in our own int8 format
native_attention(build)         # one-token attention in C++
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from harness.backends._torch import Build, Forward
from harness.core import HarnessError, Unsupported
from harness.options._quantize import SimulatedLinear, replace_linears
from kernels.cpu import ops
from kernels.decode_step import DecodeStep
from kernels.quantized_linear import (
    Int4Embedding,
    Int4Linear,
    Int8Embedding,
    Int8Linear,
    quantize_int4,
    quantize_int8,
)
from minimind.attention import AttentionStrategy, FusedVisibility, attend_fused, prepare_fused
from minimind.model import MiniMindForCausalLM


def native_step(build: Build) -> None:
    """Runtime stage: forwards of one token per row run in C++, all others in what was there before."""
    if build.config.use_moe:
        raise Unsupported("step=cpp knows no mixture of experts")
    counts = {"one_token_forwards": 0}
    steps: list[DecodeStep] = []

    def wrap(inner: Forward, model: MiniMindForCausalLM) -> Forward:
        try:
            step = DecodeStep(model, plain=(SimulatedLinear,))
        except ValueError as error:
            raise Unsupported(str(error)) from error
        steps.append(step)

        def forward(ids_BT: Tensor, cache: Any, logits_to_keep: int) -> Tensor:
            if ids_BT.shape[1] != 1:
                return inner(ids_BT, cache, logits_to_keep)
            counts["one_token_forwards"] += 1
            return step(ids_BT, cache)

        return forward

    build.wrap_forward(wrap)
    build.inference_only = "step=cpp decodes and has no gradients: leave axis step at torch for this workload"
    build.without_decode = "step=cpp changes decode steps only: leave axis step at torch for this workload"
    build.observe(lambda: {**counts, "native_steps": sum(step.num_steps for step in steps)})


def native_quantize(build: Build, kind: str) -> None:
    """Quantize stage: every linear layer but routers, and the embedding, in our own format (`int8` or `int4`)."""
    linear: Any = {"int8": Int8Linear, "int4": Int4Linear}[kind]
    embedding: Any = {"int8": Int8Embedding, "int4": Int4Embedding}[kind]
    quantize = {"int8": quantize_int8, "int4": quantize_int4}[kind]
    storage = {"int8": "int8, float32 scale per channel", "int4": "int4, float16 scale per 32 weights"}[kind]
    replace_linears(build, lambda path, layer: linear.from_linear(layer), storage=storage)
    model = build.built()
    table, head = model.model.embed_tokens, model.lm_head
    tied = build.config.tie_word_embeddings
    buffers = tuple(head.buffers()) if tied else quantize(table.weight)
    model.model.embed_tokens = embedding(*buffers, table.weight.dtype)
    build.facts["embedding"] = f"{kind}, the head's own" if tied else kind


def native_attention(build: Build) -> None:
    """Module stage: attention of one new position in C++, of a prompt by torch's SDPA."""
    if build.device != "cpu":
        raise HarnessError("native_attention is for the CPU")
    counts = {"one_token_attentions": 0}

    def attend(q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, visibility: FusedVisibility, dropout_p: float) -> Tensor:
        if q_BTHD.shape[1] != 1:
            return attend_fused(q_BTHD, k_BSKD, v_BSKD, visibility, dropout_p)
        if visibility.bias is not None or dropout_p:
            raise ValueError("the C++ decode attention knows neither padding nor dropout")
        counts["one_token_attentions"] += 1
        return ops.decode_attention(q_BTHD, k_BSKD, v_BSKD)

    strategy = AttentionStrategy("cpp", prepare_fused, attend)
    model: nn.Module = build.built()
    assert isinstance(model, MiniMindForCausalLM)
    model.set_attention(strategy)
    build.observe(lambda: counts)
