"""What the machine can reach: measured peaks of arithmetic and bandwidth, and the datasheet's for known GPUs.

    peaks = measure_peaks("cpu", threads=2)
    peak_flops(peaks, "fp32", 2)                      # FLOP/s, the denominator of mfu
    peak_bandwidth(peaks, 52_000_000, 2)              # bytes/s at the working set of a 26M model in bf16: mbu
    datasheet("NVIDIA H200")                          # dense peaks, or None for a device that is not listed

Measured values are the best of several repetitions: a peak is a bound, so disturbance can only make it too low. Run it
on a quiet machine; `mfu` or `mbu` over 100% says that it was not.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, Literal

from harness.capability import check_device
from harness.telemetry import busy_neighbour, difference, snapshot, usable_cpus

MEGABYTE = 1_000_000
READ_SIZES = tuple(size * MEGABYTE for size in (14, 26, 52, 104, 416))
COPY_SIZES = tuple(size * MEGABYTE for size in (52, 416))
CPU_SHAPES = ((512, 512, 1408), (1024, 1024, 1024), (2048, 2048, 2048))
CUDA_SHAPES = ((4096, 4096, 4096), (8192, 8192, 8192))
_COLUMNS = 1024
MATMUL_SECONDS = 0.3
BANDWIDTH_SECONDS = 0.15
_TOO_LONG = 1.0

Run = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Peak:
    """One measured bound. kind: matmul (FLOP/s), read or copy (bytes/s). `note`: the method and what limits its use."""

    kind: Literal["matmul", "read", "copy"]
    dtype: str
    size_bytes: int
    threads: int
    value: float
    unit: str
    note: str = ""


def _cpu_seconds(run: Run) -> float:
    start = time.perf_counter_ns()
    run()
    return (time.perf_counter_ns() - start) * 1e-9


def _cuda_seconds(run: Run) -> float:
    import torch

    event: Any = torch.cuda.Event
    start, end = event(enable_timing=True), event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e-3


def least_seconds(run: Run, device: str, budget: float) -> float:
    """Least seconds of one call: one to warm up, then at least three, and more while `budget` seconds last."""
    clock = _cuda_seconds if device == "cuda" else _cpu_seconds
    best, deadline = clock(run), time.perf_counter() + budget
    if best > _TOO_LONG:  # bf16 without instructions for it: a bound that nobody will approach needs no repetition
        return best
    count = 0
    while count < 3 or time.perf_counter() < deadline:
        best, count = min(best, clock(run)), count + 1
    return best


def _matmul_peaks(device: str, threads: int) -> Iterator[Peak]:
    import torch

    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if device == "cuda":
        dtypes["fp16"] = torch.float16
    for name, dtype in dtypes.items():
        best = Peak("matmul", name, 0, threads, 0.0, "FLOP/s")
        for m, k, n in CUDA_SHAPES if device == "cuda" else CPU_SHAPES:
            a, b = torch.rand(m, k, device=device).to(dtype), torch.rand(k, n, device=device).to(dtype)
            out = torch.empty(m, n, device=device, dtype=dtype)
            seconds = least_seconds(partial(torch.mm, a, b, out=out), device, MATMUL_SECONDS)
            rate, size = 2.0 * m * k * n / seconds, a.nbytes + b.nbytes + out.nbytes
            if rate > best.value:
                best = replace(best, size_bytes=size, value=rate, note=f"torch.mm {m}x{k}x{n}")
            if seconds > _TOO_LONG:
                break
        if name == "fp32" and device == "cuda":
            best = replace(best, note=f"{best.note}; TF32 {'on' if torch.backends.cuda.matmul.allow_tf32 else 'off'}")
        yield best


def _cache_note(size: int, device: str) -> str:
    if device != "cuda":
        return ""
    import torch

    l2 = int(getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0))
    return f"; fits the {l2 / MEGABYTE:.0f} MB L2: above what device memory can deliver" if size <= l2 else ""


def _bandwidth_peaks(device: str, threads: int) -> Iterator[Peak]:
    import torch

    matrix = torch.ones(max(READ_SIZES) // 4 // _COLUMNS, _COLUMNS, device=device)
    vector = torch.ones(_COLUMNS, device=device)
    for size in READ_SIZES:
        part = matrix[: size // 4 // _COLUMNS]
        flat = part.reshape(-1)
        first, second = flat[: flat.numel() // 2], flat[flat.numel() // 2 :]
        methods: dict[str, Run] = {
            "mv": partial(torch.mv, part, vector, out=torch.empty(len(part), device=device)),
            "sum": flat.sum,
            "dot": partial(torch.dot, first, second),
        }
        rates = {name: part.nbytes / least_seconds(run, device, BANDWIDTH_SECONDS) for name, run in methods.items()}
        name = max(rates, key=lambda method: rates[method])
        yield Peak("read", "fp32", size, threads, rates[name], "B/s", f"torch.{name}{_cache_note(size, device)}")
    for size in COPY_SIZES:
        source, target = matrix.reshape(-1)[: size // 8 * 2].chunk(2)
        rate = 2 * source.nbytes / least_seconds(partial(target.copy_, source), device, BANDWIDTH_SECONDS)
        note = f"copy_, read and written{_cache_note(size, device)}"
        yield Peak("copy", "fp32", size, threads, rate, "B/s", note)


def _watched(peaks: Iterator[Peak], threads: int) -> Iterator[Peak]:
    """The peaks as they are measured; those that had a busy neighbour say so in their note."""
    cores, before = len(usable_cpus()), snapshot()
    for peak in peaks:
        after = snapshot()
        reason = busy_neighbour(difference(before, after), cores=cores, threads=threads)
        yield peak if reason is None else replace(peak, note=f"{peak.note}; {reason}")
        before = after


def measure_peaks(device: str, threads: int) -> list[Peak]:
    """Measure this machine's peaks in about 5 s on two cores.

    matmul: dense products in fp32 and bf16 (fp16 too on cuda), the best of several shapes. read: float32 data of 14 to
    416 MB, read once a call by matrix-vector product, sum and dot product; the best of the three counts. copy: both
    directions counted; `size_bytes` is the working set, source and target. The same data is read again and again, so a
    working set that fits a cache shows the cache, as it does for a model of that size. Torch's thread count is put
    back afterwards. A peak that was measured beside a busy neighbour says so in its note. Raises UsageError for a
    device that is not there.
    """
    import torch

    check_device(device)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            measured = chain(_matmul_peaks(device, threads), _bandwidth_peaks(device, threads))
            return [*_watched(measured, threads)]
    finally:
        torch.set_num_threads(before)


def peak_flops(peaks: Iterable[Peak], dtype: str, threads: int) -> float | None:
    """Measured FLOP/s of dense products in `dtype` (fp32, bf16, fp16) at this thread count; None if not measured."""
    found = [peak.value for peak in peaks if (peak.kind, peak.dtype, peak.threads) == ("matmul", dtype, threads)]
    return max(found, default=None)


def peak_bandwidth(peaks: Iterable[Peak], working_set_bytes: float, threads: int) -> float | None:
    """Measured read bandwidth in bytes/s at the working-set size nearest on a log scale; None if not measured."""
    found = [peak for peak in peaks if peak.kind == "read" and peak.threads == threads]
    if not found or working_set_bytes <= 0:
        return None
    return min(found, key=lambda peak: abs(math.log(peak.size_bytes / working_set_bytes))).value


@dataclass(frozen=True, slots=True)
class Datasheet:
    """A vendor's dense peaks: FLOP/s by dtype (int8: operations/s), bytes/s of device memory, and their source."""

    flops: Mapping[str, float]
    bandwidth: float
    source: str


