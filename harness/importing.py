"""Results of pytest-benchmark and optimum-benchmark as finished runs of the store. Torch-free.

    found = read_report(Path("0001_abc.json"))                  # which tool wrote it, and what it holds
    run_id, is_new = import_report(store, found, suite=None)    # the same file twice is the same run

Such a file holds the rounds of one process. They become the samples of one block, so that no comparison with them has
an interval over processes; where a file holds statistics only, the median is kept as one value and `facts` say that
there are no rounds. The machine's id is `imported-...`: it never equals that of a machine on which we measured.
It refuses (UsageError) what is not JSON, another tool's JSON, a file without benchmarks, and damaged numbers.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import harness.metrics  # noqa: F401  (declares what METRICS holds)
from harness.core import SOLO_BLOCK, Case, Iteration, Sample, UsageError, Variant, Workload
from harness.registry import METRICS, Record, Work
from harness.schema import CaseRow, RunRow
from harness.store import Store

Tool = Literal["pytest-benchmark", "optimum-benchmark"]
EVIDENCE = "rounds of one process: no interval over processes"
NO_ROUNDS = "the file holds statistics but no rounds: one value, no samples"
_EXTERNAL = Workload.of("external")  # never measured here, so no declared kind: the benchmark's name is its identity
_SUITE_TEST = re.compile(r"\[(?P<suite>[^/\]]+)/(?P<workload>[^/]+)/(?P<model>.+)/(?P<variant>[^/]+)\]$")
_MEGABYTE = 1e6  # optimum-benchmark divides by 1e6 and writes "MB"


@dataclass(frozen=True, slots=True)
class ImportedCase:
    """One benchmark of a file: `rounds` are metric -> one value per round, `singles` metric -> (value, unit)."""

    case: Case
    name: str
    rounds: Mapping[str, Sequence[float]]
    singles: Mapping[str, tuple[float, str]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def median_seconds(self) -> float:
        """The median duration of a repetition, from the rounds or as the file states it."""
        rounds = self.rounds.get("step_time")
        return statistics.median(rounds) if rounds else self.singles["step_time"][0]


@dataclass(frozen=True, slots=True)
class Report:
    """What a file holds: the run's row as far as the file tells, its cases, and what was left out and why."""

    tool: Tool
    file: str
    digest: str
    run: RunRow
    cases: Sequence[ImportedCase]
    notes: Sequence[str] = ()


