"""The traces of a figure, put onto matplotlib's axes: what `reports.drawing` draws between its axes and notes.

    paint(axes, figure, SCHEMES["light"], width=900)    # scatter, bar, heatmap and icicle

Refuses other kinds of trace (ValueError naming those that it knows).
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from reports import palette
from reports.figures.base import Figure
from reports.palette import Scheme
from reports.text_width import width_of

Colour = tuple[float, float, float, float]
_MARKERS = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "cross": "P",
    "star": "*",
    "hexagon": "h",
    "triangle-up": "^",
    "triangle-down": "v",
    "x": "X",
}
_SCALE = {"diamond": 0.8, "square": 0.9, "star": 1.35}  # matplotlib's are larger or smaller than Plotly's
_DASHES: dict[str, Any] = {
    "solid": "solid",
    "dash": (0, (5, 3)),
    "dot": (0, (1.2, 2.4)),
    "dashdot": (0, (6, 2.5, 1.2, 2.5)),
    "longdash": (0, (9, 3)),
    "longdashdot": (0, (9, 2.5, 1.2, 2.5)),
}
_STEPS = {"hv": "steps-post", "vh": "steps-pre"}
_HATCHES = {"": None, "/": "////", "\\": "\\\\\\\\", "x": "xxx", "-": "----", "|": "||||"}
_CHARACTER = 6.4  # pixels of a character of 11: whether a label fits into its frame


def paint(axes: Any, figure: Figure, scheme: Scheme, width: int) -> None:
    """All traces in their order. axes: with the scales that the figure asks for. width: of the picture, in pixels."""
    below: list[float] | None = None
    for order, trace in enumerate(figure["data"]):
        kind = trace["type"]
        if kind not in DRAWN:
            raise ValueError(f"a trace of type '{kind}' cannot be drawn. Known: {', '.join(sorted(DRAWN))}")
        DRAWN[kind](axes, trace, scheme, width, 2 + order * 0.01)
        if trace.get("fill") in ("tozeroy", "tonexty"):
            below = _area(axes, trace, below)


def rgba(colour: str) -> Colour:
    """Red, green, blue and opacity (0 to 1) of `#rrggbb` or `rgba(r,g,b,a)`."""
    if colour.startswith("#"):
        red, green, blue = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
        return red, green, blue, 1.0
    parts = [float(part) for part in re.findall(r"[\d.]+", colour)]
    return parts[0] / 255, parts[1] / 255, parts[2] / 255, parts[3] if len(parts) > 3 else 1.0


def colour_at(colorscale: Sequence[Sequence[Any]], share: float) -> Colour:
    """The colour of a scale's place, 0 to 1, mixed from its neighbours."""
    share = min(max(share, 0.0), 1.0)
    for (start, first), (end, last) in pairwise(colorscale):
        if share <= end:
            part = (share - start) / (end - start) if end > start else 0.0
            a, b = rgba(first), rgba(last)
            mixed = [x + (y - x) * part for x, y in zip(a, b, strict=True)]
            return mixed[0], mixed[1], mixed[2], mixed[3]
    return rgba(colorscale[-1][1])


def line_style(line: Figure) -> dict[str, Any]:
    """Plotly's line as matplotlib's keywords."""
    return {
        "color": rgba(line.get("color", palette.NEUTRAL)),
        "linewidth": line.get("width", 1.5),
        "linestyle": _DASHES[line.get("dash", "solid")],
    }


def colorbar_of(figure: Figure) -> Figure | None:
    """The marker whose colours have a scale to be shown; None where no trace has one."""
    markers = (trace.get("marker", {}) for trace in figure["data"] if trace["type"] == "scatter")
    return next((marker for marker in markers if marker.get("showscale")), None)


def legend_sample(paper: Any, trace: Figure, scheme: Scheme, x: float, y: float) -> None:
    """A line, symbol or patch of 22 by 12 pixels that shows how a trace looks."""
    marker = trace.get("marker", {})
    if trace["type"] == "bar" or trace.get("fill"):
        pattern = (marker.get("pattern") or trace.get("fillpattern") or {}).get("shape", "")
        fill = _first(marker.get("color")) or trace.get("fillcolor") or palette.NEUTRAL
        edge = marker.get("line", {}).get("color") or trace.get("line", {}).get("color") or fill
        corners = [x + 2, x + 20, x + 20, x + 2], [y - 6, y - 6, y + 6, y + 6]
        paper.fill(*corners, facecolor=rgba(fill), edgecolor=rgba(edge), linewidth=1)
        _hatch(paper, *corners, pattern, rgba(edge) if trace.get("fill") else scheme.background)
        return
    if "lines" in trace["mode"]:
        style = line_style(trace["line"]) | {"linewidth": min(trace["line"].get("width", 1.5), 4)}
        paper.plot([x, x + 22], [y, y], **style)
    if "markers" in trace["mode"]:
        one = {**trace, "x": [x + 11], "y": [y], "marker": {**marker, "size": 9, "opacity": 1.0}}
        one["marker"]["color"] = _first(marker.get("color"))
        one["marker"]["symbol"] = _first(marker.get("symbol", "circle"))
        _markers(paper, one, 3)


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else value


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _each(value: Any, count: int) -> list[Any]:
    return list(value) if isinstance(value, list) else [value] * count


