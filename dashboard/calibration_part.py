"""What a machine's noise calibration says, as a part of a page: floors, false alarms, power, and blocks for an effect.

    calibration_part(context, known, 2.0)       # 2.0: the effect in percent that the calculator is asked for

Every number is harness.calibration's or harness.power's. A calibration from another machine or an old one says so;
without one the part says which command makes it.
"""

from __future__ import annotations

from dash.development.base_component import Component

from dashboard.choices import whole
from dashboard.components import Cell, Child, Column, controls, data_table, empty, figure, notice, section
from dashboard.components import when as time_of
from dashboard.context import Context
from dashboard.inputs import text_box
from harness import registry
from harness.calibration import LOOKS, Floor, NoiseCalibration, Rate
from harness.power import blocks_for
from reports.figures import ScalingLine, scaling

POWER, ALPHA = 0.8, 0.025  # of the calculator: 4 of 5 found, two-sided 95% intervals


def policy_of(floor: Floor) -> float:
    """The margin that the floor's suite asks for."""
    registry.load_all()
    suite = registry.SUITES.get(floor.suite)
    return suite.margin if suite else 0.01


def calibration_part(context: Context, known: NoiseCalibration | None, effect: float) -> Component:
    heading = context.say("What a verdict can tell here")
    command = context.command("calibrate --noise --budget 30m")
    if known is None:
        what = context.say("No noise calibration is stored for this machine: margins are the policy's alone.")
        return section(heading, empty(context, what, command))
    flags = known.flags()
    counts = ", ".join(map(str, LOOKS))
    columns = [
        Column(context.say("Family")),
        Column(context.say("Noise"), right=True, note=context.say("standard deviation of a block's ratio")),
        Column(context.say("Floor at {counts} blocks", counts=counts), right=True),
        Column(context.say("8 blocks show"), right=True, note=context.say("in 4 of 5 cases, beyond the margin")),
        Column(context.say("Called changed"), right=True, note=context.say("of comparisons of unchanged code")),
        Column(context.say("Red"), right=True, note=context.say("of gates on unchanged code, after their repetition")),
        Column(context.say("Measured")),
    ]
    rows: list[list[Cell]] = [
        [
            f"{floor.family}, {floor.metric}",
            f"{floor.sd.value:.2%}",
            ", ".join(f"{floor.margin(n):.2%}" for n in LOOKS),
            f"{floor.detectable(8, policy_of(floor), POWER):.1%}",
            _rate(context, floor.false_alarms),
            _rate(context, floor.red),
            whole(time_of(context, floor.measured_at)),
        ]
        for floor in known.floors
    ]
    warning = (
        notice(context, "warning", context.say("This calibration was made {flags}.", flags=flags)) if flags else None
    )
    return section(
        heading,
        warning,
        data_table(context, columns, rows),
        _power(context, known),
        _calculator(context, known, effect),
    )


def _rate(context: Context, rate: Rate) -> str:
    """`0 of 200 [0.0%, 1.8%]`."""
    if not rate.trials:
        return "–"
    low, high = rate.interval
    return context.say(
        "{hits} of {trials} [{low}, {high}]", hits=rate.hits, trials=rate.trials, low=f"{low:.1%}", high=f"{high:.1%}"
    )


def _power(context: Context, known: NoiseCalibration) -> Child:
    """Found slowdowns by their size, where some were injected."""
    drawn = [
        ScalingLine(
            f"{floor.family}, {floor.metric}",
            [(effect * 100, rate.value, *rate.interval) for effect, rate in sorted(floor.power.items()) if rate.trials],
        )
        for floor in known.floors
    ]
    drawn = [line for line in drawn if line.points]
    if not drawn:
        return None
    shown = scaling(
        drawn, x_label=context.say("injected slowdown (%)"), y_label=context.say("turned the gate red"), unit="ratio",
        language=context.language,
    )  # fmt: skip
    return figure(context, shown, name="power")


def _calculator(context: Context, known: NoiseCalibration, asked: float) -> Component:
    """Blocks that show the effect asked for."""
    effect = min(max(asked, 0.01), 1000.0) / 100
    columns = [
        Column(context.say("Family")), Column(context.say("Blocks needed"), right=True),
        Column(context.say("Time"), right=True),
    ]  # fmt: skip
    rows: list[list[Cell]] = []
    for floor in known.floors:
        margin = max(policy_of(floor), floor.margin(max(LOOKS)))
        needed = blocks_for(effect, floor.sd.value, margin=margin, alpha=ALPHA, power=POWER)
        never = context.say("never: it lies within the margin of {margin}", margin=f"{margin:.2%}")
        minutes = (needed or 0) * floor.block_seconds / 60
        time = "–" if needed is None else context.say("{minutes} min", minutes=f"{minutes:.1f}")
        rows.append([f"{floor.family}, {floor.metric}", never if needed is None else str(needed), time])
    return section(
        context.say("How many blocks show an effect?"),
        controls(text_box(context, "effect", context.say("Effect in percent"), f"{asked:g}")),
        data_table(
            context, columns, rows, caption=context.say("Blocks that show it beyond the margin in 4 of 5 cases")
        ),
    )
