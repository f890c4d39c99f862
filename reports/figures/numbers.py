"""Numbers for people: one unit per axis, and as many digits as the interval justifies.

    measured(0.01234, 0.0121, 0.0125, "s")     # "12.34 ms [12.10, 12.50]"
    ratio_text(1.1372, 1.12, 1.154)            # "1.137× [1.120, 1.154]"
    scale_for([3e8], "bytes").unit             # "MiB": what an axis counts in

Refuses nothing: what is not finite is "-", and a unit that is unknown here stands behind its number as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.core import Better
from harness.tables import quantity
from reports.figures.base import axis_title, finite, known
from reports.language import Language, say

_QUANTITY_KNOWS = frozenset({"bytes", "s", "tokens/s", "bytes/s", "ratio"})
_UNITLESS = frozenset({"", "1", "count"})
_SCALES: Mapping[str, Sequence[tuple[float, str]]] = {
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")),
    "bytes": ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B")),
    "tokens/s": ((1.0, "tok/s"),),
    "bytes/s": ((1e12, "TB/s"), (1e9, "GB/s"), (1e6, "MB/s"), (1.0, "B/s")),
    "FLOP/s": ((1e12, "TFLOP/s"), (1e9, "GFLOP/s"), (1e6, "MFLOP/s"), (1.0, "FLOP/s")),
    "ratio": ((0.01, "%"),),
    "J": ((1.0, "J"), (1e-3, "mJ"), (1e-6, "µJ")),
}
_RATIO_TICKS: Sequence[Sequence[float]] = (
    *(tuple(round(1 + step * k, 6) for k in range(-20, 21)) for step in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)),
    (0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.4, 1.6, 1.8, 2),
    (0.25, 0.33, 0.5, 0.67, 0.8, 1, 1.25, 1.5, 2, 3, 4),
    (0.125, 0.25, 0.5, 1, 2, 4, 8),
    (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100),
    tuple(10.0**power for power in range(-6, 7)),
    tuple(10.0**power for power in range(-30, 31, 5)),
)
_MAX_TICKS = 6
_TICK_CHARACTERS = 24  # of all texts of an axis of ratios together


@dataclass(frozen=True, slots=True)
class Scale:
    """What an axis counts in: a value in SI units over `factor` is the number that is drawn, in `unit`."""

    factor: float
    unit: str

    def of(self, value: float | None) -> float | None:
        """A value in this unit; None for what is not finite."""
        found = finite(value)
        return None if found is None else found / self.factor


def scale_for(values: Iterable[float | None], unit: str) -> Scale:
    """The unit that makes the largest of the values a number from 1 to 1,000, as far as one exists."""
    largest = max((abs(value) for value in known(values)), default=0.0)
    steps = _SCALES.get(unit, ((1.0, "" if unit in _UNITLESS else unit),))
    factor, name = next((step for step in steps if step[0] <= largest), steps[-1] if largest else steps[0])
    return Scale(factor, name)


def number(value: float | None, unit: str) -> str:
    """A value with its unit, as the terminal's tables write it."""
    text = quantity(value, unit)
    return text if text == "-" or unit in _QUANTITY_KNOWS | _UNITLESS else _with_unit(text, value, unit)


def _with_unit(text: str, value: float | None, unit: str) -> str:
    if unit not in _SCALES or value is None:
        return f"{text} {unit}"
    scale = scale_for([value], unit)
    return f"{value / scale.factor:.4g} {scale.unit}"


def measured(value: float | None, low: float | None, high: float | None, unit: str) -> str:
    """A value with its interval, both to two digits of the interval's half width: `12.34 ms [12.10, 12.50]`."""
    bounds = known([low, high])
    if value is None or not math.isfinite(value) or len(bounds) < 2 or bounds[0] >= bounds[1]:
        return number(value, unit)
    scale = scale_for([value], unit)
    digits = decimals((bounds[1] - bounds[0]) / 2 / scale.factor)
    shown, below, above = (f"{part / scale.factor:,.{digits}f}" for part in (value, *bounds))
    return f"{shown}{'' if scale.unit in ('', '%') else ' '}{scale.unit} [{below}, {above}]"


def decimals(half_width: float) -> int:
    """Digits after the point that show two digits of a half width; at most 6."""
    return 2 if not half_width > 0 else min(max(1 - math.floor(math.log10(half_width * (1 + 1e-9))), 0), 6)


