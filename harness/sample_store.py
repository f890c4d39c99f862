"""A made-up store of any size, to look at pages and to measure them: machines, a history, every kind of trouble.

    written = write_sample_store(Path("demo"), samples=1_000_000)
    written.num_runs, written.num_samples            # compacted, as after `harness store compact`

Its cases are those of the real suites, its numbers those of `harness.sample_numbers`. Every run's host is "synthetic"
and so is every machine's name: whatever shows the store can say that nothing in it was measured. Equal seeds give equal
stores. It refuses (UsageError) a folder that holds anything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

from harness import registry
from harness.baselines import FILE_NAME as BASELINES
from harness.baselines import Named
from harness.calibration import Bound, Floor, NoiseCalibration, Rate, save_noise
from harness.catalog import SUMMARY_FILE, make_folder, write_file
from harness.compaction import summarise_run
from harness.core import UsageError
from harness.plan import Plan, make_plan
from harness.run_copies import write_copies
from harness.sample_numbers import MACHINES, SHAPES, TIMED, WARMUP, Machine
from harness.sample_rows import measured
from harness.schema import (
    PART_TABLES,
    PeakRow,
    RunRow,
    RunStatus,
    TableName,
    concat,
    encode,
    run_table,
)
from harness.store import Store

HOST = "synthetic"
COMMITS_FILE = "commits.json"
DEFAULT_SAMPLES = 100_000
_FILE_ROWS = 2_000_000
_BLOCKS = 6
_LAST = datetime(2026, 11, 20, 18, 0, tzinfo=UTC)
_STEP = timedelta(hours=5)
# Which suites a machine runs in which order; the gate's two sides, measured as one session, are the commonest.
_ROUND = ("gate", "gate", "kv_cache", "gate", "gate", "norm", "gate", "gate", "quantization", "precision", "engines")
_TURNS = (0, 1, 2, 0, 1, 0)  # of the machines, a round each
_MIN_ROUNDS = 4
_SUBJECTS = (
    "KV cache: write in place where the length is known",
    "Tokenizer: read merges once",
    "RMSNorm: one pass over the hidden size",
    "Attention: mask of the prompt only",
    "Rotary tables: computed once per device",
    "Training: clip before the step, not after",
    "Sampling: greedy path without a sort",
    "Docs: how the blocks alternate",
    "Prefill: logits of the last position only",
    "Decode: a check of shapes at every step",
)


@dataclass(frozen=True, slots=True)
class Written:
    """What a sample store came to."""

    path: Path
    num_runs: int
    num_cases: int
    num_samples: int


@dataclass(slots=True)
class _Pile:
    """Rows that wait to be one compacted file."""

    tables: list[pa.Table] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    num_files: int = 0
    num_rows: int = 0


def write_sample_store(path: Path, *, samples: int = DEFAULT_SAMPLES, seed: int = 0) -> Written:
    """Write a compacted store of about so many samples; one run more is left in the inbox, still running.

    Raises UsageError for a folder that holds something, StoreError where it cannot be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"{path} holds something already; name a new or an empty folder for the sample store")
    registry.load_all()
    store = Store.open(path, create=True)
    plans = {(m.machine_id, name): _plan(m, name) for m in MACHINES for name in dict.fromkeys(_ROUND)}
    rows = _schedule(plans, samples, seed)
    piles: dict[TableName, _Pile] = {name: _Pile() for name in PART_TABLES}
    summaries, num_cases, num_samples = [], 0, 0
    for number, (run, machine, share) in enumerate(rows):
        plan = plans[machine.machine_id, run.suite]
        cases, numbers, readings = measured(run, plan, machine, share=share, rng=np.random.default_rng([seed, number]))
        if run.status == "running":
            _write_running(store, run, cases, numbers)
        else:
            summaries.append(summarise_run(run.run_id, cases, numbers))
            for name, table in zip(PART_TABLES, (readings, numbers, cases), strict=True):
                _add(store, name, piles[name], run.run_id, table)
        (path / "runs" / f"{run.run_id}.parquet").write_bytes(encode(run_table(run), "runs", {}))
        num_cases, num_samples = num_cases + cases.num_rows, num_samples + numbers.num_rows
    for name, pile in piles.items():
        _close(store, name, pile)
    held = {run.run_id: ["1", "1"] for run, _, _ in rows if run.status != "running"}
    summary = concat(summaries, "summary")
    write_file(path / SUMMARY_FILE, encode(summary, "summary", {}, summarised=json.dumps(held)))
    runs = [run for run, _, _ in rows]
    _write_names(store, runs, seed)
    _calibrate(store)
    write_copies(store.catalog, runs)
    return Written(path, len(rows), num_cases, num_samples)


