"""`harness calibrate`: the machine's peaks, or with --noise how far unchanged code appears to differ, and what is seen.

harness calibrate --noise --budget 2h              # over suite `gate`; stored, and used as the verdicts' margin
harness calibrate --noise --budget 0               # measures nothing: what the stored runs say
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from harness.calibration import (
    LOOKS,
    STATED_RATE,
    Floor,
    NoiseCalibration,
    Rate,
    clopper_pearson,
    load_noise,
    save_noise,
)
from harness.cli import EXIT_NOTHING, EXIT_OK
from harness.commands.terminal import name_problems, open_store, print_table, progress_bar, warn
from harness.core import UsageError
from harness.plan import Plan
from harness.schema import RunRow
from harness.store import Store
from harness.tables import Column, Table, quantity, to_json

DEFAULT_BUDGET = 600.0
_WANTED = 200  # A/A comparisons: without an alarm they bound the rate at 2%


def calibrate_verb(arguments: argparse.Namespace) -> int:
    """Peaks, or with --noise the noise floor, false alarms and power."""
    if arguments.noise:
        return calibrate_noise(arguments)
    if arguments.suite is not None:
        raise UsageError(f"peaks need no suite: for the noise of '{arguments.suite}' add --noise")
    from harness.commands.machine import calibrate_machine

    return calibrate_machine(arguments)


def calibrate_noise(arguments: argparse.Namespace) -> int:
    """Measure A/A arms and injected slowdowns until enough is known or the budget is over; print and store it."""
    from harness import campaign, registry, verdict_rates
    from harness.commands.run import request_of
    from harness.execute import measure, run_row

    registry.load_all(arguments.plugin)
    injected = campaign.injections(arguments.inject)
    base = request_of(arguments, arguments.suite or "gate")
    plan = base.plan()
    suite = campaign.noise_suite(plan, injected)
    blocks = arguments.blocks or plan.sampling.blocks
    if blocks < 2:
        raise UsageError("a comparison of one block has no interval: --blocks must be at least 2")
    budget = DEFAULT_BUDGET if arguments.budget is None else float(arguments.budget)
    gates = verdict_rates.gates_of(suite)
    repeat = f"{base.command('calibrate')} --noise --inject {shlex.quote(arguments.inject)}"
    request = replace(base, suite=suite.name, axes={}, models=(), blocks=blocks, budget_seconds=budget, repeat=repeat)
    if budget > 0 and len(injected) > 1:
        with campaign.offered(suite):
            rounds_left = rounds_within(request.plan(), budget)
        kept = injected[: max(1, int(rounds_left / 2))]  # the largest; each has a pass over all cases before its blocks
        if kept != injected:
            warn(f"too little time for the injections {', '.join(injected[len(kept) :])}: left out; raise --budget")
        injected, suite = kept, campaign.noise_suite(plan, kept)
    with campaign.offered(suite):
        noise_plan = request.plan()
        if budget > 0:
            sys.stderr.write(forecast(noise_plan, len(injected), budget) + "\n")
        store = open_store(arguments, create=budget > 0)
        schedule = campaign.Campaign(injected)
        if budget > 0:
            with progress_bar() as progress:
                measure(request, store, _by_time(progress, budget), warn, schedule=schedule)
        row = run_row(request, noise_plan)
    before = load_noise(store, row.fingerprint)
    own = before.floors if before is not None and not before.from_other_machine() else ()
    seconds = {(floor.workload, floor.model): floor.block_seconds for floor in own}
    seconds |= schedule.block_seconds()
    runs = verdict_rates.calibration_runs(store, suite, blocks, row.fingerprint)
    rounds = verdict_rates.rounds_of(store, runs, blocks, gates)
    floors = verdict_rates.judged(rounds, rounds.floors(seconds, runs[-1] if runs else row), suite)
    name_problems(store)
    if not floors:
        warn(f"nothing to judge: {_why_nothing(store, runs)}")
        return EXIT_NOTHING
    if open_percents := _uncounted(injected, floors):
        warn(f"no comparison of {blocks} blocks is complete with {', '.join(open_percents)}: give a longer --budget")
    known = NoiseCalibration(row.fingerprint, row.machine_id, row.device, floors, json.loads(row.packages))
    save_noise(store, known)
    print_noise(known, arguments, policy=suite.margin, run=row, split=_split(store, runs))
    return EXIT_OK


def _uncounted(injected: Sequence[str], floors: Sequence[Floor]) -> list[str]:
    """The injections that were wanted and of which no family has a count: their first round was cut short."""
    from harness.campaign import BUSY

    done = {effect for floor in floors for effect in floor.power}
    left = [f"+{word}%" for word in injected if word != BUSY and float(word) / 100 not in done]
    beside = BUSY not in injected or any(floor.beside_neighbour.trials for floor in floors)
    return left if beside else [*left, "a busy neighbour"]


def _by_time(progress: Callable[[float, str], None], budget: float) -> Callable[[float, str], None]:
    """Progress by the share of the budget that is spent: how many blocks fit is not known beforehand."""
    started = time.monotonic()

    def told(done: float, text: str) -> None:
        without_total = re.sub(r"^(block \d+)/\d+", r"\1", text)
        progress(min((time.monotonic() - started) / budget, 1.0), without_total)

    return told


def _why_nothing(store: Store, runs: Sequence[RunRow]) -> str:
    """The reasons of the cases that did not run, or that there are no runs."""
    if not runs:
        return "no stored run of this machine with so many blocks a comparison; give a --budget to measure one"
    reasons = {
        f"{case['variant']}: {case['status']}: {case['reason']}"
        for run in runs
        for case in store.cases(run.run_id).to_pylist()
        if case["status"] != "ok"
    }
    return "; ".join(sorted(reasons)[:3]) or "no case has two undisturbed blocks; give a longer --budget"


def costs(plan: Plan) -> tuple[float, float]:
    """Seconds before the first block of a calibration, and of one block of all its pairs: within a factor of two."""
    from harness.campaign import pairs_only
    from harness.estimate import estimate_seconds

    def seconds(of_plan: Plan, num_blocks: int) -> float:
        return estimate_seconds(replace(of_plan, sampling=replace(of_plan.sampling, blocks=num_blocks)))

    pairs = pairs_only(plan)
    return seconds(plan, 0), seconds(pairs, 1) - seconds(pairs, 0)


def rounds_within(plan: Plan, budget: float) -> float:
    """How many rounds a calibration has time for, A/A and injections together."""
    fixed, block = costs(plan)
    return max(budget - fixed, 0.0) / block / plan.sampling.blocks


def forecast(plan: Plan, num_injected: int, budget: float) -> str:
    """What can be known in this time, in one sentence. Raises UsageError where not even two blocks can be had."""
    sampling, num_cases = plan.sampling, _num_cases(plan)
    # A lower bound that no machine can beat: the slices alone.
    slices = 2 * num_cases * 4 * sampling.passes * sampling.slice_seconds
    if slices > budget:
        raise UsageError(
            f"--budget {budget:g}s is too short: the slices of two blocks of {num_cases} cases alone take "
            f"{quantity(slices, 's')}; give more time or fewer cases (--model)"
        )
    (fixed, block), rounds = costs(plan), rounds_within(plan, budget)
    unchanged, others = (rounds / 2, rounds / 2 / num_injected) if num_injected else (rounds, 0.0)
    num_false, num_power = int(unchanged) * num_cases, int(others) * num_cases
    degrees = num_cases * max(unchanged * sampling.blocks - 1, 1)
    least = 2 if num_injected else 1
    whole = fixed + least * math.ceil(_WANTED / num_cases) * sampling.blocks * block
    words = [
        f"in {_time(budget)} at least {num_false} A/A comparisons of {sampling.blocks} blocks over {num_cases} cases",
        f"and {num_power} of each injection" if num_injected else "",
        f"can be had (a block of all cases takes about {_time(block)}):",
        f"the noise of a block within {1.96 / math.sqrt(2 * degrees):.0%}" if unchanged * sampling.blocks > 2 else "",
        f"and the false-alarm rate to {clopper_pearson(0, num_false)[1]:.0%}" if num_false else "no false-alarm rate",
        f"({_WANTED} comparisons would take about {_time(whole)})" if num_false < _WANTED else "",
    ]
    return " ".join(filter(None, words))


def _num_cases(plan: Plan) -> int:
    return sum(1 for group in plan.groups for case in group.timed() if case.variant == group.baseline)


def _time(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


def _rate(rate: Rate) -> str:
    """`0/24 (0% to 14%)`."""
    if not rate.trials:
        return "-"
    low, high = rate.interval
    return f"{rate.hits}/{rate.trials} ({100 * low:.3g}% to {100 * high:.3g}%)"


def noise_table(known: NoiseCalibration, *, policy: float, notes: Sequence[str] = ()) -> Table:
    """One row per family and metric: noise, floor, what is detectable, measured false alarms and power."""
    effects = sorted({effect for floor in known.floors for effect in floor.power})
    columns = [Column("family"), Column("metric"), *(Column(name, right=True) for name in ("sd of a block", "s/block"))]
    columns += [Column(f"floor at {k}", right=True) for k in LOOKS]
    columns += [Column(f"seen at {k}", right=True) for k in LOOKS]
    columns += [Column(name, right=True) for name in ("called changed", "gate red", "red beside a neighbour")]
    columns += [Column(f"+{effect:.1%} red", right=True) for effect in effects]
    rows = [
        (
            floor.family,
            floor.metric,
            f"{floor.sd.value:.2%}",
            quantity(floor.block_seconds, "s"),
            *(f"{floor.margin(k):.2%}" for k in LOOKS),
            *(f"{floor.detectable(k, policy):.1%}" for k in LOOKS),
            _rate(floor.false_alarms),
            _rate(floor.red),
            _rate(floor.beside_neighbour),
            *(_rate(floor.power.get(effect, Rate(0, 0))) for effect in effects),
        )
        for floor in known.floors
    ]
    records = [noise_record(known, floor, policy) for floor in known.floors]
    flags = known.flags()
    title = f"noise of machine {known.machine_id}, {known.measured_at:%Y-%m-%d %H:%M} UTC" + (
        f" (measured {flags})" if flags else ""
    )
    return Table(title, columns, rows, records, notes)


def noise_record(known: NoiseCalibration, floor: Floor, policy: float) -> dict[str, Any]:
    """A floor as data, with the machine and the day."""

    def counted(rate: Rate) -> dict[str, Any]:
        low, high = rate.interval
        return {"hits": rate.hits, "trials": rate.trials, "rate": rate.value, "low": low, "high": high}

    return {
        "machine_id": known.machine_id,
        "fingerprint": known.fingerprint,
        "device": known.device,
        "measured_at": floor.measured_at.isoformat(),
        "flags": known.flags(),
        "suite": floor.suite,
        "git_sha": floor.git_sha,
        "workload": floor.workload,
        "model": floor.model,
        "metric": floor.metric,
        "blocks": floor.blocks,
        "sd": asdict(floor.sd),
        "df": floor.df,
        "floors": {str(blocks): asdict(bound) for blocks, bound in floor.floors.items()},
        "detectable": {str(blocks): floor.detectable(blocks, policy) for blocks in floor.floors},
        "block_seconds": floor.block_seconds,
        "false_alarms": counted(floor.false_alarms),
        "red": counted(floor.red),
        "beside_neighbour": counted(floor.beside_neighbour),
        "power": {f"{effect:g}": counted(rate) for effect, rate in floor.power.items()},
    }


def print_noise(
    known: NoiseCalibration,
    arguments: argparse.Namespace,
    *,
    policy: float,
    run: RunRow | None = None,
    split: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """The calibration on stdout, in the format asked for."""
    blocks = known.floors[0].blocks
    notes = [
        f"floor at K: the margin that {1 - STATED_RATE:.0%} of A/A comparisons of K blocks keep (upper 95% limit)",
        f"seen at K: the slowdown that K blocks show beyond the margin ({policy:.1%} or the floor) in 80% of cases",
        f"counted over comparisons of {blocks} blocks by the gate's own rule; in brackets their 95% intervals",
    ]
    for family, parts in (split or {}).items():
        shown = ", ".join(f"{name} {value:.2%}" for name, value in parts.items() if math.isfinite(value))
        notes.append(f"where the noise of {family} comes from: {shown}")
    if run is not None:
        notes.append(f"machine: {run.cpu_model}, {run.cores} cores; torch {run.torch}, commit {run.git_sha[:9]}")
    table = noise_table(known, policy=policy, notes=notes)
    if arguments.output == "json":
        records = {"families": list(table.records), "components": split or {}}
        sys.stdout.write(to_json(records))
    else:
        print_table(table, arguments)


def _split(store: Store, runs: Sequence[RunRow]) -> dict[str, dict[str, float]]:
    """Family -> standard deviations of machine, process, turn and iteration; families that cannot tell are left out."""
    from harness.aa_blocks import blocks_from_store
    from harness.noise import variance_components

    found = {}
    for family, blocks in blocks_from_store(store, [run.run_id for run in runs]).items():
        try:
            parts = variance_components(blocks)
        except UsageError:
            continue
        names = ("run", "block", "process", "drift", "turn", "iteration")
        found[family] = {name: float(getattr(parts, name)) for name in names}
    return found