def ratio_text(ratio: float | None, low: float | None = None, high: float | None = None) -> str:
    """A ratio with its interval: `1.137× [1.120, 1.154]`; a bound that is missing or beyond all measure is open."""
    if ratio is None or not math.isfinite(ratio):
        return "-"
    if low is None and high is None:
        return f"{ratio:.{4 if 0.9 < ratio < 1.1 else 3}g}×" if ratio < 1000 else f"{ratio:.0f}×"
    below, above = low or 0.0, high if high is not None else math.inf
    open_ended = not (below > 0 and math.isfinite(above))
    digits = 3 if open_ended else min(max(decimals((above - below) / 2), 2), 5)
    bounds = (
        "0" if not below > 0 else f"{below:.{digits}f}",
        "∞" if not math.isfinite(above) else f"{above:.{digits}f}",
    )
    return f"{ratio:.{digits}f}× [{bounds[0]}, {bounds[1]}]"


def change_text(ratio: float | None) -> str:
    """A ratio as a signed change: `+13.7%`."""
    if ratio is None or not math.isfinite(ratio):
        return "-"
    return f"{(ratio - 1) * 100:+,.{1 if abs(ratio - 1) >= 0.001 else 2}f}%".replace("-", "−")


def better_text(better: Better | None, language: Language) -> str:
    """Which direction is the good one, in words; nothing where neither is."""
    if better == "higher":
        return say(language, "higher is better")
    return say(language, "lower is better") if better == "lower" else ""


def headed(label: str, scale: Scale, note: str = "") -> str:
    """An axis heading with its unit: `latency (ms), lower is better`."""
    name = f"{label} ({scale.unit})" if label and scale.unit else label or scale.unit
    return f"{name}, {note}" if note and name else name or note


def ratio_range(ratios: Iterable[float | None], bounds: Iterable[float | None] = ()) -> tuple[float, float]:
    """Ends of a ratio axis: holds 1 and every ratio with room, and intervals as far as they do not squash the rest."""
    points = [math.log(ratio) for ratio in known(ratios) if ratio > 0] + [0.0]
    reach = 1.5 * (max(points) - min(points)) + 0.05
    edges = [math.log(bound) for bound in known(bounds) if bound > 0]
    low = min([*points, *(max(edge, min(points) - reach) for edge in edges)])
    high = max([*points, *(min(edge, max(points) + reach) for edge in edges)])
    room = max(0.06 * (high - low), 0.004)
    return math.exp(low - room), math.exp(high + room)


def ratio_ticks(low: float, high: float) -> list[float]:
    """Round ratios between two ends, the same distance up as down where possible: 0.8, 1, 1.25."""
    for ticks in _RATIO_TICKS:
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) <= _MAX_TICKS and (ticks[0] <= low * 1.5 and ticks[-1] >= high / 1.5):
            return inside
    return [1.0]


def ratio_axis(ends: tuple[float, float]) -> dict[str, Any]:
    """A logarithmic axis of ratios. Its range is fixed: the ticks are round ratios, which zooming would lose."""
    ticks = ratio_ticks(*ends)
    texts = [f"{tick:g}×" for tick in ticks]
    if sum(map(len, texts)) > _TICK_CHARACTERS:  # on a narrow screen they would lie across each other
        texts = [text if (place - ticks.index(1.0)) % 2 == 0 else "" for place, text in enumerate(texts)]
    return {
        "type": "log",
        "range": [math.log10(end) for end in ends],
        "tickmode": "array",
        "tickvals": ticks,
        "ticktext": texts,
        "tickangle": 0,
        "tickfont": {"size": 11},
        "zeroline": False,
        "fixedrange": True,
        "automargin": True,
    }


def axis_for(values: Sequence[float], title: str = "", *, log: bool) -> dict[str, Any]:
    """A linear or a logarithmic axis for values in its unit."""
    return log_axis((min(values) / 1.25, max(values) * 1.25), title) if log else plain_axis(title)


def log_axis(ends: tuple[float, float], title: str = "") -> dict[str, Any]:
    """A logarithmic axis between two positive ends with whole numbers at its ticks, 1, 2 and 5 per decade."""
    decades = math.log10(ends[1] / ends[0])
    steps: tuple[float, ...] = (1.0,) if decades > 4 else (1.0, 3.0) if decades > 2 else (1.0, 2.0, 5.0)
    if decades < 1:
        steps = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    powers = range(math.floor(math.log10(ends[0])), math.ceil(math.log10(ends[1])) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps]
    ticks = [tick for tick in ticks if ends[0] <= tick <= ends[1]]
    return plain_axis(title) | {
        "type": "log",
        "range": [math.log10(end) for end in ends],
        "tickmode": "array",
        "tickvals": ticks,
        "ticktext": [f"{tick:,.6g}" for tick in ticks],
    }


def plain_axis(title: str = "", *, from_zero: bool = False) -> dict[str, Any]:
    """A linear axis of numbers in one unit, whose ticks follow a zoom."""
    axis: dict[str, Any] = {
        "zeroline": False,
        "automargin": True,
        "tickfont": {"size": 11},
        "nticks": 7,
        "separatethousands": True,
    }
    if from_zero:
        axis["rangemode"] = "tozero"
    return axis | ({"title": axis_title(title)} if title else {})
