"""What this machine is, what it can run and why not the rest, and whether it is fit to measure now.

    machine = inspect_machine("cpu")              # identity: goes into the run's row
    capabilities("cpu")                           # atoms that options ask for: {"cpu", "bf16", "cxx", "compile", ...}
    explain("triton")                             # why an atom is missing and what to install
    preflight("cpu", threads=2)                   # load, neighbours, governor, steal, memory, GPU: ok | warn | refuse
    doctor("cpu")                                 # everything above plus every registered option, as rows

Identity lies in `harness.hardware`, atoms in `harness.capability`; both are offered here too. Torch is imported only
where a GPU is asked about. Whatever a machine does not tell (containers, macOS) is None or left out; only
`check_device` raises.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

from harness import registry
from harness.capability import (
    DEVICES,
    PACKAGES,
    capabilities,
    check_device,
    explain,
    importable,
    package_version,
    torch_cuda,
)
from harness.hardware import (
    Gpu,
    Machine,
    command_output,
    cpu_quota,
    find_gpus,
    inspect_machine,
    memory_limit,
    read_line,
)
from harness.nvml import nvml_value, read_gpu, throttle_names
from harness.telemetry import STEAL_LIMIT, difference, other_cpu_limit, read_text, snapshot, usable_cpus

__all__ = [
    "DEVICES",
    "Checkout",
    "DoctorRow",
    "Finding",
    "Gpu",
    "Machine",
    "Versions",
    "capabilities",
    "check_device",
    "checkout",
    "cpu_quota",
    "doctor",
    "explain",
    "find_gpus",
    "fingerprint",
    "inspect_machine",
    "memory_limit",
    "preflight",
    "versions",
]

Level = Literal["ok", "warn", "refuse"]
_GIB = 1 << 30
_LEAST_MEMORY = _GIB // 2
_SAMPLE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Versions:
    """Versions of what computes; None where it is not installed."""

    torch: str | None
    triton: str | None
    cuda: str | None
    driver: str | None
    packages: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Checkout:
    """The project's git commit; `dirty` if a tracked file or a new file of the packages differs from it."""

    sha: str
    dirty: bool


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that preflight looked at. refuse: no number from this machine would mean anything now."""

    level: Level
    name: str
    message: str


@dataclass(frozen=True, slots=True)
class DoctorRow:
    """One line of `harness doctor`. section: machine, preflight, capability, backend or option.

    `level` is ok, warn or refuse for preflight; elsewhere ok, or missing with the reason in `detail`.
    """

    section: Literal["machine", "preflight", "capability", "backend", "option"]
    name: str
    level: Literal["ok", "warn", "refuse", "missing"]
    detail: str


@cache
def versions() -> Versions:
    """Versions of what computes, from metadata: torch is not imported. cuda is the version that torch was built for."""
    packages = {name: found for name in PACKAGES if (found := package_version(name)) is not None}
    driver = next((gpu.driver for gpu in find_gpus()), None)
    return Versions(packages.get("torch"), packages.get("triton"), torch_cuda(), driver, packages)


def fingerprint(machine: Machine, found: Versions, device: str, *, threads: int = 0) -> str:
    """Sixteen hexadecimal digits, equal only where nothing is known to differ that could change a number.

    Everything in `machine` and `found`, the device and the number of threads. Measured peaks are cached under it.
    """
    facts = {"machine": asdict(machine), "versions": asdict(found), "device": device, "threads": threads}
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def checkout(folder: Path | None = None) -> Checkout | None:
    """The git state of the project's own checkout; None where it is not one (installed, exported) or git is absent."""
    top = folder or Path(__file__).resolve().parent.parent
    git = ["git", "--no-optional-locks", "-C", str(top)]
    where = command_output([*git, "rev-parse", "--show-toplevel"])
    # An installed copy may lie in a virtual environment inside another project's checkout: not ours.
    if where is None or Path(where).resolve() != top.resolve():
        return None
    sha = command_output([*git, "rev-parse", "--verify", "-q", "HEAD"])
    packages = [name for name in ("harness", "minimind", "kernels", "suites") if (top / name).is_dir()]
    changed = command_output([*git, "status", "--porcelain", "--untracked-files=no"])
    added = command_output([*git, "ls-files", "--others", "--exclude-standard", "--", *packages]) if packages else ""
    return None if sha is None else Checkout(sha, bool(changed) or bool(added))