def _sheet(source: str, gigabytes: float, **teraflops: float) -> Datasheet:
    return Datasheet({name: value * 1e12 for name, value in teraflops.items()}, gigabytes * 1e9, source)


_A100 = {"fp32": 19.5, "tf32": 156.0, "bf16": 312.0, "fp16": 312.0, "int8": 624.0}
_H100_SXM = {"fp32": 66.9, "tf32": 494.7, "bf16": 989.4, "fp16": 989.4, "fp8": 1978.9, "int8": 1978.9}
_HOPPER = "NVIDIA H100 Tensor Core GPU Architecture whitepaper, table of peak rates, dense"

# Patterns match the whole of torch's device name: a laptop's, "Ti", "D" or MIG namesake is another device.
_DATASHEETS: tuple[tuple[str, Datasheet], ...] = (
    (r"A100-(SXM4|PCIE)-40GB", _sheet("NVIDIA A100 datasheet, dense", 1555, **_A100)),
    (r"A100-SXM4-80GB", _sheet("NVIDIA A100 datasheet, dense", 2039, **_A100)),
    (r"A100 80GB PCIe", _sheet("NVIDIA A100 datasheet, dense", 1935, **_A100)),
    (r"H100 80GB HBM3", _sheet(_HOPPER, 3352, **_H100_SXM)),
    (r"H100 PCIe", _sheet(_HOPPER, 2039, fp32=51.2, tf32=378, bf16=756, fp16=756, fp8=1513, int8=1513)),
    (r"H200", _sheet("NVIDIA H200 datasheet (compute as H100 SXM), dense", 4800, **_H100_SXM)),
    (
        r"L4",
        _sheet(
            "NVIDIA L4 datasheet, half its sparse rates",
            300,
            fp32=30.3,
            tf32=60,
            bf16=121,
            fp16=121,
            fp8=242.5,
            int8=242.5,
        ),
    ),
    (
        r"GeForce RTX 4090",
        _sheet(
            "NVIDIA Ada GPU architecture whitepaper, appendix A, dense, FP32 accumulate",
            1008,
            fp32=82.6,
            tf32=82.6,
            bf16=165.2,
            fp16=165.2,
            fp8=330.3,
            int8=660.6,
        ),
    ),
    (
        r"GeForce RTX 3090",
        _sheet(
            "NVIDIA Ampere GA102 whitepaper, appendix A, dense, FP32 accumulate",
            936.2,
            fp32=35.6,
            tf32=35.6,
            bf16=71,
            fp16=71,
            int8=284,
        ),
    ),
    (r"T4", _sheet("NVIDIA T4 datasheet", 320, fp32=8.1, fp16=65, int8=130)),
)


def datasheet(device_name: str) -> Datasheet | None:
    """The vendor's dense peaks for torch's or NVML's name of a GPU; None for a device that is not listed.

    Dense, never the doubled "with sparsity" figures; TF32 is not FP32; products accumulate in FP32 as torch's do.
    """
    name = re.sub(r"^(NVIDIA|Tesla)\s+", "", re.sub(r"^NVIDIA\s+", "", device_name.strip()))
    return next((sheet for pattern, sheet in _DATASHEETS if re.fullmatch(pattern, name)), None)
