"""What the machine allows: a roofline of measured ceilings, and memory against what the model predicts.

    roofline([Ceiling("DRAM read", "bandwidth", 2.1e10, "calibration")], [RoofPoint("decode", 0.5, 8e9, "analytic")])
    memory([MemoryPoint(512, 1.0e8, 4e6, 2e6, 1.1e8)], x_label="context (tokens)", limit=8e9)

Refuses nothing: without ceilings or points the figure says that there is nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from reports.figures.base import Figure, empty
from reports.language import Language, say


@dataclass(frozen=True, slots=True)
class Ceiling:
    """A peak: bytes/s of a memory or FLOP/s of an arithmetic. source: measured how, or which data sheet."""

    name: str
    kind: Literal["bandwidth", "compute"]
    value: float
    source: str


@dataclass(frozen=True, slots=True)
class RoofPoint:
    """A kernel or step: FLOP per byte, FLOP/s achieved. bounds: names of the ceilings that hold for it; none: all."""

    name: str
    intensity: float
    rate: float
    source: str
    bounds: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MemoryPoint:
    """Bytes at one x (context or batch): predicted parts, and the measured peak where there is one."""

    x: float
    weights: float
    kv: float
    activations: float
    measured: float | None


def roof_of(point: RoofPoint, ceilings: Sequence[Ceiling]) -> tuple[float, Ceiling] | None:
    """FLOP/s that the ceilings allow at the point's intensity, and the one that binds; None without ceilings.

    Of several bandwidths the highest counts, and of several arithmetics: the outermost roof (Williams et al. 2009).
    """
    return None


def roofline(ceilings: Sequence[Ceiling], points: Sequence[RoofPoint], *, language: Language = "en") -> Figure:
    """Intensity against achieved FLOP/s, both logarithmic, below the ceilings; the table says how much of its roof."""
    return empty(say(language, "Roofline"), language=language)


def memory(
    points: Sequence[MemoryPoint], *, x_label: str, limit: float | None = None, language: Language = "en"
) -> Figure:
    """Predicted bytes as stacked areas, measured peaks as points; limit: bytes of the device, dashed."""
    return empty(say(language, "Memory"), language=language)
