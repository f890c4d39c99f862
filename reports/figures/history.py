"""A series over the runs of a history: levels, changes between them, notes, and the tiny line for a table's cell.

    trend(points, title="tps of decode(context=512)", unit="tokens/s", band=0.012, better="higher")

Refuses nothing: a point without a value is a gap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from harness.core import Better
from reports.figures.base import Figure, empty
from reports.language import Language


@dataclass(frozen=True, slots=True)
class TrendPoint:
    """One run of a series. label: its short name on the axis (a commit). A new segment breaks the line."""

    run_id: str
    label: str
    when: datetime | None
    value: float | None
    low: float | None
    high: float | None
    segment: int


@dataclass(frozen=True, slots=True)
class Change:
    """A change of level. index: the first point after it.

    before, after: the levels, in the unit; low, high: interval of their ratio.
    """

    number: int
    index: int
    before: float
    after: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Mark:
    """A note at a point, numbered as in the list beneath the figure."""

    number: int
    index: int
    text: str


def trend(
    points: Sequence[TrendPoint],
    *,
    title: str,
    unit: str,
    changes: Sequence[Change] = (),
    band: float | None = None,
    limit: float | None = None,
    marks: Sequence[Mark] = (),
    better: Better = "neither",
    language: Language = "en",
) -> Figure:
    """Values in their order with intervals. band: relative noise about each level (0.012: 1.2% up and down);
    limit: a gate's bound in the unit, dashed. Changes are coloured only where `better` names a direction."""
    return empty(title, language=language)


def sparkline(values: Sequence[float | None], *, colour: str = "currentColor") -> str:
    """An SVG element of 72 by 16 pixels: the line of the values with its last point; "" for fewer than two."""
    return ""