def process_seconds(root: str) -> dict[int, tuple[str, float]]:
    """Process id -> (name, CPU seconds so far), for all processes that /proc shows."""
    tick = 1.0 / os.sysconf("SC_CLK_TCK")
    found = {}
    for entry in os.listdir(f"{root}/proc") if os.path.isdir(f"{root}/proc") else []:
        if not entry.isdigit():
            continue
        head, _, tail = (read_text(f"{root}/proc/{entry}/stat") or "").rpartition(")")
        fields = tail.split()
        if len(fields) > 12:
            found[int(entry)] = (head.partition("(")[2], (int(fields[11]) + int(fields[12])) * tick)
    return found


def _busiest(before: Mapping[int, tuple[str, float]], after: Mapping[int, tuple[str, float]], wall: float) -> str:
    used = sorted(
        ((seconds - before.get(pid, ("", 0.0))[1], pid, name) for pid, (name, seconds) in after.items()), reverse=True
    )
    words = [
        f"{name} (pid {pid}) {seconds / wall:.2f}"
        for seconds, pid, name in used[:3]
        if pid != os.getpid() and seconds / wall >= 0.05
    ]
    return f"; most by {', '.join(words)}" if words else ""


def _cpu_findings(cores: int, threads: int, root: str, seconds: float) -> Iterator[Finding]:
    load = (read_text(f"{root}/proc/loadavg") or "").split()
    if load:
        busy = float(load[0]) > max(0.5, cores - threads)
        yield Finding("warn" if busy else "ok", "load", f"load average {load[0]} over one minute on {cores} cores")
    processes, before = process_seconds(root), snapshot(root=root)
    time.sleep(seconds)
    values = difference(before, snapshot(root=root))
    if "other_cpu" in values:
        other, uncertainty = values["other_cpu"][0], values["other_cpu_uncertainty"][0]
        limit = other_cpu_limit(cores=cores, threads=threads, uncertainty=uncertainty)
        # Never a refusal: half a second says little, and a block that really has a neighbour becomes `invalid`.
        level: Level = "ok" if other <= limit else "warn"
        who = _busiest(processes, process_seconds(root), values["wall"][0]) if level != "ok" else ""
        effect = "" if level == "ok" else ": blocks beside a busy neighbour are invalid"
        yield Finding(level, "other processes", f"{other:.2f} cores in use (limit {limit:.2f}){who}{effect}")
        steal = values["steal"][0]
        text = f"{steal:.2f} cores taken by the hypervisor"
        yield Finding("ok" if steal <= STEAL_LIMIT + uncertainty / 2 else "warn", "steal", text)
    else:
        yield Finding("warn", "other processes", "/proc/stat cannot be read here: a busy neighbour would not be seen")


