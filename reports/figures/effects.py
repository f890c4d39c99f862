"""Ratios and pairs as rows: a forest of effects, bars of two sides, and a ladder of steps that add up.

    forest([Effect("decode(context=512)", 1.07, 1.05, 1.09, "improved", "higher")], limit=0.97)

Each row has its label above its mark, so that long names cost no width on a small screen. Refuses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.core import Better
from reports.figures.base import Figure, empty
from reports.language import Language, say
from reports.palette import Judged


@dataclass(frozen=True, slots=True)
class Effect:
    """One comparison: ratio of an arm over the baseline with its interval. A bound may be missing, 0 or infinite."""

    label: str
    ratio: float
    low: float | None
    high: float | None
    verdict: Judged
    better: Better
    note: str = ""


@dataclass(frozen=True, slots=True)
class Value:
    """A median with its interval, in the figure's unit, over n blocks (or samples)."""

    name: str
    median: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Pair:
    """The two sides of one case; a is the baseline."""

    label: str
    a: Value
    b: Value


@dataclass(frozen=True, slots=True)
class LadderStep:
    """One step up a ladder of options: its value, and its ratio to the step before (None for the first)."""

    label: str
    value: float
    ratio: float | None
    low: float | None
    high: float | None


def forest(effects: Sequence[Effect], *, limit: float | None = None, language: Language = "en") -> Figure:
    """Ratios with whiskers on a logarithmic axis, best first, a line at 1; limit: a gate's ratio, dashed."""
    return empty(say(language, "Effects"), language=language)


def bars(pairs: Sequence[Pair], *, unit: str, language: Language = "en") -> Figure:
    """Two bars per case with their intervals, from zero; values in `unit` of the store (s, bytes, tokens/s)."""
    return empty(say(language, "Both sides"), language=language)


def ladder(steps: Sequence[LadderStep], *, unit: str, better: Better = "higher", language: Language = "en") -> Figure:
    """A waterfall: each step from the value before it to its own, coloured where its ratio's interval leaves 1."""
    return empty(say(language, "Step by step"), language=language)
