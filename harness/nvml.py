"""What NVML tells about the GPU that torch calls cuda:0: clocks, temperature, power, throttling, other processes.

    reading = read_gpu()                 # None without a driver or the package `nvidia-ml-py`
    throttle_names(reading.throttle_reasons)

The module `pynvml` comes from `nvidia-ml-py`. A value that a device, a driver or a container does not give is None;
NVML's own errors never leave this module. Torch-free.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

Values = dict[str, tuple[float, str]]


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One device through NVML: MHz, degrees Celsius, watts, millijoules, and NVML's bit mask of throttle reasons."""

    sm_clock: float | None = None
    memory_clock: float | None = None
    temperature: float | None = None
    power: float | None = None
    energy_mj: float | None = None
    throttle_reasons: int | None = None


@cache
def nvml() -> Any | None:
    """The initialised `pynvml` module, or None where the package or the driver is missing."""
    try:
        module: Any = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        module.nvmlInit()
    except module.NVMLError:
        return None
    return module


@cache
def nvml_handle() -> Any | None:
    """NVML's handle of the device that torch calls cuda:0 (by UUID where torch tells it), else of device 0."""
    module = nvml()
    if module is None:
        return None
    torch: Any = sys.modules.get("torch")
    try:
        if torch is not None and torch.cuda.is_available():
            uuid = getattr(torch.cuda.get_device_properties(0), "uuid", None)
            if uuid is not None:
                try:
                    return module.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
                except module.NVMLError:
                    pass  # a MIG slice: NVML knows it under another name
        return module.nvmlDeviceGetHandleByIndex(0)
    except module.NVMLError:
        return None


def nvml_value(name: str, *arguments: Any) -> Any | None:
    """Call one NVML function on cuda:0; None where it is not supported, not permitted or not there."""
    module, handle = nvml(), nvml_handle()
    function = getattr(module, name, None)
    if module is None or handle is None or function is None:
        return None
    try:
        return function(handle, *arguments)
    except module.NVMLError:
        return None


def read_gpu() -> GpuReading | None:
    """Clocks, temperature, power and throttle reasons of cuda:0 now; None without NVML."""
    if nvml_handle() is None:
        return None

    def number(name: str, *arguments: int, scale: float = 1.0) -> float | None:
        value = nvml_value(name, *arguments)
        return None if value is None else float(value) * scale

    return GpuReading(
        sm_clock=number("nvmlDeviceGetClockInfo", 1),  # NVML_CLOCK_SM
        memory_clock=number("nvmlDeviceGetClockInfo", 2),  # NVML_CLOCK_MEM
        temperature=number("nvmlDeviceGetTemperature", 0),  # NVML_TEMPERATURE_GPU
        power=number("nvmlDeviceGetPowerUsage", scale=1e-3),
        energy_mj=number("nvmlDeviceGetTotalEnergyConsumption"),
        throttle_reasons=nvml_value("nvmlDeviceGetCurrentClocksThrottleReasons"),
    )


def gpu_difference(before: GpuReading | None, after: GpuReading | None) -> Values:
    """Name -> (value, unit) of a GPU between two readings: gauges of the later one, energy, union of the reasons."""
    if before is None or after is None:
        return {}
    values: Values = {}
    for name, value, unit, scale in (
        ("gpu_sm_clock", after.sm_clock, "Hz", 1e6),
        ("gpu_memory_clock", after.memory_clock, "Hz", 1e6),
        ("gpu_temperature", after.temperature, "C", 1.0),
        ("gpu_power", after.power, "W", 1.0),
    ):
        if value is not None:
            values[name] = (value * scale, unit)
    if before.energy_mj is not None and after.energy_mj is not None:
        values["gpu_energy"] = ((after.energy_mj - before.energy_mj) * 1e-3, "J")
    if before.throttle_reasons is not None and after.throttle_reasons is not None:
        values["gpu_throttle_reasons"] = (float(before.throttle_reasons | after.throttle_reasons), "mask")
    return values


GPU_SLOWDOWN_REASONS: Mapping[int, str] = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}


def throttle_names(mask: int) -> list[str]:
    """The slowdowns in NVML's mask of throttle reasons; idle, user-set and display clocks are not slowdowns."""
    return [name for bit, name in GPU_SLOWDOWN_REASONS.items() if mask & bit]
