"""How time to first token, memory and decode speed grow with context and with the length of the answer."""

from harness.core import Grid, Sampling, Suite, Workload

_AXES = {"kv": ("cat", "prealloc")}


def _context(model: str, contexts: tuple[int, ...]) -> Grid:
    return Grid(
        models=(model,), workloads=tuple(Workload.of("prefill", context=context) for context in contexts), axes=_AXES
    )


def _answers(model: str, lengths: tuple[int, ...]) -> Grid:
    return Grid(
        models=(model,), workloads=tuple(Workload.of("generate", prompt=32, new_tokens=n) for n in lengths), axes=_AXES
    )


SUITE = Suite(
    name="long_context",
    doc="TTFT and memory for prompts of 128 tokens and up; TPS for answers of 100, 500 and 1000 tokens.",
    grids={
        "cpu": (
            _context("minimind2-small", (128, 256, 512, 1024, 2048, 4096)),
            _answers("minimind2-small", (100, 500, 1000)),
        ),
        "cuda": (
            _context("minimind-3", (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32000)),
            _answers("minimind-3", (100, 500, 1000)),
        ),
    },
    metrics=("ttft", "prefill_tps", "tps", "tpot", "mfu", "peak_bytes", "reserved_bytes", "kv_bytes"),
    sampling=Sampling(blocks=3, slice_seconds=0.1, min_iterations=1, warmup_seconds=0.1, timeout_seconds=300.0),
)
