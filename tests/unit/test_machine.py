"""What a machine tells about itself, on bare Linux, in containers and where nothing can be read."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness import capability, hardware, machine, registry
from harness.core import UsageError
from harness.machine import Finding, Versions, capabilities, check_device, explain, fingerprint, preflight

ROOT = Path(__file__).resolve().parents[2]

CPUINFO = """processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8488C
flags\t\t: fpu avx2 avx512f hypervisor avx512_bf16 amx_bf16 amx_int8

processor\t: 1
model name\t: another line that must not win
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd sve bf16 i8mm\nCPU part\t: 0xd40\n"


def write(root: Path, path: str, text: str) -> None:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


def look(root: Path) -> machine.Machine:
    return machine.inspect_machine("cpu", root=str(root))


def test_identity_is_read_from_the_files_of_the_root(tmp_path: Path) -> None:
    write(tmp_path, "proc/cpuinfo", CPUINFO)
    write(tmp_path, "proc/meminfo", "MemTotal:       24684084 kB\nMemAvailable: 1 kB\n")
    write(tmp_path, "etc/os-release", 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12"\n')
    write(tmp_path, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave\n")
    write(tmp_path, ".dockerenv", "")
    found = look(tmp_path)
    assert found.cpu_model == found.device_name == "Intel(R) Xeon(R) Platinum 8488C"
    assert found.cpu_flags == ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")
    assert (found.ram_bytes, found.governor, found.os) == (24684084 * 1024, "powersave", "Debian GNU/Linux 12")
    assert found.virtualisation == ("vm", "container")
    assert found.gpus == ()


def test_an_arm_processor_has_its_own_words(tmp_path: Path) -> None:
    write(tmp_path, "proc/cpuinfo", ARM)
    found = look(tmp_path)
    assert (found.cpu_model, found.cpu_flags) == ("0xd40", ("asimd", "bf16", "i8mm", "sve"))


def test_a_machine_that_tells_nothing_is_still_described(tmp_path: Path) -> None:
    found = look(tmp_path)
    assert found.cpu_model and found.os and found.cores >= 1 and found.ram_bytes > 0
    assert (found.governor, found.memory_limit_bytes, found.cpu_quota, found.virtualisation) == (None, None, None, ())


def test_machine_id_is_stable_and_follows_hardware_not_software(tmp_path: Path) -> None:
    write(tmp_path, "proc/cpuinfo", CPUINFO)
    write(tmp_path, "proc/meminfo", "MemTotal: 24684084 kB\n")
    first = look(tmp_path).machine_id
    write(tmp_path, "proc/meminfo", "MemTotal: 24684000 kB\n")  # the kernel reserves a little more after an update
    write(tmp_path, "etc/os-release", 'PRETTY_NAME="New"\n')
    assert look(tmp_path).machine_id == first
    write(tmp_path, "etc/machine-id", "0123\n")
    other = look(tmp_path).machine_id
    write(tmp_path, "proc/meminfo", "MemTotal: 50684000 kB\n")
    assert len({first, other, look(tmp_path).machine_id}) == 3


def test_gpus_are_found_in_proc_where_nvml_is_not_there(tmp_path: Path) -> None:
    write(tmp_path, "proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat\n")
    write(
        tmp_path,
        "proc/driver/nvidia/gpus/0000:01:00.0/information",
        "Model: \t\t NVIDIA H100 PCIe\nIRQ:   \t\t 16\nGPU UUID: \t GPU-aa-bb\n",
    )
    (gpu,) = look(tmp_path).gpus
    assert (gpu.name, gpu.driver, gpu.uuid) == ("NVIDIA H100 PCIe", "535.104.05", "GPU-aa-bb")
    assert machine.inspect_machine("cuda", root=str(tmp_path)).device_name == "NVIDIA H100 PCIe"


def test_cgroup_v2_limits_are_the_tightest_of_all_levels(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/kube/pod\n")
    write(tmp_path, "sys/fs/cgroup/kube/pod/memory.max", "max\n")
    write(tmp_path, "sys/fs/cgroup/kube/memory.max", "4294967296\n")
    write(tmp_path, "sys/fs/cgroup/kube/pod/cpu.max", "150000 100000\n")
    write(tmp_path, "sys/fs/cgroup/kube/cpu.max", "max 100000\n")
    assert hardware.memory_limit(root=str(tmp_path)) == 4 << 30
    assert hardware.cpu_quota(root=str(tmp_path)) == 1.5


def test_cgroup_v1_limits_are_found_although_the_path_is_the_hosts(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "4:memory:/docker/deadbeef\n2:cpu,cpuacct:/docker/deadbeef\n")
    write(tmp_path, "sys/fs/cgroup/memory/memory.limit_in_bytes", "2147483648\n")
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000\n")
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert hardware.memory_limit(root=str(tmp_path)) == 2 << 30
    assert hardware.cpu_quota(root=str(tmp_path)) == 0.5


def test_no_limit_is_none_in_either_version(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "4:memory:/\n2:cpu:/\n0::/\n")
    write(tmp_path, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert hardware.memory_limit(root=str(tmp_path)) is None
    assert hardware.cpu_quota(root=str(tmp_path)) is None


def test_fingerprint_changes_with_everything_that_can_change_a_number(tmp_path: Path) -> None:
    write(tmp_path, "proc/cpuinfo", CPUINFO)
    here, found = look(tmp_path), Versions("2.13.0", None, None, None, {"numpy": "2.4.6"})
    prints = {
        fingerprint(here, found, "cpu", threads=2),
        fingerprint(here, found, "cpu", threads=1),
        fingerprint(here, found, "cuda", threads=2),
        fingerprint(here, replace(found, torch="2.12.0"), "cpu", threads=2),
        fingerprint(here, replace(found, packages={"numpy": "2.4.7"}), "cpu", threads=2),
        fingerprint(replace(here, governor="powersave"), found, "cpu", threads=2),
    }
    assert len(prints) == 6
    assert fingerprint(look(tmp_path), found, "cpu", threads=2) in prints


def test_versions_agree_with_the_packages_themselves() -> None:
    import numpy

    found = machine.versions()
    assert found.packages["numpy"] == numpy.__version__
    assert found.torch is not None and found.packages["torch"] == found.torch


def test_an_unknown_device_is_named_with_the_known_ones() -> None:
    assert check_device("cpu") == "cpu"
    with pytest.raises(UsageError, match=r"'gpu'.*cpu, cuda"):
        check_device("gpu")


def test_cuda_without_a_gpu_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    capability.why_no_cuda.cache_clear()
    try:
        with pytest.raises(
            UsageError, match=r"'cuda' cannot be used: torch .* (CPU build|finds no usable).*--device cpu"
        ):
            check_device("cuda")
        with pytest.raises(UsageError, match="cuda"):
            capabilities("cuda")
        assert "NVIDIA GPU" in explain("cuda")
    finally:
        capability.why_no_cuda.cache_clear()


def test_cpu_capabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capability, "cpu_identity", lambda: ("a CPU", frozenset({"avx2"})))
    monkeypatch.setattr(capability, "find_compiler", lambda: "/usr/bin/g++")
    monkeypatch.setattr(capability, "importable", lambda name: name in ("torch", "triton", "nvtx"))
    assert capabilities("cpu") == {"cpu", "bf16", "cxx", "compile", "nvtx", "pkg:torch", "pkg:triton", "pkg:nvtx"}
    monkeypatch.setattr(capability, "cpu_identity", lambda: ("a CPU", frozenset({"amx_bf16"})))
    monkeypatch.setattr(capability, "find_compiler", lambda: None)
    assert "bf16_fast" in capabilities("cpu")
    assert not {"cxx", "compile", "cuda", "triton"} & capabilities("cpu")


@pytest.mark.parametrize(("compute", "atoms"), [((7, 5), set()), ((8, 9), {"sm80"}), ((9, 0), {"sm80", "sm90"})])
def test_gpu_capabilities(monkeypatch: pytest.MonkeyPatch, compute: tuple[int, int], atoms: set[str]) -> None:
    import torch

    monkeypatch.setattr(capability, "check_device", str)
    monkeypatch.setattr(capability, "importable", lambda name: name in ("torch", "triton"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: compute)
    found = capabilities("cuda")
    assert found & {"sm80", "sm90"} == atoms
    assert {"cuda", "triton", "compile", "nvtx"} <= found and "cpu" not in found
    assert ("bf16" in found) == ("sm80" in found)


def test_packages_that_options_and_backends_ask_for_become_atoms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.OPTIONS, ("x", "y"), fake_option(needs=frozenset({"pkg:json", "pkg:no_such_package"})))
    assert "pkg:json" in capabilities("cpu")
    assert "pkg:no_such_package" not in capabilities("cpu")
    assert "pip install no-such-package" in explain("pkg:no_such_package")


@pytest.mark.parametrize(
    "atom", ["cuda", "triton", "compile", "bf16", "bf16_fast", "sm90", "nvtx", "pynvml", "cxx", "odd"]
)
def test_every_atom_is_explained(atom: str) -> None:
    assert len(explain(atom)) > 15


def test_sm_atoms_are_explained_as_compute_capability() -> None:
    assert "9.0" in explain("sm90") and "10.0" in explain("sm100")


def fake_option(**facts: Any) -> registry.Option:
    return registry.Option("x", "y", "module", lambda build, value: None, "An option.", **facts)


def test_doctor_lists_every_option_and_backend_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = registry.Backend("odd", SimpleNamespace, SimpleNamespace, "An engine.", packages=("no_such_package",))  # type: ignore[arg-type]
    options = {
        ("norm", "quick"): fake_option(),
        ("norm", "triton"): fake_option(needs=frozenset({"triton", "sm90"})),
        ("threads", "N"): fake_option(pattern="[0-9]+"),
    }
    monkeypatch.setattr(registry, "load_all", lambda plugins: None)
    monkeypatch.setattr(registry, "OPTIONS", options)
    monkeypatch.setattr(registry, "BACKENDS", {"odd": engine})
    monkeypatch.setattr(machine, "preflight", lambda device, threads: [Finding("warn", "load", "high")])
    rows = {(row.section, row.name): row for row in machine.doctor("cpu")}
    assert rows["option", "norm=quick"].level == "ok"
    assert rows["option", "threads=<N>"].level == "ok"
    missing = rows["option", "norm=triton"]
    assert missing.level == "missing" and "9.0" in missing.detail and "CUDA" in missing.detail
    assert rows["backend", "odd"].level == "missing" and "no-such-package" in rows["backend", "odd"].detail
    assert rows["preflight", "load"].level == "warn"
    assert rows["machine", "cpu"].detail


def findings(root: Path, threads: int = 2) -> dict[str, Finding]:
    return {found.name: found for found in preflight("cpu", threads, root=str(root), seconds=0.0)}


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_cpus", lambda: frozenset({0, 1}))


@pytest.mark.usefixtures("two_cores")
def test_preflight_where_nothing_can_be_read_warns_that_it_is_blind(tmp_path: Path) -> None:
    found = findings(tmp_path)
    assert found["other processes"].level == "warn" and "cannot be read" in found["other processes"].message
    assert all(finding.level != "refuse" for finding in found.values())


@pytest.mark.usefixtures("two_cores")
def test_preflight_warns_of_governor_load_quota_threads_and_memory(tmp_path: Path) -> None:
    write(tmp_path, "proc/loadavg", "3.50 0.15 0.12 3/88 4898\n")
    write(tmp_path, "proc/meminfo", "MemTotal: 24684084 kB\nMemAvailable: 1048576 kB\n")
    write(tmp_path, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave\n")
    write(tmp_path, "sys/devices/system/cpu/intel_pstate/no_turbo", "0\n")
    write(tmp_path, "proc/self/cgroup", "0::/\n")
    write(tmp_path, "sys/fs/cgroup/cpu.max", "100000 100000\n")
    found = findings(tmp_path, threads=4)
    assert {name for name, finding in found.items() if finding.level == "warn"} >= {
        "load", "governor", "cpu quota", "threads", "memory",
    }  # fmt: skip
    assert found["turbo"].message.startswith("on")


@pytest.mark.usefixtures("two_cores")
def test_preflight_is_content_with_a_quiet_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "proc/loadavg", "0.10 0.15 0.12 1/88 4898\n")
    write(tmp_path, "proc/meminfo", "MemTotal: 24684084 kB\nMemAvailable: 20000000 kB\n")
    write(tmp_path, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance\n")
    monkeypatch.setattr(machine, "difference", lambda before, after: cpu_values(0.02))
    assert {finding.level for finding in findings(tmp_path).values()} == {"ok"}


def cpu_values(other: float, steal: float = 0.0) -> dict[str, tuple[float, str]]:
    return {
        "wall": (0.5, "s"),
        "other_cpu": (other, "cores"),
        "other_cpu_uncertainty": (0.04, "cores"),
        "steal": (steal, "cores"),
    }


@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize(("other", "level"), [(0.1, "ok"), (1.0, "warn"), (1.9, "warn")])
def test_preflight_judges_and_names_the_busy_neighbour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: float, level: str
) -> None:
    seconds = iter([{77: ("compile job", 1.0)}, {77: ("compile job", 1.0 + 0.5 * other)}])
    monkeypatch.setattr(machine, "difference", lambda before, after: cpu_values(other))
    monkeypatch.setattr(machine, "process_seconds", lambda root: next(seconds))
    found = findings(tmp_path)["other processes"]
    assert found.level == level
    assert ("compile job (pid 77)" in found.message) == (level != "ok")


def test_process_times_survive_odd_names(tmp_path: Path) -> None:
    tail = " S 1 1 1 0 -1 4194304 98 0 0 0 250 50 0 0 20 0 1 0 106641\n"
    write(tmp_path, "proc/12/stat", "12 (a) b (c)" + tail)
    write(tmp_path, "proc/13/stat", "")
    write(tmp_path, "proc/version", "x")
    ((pid, (name, seconds)),) = machine.process_seconds(str(tmp_path)).items()
    assert (pid, name, seconds) == (12, "a) b (c", pytest.approx(3.0))


def test_checkout_tells_commit_and_dirt_and_ignores_an_enclosing_repository(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, "-C", str(tmp_path), *words], check=True, capture_output=True)

    assert machine.checkout(tmp_path) is None, "not a checkout"
    git("init", "-q")
    assert machine.checkout(tmp_path) is None, "no commit yet"
    write(tmp_path, "harness/a.py", "")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    clean = machine.checkout(tmp_path)
    assert clean is not None and len(clean.sha) == 40 and not clean.dirty
    write(tmp_path, "notes.txt", "lies outside the packages")
    assert machine.checkout(tmp_path) == clean
    write(tmp_path, "harness/new_option.py", "")
    found = machine.checkout(tmp_path)
    assert found is not None and found.dirty
    (tmp_path / "harness/new_option.py").unlink()
    write(tmp_path, "harness/a.py", "changed = True\n")
    found = machine.checkout(tmp_path)
    assert found is not None and found.dirty
    assert machine.checkout(tmp_path / "harness") is None, "inside another project's checkout"


def test_describing_a_cpu_machine_never_imports_torch() -> None:
    code = (
        "import sys; from harness import machine as m; x = m.inspect_machine(); m.capabilities('cpu');"
        "m.fingerprint(x, m.versions(), 'cpu'); m.preflight('cpu', 1, seconds=0.0);"
        "print([name for name in ('torch', 'numpy', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
