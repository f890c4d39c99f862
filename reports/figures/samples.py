"""Raw samples of a series: in the order of time, and as a distribution.

    strip([RawSeries("A", values, warmup)], unit="s")
    ecdf([RawSeries("A", values, warmup), RawSeries("B", others, more)], unit="s")

Refuses nothing: warm-up is drawn grey in the strip and left out of the distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reports.figures.base import Figure, empty
from reports.language import Language, say


@dataclass(frozen=True, slots=True)
class RawSeries:
    """Samples in the order of time; warmup: for each whether it belongs to the warm-up."""

    name: str
    values: Sequence[float]
    warmup: Sequence[bool]


def strip(series: Sequence[RawSeries], *, unit: str, language: Language = "en") -> Figure:
    """Every sample in order, warm-up in grey, a line at the median of the timed ones."""
    return empty(say(language, "Samples in order"), language=language)


def ecdf(series: Sequence[RawSeries], *, unit: str, language: Language = "en") -> Figure:
    """The share of timed samples at or below each value."""
    return empty(say(language, "Distribution"), language=language)
