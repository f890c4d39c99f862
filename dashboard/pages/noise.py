"""Noise: what this machine can tell apart, how often its verdicts are wrong, and which series are restless.

    /noise?machine=5cef0b44a416&effect=2

First what `harness calibrate --noise` measured (noise floors, false alarms, power with their intervals), then a
calculator of blocks for an effect, then every series of the machine by its own noise, and the blocks that were refused.
Nothing is estimated here: floors, rates and effects come from harness.calibration and harness.power.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from dash.development.base_component import Component

from dashboard import choices
from dashboard.calibration_part import POWER, calibration_part, policy_of
from dashboard.components import Cell, Column, controls, data_table, empty, link, page, section
from dashboard.context import Context
from dashboard.inputs import select
from dashboard.query import Query
from dashboard.rows import NoiseLine
from harness.calibration import NoiseCalibration, Rate

PATH = "/noise"
TITLE = "Noise"
ORDER = 8
RUNS_LOOKED_AT, ROWS = 5, 100


@dataclass(frozen=True, slots=True)
class State:
    """`metric`: of the series below; `effect`: percent, what the calculator is asked for."""

    filter: str = ""
    machine: str = ""
    metric: str = ""
    effect: float = 2.0


def layout(context: Context, state: State) -> Component:
    """The page."""
    title = context.say("Noise")
    place = choices.place_of(context, state.machine, state.filter)
    if place is None:
        what = context.say("The store has no run yet: nothing is known of any machine's noise.")
        return page(context, title, what, empty(context, what, context.command("calibrate --noise")))
    run = choices.run_of(context, place, "")
    known = choices.noise_of(context, run.run_id) if run else None
    lines = [line for line in context.query.noise(place.machine.machine_id) if line.run_to_run is not None]
    return page(
        context,
        title,
        sentence(context, known, lines),
        controls(choices.machine_select(context, place)),
        calibration_part(context, known, state.effect),
        _series_part(context, state, place.machine.machine_id, lines),
        _refused_part(context, place),
    )


def sentence(context: Context, known: NoiseCalibration | None, lines: Sequence[NoiseLine]) -> str:
    """What the machine can tell, or that nobody measured it."""
    if known is not None and known.floors and not known.from_other_machine():
        effects = [floor.detectable(8, policy_of(floor), POWER) for floor in known.floors]
        alarms = sum((floor.false_alarms for floor in known.floors), Rate(0, 0))
        text = context.say(
            "Eight blocks show changes from {least} on, in the noisiest family from {most} on.",
            least=f"{min(effects):.1%}", most=f"{max(effects):.1%}",
        )  # fmt: skip
        if not alarms.trials:
            return text
        wrong = context.say(
            "Of {trials} comparisons of unchanged code {hits} were called changed (at most {bound} in the long run).",
            trials=alarms.trials, hits=alarms.hits, bound=f"{alarms.interval[1]:.1%}",
        )  # fmt: skip
        return f"{text} {wrong}"
    text = context.say("How often verdicts on this machine are wrong was not measured.")
    spreads = sorted(line.run_to_run for line in lines if line.run_to_run is not None)
    if not spreads:
        return text
    usual = context.say(
        "From run to run its series differ by {middle} in the middle case.", middle=f"{spreads[len(spreads) // 2]:.1%}"
    )
    return f"{text} {usual}"


def _series_part(context: Context, state: State, machine_id: str, lines: Sequence[NoiseLine]) -> Component:
    heading = context.say("Every series by its own noise")
    if not lines:
        what = context.say("No series of this machine has three runs yet: its noise from run to run is not known.")
        return section(heading, empty(context, what, context.command("run quickstart")))
    metrics = choices.distinct(line.metric for line in lines)
    kept = [line for line in lines if line.metric == (state.metric or choices.headline(line.workload, line.metric))]
    ordered = sorted(kept, key=lambda line: -(line.run_to_run or 0.0))
    columns = [
        Column(context.say("Series")), Column(context.say("Metric")), Column(context.say("Runs"), right=True),
        Column(context.say("From run to run"), right=True), Column(context.say("Within a run"), right=True),
        Column(context.say("Drift, first to last"), right=True), Column(context.say("Floor"), right=True),
    ]  # fmt: skip
    rows: list[list[Cell]] = [
        [
            choices.roomy(_to_trend(context, line, machine_id)),
            line.metric, str(line.num_runs), _percent(line.run_to_run), _percent(line.within),
            "–" if line.drift is None else f"{line.drift:+.1%}", _percent(line.floor),
        ]
        for line in ordered[:ROWS]
    ]  # fmt: skip
    box = select(
        context,
        "metric",
        context.say("Metric"),
        [(name, name) for name in sorted(metrics)],
        state.metric,
        clearable=True,
    )
    caption = context.say("{shown} of {total} series, the noisiest first", shown=len(rows), total=len(kept))
    return section(heading, controls(box), data_table(context, columns, rows, caption=caption))


def _to_trend(context: Context, line: NoiseLine, machine_id: str) -> Component:
    name = choices.case_name(line)
    return link(context, name, "/trend", case=(line.case_id,), metric=line.metric, machine=machine_id)


def _percent(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.1%}"


def _refused_part(context: Context, place: choices.Place) -> Component:
    """Blocks that were not judged in the newest runs, by reason."""
    reasons: Counter[str] = Counter()
    runs = choices.recent_runs(context, place, RUNS_LOOKED_AT)
    for run in runs:
        reasons.update(_refusals(context.query, context.query.generation(), run.run_id))
    heading = context.say("Blocks refused in the last {n} runs", n=len(runs))
    if not reasons:
        what = context.say("No block was refused: no busy neighbour, no stolen time, no throttling was seen.")
        return section(heading, empty(context, what))
    columns = [Column(context.say("Reason")), Column(context.say("Blocks of a case"), right=True)]
    rows: list[list[Cell]] = [[reason, str(count)] for reason, count in reasons.most_common(20)]
    return section(heading, data_table(context, columns, rows))


@lru_cache(maxsize=64)
def _refusals(query: Query, generation: str, run_id: str) -> tuple[str, ...]:
    """Why blocks of a run were refused, without the figures; kept until the store changes: it reads the run's facts."""
    invalid = [case.facts.get("invalid_blocks") for case in query.cases(run_id)]
    reasons = [str(reason) for found in invalid if isinstance(found, dict) for reason in found.values()]
    return tuple(reason.partition(":")[0].partition(" took ")[0][:120] for reason in reasons)