def _limit_findings(threads: int, cores: int, root: str) -> Iterator[Finding]:
    quota = cpu_quota(root=root)
    if quota is not None:
        level: Level = "warn" if quota < max(cores, threads) else "ok"
        note = (
            f", fewer than the {max(cores, threads)} in use: threads are stopped in mid-step" if level == "warn" else ""
        )
        yield Finding(level, "cpu quota", f"the container may use {quota:g} cores{note}")
    if threads > cores:
        yield Finding("warn", "threads", f"{threads} threads on {cores} usable cores: they wait for one another")
    for path, on in (("devices/system/cpu/intel_pstate/no_turbo", "0"), ("devices/system/cpu/cpufreq/boost", "1")):
        state = read_line(root, f"sys/{path}")
        if state is not None:
            note = "on: clocks depend on temperature and on the neighbours" if state == on else "off"
            yield Finding("ok", "turbo", note)
            break
    governor = read_line(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor is not None:
        hint = "" if governor == "performance" else ": clocks ramp up late; 'performance' is steadier"
        yield Finding("warn" if hint else "ok", "governor", f"{governor}{hint}")


def available_memory(*, root: str = "") -> int | None:
    """Bytes that a new process could take: MemAvailable, or the cgroup's limit where that is less."""
    match = re.search(r"^MemAvailable:\s+(\d+) kB", read_text(f"{root}/proc/meminfo") or "", re.M)
    limit = memory_limit(root=root)
    return min((value for value in (int(match[1]) * 1024 if match else None, limit) if value is not None), default=None)


def _gpu_findings() -> Iterator[Finding]:
    reading = read_gpu()
    if reading is None:
        yield Finding("warn", "gpu", f"clocks, throttling and other users are not seen: {explain('pynvml')}")
        return
    users = [user.pid for user in nvml_value("nvmlDeviceGetComputeRunningProcesses") or [] if user.pid != os.getpid()]
    if users:
        yield Finding("warn", "gpu processes", f"also used by process {', '.join(map(str, users))}")
    rates = nvml_value("nvmlDeviceGetUtilizationRates")
    if rates is not None:
        yield Finding("warn" if rates.gpu > 10 else "ok", "gpu load", f"{rates.gpu}% busy")
    clocks = [
        f"{name} {value:.0f} MHz"
        for name, value in (("sm", reading.sm_clock), ("memory", reading.memory_clock))
        if value is not None
    ]
    if clocks:
        yield Finding("ok", "gpu clocks", ", ".join(clocks))
    slow = throttle_names(reading.throttle_reasons or 0)
    yield Finding("warn" if slow else "ok", "gpu throttling", ", ".join(slow) or "none")


def preflight(device: str, threads: int, *, root: str = "", seconds: float = _SAMPLE_SECONDS) -> list[Finding]:
    """Whether this machine is fit to measure now; takes `seconds`, in which it sleeps and watches the others.

    warn: the run goes on, its rows carry the reason where it matters (a block beside a busy neighbour is `invalid`).
    refuse: less than 512 MiB of memory is free.
    """
    cores = len(usable_cpus())
    findings = [*_cpu_findings(cores, threads, root, seconds), *_limit_findings(threads, cores, root)]
    free = available_memory(root=root)
    if free is not None:
        level: Level = "refuse" if free < _LEAST_MEMORY else "warn" if free < 2 * _GIB else "ok"
        findings.append(Finding(level, "memory", f"{free / _GIB:.1f} GiB available"))
    return [*findings, *(_gpu_findings() if device == "cuda" else ())]


def _machine_rows(machine: Machine, found: Versions) -> Iterator[DoctorRow]:
    gib = f"{machine.ram_bytes / _GIB:.1f} GiB"
    if machine.memory_limit_bytes is not None:
        gib += f", container limit {machine.memory_limit_bytes / _GIB:.1f} GiB"
    rows = {
        "machine": machine.machine_id,
        "cpu": f"{machine.cpu_model}, {machine.cores} usable of {machine.threads} logical CPUs",
        "cpu flags": " ".join(machine.cpu_flags),
        "memory": gib,
        "system": f"{machine.os}, kernel {machine.kernel}, Python {machine.python}",
        "virtualisation": ", ".join(machine.virtualisation),
        "torch": f"{found.torch} (CUDA {found.cuda})" if found.cuda else found.torch or "",
        **{f"gpu {index}": f"{gpu.name}, driver {gpu.driver}" for index, gpu in enumerate(machine.gpus)},
    }
    return (DoctorRow("machine", name, "ok", text) for name, text in rows.items() if text)


def _option_rows(offered: frozenset[str]) -> Iterator[DoctorRow]:
    for name, engine in sorted(registry.BACKENDS.items()):
        missing = [package for package in engine.packages if not importable(package)]
        reason = "; ".join(explain(f"pkg:{package}") for package in missing)
        yield DoctorRow("backend", name, "missing" if missing else "ok", reason or engine.doc)
    for (axis, name), option in sorted(registry.OPTIONS.items()):
        lacking = sorted(option.needs - offered)
        reason = "; ".join(map(explain, lacking))
        shown = f"{axis}=<{name}>" if option.pattern else f"{axis}={name}"
        yield DoctorRow("option", shown, "missing" if lacking else "ok", reason or option.doc)


def doctor(device: str, *, plugins: Iterable[str] = ()) -> list[DoctorRow]:
    """What this machine can run on `device`, and why not the rest: facts, preflight, atoms, backends, every option.

    Takes half a second, in which it watches the other processes. Raises UsageError for a device that is not there.
    """
    check_device(device)
    registry.load_all(tuple(plugins))
    offered = capabilities(device)
    rows = list(_machine_rows(inspect_machine(device), versions()))
    rows += [
        DoctorRow("preflight", found.name, found.level, found.message)
        for found in preflight(device, max(1, len(usable_cpus())))
    ]
    for atom in ("cuda", "triton", "compile", "bf16_fast", "nvtx", "pynvml"):
        rows.append(
            DoctorRow(
                "capability", atom, "ok" if atom in offered else "missing", "" if atom in offered else explain(atom)
            )
        )
    return [*rows, *_option_rows(offered)]
