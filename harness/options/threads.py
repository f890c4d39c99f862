"""Axis `threads`: intra-op CPU threads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.registry import axis, close, option

if TYPE_CHECKING:
    from harness.backends._torch import Build

axis("threads", reference="all", doc="Intra-op CPU threads; `all` is one per core.")


@option(
    "threads",
    "N",
    stage="runtime",
    backends=("torch", "transformers", "llama_cpp", "onnxruntime", "onnxruntime_genai", "vllm"),
    pattern=r"[1-9][0-9]{0,3}",
    numerics=close(fp32=1e-4, bf16=0.25),
    evidence=lambda facts: facts["threads"] == facts["threads_asked"],
)
def threads(build: Build, value: str) -> None:
    """Exactly N intra-op threads."""
    build.threads = int(value)