def _scatter(axes: Any, trace: Figure, scheme: Scheme, width: int, zorder: float) -> None:
    x, y, mode = _numbers(trace["x"]), _numbers(trace["y"]), trace["mode"]
    if trace.get("fill") == "toself":
        _outlines(axes, trace, x, y)
        return
    if "lines" in mode and x:
        step = _STEPS.get(trace["line"].get("shape", ""), "default")
        axes.plot(x, y, drawstyle=step, zorder=zorder, solid_capstyle="butt", **line_style(trace["line"]))
    for name in ("x", "y"):
        if f"error_{name}" in trace and x:
            _whiskers(axes, trace, name, zorder)
    if "markers" in mode and x:
        _markers(axes, trace, zorder + 0.005)
    if "text" in mode:
        size = trace.get("textfont", {}).get("size", 11)
        for place, text in enumerate(trace["text"]):
            shown = html.unescape(re.sub(r"<[^>]*>", "", text))
            axes.text(x[place], y[place], shown, fontsize=size, color=scheme.text, ha="center", va="center", zorder=5)


def _markers(axes: Any, trace: Figure, zorder: float) -> None:
    """Points, grouped by symbol; hollow ones have an edge only."""
    marker, count = trace["marker"], len(trace["x"])
    symbols, sizes = _each(marker.get("symbol", "circle"), count), _each(marker.get("size", 7), count)
    opacities = _each(marker.get("opacity", 1.0), count)
    colours = [_point_colour(marker, colour) for colour in _each(marker.get("color", palette.NEUTRAL), count)]
    edge = marker.get("line", {})
    for symbol in dict.fromkeys(symbols):
        bare = symbol.removesuffix("-open")
        places = [p for p in range(count) if symbols[p] == symbol and None not in (trace["x"][p], trace["y"][p])]
        fills = [(*colours[p][:3], colours[p][3] * opacities[p]) for p in places]
        edges = [(*rgba(edge["color"])[:3], opacities[p]) for p in places] if "color" in edge else fills
        axes.scatter(
            [trace["x"][p] for p in places],
            [trace["y"][p] for p in places],
            s=[(sizes[p] * _SCALE.get(bare, 1.0)) ** 2 for p in places],
            marker=_MARKERS[bare],
            facecolors=fills if bare == symbol else "none",
            edgecolors=edges,
            linewidths=edge.get("width", 0) if bare == symbol else max(edge.get("width", 0), 1.5),
            zorder=zorder,
        )


def _point_colour(marker: Figure, colour: Any) -> Colour:
    if isinstance(colour, str):
        return rgba(colour)
    low, high = marker["cmin"], marker["cmax"]
    return colour_at(marker["colorscale"], (colour - low) / (high - low))


def _whiskers(axes: Any, trace: Figure, name: str, zorder: float) -> None:
    error = trace[f"error_{name}"]
    places = [place for place in range(len(trace["x"])) if None not in (trace["x"][place], trace["y"][place])]
    lengths = [[error[side][place] or 0.0 for place in places] for side in ("arrayminus", "array")]
    offsets = [(trace.get("base") or [0.0] * len(trace["x"]))[p] if name == "x" else 0.0 for p in places]
    axes.errorbar(
        [trace["x"][p] + offset for p, offset in zip(places, offsets, strict=True)],
        [trace["y"][place] for place in places],
        **{f"{name}err": lengths},
        fmt="none",
        ecolor=rgba(error.get("color", palette.NEUTRAL)),
        elinewidth=error.get("thickness", 1.5),
        capsize=error.get("width", 4),
        capthick=error.get("thickness", 1.5),
        zorder=zorder,
    )


def _outlines(axes: Any, trace: Figure, x: Sequence[float], y: Sequence[float]) -> None:
    """Closed outlines, one after the other with gaps between them."""
    start = 0
    for end in [place for place, value in enumerate(x) if math.isnan(value)] + [len(x)]:
        if end - start > 2:
            axes.fill(x[start:end], y[start:end], facecolor=rgba(trace["fillcolor"]), linewidth=0, zorder=1)
        start = end + 1


