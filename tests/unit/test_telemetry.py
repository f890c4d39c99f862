"""Telemetry reads /proc rightly, on any machine, and calls a slice invalid for the right reason."""

from __future__ import annotations

import mmap
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness import nvml, telemetry
from harness.telemetry import CpuTimes, Snapshot, busy_neighbour, difference, parse_stat, parse_status, snapshot

ROOT = Path(__file__).resolve().parents[2]

#        user nice system idle iowait irq softirq steal guest guest_nice
STAT = """cpu  100 10 30 1000 50 5 7 9 60 4
cpu0 60 10 10 400 20 3 3 4 60 4
cpu1 40 0 20 600 30 2 4 5 0 0
intr 12345 0 0
ctxt 99
"""


def write(root: Path, path: str, text: str) -> None:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


def test_stat_counts_work_once_and_leaves_guest_idle_and_steal_apart() -> None:
    assert parse_stat(STAT) == CpuTimes(busy=100 + 10 + 30 + 5 + 7, idle=1050, steal=9, num_cpus=2)


def test_stat_counts_only_the_cpus_that_the_process_may_use() -> None:
    assert parse_stat(STAT, cpus=frozenset({1})) == CpuTimes(busy=66, idle=630, steal=5, num_cpus=1)
    assert parse_stat(STAT, cpus=frozenset({0, 1})) == parse_stat(STAT), "all of them: the total line, rounded once"
    assert parse_stat(STAT, cpus=frozenset({0, 1, 2, 3})) == parse_stat(STAT), "CPUs that are offline change nothing"


@pytest.mark.parametrize("text", ["", "intr 5\n", "cpu  a b c d e f g h\n", "\x00\x01"])
def test_stat_that_says_nothing_is_none(text: str) -> None:
    assert parse_stat(text) is None


def test_stat_of_an_old_kernel_has_fewer_columns() -> None:
    assert parse_stat("cpu 1 2 3 4\ncpu0 1 2 3 4\n") == CpuTimes(6, 4, 0, 1)


def test_status_turns_kilobytes_into_bytes() -> None:
    text = "Name:\tpython\nThreads:\t3\nVmHWM:\t   1672 kB\nVmRSS:\t 1000 kB\nCpus_allowed:\tff\n"
    assert parse_status(text) == {"Threads": 3, "VmHWM": 1672 * 1024, "VmRSS": 1000 * 1024}


def at(t: float, *, busy: int = 0, idle: int = 0, steal: int = 0, own: float = 0.0) -> Snapshot:
    return Snapshot(
        t_ns=int(t * 1e9),
        cpu=CpuTimes(busy, idle, steal, 2),
        own_cpu_ns=int(own * 1e9),
        run_delay_ns=0,
        throttled_ns=0,
        run_queue=1,
        num_threads=4,
        voluntary_switches=0,
        involuntary_switches=0,
        minor_faults=0,
        major_faults=0,
        frequency_hz=None,
        gpu=None,
    )


def test_other_cpu_is_what_is_busy_beyond_this_process() -> None:
    values = difference(at(1.0), at(1.5, busy=80, idle=15, steal=5, own=0.5))
    assert values["other_cpu"] == (pytest.approx((0.80 - 0.50) / 0.5), "cores")
    assert values["own_cpu"] == (pytest.approx(1.0), "cores")
    assert values["steal"] == (pytest.approx(0.1), "cores")
    assert values["other_cpu_uncertainty"] == (pytest.approx(2 * 0.010 / 0.5), "cores")
    assert values["threads"] == (4.0, "threads")


def test_other_cpu_is_never_negative() -> None:
    assert difference(at(0), at(1, busy=99, idle=101, own=1.02))["other_cpu"] == (0.0, "cores")


def test_a_proc_stat_that_stands_still_gives_no_value_rather_than_zero() -> None:
    values = difference(at(0), at(0.25, own=0.25))
    assert "other_cpu" not in values and "steal" not in values
    assert busy_neighbour(values, cores=2, threads=2) is None


