"""What one gains and pays: curves of two metrics along a swept parameter, and the frontier of what nothing beats.

    pareto([Curve("reference", points)], x=AxisOf("tpot", "s", "lower"), y=AxisOf("tps", "tokens/s", "higher"))
    frontier([(1.0, 5.0), (2.0, 4.0)], "lower", "higher")    # [0]: the second is worse in both
    read_at(curve, 0.004)                                    # y at an x between two points; None outside

Refuses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from reports.figures.base import Figure, empty
from reports.language import Language, say

Direction = Literal["higher", "lower"]


@dataclass(frozen=True, slots=True)
class ParetoPoint:
    """One case on a curve, in the units of the axes. loss: quality lost against the reference, nats per token."""

    label: str
    x: float
    y: float
    x_low: float | None = None
    x_high: float | None = None
    y_low: float | None = None
    y_high: float | None = None
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class Curve:
    """The points of one variant along the swept parameter, in that order."""

    name: str
    points: Sequence[ParetoPoint]


@dataclass(frozen=True, slots=True)
class AxisOf:
    """What an axis shows; unit as in the store (s, bytes, tokens/s)."""

    label: str
    unit: str
    better: Direction
    log: bool = False


def frontier(points: Sequence[tuple[float, float]], x_better: Direction, y_better: Direction) -> list[int]:
    """Indices of the points that no other beats in one direction without losing in the other, by x from its best."""
    return []


def read_at(curve: Curve, x: float) -> float | None:
    """The curve's y at an x, on the straight line between its neighbours; None outside the curve."""
    return None


def pareto(curves: Sequence[Curve], *, x: AxisOf, y: AxisOf, language: Language = "en") -> Figure:
    """Curves with interval crosses; the frontier of all points stands out, what it beats is faded, loss is coloured."""
    return empty(say(language, "Trade-off"), language=language)