def _area(axes: Any, trace: Figure, below: list[float] | None) -> list[float]:
    """The area down to zero or to the area before; gives back its upper edge."""
    upper = _numbers(trace["y"])
    lower = below if trace["fill"] == "tonexty" and below is not None else [0.0] * len(upper)
    pattern = trace.get("fillpattern", {})
    x, y = [*trace["x"], *reversed(trace["x"])], [*upper, *reversed(lower)]
    axes.fill(x, y, facecolor=rgba(trace["fillcolor"]), linewidth=0, zorder=1.2)
    _hatch(axes, x, y, pattern.get("shape", ""), rgba(pattern.get("fgcolor", trace["line"]["color"])))
    return upper


def _hatch(axes: Any, x: Sequence[float], y: Sequence[float], shape: str, colour: Any) -> None:
    """Strokes over a fill, on their own: in one piece they would get its opacity."""
    if shape:
        axes.fill(x, y, facecolor="none", edgecolor=colour, linewidth=0, hatch=_HATCHES[shape], zorder=1.3)


def _bar(axes: Any, trace: Figure, scheme: Scheme, width: int, zorder: float) -> None:
    """Horizontal bars, each with its own base, thickness and colour."""
    marker, count = trace["marker"], len(trace["x"])
    colours = _each(marker["color"], count)
    edge = marker.get("line", {})
    base = trace.get("base") or [0.0] * count
    for place in range(count):
        axes.barh(
            trace["y"][place],
            trace["x"][place] or 0.0,
            left=base[place],
            height=trace["width"],
            facecolor=rgba(colours[place]),
            edgecolor=rgba(edge["color"]) if "color" in edge else scheme.background,
            linewidth=edge.get("width", 0),
            hatch=_HATCHES[marker.get("pattern", {}).get("shape", "")],
            zorder=zorder,
        )
    if "error_x" in trace:
        _whiskers(axes, trace, "x", zorder + 0.5)


def _heatmap(axes: Any, trace: Figure, scheme: Scheme, width: int, zorder: float) -> None:
    low, high = trace["zmin"], trace["zmax"]
    for row, values in zip(trace["y"], trace["z"], strict=True):
        for column, value in zip(trace["x"], values, strict=True):
            if value is not None:
                colour = colour_at(trace["colorscale"], (value - low) / (high - low))
                axes.fill_between([column - 0.47, column + 0.47], row - 0.45, row + 0.45, facecolor=colour, linewidth=0,
                                  zorder=zorder)  # fmt: skip


def _icicle(axes: Any, trace: Figure, scheme: Scheme, width: int, zorder: float) -> None:
    """Frames from the root on top to the leaves, each as wide as its share; names where they fit."""
    children: dict[str, list[int]] = {}
    for place, parent in enumerate(trace["parents"]):
        children.setdefault(parent, []).append(place)
    whole = trace["values"][0]
    waiting = [(place, 0.0, 0) for place in children.get("", ())]
    deepest = 0
    for place, left, depth in waiting:  # grows while it is walked: breadth first
        share = trace["values"][place] / whole
        deepest = max(deepest, depth)
        _icicle_frame(axes, trace, place, left, depth, share * width, scheme)
        start = left
        for child in children.get(trace["ids"][place], ()):
            waiting.append((child, start, depth + 1))
            start += trace["values"][child] / whole
    axes.set(xlim=(0, 1), ylim=(deepest + 1, 0))
    axes.axis("off")


def _icicle_frame(axes: Any, trace: Figure, place: int, left: float, depth: int, pixels: float, scheme: Scheme) -> None:
    if pixels < 0.5:
        return
    share = trace["values"][place] / trace["values"][0]
    axes.fill_between([left, left + share], depth, depth + 1, facecolor=rgba(trace["marker"]["colors"][place]),
                      edgecolor=scheme.background, linewidth=1)  # fmt: skip
    label = html.unescape(trace["labels"][place])
    if width_of(label) > pixels - 10:
        fits = int((pixels - 10) / _CHARACTER) - 1
        label = f"{label[:fits]}…" if fits >= 2 else ""
    axes.text(left + share / 2, depth + 0.5, label, fontsize=11, color=trace["textfont"]["color"], ha="center",
              va="center")  # fmt: skip


DRAWN: dict[str, Callable[[Any, Figure, Scheme, int, float], None]] = {
    "scatter": _scatter,
    "bar": _bar,
    "heatmap": _heatmap,
    "icicle": _icicle,
}
