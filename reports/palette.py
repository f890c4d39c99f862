"""The colours of figures and reports, by what they mean: Okabe and Ito's palette, seen with every common colour vision.

    VERDICT["improved"].colour, VERDICT["improved"].symbol    # a colour never stands alone: a symbol doubles it
    styles(["reference", "norm=fused"])["norm=fused"].dash    # an option keeps its look wherever it appears

Blue is better, orange is worse, grey is no difference that matters; options never wear blue or orange. Every colour has
a contrast of at least 3:1 against both backgrounds of SCHEMES, every text colour 4.5:1 (WCAG 2.2; tests check it).
Source: M. Okabe and K. Ito, Color Universal Design (2008); lightness adapted where 3:1 on white or black asked for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from harness.core import VerdictName

SchemeName = Literal["light", "dark"]
Judged = VerdictName | Literal["reference"]

BETTER = "#0072b2"
WORSE = "#d55e00"
NEUTRAL = "#7a7d83"


@dataclass(frozen=True, slots=True)
class Scheme:
    """What a page is drawn on and with, as #rrggbb: `muted` is text of less weight, `grid` lines behind the data."""

    background: str
    text: str
    muted: str
    grid: str


SCHEMES: dict[SchemeName, Scheme] = {
    "light": Scheme(background="#ffffff", text="#1b1e23", muted="#5a606b", grid="#dfe2e7"),
    "dark": Scheme(background="#16181d", text="#e7e9ec", muted="#a3a9b4", grid="#33373f"),
}


@dataclass(frozen=True, slots=True)
class Style:
    """How one thing looks in every figure. symbol and dash: Plotly's names. glyph: the same in text."""

    colour: str
    symbol: str
    dash: str = "solid"
    glyph: str = ""


VERDICT: dict[Judged, Style] = {
    "improved": Style(BETTER, "triangle-up", glyph="▲"),
    "regressed": Style(WORSE, "triangle-down", glyph="▼"),
    "equivalent": Style(NEUTRAL, "circle", glyph="="),
    "inconclusive": Style(NEUTRAL, "circle-open", glyph="?"),
    "invalid": Style(NEUTRAL, "x", glyph="✗"),
    "reference": Style(NEUTRAL, "diamond", glyph="◆"),
}

# Okabe and Ito's green, purple, sky blue, yellow, orange and black, without the two that mean better and worse.
ENTITY_COLOURS = ("#00946b", "#b8629a", "#b07800", "#3a8fc4", "#74891a", "#7d6fb8")
ENTITY_SYMBOLS = ("circle", "square", "diamond", "cross", "star", "hexagon")
ENTITY_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SERIES = "#7d6fb8"  # the line of a figure that has only one
REFERENCE_STYLE = Style(NEUTRAL, "diamond-open", "solid")
AREA_PATTERNS = ("", "/", "x")
SEQUENTIAL = ((0.0, "#f7e3a1"), (0.5, "#cf7fa6"), (1.0, "#8557b0"))  # much is dark, yet seen on black


def styles(names: Iterable[str]) -> dict[str, Style]:
    """The look of each name: by a hash of the name, so that it is the same in every figure.

    Where two names of one figure fall on the same colour, the later one (in alphabetical order) takes the next free
    one; dash and symbol go with the colour, and repeat only beyond six names. `reference` is grey.
    """
    distinct = sorted(set(names) - {"reference"})
    taken: set[int] = set()
    found = {"reference": REFERENCE_STYLE}
    for name in distinct:
        if len(taken) == len(ENTITY_COLOURS):
            taken.clear()
        place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % len(ENTITY_COLOURS)
        while place in taken:
            place = (place + 1) % len(ENTITY_COLOURS)
        taken.add(place)
        turn = distinct.index(name) // len(ENTITY_COLOURS)
        other = (place + turn) % len(ENTITY_COLOURS)
        found[name] = Style(ENTITY_COLOURS[place], ENTITY_SYMBOLS[other], ENTITY_DASHES[other])
    return found


def faint(colour: str, share: float) -> str:
    """A colour of #rrggbb that lets the background through: share 0 is nothing, 1 the whole colour."""
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},{share:.3g})"


def contrast(one: str, other: str) -> float:
    """Contrast of two colours (#rrggbb), 1 to 21. Source: WCAG 2.2, relative luminance and contrast ratio."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    parts = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
