"""Lines over a length or over steps: how a metric scales, with its fitted line, and losses of training.

    fit = fit_line([128, 512, 2048], [0.011, 0.012, 0.016])    # None under three points
    scaling([ScalingLine("reference", points, fit)], x_label="context (tokens)", y_label="tpot", unit="s")

Refuses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reports.figures.base import Figure, empty
from reports.language import Language, say


@dataclass(frozen=True, slots=True)
class Fit:
    """y = intercept + slope * x, intervals of both, in the units of x and y; r2: share of variance explained."""

    intercept: float
    slope: float
    intercept_low: float
    intercept_high: float
    slope_low: float
    slope_high: float
    r2: float


@dataclass(frozen=True, slots=True)
class ScalingLine:
    """One variant: points of (x, y, low, high), y in the figure's unit, and its fitted line where there is one."""

    name: str
    points: Sequence[tuple[float, float, float | None, float | None]]
    fit: Fit | None = None


@dataclass(frozen=True, slots=True)
class LossCurve:
    """A loss per step of training (or of anything that goes down)."""

    name: str
    steps: Sequence[int]
    values: Sequence[float | None]


def fit_line(xs: Sequence[float], ys: Sequence[float], *, confidence: float = 0.95) -> Fit | None:
    """Least squares with Student's t intervals; None for fewer than three points or all at one x."""
    return None


def scaling(
    lines: Sequence[ScalingLine], *, x_label: str, y_label: str, unit: str, language: Language = "en"
) -> Figure:
    """Points with intervals joined per variant, the fitted lines dashed; the table has the fits."""
    return empty(y_label, language=language)


def losses(curves: Sequence[LossCurve], *, language: Language = "en") -> Figure:
    """Losses over steps on one axis; a value that is not finite is a gap and is named."""
    return empty(say(language, "Loss"), language=language)
