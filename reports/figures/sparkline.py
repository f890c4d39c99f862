"""The tiny line for a table's cell: a history at a glance, without axes.

    sparkline([41.0, 40.2, 44.9])       # '<svg ...>', of 72 by 16 pixels

Refuses nothing: a value that is none is a gap, and fewer than two values are "".
"""

from __future__ import annotations

import html
from collections.abc import Sequence

from reports.figures.base import finite, known, thin


def sparkline(values: Sequence[float | None], *, colour: str = "currentColor") -> str:
    """An SVG element of 72 by 16 pixels: the line of the values with its last point; "" for fewer than two.

    `currentColor` follows the text where the element stands in the page; inside an <img> give a colour (#rrggbb).
    """
    kept = [values[place] for place in thin(len(values), 72)]
    found = known(kept)
    if len(found) < 2:
        return ""
    low, span = min(found), max(found) - min(found)
    commands, pen, last = [], "M", (0.0, 0.0)
    for place, value in enumerate(kept):
        if finite(value) is None or value is None:
            pen = "M"
            continue
        last = (2 + 66 * place / (len(kept) - 1), 14 - 12 * ((value - low) / span if span else 0.5))
        commands.append(f"{pen}{last[0]:.1f} {last[1]:.1f}")
        pen = "L"
    ink = html.escape(colour)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" width="72" height="16" viewBox="0 0 72 16" aria-hidden="true">'
        f'<path d="{"".join(commands)}" fill="none" stroke="{ink}" stroke-width="1.5"/>'
        f'<circle cx="{last[0]:.1f}" cy="{last[1]:.1f}" r="1.8" fill="{ink}"/></svg>'
    )
