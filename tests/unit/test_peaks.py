"""Peaks are looked up rightly and measured plausibly; datasheets are dense and never guessed."""

from __future__ import annotations

import pytest

from harness import peaks
from harness.core import UsageError
from harness.peaks import Peak, datasheet, measure_peaks, peak_bandwidth, peak_flops

MEASURED = [
    Peak("matmul", "fp32", 1, 2, 230e9, "FLOP/s"),
    Peak("matmul", "bf16", 1, 2, 928e9, "FLOP/s"),
    Peak("matmul", "fp32", 1, 1, 120e9, "FLOP/s"),
    Peak("read", "fp32", 14_000_000, 2, 36e9, "B/s"),
    Peak("read", "fp32", 104_000_000, 2, 20e9, "B/s"),
    Peak("read", "fp32", 104_000_000, 1, 11e9, "B/s"),
    Peak("copy", "fp32", 26_000_000, 2, 5e9, "B/s"),
]


def test_flops_are_those_of_the_dtype_and_the_thread_count() -> None:
    assert peak_flops(MEASURED, "fp32", 2) == 230e9
    assert peak_flops(MEASURED, "fp32", 1) == 120e9
    assert peak_flops(MEASURED, "bf16", 2) == 928e9
    assert peak_flops(MEASURED, "bf16", 1) is None
    assert peak_flops(MEASURED, "fp16", 2) is None


def test_bandwidth_is_that_of_the_nearest_working_set_on_a_log_scale() -> None:
    assert peak_bandwidth(MEASURED, 1_000_000, 2) == 36e9
    assert peak_bandwidth(MEASURED, 37_000_000, 2) == 36e9, "sqrt(14 x 104) = 38 MB is the border; on a line it is 59"
    assert peak_bandwidth(MEASURED, 40_000_000, 2) == 20e9
    assert peak_bandwidth(MEASURED, 4e9, 2) == 20e9
    assert peak_bandwidth(MEASURED, 14_000_000, 1) == 11e9
    assert peak_bandwidth(MEASURED, 14_000_000, 8) is None
    assert peak_bandwidth(MEASURED, 0, 2) is None
    assert peak_bandwidth([], 14_000_000, 2) is None


def test_measuring_gives_every_kind_at_every_size_and_puts_the_threads_back(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(peaks, "READ_SIZES", (400_000, 4_000_000))
    monkeypatch.setattr(peaks, "COPY_SIZES", (400_000,))
    monkeypatch.setattr(peaks, "CPU_SHAPES", ((64, 64, 64), (128, 64, 32)))
    monkeypatch.setattr(peaks, "MATMUL_SECONDS", 0.0)
    monkeypatch.setattr(peaks, "BANDWIDTH_SECONDS", 0.0)
    seen: list[int] = []
    real = torch.mm
    monkeypatch.setattr(
        torch, "mm", lambda *args, **kwargs: (seen.append(torch.get_num_threads()), real(*args, **kwargs))
    )
    before = torch.get_num_threads()
    found = measure_peaks("cpu", 1)
    assert torch.get_num_threads() == before
    assert set(seen) == {1}, "measured with the threads that were asked for"
    assert [(peak.kind, peak.dtype, peak.size_bytes) for peak in found if peak.kind != "matmul"] == [
        ("read", "fp32", 400_000),
        ("read", "fp32", 4_000_000),
        ("copy", "fp32", 400_000),
    ]
    assert [peak.dtype for peak in found if peak.kind == "matmul"] == ["fp32", "bf16"]
    assert all(peak.value > 0 and peak.threads == 1 and peak.note for peak in found)
    assert {peak.unit for peak in found} == {"FLOP/s", "B/s"}


def test_rates_follow_from_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that says one millisecond per call, every rate is its work times a thousand."""
    monkeypatch.setattr(peaks, "READ_SIZES", (4_096_000,))
    monkeypatch.setattr(peaks, "COPY_SIZES", (4_096_000,))
    monkeypatch.setattr(peaks, "CPU_SHAPES", ((10, 20, 30), (100, 20, 30)))
    monkeypatch.setattr(peaks, "least_seconds", lambda run, device, budget: (run(), 1e-3)[1])
    fp32, bf16, read, copy = measure_peaks("cpu", 1)
    assert fp32.value == pytest.approx(2 * 100 * 20 * 30 * 1e3) and "100x20x30" in fp32.note
    assert (fp32.size_bytes, bf16.size_bytes) == (4 * (2000 + 600 + 3000), 2 * (2000 + 600 + 3000))
    assert read.value == copy.value == pytest.approx(4_096_000 * 1e3), "a copy counts what it reads and what it writes"


def test_a_peak_beside_a_busy_neighbour_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "READ_SIZES", (400_000,))
    monkeypatch.setattr(peaks, "COPY_SIZES", ())
    monkeypatch.setattr(peaks, "CPU_SHAPES", ((8, 8, 8),))
    monkeypatch.setattr(peaks, "busy_neighbour", lambda values, cores, threads: "busy neighbour: 1.00 cores")
    assert all("busy neighbour" in peak.note for peak in measure_peaks("cpu", 1))


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="tpu"):
        measure_peaks("tpu", 1)


@pytest.mark.parametrize(
    ("name", "bf16", "bandwidth"),
    [
        ("NVIDIA A100-SXM4-40GB", 312e12, 1555e9),
        ("NVIDIA A100-SXM4-80GB", 312e12, 2039e9),
        ("NVIDIA A100 80GB PCIe", 312e12, 1935e9),
        ("NVIDIA H100 80GB HBM3", 989.4e12, 3352e9),
        ("NVIDIA H100 PCIe", 756e12, 2039e9),
        ("NVIDIA H200", 989.4e12, 4800e9),
        ("NVIDIA L4", 121e12, 300e9),
        ("NVIDIA GeForce RTX 4090", 165.2e12, 1008e9),
        ("NVIDIA GeForce RTX 3090", 71e12, 936.2e9),
    ],
)
def test_datasheet_peaks_are_the_dense_ones(name: str, bf16: float, bandwidth: float) -> None:
    sheet = datasheet(name)
    assert sheet is not None and sheet.source
    assert sheet.flops["bf16"] == pytest.approx(bf16)
    assert sheet.bandwidth == pytest.approx(bandwidth)
    assert sheet.flops["fp32"] <= sheet.flops["tf32"] <= sheet.flops["bf16"]


def test_a_dtype_that_the_hardware_has_not_has_no_peak() -> None:
    sheet = datasheet("Tesla T4")
    assert sheet is not None and "bf16" not in sheet.flops and sheet.flops["fp16"] == pytest.approx(65e12)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Intel(R) Xeon(R) Processor",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA H100 NVL",
        "NVIDIA L40S",
        "AMD Instinct MI300X",
    ],
)
def test_a_device_that_is_not_listed_has_no_datasheet(name: str) -> None:
    assert datasheet(name) is None
