"""Axis `sdpa`: which attention code runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.registry import axis, close, option

if TYPE_CHECKING:
    from harness.backends._torch import Build

axis(
    "sdpa",
    reference="upstream",
    doc="Attention: upstream's mix (fused for a whole prompt, explicit softmax elsewhere), torch's SDPA or "
    "FlexAttention, or a Triton kernel.",
)

_SOFTMAX = {"aten::softmax", "aten::_softmax"}
_SDPA = "aten::scaled_dot_product_attention"
_DECODE = "minimind_bench::decode_attention"


def _compiled(facts: Mapping[str, Any]) -> bool:
    return any("CompiledFxGraph" in name for name in facts["operations"])


def _decoded(facts: Mapping[str, Any]) -> bool:
    """The strategy has no SDPA for one new position: where the kernel did not run, there were longer pieces only."""
    return _DECODE in facts["operations"] or any(name.startswith(_SDPA) for name in facts["operations"])


@option(
    "sdpa",
    "fused",
    stage="module",
    claims=("attention function",),
    numerics=close(fp32=1e-4, bf16=0.25),
    evidence=lambda facts: facts["attention"] == "fused" and _SOFTMAX.isdisjoint(facts["operations"]),
)
def fused(build: Build, value: str) -> None:
    """Torch's scaled_dot_product_attention everywhere, with grouped heads: no repeated keys and values in memory."""
    build.set_attention("fused")


@option(
    "sdpa",
    "cpp",
    stage="module",
    needs=("cpu", "cxx"),
    claims=("attention function",),
    excludes=("precision=fp16", "precision=amp-fp16"),  # the C++ kernels know fp32 and bf16
    numerics=close(fp32=1e-4, bf16=0.25),
    evidence=lambda facts: (
        facts["attention"] == "cpp"
        and {"aten::softmax", "aten::_softmax"}.isdisjoint(facts["operations"])
        and (facts["one_token_attentions"] == 0 or "minimind_cpu::decode_attention" in facts["operations"])
    ),
)
def cpp(build: Build, value: str) -> None:
    """Attention of a decode step in C++ over the cache as it lies, no head copied; prompts by torch's SDPA."""
    from harness.options._native import native_attention

    native_attention(build)


@option(
    "sdpa",
    "flex",
    stage="module",
    needs=("compile",),
    excludes=("compile=default", "compile=reduce-overhead", "compile=max-autotune", "compile=cpp-wrapper"),
    claims=("attention function",),
    numerics=close(fp32=1e-4, bf16=0.25),
    evidence=lambda facts: (
        facts["attention"] == "flex" and _compiled(facts) and _SOFTMAX.isdisjoint(facts["operations"])
    ),
)
def flex(build: Build, value: str) -> None:
    """Torch's FlexAttention, which it compiles by itself; no padding, and inference only on a CPU."""
    from harness.options._attention import compiled_regions
    from minimind.flex import FLEX

    build.built().set_attention(FLEX)
    build.observe(compiled_regions())
    if build.device == "cpu":
        build.inference_only = "sdpa=flex cannot train on a CPU: torch's FlexAttention has no gradients there"


@option(
    "sdpa",
    "triton",
    stage="module",
    needs=("triton",),
    claims=("attention function",),
    numerics=close(fp32=1e-4, bf16=0.25),
    evidence=lambda facts: (
        facts["attention"] == "triton" and _decoded(facts) and _SOFTMAX.isdisjoint(facts["operations"])
    ),
)
def triton(build: Build, value: str) -> None:
    """Decode steps by a Triton kernel that splits the context and repeats no heads; prompts by torch's SDPA."""
    from harness.options._attention import TRITON

    build.built().set_attention(TRITON)
