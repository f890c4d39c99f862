"""How wide text is, for pictures drawn without a browser: a little more than it will be, never less.

    width_of("decode(context=512)", 11)    # pixels at that size, in DejaVu Sans, wider than most fonts of systems

Refuses nothing: Chinese characters and others of full width count as a square each, whatever fonts a machine has.
"""

from __future__ import annotations

import unicodedata
import warnings
from functools import lru_cache


@lru_cache(maxsize=4096)
def width_of(text: str, size: float = 11) -> float:
    """Pixels of a text's longest line at a font size in pixels."""
    return max((_line_width(line, size) for line in text.split("\n")), default=0.0)


def _line_width(line: str, size: float) -> float:
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    wide = [character for character in line if unicodedata.east_asian_width(character) in "WF"]
    narrow = "".join(character for character in line if character not in wide).replace(" ", "n")
    if not narrow:
        return len(wide) * size
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        path = TextPath((0, 0), narrow, size=size, prop=FontProperties(family="DejaVu Sans"), usetex=False)
    return len(wide) * size + float(path.get_extents().x1)
