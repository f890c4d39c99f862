"""Every metric to the digit, on records made by hand."""

from __future__ import annotations

import pytest

from harness.core import Iteration, Workload
from harness.registry import METRICS, Record, Work, load_all, resolve_workload

load_all()

SECOND = 1_000_000_000
WORK = Work(tokens=96, flops=6e9, bytes=5e8)
DECODE = Workload.of("decode", batch=3, context=128, new_tokens=32)
GENERATE = Workload.of("generate", batch=2, prompt=16, new_tokens=4)
PREFILL = Workload.of("prefill", batch=2, context=48)
TRAIN = Workload.of("train_step", batch=4, length=24)


def value(metric: str, workload: Workload, iteration: Iteration | None = None, **other: object) -> float | None:
    """The metric of a record with WORK, a peak of 20 GFLOP/s and 2 GB/s unless said otherwise."""
    fields = {"measured": {}, "peak_flops": 2e10, "peak_bandwidth": 2e9, **other}
    return METRICS[metric].compute(Record(workload, WORK, iteration, **fields))  # type: ignore[arg-type]


TWO_SECONDS = Iteration(5 * SECOND, 7 * SECOND)
STREAM = Iteration(1 * SECOND, 9 * SECOND, (3 * SECOND, 4 * SECOND, 6 * SECOND, 8 * SECOND))
"""Starts at 1 s; the first token comes at 3 s, three more until 8 s; the loop ends at 9 s."""


@pytest.mark.parametrize(
    ("metric", "workload", "iteration", "expected"),
    [
        ("ttft", PREFILL, TWO_SECONDS, 2.0),
        ("ttft", GENERATE, STREAM, 2.0),
        ("tpot", DECODE, TWO_SECONDS, 2 / 32),
        ("tpot", GENERATE, STREAM, 5 / 3),
        ("tps", DECODE, TWO_SECONDS, 3 * 32 / 2),
        ("tps", GENERATE, STREAM, 2 * 3 / 5),
        ("prefill_tps", PREFILL, TWO_SECONDS, 48.0),
        ("train_tps", TRAIN, TWO_SECONDS, 48.0),
        ("step_time", TRAIN, TWO_SECONDS, 2.0),
        ("step_time", GENERATE, STREAM, 8.0),
        ("mfu", PREFILL, TWO_SECONDS, 0.15),
        ("mfu", TRAIN, TWO_SECONDS, 0.15),
        ("mbu", DECODE, TWO_SECONDS, 0.125),
    ],
)
def test_timed_metrics(metric: str, workload: Workload, iteration: Iteration, expected: float) -> None:
    assert value(metric, workload, iteration) == pytest.approx(expected, rel=1e-15)
    assert METRICS[metric].timed and METRICS[metric].applies(workload)


def test_the_first_token_never_counts_in_the_rate_of_a_generation() -> None:
    """A prefill of an hour changes TTFT and nothing else."""
    late = Iteration(STREAM.start_ns - 3600 * SECOND, STREAM.end_ns, STREAM.token_ns)
    assert value("ttft", GENERATE, late) == 3602.0
    for metric in ("tpot", "tps"):
        assert value(metric, GENERATE, late) == value(metric, GENERATE, STREAM)


def test_a_stream_of_one_token_has_no_rate() -> None:
    one = Iteration(0, 2 * SECOND, (SECOND,))
    assert value("ttft", GENERATE, one) == 1.0
    assert value("tpot", GENERATE, one) is None
    assert value("tps", GENERATE, one) is None


def test_an_iteration_without_length_has_no_rate() -> None:
    assert value("tps", DECODE, Iteration(7, 7)) is None


def test_timed_metrics_have_no_value_without_an_iteration() -> None:
    for declared in METRICS.values():
        for workload in (DECODE, GENERATE, PREFILL, TRAIN):
            if declared.timed and declared.applies(workload):
                assert value(declared.name, workload) is None, declared.name


def test_utilisation_needs_a_measured_peak() -> None:
    for peak in (None, 0.0):
        assert value("mfu", PREFILL, TWO_SECONDS, peak_flops=peak) is None
        assert value("mbu", DECODE, TWO_SECONDS, peak_bandwidth=peak) is None
    assert value("mfu", PREFILL, TWO_SECONDS, peak_flops=1e9) == 3.0, "over 100% is shown, not hidden"


SOLO = ("peak_bytes", "reserved_bytes", "kv_bytes", "load_time", "compile_time", "ppl", "kl", "top1_agreement")


@pytest.mark.parametrize("name", SOLO)
def test_solo_metrics_are_what_was_measured(name: str) -> None:
    measured = {other: float(number) for number, other in enumerate(SOLO)}
    assert value(name, DECODE, measured=measured) == measured[name]
    assert value(name, DECODE) is None
    assert not METRICS[name].timed


def test_metrics_apply_to_their_workloads_only() -> None:
    quality = resolve_workload(Workload.of("perplexity"))
    workloads = (DECODE, GENERATE, PREFILL, TRAIN, quality)
    table = {
        "ttft": "0110 0",
        "tpot": "1100 0",
        "tps": "1100 0",
        "prefill_tps": "0010 0",
        "train_tps": "0001 0",
        "step_time": "1111 1",
        "mfu": "0011 0",
        "mbu": "1000 0",
        "peak_bytes": "1111 1",
        "kv_bytes": "1110 0",
        "ppl": "0000 1",
        "kl": "0000 1",
        "top1_agreement": "0000 1",
    }
    for name, row in table.items():
        expected = [mark == "1" for mark in row.replace(" ", "")]
        assert [METRICS[name].applies(workload) for workload in workloads] == expected, name


def test_directions_units_and_exactness_are_declared() -> None:
    higher = {name for name, declared in METRICS.items() if declared.better == "higher"}
    assert higher >= {"tps", "prefill_tps", "train_tps", "mfu", "mbu", "top1_agreement"}
    assert higher.isdisjoint({"ttft", "tpot", "step_time", "peak_bytes", "kv_bytes", "ppl", "kl", "load_time"})
    exact = {name for name, declared in METRICS.items() if declared.exact}
    assert exact >= {"kv_bytes", "ppl", "kl", "top1_agreement"} and exact.isdisjoint({"peak_bytes", "load_time", "tps"})
    units = {"ttft": "s", "tpot": "s", "tps": "tokens/s", "peak_bytes": "bytes", "mfu": "ratio", "kl": "nats/token"}
    assert {name: METRICS[name].unit for name in units} == units
