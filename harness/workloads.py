"""The kinds of work that can be measured. Torch-free: how a kind is executed is the backend's business.

Prefill and decode are apart on purpose: one is bound by arithmetic, the other by memory traffic and dispatch, and a
rate over both together says nothing about either.
"""

from __future__ import annotations

from harness.registry import workload

workload(
    "prefill",
    defaults={"batch": 1, "context": 512},
    label="prefill {context} (batch {batch})",
    headline="ttft",
    doc="One forward over `context` prompt tokens into an empty KV cache, up to the first greedy token.",
)
workload(
    "decode",
    defaults={"batch": 1, "context": 128, "new_tokens": 32},
    label="decode {new_tokens} @ {context} (batch {batch})",
    headline="tps",
    doc="`new_tokens` greedy single-token steps after a cache that already holds `context` tokens; EOS is off.",
)
workload(
    "generate",
    defaults={"batch": 1, "prompt": 32, "new_tokens": 64},
    label="generate {new_tokens} after {prompt} (batch {batch})",
    headline="tps",
    doc="Prompt to text as a user sees it: every token reaches the host before the next step; greedy, EOS is off.",
)
workload(
    "train_step",
    defaults={"batch": 4, "length": 128},
    label="train {batch}x{length}",
    headline="train_tps",
    doc="Forward with labels, backward, gradient clipping at 1.0, AdamW update and zero_grad, on random tokens.",
)
workload(
    "perplexity",
    defaults={"batch": 8, "length": 160, "prefill": 128},
    label="perplexity {batch}x{length}",
    headline="ppl",
    doc="Held-out text through the variant's own cache: `prefill` tokens at once, the rest one by one; beside the "
    "reference on the same tokens.",
    timed=False,
)
workload(
    "rms_norm",
    defaults={"rows": 4096, "calls": 16},
    label="rms_norm {rows} rows",
    headline="bandwidth",
    doc="The variant's own norm module alone, `calls` times in a row on `rows` rows of the model's hidden size.",
)
