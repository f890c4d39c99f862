"""What a worker reads just before and just after a slice: who else used the cores, steal, faults, clocks, memory.

    before = snapshot("cpu")
    ...                                   # the slice
    values = difference(before, snapshot("cpu"))
    reason = busy_neighbour(values, cores=2, threads=2)      # None, or why the slice is invalid

A snapshot is a few reads of /proc (0.2 ms) and, on a GPU, a few NVML queries; it never sleeps or polls. Whatever
cannot be read is None and its name is absent from the difference; nothing raises because of the machine. Torch-free.

What /proc/stat says where. It counts all processes of the kernel: inside a container that is the host, so other
containers are "other processes", which is right, since they share the cores. Only the CPUs that this process may run
on are counted, so a cpuset keeps a big host's other cores out. LXC's lxcfs shows the container's own processes only.
gVisor shows zeros that never move: then `other_cpu` is absent rather than 0.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from harness.nvml import GpuReading, Values, gpu_difference, read_gpu

OTHER_CPU_LIMIT = 0.15
STEAL_LIMIT = 0.10
THROTTLED_LIMIT = 0.02


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Totals since boot over the counted CPUs, in clock ticks (`ticks_per_second` a second, mostly 100)."""

    busy: int
    idle: int
    steal: int
    num_cpus: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Counters at one moment. Times are nanoseconds, counts are totals of this process; None where unreadable."""

    t_ns: int
    cpu: CpuTimes | None
    own_cpu_ns: int
    run_delay_ns: int | None
    throttled_ns: int | None
    run_queue: int | None
    num_threads: int | None
    voluntary_switches: int
    involuntary_switches: int
    minor_faults: int
    major_faults: int
    frequency_hz: float | None
    gpu: GpuReading | None
    ticks_per_second: int = 100


def read_text(path: str | Path) -> str | None:
    """The text of a small file, or None where it cannot be read (absent, forbidden, not text)."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return None


