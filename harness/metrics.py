"""The metrics: pure functions of what was recorded, one declaration each. Torch-free.

Definitions follow MEASURING: the first token never counts towards TPOT or TPS of a generation, rates come from a
workload's own tokens, and utilisation needs a peak that was measured on this machine for the dtype in use.
"""

from __future__ import annotations

from harness.registry import KL_RESOLUTION, Record, metric


def _streamed(record: Record) -> tuple[int, float] | None:
    """Tokens after the first and the seconds that they took, where the workload streams at least two tokens."""
    if record.iteration is None or len(record.iteration.token_ns) < 2:
        return None
    first, last = record.iteration.token_ns[0], record.iteration.token_ns[-1]
    return len(record.iteration.token_ns) - 1, (last - first) * 1e-9


@metric("ttft", unit="s", better="lower", workloads=("prefill", "generate"))
def ttft(record: Record) -> float | None:
    """Time to first token: from the start of the prefill until the first greedy token is known."""
    if record.iteration is None:
        return None
    if record.iteration.token_ns:
        return (record.iteration.token_ns[0] - record.iteration.start_ns) * 1e-9
    return record.iteration.seconds


@metric("tpot", unit="s", better="lower", workloads=("decode", "generate"))
def tpot(record: Record) -> float | None:
    """Time per output token of one sequence, the first token of a generation excluded."""
    if record.workload.kind == "generate":
        streamed = _streamed(record)
        return streamed[1] / streamed[0] if streamed else None
    if record.iteration is None:
        return None
    return record.iteration.seconds / record.workload["new_tokens"]


@metric("tps", unit="tokens/s", better="higher", workloads=("decode", "generate"))
def tps(record: Record) -> float | None:
    """Output tokens per second over the whole batch while decoding; prefill is not in it."""
    seconds = tpot(record)
    return record.workload["batch"] / seconds if seconds else None


@metric("prefill_tps", unit="tokens/s", better="higher", workloads=("prefill",))
def prefill_tps(record: Record) -> float | None:
    """Prompt tokens processed per second."""
    return record.work.tokens / record.iteration.seconds if record.iteration else None


@metric("train_tps", unit="tokens/s", better="higher", workloads=("train_step",))
def train_tps(record: Record) -> float | None:
    """Training tokens per second of one whole optimisation step."""
    return record.work.tokens / record.iteration.seconds if record.iteration else None


@metric("step_time", unit="s", better="lower")
def step_time(record: Record) -> float | None:
    """Wall time of one repetition of the workload: in training, of one optimisation step. Always recorded."""
    return record.iteration.seconds if record.iteration else None


@metric("mfu", unit="ratio", better="higher", workloads=("prefill", "train_step"))
def mfu(record: Record) -> float | None:
    """Model FLOPs utilisation: the model's FLOPs per second over the measured dense peak of the dtype in use."""
    if record.iteration is None or not record.peak_flops:
        return None
    return record.work.flops / record.iteration.seconds / record.peak_flops


@metric("bandwidth", unit="bytes/s", better="higher", workloads=("rms_norm",))
def bandwidth(record: Record) -> float | None:
    """Bytes that the operation must move at least (each input read once, each output written once) per second."""
    return record.work.bytes / record.iteration.seconds if record.iteration else None


@metric("mbu", unit="ratio", better="higher", workloads=("decode",))
def mbu(record: Record) -> float | None:
    """Model bandwidth utilisation: bytes that a decode must move per second over the measured read bandwidth."""
    if record.iteration is None or not record.peak_bandwidth:
        return None
    return record.work.bytes / record.iteration.seconds / record.peak_bandwidth


@metric("peak_bytes", unit="bytes", better="lower", timed=False)
def peak_bytes(record: Record) -> float | None:
    """Peak memory of one fresh process that does only this case, over its baseline before the model is loaded."""
    return record.measured.get("peak_bytes")


@metric("reserved_bytes", unit="bytes", better="lower", timed=False)
def reserved_bytes(record: Record) -> float | None:
    """Memory that the CUDA allocator reserved from the device at its peak; no value on a CPU."""
    return record.measured.get("reserved_bytes")


@metric("kv_bytes", unit="bytes", better="lower", workloads=("prefill", "decode", "generate"), timed=False, exact=True)
def kv_bytes(record: Record) -> float | None:
    """Bytes allocated for keys and values at the end of the workload."""
    return record.measured.get("kv_bytes")


@metric("disk_bytes", unit="bytes", better="lower", timed=False, exact=True)
def disk_bytes(record: Record) -> float | None:
    """Bytes of the model's weights in a file of the engine's own format."""
    return record.measured.get("disk_bytes")


@metric("load_time", unit="s", better="lower", timed=False)
def load_time(record: Record) -> float | None:
    """Time to build the model and load its weights, from an imported framework to a callable model."""
    return record.measured.get("load_time")


@metric("compile_time", unit="s", better="lower", timed=False)
def compile_time(record: Record) -> float | None:
    """Time that the first iteration takes longer than the second, nothing compiled before; no value elsewhere."""
    return record.measured.get("compile_time")


@metric("graph_breaks", unit="count", better="lower", timed=False, exact=True)
def graph_breaks(record: Record) -> float | None:
    """Places at which torch.compile gave up on one graph and fell back to Python; no value where nothing compiles."""
    return record.measured.get("graph_breaks")


@metric("recompiles", unit="count", better="lower", timed=False, exact=True)
def recompiles(record: Record) -> float | None:
    """Times that a frame was compiled again because a guard failed, over two iterations of the workload."""
    return record.measured.get("recompiles")


@metric("fused_kernels", unit="count", better="lower", timed=False, exact=True)
def fused_kernels(record: Record) -> float | None:
    """Distinct kernels that the compiler generated for the workload; their names are among the facts (`kernels`)."""
    return record.measured.get("fused_kernels")


@metric("launches_per_step", unit="count", better="lower", timed=False, exact=True)
def launches_per_step(record: Record) -> float | None:
    """Work submitted to the GPU in one step: kernels, copies and fills; a replayed CUDA graph is one. None on a CPU."""
    return record.measured.get("launches_per_step")


@metric("syncs_per_step", unit="count", better="lower", timed=False, exact=True)
def syncs_per_step(record: Record) -> float | None:
    """Times that the host waits for the GPU in one step: streams, events and blocking copies. None on a CPU."""
    return record.measured.get("syncs_per_step")


@metric("ppl", unit="perplexity", better="lower", workloads=("perplexity",), timed=False, exact=True)
def ppl(record: Record) -> float | None:
    """Perplexity on held-out text through the variant's own cache and weights: exp of the mean loss per token."""
    return record.measured.get("ppl")


@metric(
    "kl",
    unit="nats/token",
    better="lower",
    workloads=("perplexity",),
    timed=False,
    exact=True,
    resolution=KL_RESOLUTION,
)
def kl(record: Record) -> float | None:
    """Mean KL divergence of the variant's next-token distribution from the reference's, in float64."""
    return record.measured.get("kl")


@metric("top1_agreement", unit="ratio", better="higher", workloads=("perplexity",), timed=False, exact=True)
def top1_agreement(record: Record) -> float | None:
    """Share of positions at which variant and reference rank the same token first."""
    return record.measured.get("top1_agreement")