def test_counters_are_differences_and_gauges_are_the_later_value() -> None:
    before = replace(at(0), voluntary_switches=5, minor_faults=7, run_delay_ns=10, throttled_ns=0, run_queue=9)
    after = replace(
        at(1, idle=200),
        voluntary_switches=8,
        minor_faults=7,
        run_delay_ns=250_000_010,
        throttled_ns=100_000_000,
        run_queue=2,
        frequency_hz=2e9,
    )
    values = difference(before, after)
    assert values["voluntary_switches"] == (3.0, "count")
    assert values["minor_faults"] == (0.0, "count")
    assert values["run_delay"] == (pytest.approx(0.25), "cores")
    assert values["throttled"] == (pytest.approx(0.1), "cores")
    assert values["run_queue"] == (2.0, "tasks")
    assert values["frequency"] == (2e9, "Hz")


def verdict(*, wall: float = 0.25, cores: int = 2, threads: int = 2, **cpu: float) -> str | None:
    """busy_neighbour for a slice in which others used `other` cores, and so on."""
    ticks = {name: round(value * wall * 100) for name, value in cpu.items()}
    other, steal = ticks.get("other", 0), ticks.get("steal", 0)
    own = min(threads, cores) * wall
    values = difference(at(0), at(wall, busy=round(own * 100) + other, idle=1, steal=steal, own=own))
    return busy_neighbour(values, cores=cores, threads=threads)


def test_a_quiet_slice_is_valid_and_a_busy_core_is_not() -> None:
    assert verdict() is None
    assert verdict(other=0.12) is None, "an idle machine's daemons"
    reason = verdict(other=1.0)
    assert reason is not None and "other processes used 1." in reason
    assert verdict(other=1.0, threads=1) is not None, "one thread on two cores has no core to spare either"
    assert verdict(other=0.5, wall=1.0) is not None


def test_the_limit_is_tighter_where_the_slice_is_longer() -> None:
    assert verdict(other=0.2, wall=0.25) is None, "five ticks: within what the ticks may be wrong by"
    assert verdict(other=0.2, wall=2.0) is not None


def test_a_neighbour_on_cores_that_the_slice_leaves_free_is_harmless() -> None:
    assert verdict(other=5.0, cores=16, threads=8) is None
    assert verdict(other=7.5, cores=16, threads=8) is not None
    assert verdict(other=0.5, cores=16, threads=16) is not None


def test_steal_and_throttling_invalidate() -> None:
    assert verdict(steal=0.08) is None
    assert "hypervisor" in str(verdict(steal=0.6))
    assert "quota" in str(busy_neighbour({"throttled": (0.2, "cores")}, cores=2, threads=2))
    assert busy_neighbour({}, cores=2, threads=2) is None


def test_a_snapshot_of_a_machine_that_tells_nothing_is_whole(tmp_path: Path) -> None:
    found = snapshot("cpu", root=str(tmp_path))
    assert (found.cpu, found.run_queue, found.run_delay_ns, found.throttled_ns, found.frequency_hz) == (None,) * 5
    values = difference(found, snapshot("cuda", root=str(tmp_path)))
    assert "other_cpu" not in values and values["wall"][0] > 0


def test_a_snapshot_reads_the_files_of_its_root(tmp_path: Path) -> None:
    write(tmp_path, "proc/stat", STAT)
    write(tmp_path, "proc/loadavg", "0.22 0.15 0.12 3/88 4898\n")
    write(tmp_path, "proc/self/task/1/schedstat", "775951 40 1\n")
    write(tmp_path, "proc/self/task/2/schedstat", "5 2 1\n")
    write(tmp_path, "proc/self/cgroup", "0::/mine\n")
    write(tmp_path, "sys/fs/cgroup/mine/cpu.stat", "usage_usec 5\nthrottled_usec 12\n")
    found = snapshot("cpu", root=str(tmp_path))
    assert found.cpu == CpuTimes(152, 1050, 9, 2)
    assert (found.run_queue, found.num_threads, found.run_delay_ns, found.throttled_ns) == (3, 2, 42, 12_000)