def usable_cpus() -> frozenset[int]:
    """The CPUs that this process may run on (cpuset and affinity); all of them where the system cannot say."""
    try:
        return frozenset(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return frozenset(range(os.cpu_count() or 1))


def parse_stat(text: str, *, cpus: frozenset[int] | None = None) -> CpuTimes | None:
    """Read /proc/stat. `cpus`: count only these; None or all of those online: the total line, which rounds once.

    busy = user + nice + system + irq + softirq; guest time is already in user and is not added again; idle includes
    iowait (the core is free). None where the text holds no cpu lines. Source: proc_stat(5).
    """
    total: list[int] | None = None
    single: dict[int, list[int]] = {}
    for line in text.splitlines():
        if not line.startswith("cpu"):
            continue
        name, *words = line.split()
        try:
            fields = [int(word) for word in words[:8]]
        except ValueError:
            continue
        fields += [0] * (8 - len(fields))
        if name == "cpu":
            total = fields
        elif name[3:].isdigit():
            single[int(name[3:])] = fields
    chosen = list(single) if cpus is None else [number for number in single if number in cpus]
    if total is None or (chosen and len(chosen) < len(single)):
        if not chosen:
            return None
        total = [sum(column) for column in zip(*(single[number] for number in chosen), strict=True)]
    user, nice, system, idle, iowait, irq, softirq, steal = total
    return CpuTimes(user + nice + system + irq + softirq, idle + iowait, steal, len(chosen) or len(single) or 1)


def parse_status(text: str) -> dict[str, int]:
    """The whole-number fields of /proc/PID/status; values in kB become bytes."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdigit():
            found[name] = int(words[0]) * (1024 if words[1:] == ["kB"] else 1)
    return found


def cgroup_files(controller: str, name_v1: str, name_v2: str, *, root: str | Path = "/") -> list[Path]:
    """This process's cgroup files `name` from its own group up to the root, existing ones only, v2 before v1.

    In a container the path in /proc/self/cgroup is often the host's; then only the mount's root file exists.
    """
    base = Path(root)
    candidates: list[Path] = []
    for line in (read_text(base / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if not names:
            tops, name = [base / "sys/fs/cgroup", base / "sys/fs/cgroup/unified"], name_v2
        elif controller in names.split(","):
            tops, name = [base / "sys/fs/cgroup" / part for part in dict.fromkeys([names, controller])], name_v1
        else:
            continue
        parts = [part for part in path.split("/") if part and part != ".."]
        for top in tops:
            candidates += [top.joinpath(*parts[:depth], name) for depth in range(len(parts), -1, -1)]
    return [path for path in dict.fromkeys(candidates) if path.is_file()]


@cache
def _throttle_path(root: str) -> str | None:
    files = cgroup_files("cpu", "cpu.stat", "cpu.stat", root=root)
    return str(files[0]) if files else None


def _throttled_ns(root: str) -> int | None:
    path = _throttle_path(root)
    for line in ((read_text(path) if path else None) or "").splitlines():
        name, _, value = line.partition(" ")
        if name in ("throttled_usec", "throttled_time") and value.strip().isdigit():
            return int(value) * (1000 if name == "throttled_usec" else 1)
    return None


def _tasks(root: str) -> tuple[int | None, int | None]:
    """How many threads this process has, and the nanoseconds for which they could run but waited for a core.

    The second is field 2 of each task's schedstat (Documentation/scheduler/sched-stats.rst); None without it.
    """
    folder = f"{root}/proc/self/task"
    total = None
    try:
        tasks = os.listdir(folder)
    except OSError:
        return None, None
    for task in tasks:
        words = (read_text(f"{folder}/{task}/schedstat") or "").split()
        if len(words) >= 2 and words[1].isdigit():
            total = (total or 0) + int(words[1])
    return len(tasks), total


def _run_queue(root: str) -> int | None:
    words = (read_text(f"{root}/proc/loadavg") or "").split()
    running = words[3].partition("/")[0] if len(words) >= 4 else ""
    return int(running) if running.isdigit() else None


@cache
def _frequency_path(root: str) -> str | None:
    path = f"{root}/sys/devices/system/cpu/cpu{min(usable_cpus(), default=0)}/cpufreq/scaling_cur_freq"
    return path if read_text(path) is not None else None


def _frequency_hz(root: str) -> float | None:
    path = _frequency_path(root)
    text = ((read_text(path) if path else None) or "").strip()
    return int(text) * 1e3 if text.isdigit() else None


def snapshot(device: str = "cpu", *, root: str = "") -> Snapshot:
    """Read everything once. `root` is a folder that stands for `/` (tests). NVML is asked only where device is cuda."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    gpu = read_gpu() if device == "cuda" else None
    frequency, run_queue = _frequency_hz(root), _run_queue(root)
    throttled, (num_threads, delay) = _throttled_ns(root), _tasks(root)
    text = read_text(f"{root}/proc/stat")
    return Snapshot(
        t_ns=time.perf_counter_ns(),  # the three that are divided by one another are read together, last
        cpu=parse_stat(text, cpus=usable_cpus() if not root else None) if text else None,
        own_cpu_ns=time.process_time_ns(),
        run_delay_ns=delay,
        throttled_ns=throttled,
        run_queue=run_queue,
        num_threads=num_threads,
        voluntary_switches=usage.ru_nvcsw,
        involuntary_switches=usage.ru_nivcsw,
        minor_faults=usage.ru_minflt,
        major_faults=usage.ru_majflt,
        frequency_hz=frequency,
        gpu=gpu,
        ticks_per_second=int(os.sysconf("SC_CLK_TCK")),
    )


def difference(before: Snapshot, after: Snapshot) -> Values:
    """What happened between two snapshots: name -> (value, unit). Names whose source cannot be read are absent.

    other_cpu (cores) = (busy of the counted CPUs - own CPU time) / wall, at least 0. Children of this process count as
    others. The kernel samples busy time at its timer tick and shows it in 10 ms ticks, while own time is exact; so the
    value is uncertain by about two ticks of wall time whatever the number of cores: `other_cpu_uncertainty` is
    2 / ticks_per_second / wall, 0.08 cores for a slice of 0.25 s. (24 idle slices of 0.25 s beside one busy thread: sd
    0.026, largest error 0.073.) Absent where /proc/stat did not move although time passed.

    steal (cores): time for which the hypervisor ran someone else. run_delay (cores): time that own threads waited for a
    core, in nanoseconds of the scheduler, so it is exact; it counts own oversubscription too. throttled (cores): time
    in which a cgroup quota held this process's group. Gauges (run_queue, threads, frequency, GPU clocks) are those of
    the later snapshot; gpu_throttle_reasons is the union of both.
    """
    wall = max((after.t_ns - before.t_ns) * 1e-9, 1e-9)
    own = (after.own_cpu_ns - before.own_cpu_ns) * 1e-9
    values: Values = {"wall": (wall, "s"), "own_cpu": (own / wall, "cores")}
    if before.cpu is not None and after.cpu is not None:
        tick = 1.0 / after.ticks_per_second
        busy, idle, steal = (
            (getattr(after.cpu, name) - getattr(before.cpu, name)) * tick for name in ("busy", "idle", "steal")
        )
        if busy + idle + steal > 0 or wall < 2 * tick:
            values["other_cpu"] = (max(0.0, (busy - own) / wall), "cores")
            values["other_cpu_uncertainty"] = (2 * tick / wall, "cores")
            values["steal"] = (max(0.0, steal / wall), "cores")
    for name, first, last in (
        ("run_delay", before.run_delay_ns, after.run_delay_ns),
        ("throttled", before.throttled_ns, after.throttled_ns),
    ):
        if first is not None and last is not None:
            values[name] = (max(0, last - first) * 1e-9 / wall, "cores")
    for name in ("voluntary_switches", "involuntary_switches", "minor_faults", "major_faults"):
        values[name] = (float(getattr(after, name) - getattr(before, name)), "count")
    gauges = (
        ("run_queue", after.run_queue, "tasks"),
        ("threads", after.num_threads, "threads"),
        ("frequency", after.frequency_hz, "Hz"),
    )
    values.update({name: (float(value), unit) for name, value, unit in gauges if value is not None})
    values.update(gpu_difference(before.gpu, after.gpu))
    return values


def other_cpu_limit(*, cores: int, threads: int, uncertainty: float = 0.0) -> float:
    """How many cores others may use beside a slice of `threads` threads: see `busy_neighbour`."""
    return max(OTHER_CPU_LIMIT + uncertainty, float(cores - threads - 1))


def busy_neighbour(values: Mapping[str, tuple[float, str]], *, cores: int, threads: int) -> str | None:
    """Why a slice with this `difference` is invalid, or None. `cores`: usable ones; `threads`: those of the slice.

    Rules, each of which names what was seen and its limit:

    - other_cpu above max(0.15 + uncertainty, cores - threads - 1). A neighbour is harmless only while it finds a core
      that the slice leaves free, with one to spare; where there is none, OpenMP barriers make a two-thread step beside
      one busy core 25 times slower, and perfectly steadily. 0.15 cores is what an idle machine's own daemons and the
      harness's parent reach; the uncertainty (0.08 cores at 0.25 s) keeps the 10 ms ticks of /proc/stat from failing
      an undisturbed slice. A busy neighbour uses a whole core, so the gap is wide.
    - steal above 0.10 cores per thread of the slice plus half the uncertainty: the hypervisor ran someone else.
    - throttled above 2% of the slice: a cgroup quota stopped the process, whoever used it up.

    Idle sibling workers block in read() and use no CPU, so they do not count. Names that are absent decide nothing.
    """

    def value(name: str) -> float:
        return values.get(name, (0.0, ""))[0]

    uncertainty = value("other_cpu_uncertainty")
    limit = other_cpu_limit(cores=cores, threads=threads, uncertainty=uncertainty)
    if value("other_cpu") > limit:
        return f"busy neighbour: other processes used {value('other_cpu'):.2f} cores (limit {limit:.2f})"
    limit = STEAL_LIMIT * max(1, min(threads, cores)) + uncertainty / 2
    if value("steal") > limit:
        return f"steal: the hypervisor took {value('steal'):.2f} cores (limit {limit:.2f})"
    if value("throttled") > THROTTLED_LIMIT:
        return f"throttled: a cgroup CPU quota held the process for {value('throttled'):.0%} of the slice"
    return None


def rss_bytes(*, root: str = "") -> int | None:
    """Resident memory of this process now, in bytes; None where /proc does not say."""
    return parse_status(read_text(f"{root}/proc/self/status") or "").get("VmRSS")


def peak_rss_bytes(*, root: str = "") -> int | None:
    """High-water mark of resident memory in bytes, since `reset_peak_rss` if that returned True, else since the start.

    VmHWM of /proc/self/status; elsewhere (macOS) getrusage's ru_maxrss, which can never be reset.
    """
    found = parse_status(read_text(f"{root}/proc/self/status") or "").get("VmHWM")
    if found is None and sys.platform == "darwin" and not root:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes there, kilobytes on Linux
    return found


def reset_peak_rss(*, root: str = "") -> bool:
    """Start a new high-water mark at the present resident size. False where it cannot be: use a fresh child process.

    First returns freed heap to the system (glibc), so that memory that an earlier phase left behind cannot hide what
    the next one takes. Then writes 5 to /proc/self/clear_refs (proc_pid_clear_refs(5), Linux 4.0) and checks that the
    mark came down: gVisor and read-only /proc do not do it.
    """
    if not root:
        _trim_heap()
    try:
        with open(f"{root}/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        return False
    peak, now = peak_rss_bytes(root=root), rss_bytes(root=root)
    return peak is not None and now is not None and peak <= now + max(now // 20, 4 << 20)


def _trim_heap() -> None:
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        pass  # not glibc: nothing to return