def _plan(machine: Machine, suite: str) -> Plan:
    plan = make_plan(suite, device=machine.device, capabilities=machine.capabilities)
    return replace(plan, sampling=replace(plan.sampling, blocks=min(plan.sampling.blocks, _BLOCKS)))


def _schedule(plans: Mapping[tuple[str, str], Plan], samples: int, seed: int) -> list[tuple[RunRow, Machine, float]]:
    """The runs, the oldest first, with their machine and their share of the history: enough for so many samples."""
    sizes = {key: _num_samples(plan) for key, plan in plans.items()}
    order: list[tuple[Machine, str]] = []
    total = 0
    while total < samples or len(order) < len(_ROUND) * _MIN_ROUNDS:
        machine = MACHINES[_TURNS[len(order) // len(_ROUND) % len(_TURNS)]]  # not every machine runs every commit
        order.append((machine, _ROUND[len(order) % len(_ROUND)]))
        total += sizes[machine.machine_id, order[-1][1]]
    num_commits = max(8, min(400, len(order) // 6))
    found = []
    for number, (machine, suite) in enumerate(order):
        share = number / len(order)
        found.append((_run(number, len(order), machine, suite, plans, int(share * num_commits), seed), machine, share))
    return found


def _num_samples(plan: Plan) -> int:
    """About how many samples a run of a plan has: three timed metrics of every case, all blocks."""
    return (
        3
        * sum(case.case_id not in plan.skips for group in plan.groups for case in group.timed())
        * plan.sampling.blocks
        * (WARMUP + TIMED)
    )


def _sha(seed: int, number: int) -> str:
    return hashlib.sha256(f"synthetic commit {seed} {number}".encode()).hexdigest()[:40]


def _run(
    number: int,
    count: int,
    machine: Machine,
    suite: str,
    plans: Mapping[tuple[str, str], Plan],
    commit: int,
    seed: int,
) -> RunRow:
    side = number % len(_ROUND) % 2 if suite == "gate" and number % len(_ROUND) < 2 else None
    started = _LAST - _STEP * (count - number) / max(1.0, count / 600)
    status: RunStatus = "finished"
    if number == count - 1:
        status = "running"
    elif number % 37 == 17:
        status = "interrupted" if number % 2 else "failed"
    torch = "2.12.1" if number < count / 2 else "2.13.0"
    device = machine.device
    return RunRow(
        suite=suite,
        run_id=f"{started:%Y%m%dT%H%M%S}-{hashlib.sha256(f'{seed} {number}'.encode()).hexdigest()[:6]}",
        started_at=started,
        finished_at=None if status == "running" else started + timedelta(minutes=4 + number % 9),
        status=status,
        git_sha=_sha(seed, commit - 1 if side == 0 and commit else commit),
        git_dirty=number % 23 == 5,
        command=f"python -m harness run {suite} --device {device} --seed 0",
        argv=json.dumps(["run", suite, "--device", device, "--seed", "0"]),
        machine_id=machine.machine_id,
        device=device,
        device_name=machine.device_name,
        cpu_model=machine.cpu_model,
        cores=machine.cores,
        threads=machine.cores,
        ram_bytes=machine.ram_bytes,
        os="synthetic",
        python="3.11.7",
        torch=torch,
        cuda="13.0" if device == "cuda" else "",
        driver="590.1" if device == "cuda" else "",
        packages=json.dumps({"torch": torch, "numpy": "2.4.6"}),
        fingerprint=_fingerprint(machine, torch),
        plan=json.dumps({"suite": suite, "device": device, "blocks": plans[machine.machine_id, suite].sampling.blocks}),
        session=f"synthetic-session-{number - side}" if side is not None else "",
        side=("baseline", "candidate")[side] if side is not None else "",
        host=HOST,
    )


def _add(store: Store, name: TableName, pile: _Pile, run_id: str, table: pa.Table) -> None:
    pile.tables.append(table)
    pile.runs.append(run_id)
    pile.num_rows += table.num_rows
    if pile.num_rows >= _FILE_ROWS:
        _close(store, name, pile)


def _close(store: Store, name: TableName, pile: _Pile) -> None:
    """Write the pile as the next compacted file."""
    if not pile.tables:
        return
    folder = store.path / "compacted" / name
    make_folder(folder)
    pile.num_files += 1
    parts = dict.fromkeys(pile.runs, 1)
    write_file(folder / f"part-{pile.num_files:06d}.parquet", encode(concat(pile.tables, name), name, parts))
    pile.tables, pile.runs, pile.num_rows = [], [], 0


def _write_running(store: Store, run: RunRow, cases: pa.Table, samples: pa.Table) -> None:
    folder = store.path / "inbox" / run.run_id
    make_folder(folder)
    write_file(folder / "samples-000000.parquet", encode(samples, "samples", {run.run_id: 1}))
    write_file(folder / "cases-000000.parquet", encode(cases, "cases", {run.run_id: 1}))


def _write_names(store: Store, runs: list[RunRow], seed: int) -> None:
    """Subjects of the commits, and two baselines."""
    commits = {run.git_sha for run in runs}
    subjects = {}
    for number in range(-1, len(runs)):
        if (sha := _sha(seed, number)) in commits:
            subjects[sha] = f"{_SUBJECTS[number % len(_SUBJECTS)]} (synthetic {number})"
    write_file(store.path / COMMITS_FILE, pa.py_buffer(json.dumps(subjects, indent=1).encode()))
    finished = [run for run in runs if run.status == "finished"]
    chosen = {"release-1": finished[len(finished) // 4], "release-2": finished[len(finished) // 2]}
    named = [Named(n, r.run_id, r.suite, r.git_sha, r.machine_id, str(r.started_at)) for n, r in chosen.items()]
    document = {"format": 1, "baselines": [asdict(one) for one in named]}
    write_file(store.path / BASELINES, pa.py_buffer(json.dumps(document, indent=2).encode() + b"\n"))


def _fingerprint(machine: Machine, torch: str) -> str:
    return hashlib.sha256(f"{machine.machine_id} {torch}".encode()).hexdigest()[:16]


def _calibrate(store: Store) -> None:
    """Peaks of every machine, noise floors of all but the last; those of the second are more than a month old."""
    for number, machine in enumerate(MACHINES):
        fingerprint = _fingerprint(machine, "2.13.0")
        store.save_calibration(fingerprint, list(_peaks(machine)))
        if number < len(MACHINES) - 1:
            when = _LAST - timedelta(days=2 + 45 * number)
            floors = tuple(_floor(machine, kind, model, when) for kind in ("decode", "prefill") for model in SHAPES)
            save_noise(store, NoiseCalibration(fingerprint, machine.machine_id, machine.device, floors))


def _peaks(machine: Machine) -> Iterator[PeakRow]:
    for dtype, factor in (("fp32", 1.0), ("bf16", 1.8)):
        yield PeakRow("matmul", machine.flops * factor, "FLOP/s", dtype, 0, machine.cores)
    for size, factor in ((1 << 20, 6.0), (1 << 24, 2.2), (1 << 30, 1.0)):
        yield PeakRow("read", machine.bandwidth * factor, "bytes/s", "", size, machine.cores)


def _floor(machine: Machine, kind: str, model: str, when: datetime) -> Floor:
    sd = machine.block_noise * (1.0 + 0.2 * list(SHAPES).index(model)) * (1.4 if kind == "decode" else 1.1)
    floors = {blocks: Bound(sd / blocks**0.5, sd / blocks**0.5 * 0.8, sd / blocks**0.5 * 1.3) for blocks in (4, 8, 16)}
    power = {effect: Rate(round(40 * min(1.0, effect / (3 * sd))), 40) for effect in (0.01, 0.02, 0.03, 0.05)}
    metric = "tps" if kind == "decode" else "ttft"
    return Floor(
        kind,
        model,
        metric,
        Bound(sd, 0.9 * sd, 1.1 * sd),
        60,
        floors,
        2.5,
        16,
        when,
        false_alarms=Rate(1, 200),
        red=Rate(0, 200),
        power=power,
        beside_neighbour=Rate(3, 60),
        suite="gate",
        git_sha=_sha(0, 1),
    )
