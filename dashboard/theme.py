"""Light and dark: the Mantine theme and the two Plotly templates; the colours of CSS are in assets/shell.css.

    templates()["dark"]["layout"]["font"]["color"]

Figures carry colours by meaning (reports.palette) and no background, font or grid: the browser adds the template of the
scheme that is on, so that switching asks the server for nothing. System fonts only; nothing is fetched.
"""

from __future__ import annotations

from typing import Any

from reports.palette import ENTITY_COLOURS, SCHEMES, Scheme

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'Noto Sans CJK SC', 'PingFang SC', sans-serif"
MONOSPACE = "ui-monospace, 'SF Mono', 'Cascadia Mono', 'Noto Sans Mono', Menlo, Consolas, monospace"


def mantine() -> dict[str, Any]:
    """The theme of the controls: system fonts, square enough, a primary colour with contrast in both schemes."""
    return {
        "fontFamily": FONT,
        "fontFamilyMonospace": MONOSPACE,
        "primaryColor": "blue",
        "primaryShade": {"light": 8, "dark": 4},
        "autoContrast": True,
        "defaultRadius": "sm",
        "respectReducedMotion": True,
        "cursorType": "pointer",
    }


def templates() -> dict[str, dict[str, Any]]:
    """Scheme -> Plotly template."""
    return {name: _template(scheme) for name, scheme in SCHEMES.items()}


def _template(scheme: Scheme) -> dict[str, Any]:
    axis = {
        "gridcolor": scheme.grid,
        "linecolor": scheme.muted,
        "zerolinecolor": scheme.grid,
        "tickcolor": scheme.muted,
        "tickfont": {"color": scheme.text},
        "title": {"font": {"color": scheme.text}},
        "automargin": True,
    }
    return {
        "layout": {
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": FONT, "size": 13, "color": scheme.text},
            "colorway": list(ENTITY_COLOURS),
            "xaxis": axis,
            "yaxis": axis,
            "legend": {"font": {"color": scheme.text}, "bgcolor": "rgba(0,0,0,0)"},
            "hoverlabel": {
                "bgcolor": scheme.background,
                "bordercolor": scheme.muted,
                "font": {"family": FONT, "size": 13, "color": scheme.text},
                "align": "left",
            },
            "margin": {"l": 60, "r": 24, "t": 24, "b": 48},
            "annotationdefaults": {"font": {"color": scheme.text}},
            "shapedefaults": {"line": {"color": scheme.muted}},
            "hovermode": "closest",
        }
    }
