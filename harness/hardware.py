"""The identity of the machine: CPU, memory, GPUs, limits of its container. Read from files, without torch.

    machine = inspect_machine("cpu")
    machine.machine_id, machine.cores, machine.memory_limit_bytes

Whatever a machine does not tell (a container without /sys, macOS) is None or empty; nothing here raises because of it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from harness.nvml import nvml
from harness.telemetry import cgroup_files, read_text, usable_cpus

# Flags that decide which kernels run: x86 names, then ARM's.
# fmt: off
CPU_FLAGS = (
    "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8",
    "asimd", "asimddp", "bf16", "i8mm", "sve", "sve2",
)
# fmt: on
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU: name, bytes of memory, driver version and UUID; None where the driver does not tell."""

    name: str
    memory_bytes: int | None = None
    driver: str | None = None
    uuid: str | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine's identity. `cores` are those that this process may use, `threads` the logical CPUs of the machine."""

    machine_id: str
    device_name: str
    cpu_model: str
    cores: int
    threads: int
    ram_bytes: int
    os: str
    kernel: str
    python: str
    governor: str | None = None
    virtualisation: tuple[str, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    memory_limit_bytes: int | None = None
    cpu_quota: float | None = None
    cpu_flags: tuple[str, ...] = ()


def read_line(root: str, path: str) -> str | None:
    """The stripped text of a small file under `root`; None where it is absent, unreadable or empty."""
    text = read_text(f"{root}/{path}")
    return text.strip("\0 \n\t") if text else None


def cpu_identity(root: str = "") -> tuple[str, frozenset[str]]:
    """CPU model and flags from /proc/cpuinfo (x86 and ARM spell them differently), elsewhere what Python knows."""
    found: dict[str, str] = {}
    for line in (read_text(f"{root}/proc/cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip().lower(), value.strip())
    model = found.get("model name") or found.get("hardware") or found.get("cpu part")
    if model is None and sys.platform == "darwin":
        model = command_output(["sysctl", "-n", "machdep.cpu.brand_string"])
    return model or platform.processor() or platform.machine() or "unknown", frozenset(
        (found.get("flags") or found.get("features") or "").split()
    )


def command_output(words: list[str], *, cwd: Path | None = None) -> str | None:
    """What a command printed, stripped; None if it is absent, fails or takes more than 10 s."""
    try:
        done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _ram_bytes(root: str) -> int:
    match = re.search(r"^MemTotal:\s+(\d+) kB", read_text(f"{root}/proc/meminfo") or "", re.M)
    if match:
        return int(match[1]) * 1024
    try:
        return int(os.sysconf("SC_PHYS_PAGES")) * int(os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError):
        return 0


def memory_limit(*, root: str = "") -> int | None:
    """The smallest cgroup memory limit in bytes above this process (v1 or v2), None where there is none."""
    limits = []
    for path in cgroup_files("memory", "memory.limit_in_bytes", "memory.max", root=root or "/"):
        text = (read_text(path) or "").strip()
        if text.isdigit() and int(text) < 1 << 60:  # v1 writes a huge number for "none"
            limits.append(int(text))
    return min(limits, default=None)


def cpu_quota(*, root: str = "") -> float | None:
    """The smallest cgroup CPU quota above this process, in cores (v1 or v2), None where there is none."""
    quotas = []
    for path in cgroup_files("cpu", "cpu.cfs_quota_us", "cpu.max", root=root or "/"):
        words = (read_text(path) or "").split()
        if path.name == "cpu.cfs_quota_us":
            words += (read_text(path.with_name("cpu.cfs_period_us")) or "").split()
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]) > 0:
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def _virtualisation(root: str, flags: frozenset[str]) -> tuple[str, ...]:
    found = ["vm"] if "hypervisor" in flags else []
    for path, marks in (("sys/hypervisor/type", None), ("sys/class/dmi/id/product_name", ("kvm", "virtual", "vmware"))):
        text = (read_line(root, path) or "").lower()
        if text and (marks is None or any(mark in text for mark in marks)):
            found.append(text)
    if any(Path(f"{root}/{path}").exists() for path in (".dockerenv", "run/.containerenv")):
        found.append("container")
    if "microsoft" in (read_line(root, "proc/sys/kernel/osrelease") or "").lower():
        found.append("wsl")
    return tuple(dict.fromkeys(found))


def find_gpus(*, root: str = "") -> tuple[Gpu, ...]:
    """All NVIDIA GPUs, from NVML, else from the driver's /proc files; empty without a driver. Torch-free."""
    module = None if root else nvml()
    if module is None:
        driver = re.search(r"Module\s+(\d+[\d.]+)", read_line(root, "proc/driver/nvidia/version") or "")
        found = []
        for path in sorted(Path(f"{root}/proc/driver/nvidia/gpus").glob("*/information")):
            facts = dict(re.findall(r"^([^:\n]+):\s*(.*)$", read_text(path) or "", re.M))
            found.append(Gpu(facts.get("Model", "unknown"), None, driver[1] if driver else None, facts.get("GPU UUID")))
        return tuple(found)
    try:
        driver_version = _text(module.nvmlSystemGetDriverVersion())
        handles = [module.nvmlDeviceGetHandleByIndex(index) for index in range(module.nvmlDeviceGetCount())]
        return tuple(
            Gpu(
                _text(module.nvmlDeviceGetName(handle)),
                int(module.nvmlDeviceGetMemoryInfo(handle).total),
                driver_version,
                _text(module.nvmlDeviceGetUUID(handle)),
            )
            for handle in handles
        )
    except module.NVMLError:
        return ()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def inspect_machine(device: str = "cpu", *, root: str = "") -> Machine:
    """Describe this machine. `root` is a folder that stands for `/` (tests).

    machine_id hashes hardware identity (CPU model, logical CPUs, RAM in whole GiB, /etc/machine-id, GPU names, UUIDs):
    equal across runs and reboots, and free of anything that names the owner. A fresh container on the same hardware
    may have another /etc/machine-id, and clones of one image have the same: nothing better can be read everywhere.
    """
    model, flags = cpu_identity(root)
    threads, ram = os.cpu_count() or 1, _ram_bytes(root)
    gpus = find_gpus(root=root)
    hardware = (
        model,
        threads,
        round(ram / _GIB),
        read_line(root, "etc/machine-id") or "",
        [(gpu.name, gpu.uuid) for gpu in gpus],
    )
    return Machine(
        machine_id=hashlib.sha256(repr(hardware).encode()).hexdigest()[:12],
        device_name=gpus[0].name if device == "cuda" and gpus else model,
        cpu_model=model,
        cores=len(usable_cpus()),
        threads=threads,
        ram_bytes=ram,
        os=_os_name(root),
        kernel=platform.release(),
        python=platform.python_version(),
        governor=read_line(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        virtualisation=_virtualisation(root, flags),
        gpus=gpus,
        memory_limit_bytes=memory_limit(root=root),
        cpu_quota=cpu_quota(root=root),
        cpu_flags=tuple(flag for flag in CPU_FLAGS if flag in flags),
    )


def _os_name(root: str) -> str:
    match = re.search(r'^PRETTY_NAME="?([^"\n]*)', read_line(root, "etc/os-release") or "", re.M)
    return match[1] if match else f"{platform.system()} {platform.release()}"
