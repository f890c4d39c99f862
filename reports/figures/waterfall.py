"""A ladder of steps that add up, as a waterfall: each row goes on where the one above it ended.

    ladder([LadderStep("reference", 50, None, None, None), LadderStep("kv=prealloc", 60, 1.2, 1.1, 1.3)],
           unit="tokens/s")

Refuses nothing: beyond MAX_ROWS the later steps stand in the table only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness.core import Better
from reports import palette
from reports.figures.base import Figure, assemble, empty, hover, known, safe, told
from reports.figures.numbers import better_text, change_text, headed, number, plain_axis, ratio_text, scale_for
from reports.figures.rowed import MAX_ROWS, Rows, heading_number, plan_rows, row_layout, row_number
from reports.language import Language, say
from reports.palette import Judged

_BODY = 29  # pixels below the label of a row; its bar lies in the middle
_THICK = 17


@dataclass(frozen=True, slots=True)
class LadderStep:
    """One step up a ladder of options: its value, and its ratio to the step before (None for the first)."""

    label: str
    value: float
    ratio: float | None
    low: float | None
    high: float | None


def ladder(steps: Sequence[LadderStep], *, unit: str, better: Better = "higher", language: Language = "en") -> Figure:
    """A waterfall: each step from the value before it to its own, coloured where its ratio's interval leaves 1."""
    title = say(language, "Step by step")
    columns = [
        say(language, "step"),
        say(language, "value"),
        say(language, "ratio to the step before"),
        say(language, "ratio to the start"),
    ]
    if not steps:
        return empty(title, columns=columns, language=language)
    shown = steps[:MAX_ROWS]
    scale = scale_for([step.value for step in shown], unit)
    top = 1.12 * max(known([scale.of(step.value) for step in shown]), default=1.0) or 1.0
    axis = plain_axis() | {"fixedrange": True, "nticks": 5, "range": [0, top]}
    heading = headed("", scale, better_text(better, language))
    frame = plan_rows([step.label for step in shown], body=_BODY, characters=40)
    layout = row_layout(frame, axis=axis, heading=heading)
    layout |= {"barmode": "overlay", "bargap": 0, "margin": {"t": 12, "b": 50}}
    drawn = [scale.of(step.value) or 0.0 for step in shown]
    bases = [0.0, *drawn[:-1]]
    judged = [_judge(step, better) for step in shown]
    looks = [palette.VERDICT[verdict] for verdict in judged]
    for row, step in enumerate(shown):
        layout["annotations"].append(heading_number(number(step.value, unit), row, frame))
        if step.ratio is not None:
            text = f"{looks[row].glyph} {ratio_text(step.ratio, step.low, step.high)}"
            layout["annotations"].append(row_number(text, frame.at(row, _BODY / 2)))
        if row:
            layout["shapes"].append(_connector(bases[row], row, frame))
    trace = {
        "type": "bar",
        "orientation": "h",
        "name": safe(title),
        "base": bases,
        "x": [value - base for value, base in zip(drawn, bases, strict=True)],
        "y": [frame.at(row, _BODY / 2) for row in range(len(shown))],
        "width": frame.thick(_THICK),
        "marker": {"color": [look.colour for look in looks], "line": {"width": 0}},
        "hoverinfo": "text",
        "hovertext": [
            hover(step.label, number(step.value, unit), ratio_text(step.ratio, step.low, step.high)) for step in shown
        ],
    }
    first = steps[0].value
    rows = [
        [
            step.label,
            number(step.value, unit),
            ratio_text(step.ratio, step.low, step.high),
            ratio_text(step.value / first if first else None),
        ]
        for step in steps
    ]
    summary = _ladder_sentence(steps, unit, language)
    return assemble([trace], layout, title=title, summary=summary, columns=columns, rows=rows)


def _judge(step: LadderStep, better: Better) -> Judged:
    """What the interval of a step's ratio says: a change of sign only where it leaves 1 aside."""
    if step.ratio is None:
        return "reference"
    if step.low is None or step.high is None or step.low <= 1 <= step.high or better == "neither":
        return "inconclusive"
    return "improved" if (step.low > 1) == (better == "higher") else "regressed"


def _connector(x: float, row: int, frame: Rows) -> Figure:
    """From the end of the bar above down to this one."""
    line = {"color": palette.NEUTRAL, "width": 1, "dash": "dot"}
    ends = {
        "x0": x,
        "x1": x,
        "y0": frame.at(row - 1, _BODY / 2),
        "y1": frame.at(row, _BODY / 2),
        "xref": "x",
        "yref": "y",
    }
    return {"type": "line", **ends, "layer": "between", "line": line}


def _ladder_sentence(steps: Sequence[LadderStep], unit: str, language: Language) -> str:
    first, last = steps[0], steps[-1]
    text = say(
        language,
        "Steps: {n}, from {first} to {last}: {change} in all.",
        n=len(steps),
        first=number(first.value, unit),
        last=number(last.value, unit),
        change=change_text(last.value / first.value if first.value else None),
    )
    ratios = [step for step in steps if step.ratio is not None and step.ratio > 0]
    if not ratios:
        return text
    largest = max(ratios, key=lambda step: abs(math.log(step.ratio or 1.0)))
    more = say(
        language,
        "The largest step is {label}: {change}.",
        label=largest.label,
        change=change_text(largest.ratio),
    )
    return told(language, text, more)