def test_throttling_of_a_v1_cgroup_is_in_nanoseconds(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "2:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n")
    write(tmp_path, "sys/fs/cgroup/cpu,cpuacct/cpu.stat", "nr_throttled 3\nthrottled_time 99\n")
    assert snapshot("cpu", root=str(tmp_path)).throttled_ns == 99


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_the_real_machine_counts_this_process_as_own() -> None:
    before = snapshot()
    total = sum(range(2_000_000))
    values = difference(before, snapshot())
    assert total > 0 and values["own_cpu"][0] > 0.0 and values["threads"][0] >= 1
    assert all(value >= 0 for value, _ in values.values())


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_peak_memory_follows_an_allocation_and_can_start_again() -> None:
    if not telemetry.reset_peak_rss():
        pytest.skip("this kernel or container does not let a process reset its high-water mark")
    base, size = telemetry.peak_rss_bytes(), 64 << 20
    assert base is not None
    block = mmap.mmap(-1, size)
    block.write(b"\1" * size)
    block.close()
    peak, now = telemetry.peak_rss_bytes(), telemetry.rss_bytes()
    assert peak is not None and now is not None
    assert peak - base > 0.9 * size, "the mark stays after the memory is gone"
    assert peak - now > 0.4 * size
    assert telemetry.reset_peak_rss()
    again = telemetry.peak_rss_bytes()
    assert again is not None and peak - again > 0.4 * size


def test_a_mark_that_cannot_be_reset_says_so(tmp_path: Path) -> None:
    assert telemetry.reset_peak_rss(root=str(tmp_path)) is False, "no /proc"
    write(tmp_path, "proc/self/clear_refs", "")
    write(tmp_path, "proc/self/status", "VmHWM:\t900000 kB\nVmRSS:\t1000 kB\n")
    assert telemetry.reset_peak_rss(root=str(tmp_path)) is False, "written, but the mark did not come down"
    write(tmp_path, "proc/self/status", "VmHWM:\t1000 kB\nVmRSS:\t1000 kB\n")
    assert telemetry.reset_peak_rss(root=str(tmp_path)) is True
    assert (tmp_path / "proc/self/clear_refs").read_text() == "5"
    assert telemetry.peak_rss_bytes(root=str(tmp_path / "none")) is None


class NoSuchValue(Exception):
    pass


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A driver with one GPU that knows clocks and energy but no temperature."""
    state = SimpleNamespace(energy=1000, reasons=0x1)

    def unsupported(*_: Any) -> None:
        raise NoSuchValue

    module = SimpleNamespace(
        NVMLError=NoSuchValue,
        nvmlDeviceGetClockInfo=lambda handle, kind: {1: 1980, 2: 2619}[kind],
        nvmlDeviceGetTemperature=unsupported,
        nvmlDeviceGetPowerUsage=lambda handle: 250_000,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: state.energy,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: state.reasons,
    )
    monkeypatch.setattr(nvml, "nvml", lambda: module)
    monkeypatch.setattr(nvml, "nvml_handle", lambda: "cuda:0")
    return state


def test_gpu_values_come_with_units_and_what_is_unsupported_is_absent(gpu: SimpleNamespace) -> None:
    before = snapshot("cuda")
    gpu.energy, gpu.reasons = 3500, 0x40
    values = difference(before, snapshot("cuda"))
    assert values["gpu_sm_clock"] == (1.98e9, "Hz")
    assert values["gpu_power"] == (250.0, "W")
    assert values["gpu_energy"] == (2.5, "J")
    assert "gpu_temperature" not in values
    assert nvml.throttle_names(int(values["gpu_throttle_reasons"][0])) == ["hardware thermal slowdown"]
    assert "gpu_sm_clock" not in difference(snapshot("cpu"), snapshot("cpu")), "NVML is not asked for a CPU case"


def test_importing_telemetry_imports_neither_torch_nor_nvml() -> None:
    code = (
        "import sys, harness.telemetry; print([name for name in ('torch', 'pynvml', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