def read_report(path: Path) -> Report:
    """Read a file of pytest-benchmark (`--benchmark-json`, `.benchmarks`) or optimum-benchmark.

    Raises UsageError that names the file and what is wrong with it.
    """
    try:
        data = path.read_bytes()
        document = json.loads(data)
    except OSError as error:
        raise UsageError(f"'{path}' cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"'{path}' is not JSON: {str(error)[:100]}") from error
    digest = hashlib.sha256(data).hexdigest()
    try:
        if isinstance(document, dict) and isinstance(document.get("benchmarks"), list) and "machine_info" in document:
            return _pytest_benchmark(document, path.name, digest)
        if isinstance(document, dict) and (measured := _optimum_report(document)):
            return _optimum(document, measured, path, digest)
    except UsageError as error:
        raise UsageError(f"'{path}': {error}") from error
    raise UsageError(
        f"'{path}' is JSON, but neither pytest-benchmark's (machine_info and benchmarks) nor optimum-benchmark's "
        "(prefill, decode... with latency values)"
    )


def import_report(store: Store, report: Report, *, suite: str | None = None) -> tuple[str, bool]:
    """Write a report as a finished run; returns its id and whether it is new. Raises StoreError if that cannot be.

    A file whose content was imported before is recognised and not written again.
    """
    for run in store.runs():
        if _digest_of(run) == report.digest:
            return run.run_id, False
    name = suite or f"imported-{report.tool}"
    store.check_writable()
    plan = json.dumps({"imported": {"tool": report.tool, "file": report.file, "sha256": report.digest}})
    writer = store.begin(replace(report.run, suite=name, plan=plan))
    samples = [sample for case in report.cases for sample in _samples(case)]
    rows = [_case_row(case, number, name, report) for number, case in enumerate(report.cases)]
    writer.write(cases=rows, samples=samples)
    writer.finish("finished")
    if (when := report.run.started_at) is not None:  # the file's own time, so that history stands in order
        writer.update(started_at=when, finished_at=when)
    return writer.run_id, True


def _digest_of(run: RunRow) -> str | None:
    plan = json.loads(run.plan or "{}")
    imported = plan.get("imported") if isinstance(plan, dict) else None
    return imported.get("sha256") if isinstance(imported, dict) else None


def _case_row(imported: ImportedCase, ordinal: int, suite: str, report: Report) -> CaseRow:
    case = imported.case
    origin = {"tool": report.tool, "file": report.file, "sha256": report.digest, "benchmark": imported.name}
    evidence = EVIDENCE if imported.rounds else NO_ROUNDS
    return CaseRow(
        case_id=case.case_id,
        workload=str(case.workload),
        model=case.model,
        variant=str(case.variant),
        status="ok",
        suite=suite,
        group=f"{suite}-{ordinal}",
        ordinal=ordinal,
        num_blocks=1 if imported.rounds else 0,
        params=dict(case.workload.params),
        facts={**imported.facts, "imported": origin, "evidence": evidence},
    )


def _samples(imported: ImportedCase) -> list[Sample]:
    case_id = imported.case.case_id
    found = [
        Sample(case_id, metric, value, METRICS[metric].unit, 0, "imported", 0, number, "timed", 0)
        for metric, values in imported.rounds.items()
        for number, value in enumerate(values)
    ]
    found += [
        Sample(case_id, metric, value, unit, SOLO_BLOCK, "imported", 0, 0, "timed", 0)
        for metric, (value, unit) in imported.singles.items()
    ]
    return found


def _number(value: Any, where: str) -> float:
    """A finite number of at least 0. Raises UsageError saying where another stands."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise UsageError(f"{where} is {json.dumps(value, default=str)[:40]}, not a finite number of at least 0")
    return float(value)


def _durations(values: Any, where: str) -> list[float]:
    """Seconds of every round; a round of no time is damage, for a ratio needs values above 0."""
    if not isinstance(values, list):
        raise UsageError(f"{where} is not a list of numbers")
    found = [_number(value, f"{where}[{index}]") for index, value in enumerate(values)]
    if 0.0 in found:
        raise UsageError(f"{where}[{found.index(0.0)}] is 0: a round takes time")
    return found


def _section(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = document.get(name)
    return found if isinstance(found, dict) else {}


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _time(text: Any) -> datetime | None:
    """An ISO time; one without a zone is taken as UTC, which is what pytest-benchmark writes."""
    try:
        found = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _unique(cases: Sequence[ImportedCase]) -> None:
    seen: set[str] = set()
    for case in cases:
        if case.case.case_id in seen:
            raise UsageError(f"benchmark '{case.name}' is in it twice")
        seen.add(case.case.case_id)


def machine_of(info: Mapping[str, Any]) -> str:
    """pytest-benchmark's `machine_info` as a machine's id; what changes from run to run (clock rates) is not in it."""
    cpu = _section(info, "cpu")
    parts = [info.get(key) for key in ("node", "system", "machine")] + [cpu.get("brand_raw"), cpu.get("count")]
    return f"imported-{_hash(parts)}"


def _pytest_benchmark(document: Mapping[str, Any], file: str, digest: str) -> Report:
    if not document["benchmarks"]:
        raise UsageError("it holds no benchmarks")
    machine, commit = _section(document, "machine_info"), _section(document, "commit_info")
    cpu, machine_id = _section(machine, "cpu"), machine_of(machine)
    python = _text(machine.get("python_version"))
    sha = _text(commit.get("id"))
    cases = [_pytest_case(entry, f"benchmarks[{n}]") for n, entry in enumerate(document["benchmarks"])]
    _unique(cases)
    version = _text(document.get("version")) or "of an unknown version"
    when = _time(document.get("datetime"))
    run = RunRow(
        suite="",
        started_at=when,
        git_sha=sha if re.fullmatch(r"[0-9a-f]{7,64}", sha) else "",
        git_dirty=commit.get("dirty") is True,
        argv=json.dumps([]),
        command=f"pytest --benchmark-json={shlex.quote(file)}  (pytest-benchmark {version}, imported)",
        machine_id=machine_id,
        device="cpu",
        device_name=_text(cpu.get("brand_raw")),
        cpu_model=_text(cpu.get("brand_raw")) or _text(machine.get("processor")) or _text(machine.get("machine")),
        cores=cpu["count"] if isinstance(cpu.get("count"), int) else 0,
        os=f"{_text(machine.get('system'))} {_text(machine.get('release'))}".strip(),
        python=python,
        fingerprint=f"imported-{_hash(machine_id, python, machine.get('python_implementation'))}",
    )
    missing = sum(not case.rounds for case in cases)
    notes = [f"{missing} of {len(cases)} benchmarks: {NO_ROUNDS}"] if missing else []
    return Report("pytest-benchmark", file, digest, run, cases, notes)


def _pytest_case(entry: Any, where: str) -> ImportedCase:
    if not isinstance(entry, dict) or not _text(entry.get("fullname") or entry.get("name")):
        raise UsageError(f"{where} has no name")
    name = _text(entry.get("fullname")) or _text(entry.get("name"))
    stats = _section(entry, "stats")
    if not stats:
        raise UsageError(f"{where} ({name}) has no stats")
    extra = _section(entry, "extra_info")
    case = _own_case(name, extra) or Case(_EXTERNAL, name)
    data = stats.get("data")
    seconds = [] if data is None else _durations(data, f"{where}.stats.data")
    plain: dict[str, Any] = {key: stats[key] for key in ("min", "max", "mean", "median", "stddev") if key in stats}
    for key, value in plain.items():
        _number(value, f"{where}.stats.{key}")
    facts = {
        "stats": {**plain, "rounds": stats.get("rounds"), "iterations": stats.get("iterations")},
        "benchmark_group": entry.get("group"),
        "benchmark_params": entry.get("params"),
        "extra_info": extra,
    }
    singles = _single_values(case, extra)
    if seconds:
        return ImportedCase(case, name, {"step_time": seconds, **_rates(case, extra, seconds)}, singles, facts)
    if "median" not in stats:
        raise UsageError(f"{where} ({name}) has neither rounds nor a median")
    median = _durations([stats["median"]], f"{where}.stats.median")[0]
    return ImportedCase(case, name, {}, {**singles, "step_time": (median, "s")}, facts)


def _own_case(name: str, extra: Mapping[str, Any]) -> Case | None:
    """The case behind a test of our own suites, if name and `case_id` agree: it compares with runs of this project."""
    match = _SUITE_TEST.search(name)
    if match is None or "case_id" not in extra:
        return None
    try:
        case = Case(Workload.parse(match["workload"]), match["model"], Variant.parse(match["variant"]))
    except UsageError:
        return None
    return case if case.case_id == extra["case_id"] else None


def _single_values(case: Case, extra: Mapping[str, Any]) -> dict[str, tuple[float, str]]:
    """What the solo pass of one of our own cases measured; figures of other projects stay in the facts."""
    if case.workload.kind == _EXTERNAL.kind:
        return {}
    return {
        name: (_number(extra[name], f"extra_info.{name}"), declared.unit)
        for name, declared in METRICS.items()
        if not declared.timed and isinstance(extra.get(name), int | float)
    }


def _rates(case: Case, extra: Mapping[str, Any], seconds: Sequence[float]) -> dict[str, list[float]]:
    """Metrics of one of our own cases that follow from a repetition's duration alone (tps, tpot, ttft)."""
    found: dict[str, list[float]] = {}
    if case.workload.kind == _EXTERNAL.kind:
        return found
    nothing = Work(0, 0.0, 0.0)
    for name, declared in METRICS.items():
        if declared.timed and name in extra and name != "step_time" and declared.applies(case.workload):
            records = [Record(case.workload, nothing, Iteration(0, round(value * 1e9))) for value in seconds]
            values = [declared.compute(record) for record in records]
            if all(values):  # None or 0: needs more than the duration
                found[name] = [float(value) for value in values if value is not None]
    return found


def _optimum_report(document: Mapping[str, Any]) -> dict[str, Any]:
    """The targets with measurements: of benchmark.json (config and report) or of benchmark_report.json alone."""
    report = document.get("report", document)
    if not isinstance(report, dict):
        return {}
    return {
        target: found
        for target, found in report.items()
        if isinstance(found, dict) and isinstance(found.get("latency"), dict) and "values" in found["latency"]
    }


def _optimum(document: Mapping[str, Any], measured: Mapping[str, Any], path: Path, digest: str) -> Report:
    config = _section(document, "config")
    backend, environment = _section(config, "backend"), _section(config, "environment")
    scenario = _section(config, "scenario")
    name = _text(config.get("name")) or (path.parent.name if path.stem.startswith("benchmark") else path.stem)
    model = _text(backend.get("model")) or "model"
    cuda = backend.get("device") == "cuda"
    shapes = {**_section(scenario, "input_shapes"), **_section(scenario, "generate_kwargs")}
    sizes = {key: value for key, value in shapes.items() if key.isidentifier() and isinstance(value, int) and value > 0}
    workload = Workload.of(_EXTERNAL.kind, **{key: int(value) for key, value in sizes.items()})
    cases = [
        _optimum_case(Case(workload, f"{name}: {model}: {target}"), target, found, cuda)
        for target, found in measured.items()
        if target != "per_token"
    ]
    if not cases:
        raise UsageError("it holds no latencies but per_token's, which count iterations again")
    gpus = environment.get("gpu")
    hardware = [environment.get(key) for key in ("cpu", "cpu_count", "cpu_ram_mb", "system", "machine")] + [gpus]
    versions = {key.removesuffix("_version"): v for key, v in environment.items() if key.endswith("_version") and v}
    packages = {name: version for name, version in versions.items() if name != "python"}
    sha = _text(environment.get("optimum_benchmark_commit"))
    run = RunRow(
        suite="",
        argv=json.dumps([]),
        command=f"optimum-benchmark --config-name {shlex.quote(name)}  (imported from {path.name})",
        machine_id=f"imported-{_hash(hardware)}",
        device="cuda" if cuda else "cpu",
        device_name=", ".join(map(str, gpus)) if isinstance(gpus, list) else _text(environment.get("cpu")).strip(),
        cpu_model=_text(environment.get("cpu")).strip(),
        cores=environment["cpu_count"] if isinstance(environment.get("cpu_count"), int) else 0,
        ram_bytes=int(_number(environment.get("cpu_ram_mb", 0), "environment.cpu_ram_mb") * _MEGABYTE),
        os=_text(environment.get("platform")) or _text(environment.get("system")),
        python=_text(environment.get("python_version")),
        torch=_text(backend.get("version")) if backend.get("name") == "pytorch" else "",
        packages=json.dumps({**packages, **({"optimum_benchmark_commit": sha} if sha else {})}),
        fingerprint=f"imported-{_hash(hardware, packages, backend.get('version'))}",
    )
    notes = []
    if "per_token" in measured:
        notes.append("per_token was left out: optimum-benchmark counts earlier iterations in it again; decode is kept")
    if _section(config, "launcher").get("name") == "process":
        notes.append("made with the process launcher, whose parent keeps a core busy: times may be far too long")
    return Report("optimum-benchmark", path.name, digest, run, cases, notes)


def _optimum_case(case: Case, target: str, found: Mapping[str, Any], cuda: bool) -> ImportedCase:
    latency = found["latency"]
    if latency.get("unit", "s") != "s":
        raise UsageError(f"{target}.latency is in '{latency.get('unit')}', not in s")
    seconds = _durations(latency["values"], f"{target}.latency.values")
    if not seconds:
        raise UsageError(f"{target}.latency.values is empty")
    rounds = {"step_time": seconds}
    if target == "prefill":
        rounds["ttft"] = seconds
    throughput = _section(found, "throughput")
    if target == "decode" and throughput.get("unit") == "tokens/s":
        # Its throughput is a number of tokens over the mean latency; the same tokens over each latency are the rates.
        tokens = _number(throughput.get("value"), "decode.throughput.value") * (sum(seconds) / len(seconds))
        if tokens > 0:
            rounds["tps"] = [tokens / value for value in seconds]
    memory = _section(found, "memory")
    singles: dict[str, tuple[float, str]] = {}
    # NOTE: max_ram is the whole process and no peak over a baseline, so it is not called peak_bytes.
    names = {"max_ram": "max_ram"}
    if cuda:
        names |= {"max_allocated": "peak_bytes", "max_reserved": "reserved_bytes"}
    for theirs, ours in names.items():
        if memory.get(theirs) is not None:
            if memory.get("unit", "MB") != "MB":
                raise UsageError(f"{target}.memory is in '{memory['unit']}', not in MB")
            singles[ours] = (_number(memory[theirs], f"{target}.memory.{theirs}") * _MEGABYTE, "bytes")
    stats = {key: latency.get(key) for key in ("count", "mean", "p50", "p90", "stdev")}
    return ImportedCase(case, case.model, rounds, singles, {"stats": stats, "target": target})
