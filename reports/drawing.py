"""Figures of `reports.figures` as SVG, without a browser: for reports and for pages without JavaScript.

    svg = to_svg(forest(effects), scheme="dark", width=720)    # the same bytes for the same dict

Text stays text, in the reader's own font. Sizes are pixels. The element carries no styles, scripts or ids that could
meet those of the page it is put into, beyond ids that follow from its content. Understands what our figures use of
Plotly's format and no more: ValueError names the kind of trace that it does not know.
"""

from __future__ import annotations

import hashlib
import html
import io
import json
import math
import re
import threading
import warnings
from typing import Any

from reports.drawing_traces import colorbar_of, colour_at, legend_sample, line_style, paint
from reports.figures.base import Figure, safe
from reports.palette import SCHEMES, Scheme, SchemeName
from reports.text_width import width_of

_HEIGHT = 420
_FONTS = (
    "system-ui, -apple-system, 'Segoe UI', 'Noto Sans', 'PingFang SC', 'Microsoft YaHei', 'Noto Sans CJK SC', "
    "'DejaVu Sans', sans-serif"
)
_LEGEND_ROW = 20
_COLORBAR = 64
_SIDES = {"left": "left", "center": "center", "right": "right", "top": "top", "middle": "center", "bottom": "bottom"}
_LOCK = threading.Lock()  # matplotlib's settings are global


def to_svg(figure: Figure, *, scheme: SchemeName = "light", width: int = 900, height: int | None = None) -> str:
    """One <svg> element of `width` by `height` pixels (the figure's own height where None), to inline or to write.

    It is wider where the figure needs it (`min_width` of its meta).
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas

    layout = figure["layout"]
    width = max(width, layout["meta"]["min_width"])
    tall = height or layout.get("height") or _HEIGHT
    digest = hashlib.sha256(json.dumps([figure, scheme, width, tall], sort_keys=True).encode()).hexdigest()
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": digest,
        "font.family": ["DejaVu Sans"],  # comes with matplotlib: widths are the same everywhere
        "text.parse_math": False,
        "hatch.linewidth": 0.6,
        "axes.unicode_minus": True,
        "path.simplify": False,
    }
    buffer = io.StringIO()
    with _LOCK, mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")  # the reader's font will have it
        canvas = Canvas(figsize=(width / 72, tall / 72), dpi=72, facecolor=SCHEMES[scheme].background)
        _compose(canvas, figure, SCHEMES[scheme], width, tall)
        canvas.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
                       facecolor=SCHEMES[scheme].background)  # fmt: skip
    meta = layout["meta"]
    return _tidy(buffer.getvalue(), meta["title"], meta["summary"], width, tall, digest[:10])


def plain(text: str) -> str:
    """What Plotly would show for a text with its few tags and entities."""
    return html.unescape(re.sub(r"<[^>]*>", "", text.replace("<br>", "\n")))


def _compose(canvas: Any, figure: Figure, scheme: Scheme, width: int, height: int) -> None:
    layout = figure["layout"]
    if any(trace["type"] == "icicle" for trace in figure["data"]):
        layout = {"xaxis": {"visible": False}, "yaxis": {"visible": False}, **layout}
    paper = canvas.add_axes((0, 0, 1, 1), zorder=3)
    paper.set(xlim=(0, width), ylim=(height, 0))
    paper.axis("off")
    top = _legend(paper, figure, scheme, width) if layout.get("showlegend") else 6
    top += 24 if any(_stands_above(note) for note in layout.get("annotations", ())) else 8
    right = layout["margin"]["r"] + (_COLORBAR if colorbar_of(figure) else 0)
    axes = canvas.add_axes((0, 0, 1, 1), zorder=1)
    _scales(axes, layout)
    paint(axes, figure, scheme, width)
    _limits(axes, layout)
    box = _frame(axes, layout, scheme, (top, right), (width, height))
    area = canvas.add_axes((box[0] / width, 1 - box[3] / height, (box[2] - box[0]) / width, (box[3] - box[1]) / height))
    area.axis("off")
    for shape in layout.get("shapes", ()):
        _shape(axes, area, shape)
    for note in layout.get("annotations", ()):
        _note(axes, area, note, layout, scheme, box[2] - box[0])
    if bar := colorbar_of(figure):
        _colorbar(paper, bar, scheme, (box[2] + 16, box[1], box[3]))


def _stands_above(note: Figure) -> bool:
    return note.get("yref") == "paper" and note.get("y") == 1 and note.get("yanchor") == "bottom"


def _stands_below(note: Figure) -> bool:
    return note.get("yref") == "paper" and note.get("y") == 0 and note.get("yanchor") == "top"


def _scales(axes: Any, layout: Figure) -> None:
    for name in ("x", "y"):
        if layout.get(f"{name}axis", {}).get("type") == "log":
            getattr(axes, f"set_{name}scale")("log")


def _limits(axes: Any, layout: Figure) -> None:
    """The ends of both axes; what the figure leaves open follows the data."""
    for name in ("x", "y"):
        axis = layout.get(f"{name}axis", {})
        put = getattr(axes, f"set_{name}lim")
        if "range" in axis:
            ends = axis["range"]
            put(*(10**end for end in ends) if axis.get("type") == "log" else ends)
        elif axis.get("rangemode") == "tozero":
            put(left=0) if name == "x" else put(bottom=0)


def _frame(
    axes: Any, layout: Figure, scheme: Scheme, edges: tuple[float, float], size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Puts the axes where their labels leave room, and gives back the plotting area: left, top, right, bottom."""
    x_axis, y_axis = layout.get("xaxis", {}), layout.get("yaxis", {})
    top, right = edges
    for side in ("left", "top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_facecolor("none")
    axes.tick_params(length=0, labelsize=11, labelcolor=scheme.muted, pad=5)
    labels = _ticks(axes.yaxis, y_axis, 7)
    left = layout["margin"]["l"] + (max(map(width_of, labels), default=0) + 8 if y_axis.get("visible", True) else 0)
    _ticks(axes.xaxis, x_axis, max(3, int((size[0] - left - right) / 55)))
    bottom, extra = 36.0 if any(_stands_below(note) for note in layout.get("annotations", ())) else 12.0, 0.0
    if x_axis.get("visible", True) is not False:
        angle = x_axis.get("tickangle", 0)
        texts = [plain(text) for text in x_axis.get("ticktext", ())]
        rise = math.sin(math.radians(angle)) * max(map(width_of, texts), default=0) + 14
        title = plain(x_axis.get("title", {}).get("text", ""))
        if x_axis.get("side") == "top":
            top += rise + 8
            # They lean to the left, over the corner above the labels of the rows.
            extra = math.cos(math.radians(angle)) * (width_of(texts[0]) if texts else 0)
            axes.xaxis.tick_top()
            if angle:
                for label in axes.get_xticklabels():
                    label.set(rotation=-angle, ha="right", va="bottom", rotation_mode="anchor")
        else:
            bottom += rise + (24 if title else 6)
        if title:
            axes.set_xlabel(_shortened(title, size[0] - 40, 12), fontsize=12, color=scheme.text, labelpad=7)
    for name, axis in (("x", x_axis), ("y", y_axis)):
        shown = axis.get("visible", True) is not False
        getattr(axes, f"{name}axis").set_visible(shown)
        if shown and axis.get("showgrid", True):
            axes.grid(True, axis=name, color=scheme.grid, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    left = max(left, extra - 20)
    box = (left, top, max(size[0] - right, left + 40), max(size[1] - bottom, top + 40))
    start, end = x_axis.get("domain", (0, 1))
    span = box[2] - box[0]
    axes.set_position(
        (
            (box[0] + start * span) / size[0],
            1 - box[3] / size[1],
            (end - start) * span / size[0],
            (box[3] - box[1]) / size[1],
        )
    )
    _thin_ticks(axes, x_axis, (end - start) * span)
    return box


def _ticks(axis: Any, wanted: Figure, count: int) -> list[str]:
    """Places and texts of the ticks; gives back the texts."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    axis.set_minor_locator(NullLocator())
    if wanted.get("tickmode") == "array":
        axis.set_major_locator(FixedLocator(wanted["tickvals"]))
        axis.set_major_formatter(FixedFormatter([plain(text) for text in wanted["ticktext"]]))
        return [plain(text) for text in wanted["ticktext"]]
    axis.set_major_locator(MaxNLocator(nbins=min(wanted.get("nticks", 7), count), steps=[1, 2, 2.5, 5, 10]))
    suffix = plain(wanted.get("ticksuffix", ""))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}".replace("-", "−") + suffix))
    low, high = sorted(axis.get_view_interval())
    return [axis.get_major_formatter()(value, 0) for value in axis.get_majorticklocs() if low <= value <= high]


def _thin_ticks(axes: Any, wanted: Figure, pixels: float) -> None:
    """Every second label goes while neighbours on the horizontal axis would touch."""
    if wanted.get("tickmode") != "array" or wanted.get("tickangle", 0) or len(wanted["tickvals"]) < 3:
        return
    widest = max(width_of(plain(text)) for text in wanted["ticktext"]) + 8
    step = max(1, math.ceil(widest * len(wanted["tickvals"]) / max(pixels, 1.0)))
    for place, label in enumerate(axes.get_xticklabels()):
        label.set_visible(place % step == 0)


def _legend(paper: Any, figure: Figure, scheme: Scheme, width: int) -> float:
    """Entries from left to right in as many rows as they need; the lower edge in pixels."""
    x, y, seen = 12.0, 14.0, set()
    for trace in figure["data"]:
        group = trace.get("legendgroup", trace.get("name", ""))
        if trace.get("showlegend") is False or trace.get("hoverinfo") == "none" or group in seen:
            continue
        seen.add(group)
        text = plain(trace.get("name", ""))
        needed = 28 + width_of(text, 12) + 18
        if x > 12 and x + needed > width:
            x, y = 12.0, y + _LEGEND_ROW
        legend_sample(paper, trace, scheme, x, y)
        paper.text(x + 28, y, text, fontsize=12, color=scheme.text, va="center", ha="left")
        x += needed
    return y + 12


def _blend(axes: Any, area: Any, thing: Figure) -> Any:
    from matplotlib.transforms import blended_transform_factory

    across = area.transAxes if thing.get("xref") == "paper" else axes.transData
    upward = area.transAxes if thing.get("yref") == "paper" else axes.transData
    return blended_transform_factory(across, upward)


def _shape(axes: Any, area: Any, shape: Figure) -> None:
    line = line_style(shape["line"])
    x, y = [shape["x0"], shape["x1"]], [shape["y0"], shape["y1"]]
    if shape["type"] == "rect":
        x, y = [x[0], x[1], x[1], x[0], x[0]], [y[0], y[0], y[1], y[1], y[0]]
    limits = axes.get_xlim(), axes.get_ylim()
    # Level and upright lines end exactly where they should; only data below the axes' own limits is cut off.
    axes.plot(x, y, transform=_blend(axes, area, shape), zorder=0.8, clip_on=False, scalex=False, scaley=False, **line)
    axes.set(xlim=limits[0], ylim=limits[1])


def _note(axes: Any, area: Any, note: Figure, layout: Figure, scheme: Scheme, pixels: float) -> None:
    """One annotation. On a logarithmic axis its place is a logarithm, as Plotly has it."""
    size = note.get("font", {}).get("size", 12)
    x, y = (
        10 ** note[name]
        if note.get(f"{name}ref") == name and layout.get(f"{name}axis", {}).get("type") == "log"
        else note[name]
        for name in ("x", "y")
    )
    text = plain(note["text"])
    if note.get("xref") == "paper" and note.get("x") == 0 and "\n" not in text:
        text = _shortened(text, pixels, size)
    frame = None
    if note.get("borderwidth"):
        frame = {"boxstyle": "square,pad=0.2", "facecolor": scheme.background, "edgecolor": note["bordercolor"],
                 "linewidth": note["borderwidth"]}  # fmt: skip
    axes.annotate(
        text,
        xy=(x, y),
        xycoords=_blend(axes, area, note),
        xytext=(note.get("xshift", 0), note.get("yshift", 0)),
        textcoords="offset points",
        ha=_SIDES[note.get("xanchor", "center")],
        va=_SIDES[note.get("yanchor", "middle")],
        fontsize=size,
        color=scheme.text,
        annotation_clip=False,
        zorder=6,
        bbox=frame,
        linespacing=1.15,
    )


def _shortened(text: str, pixels: float, size: float) -> str:
    """Cut in the middle until it fits."""
    keep = len(text)
    while (
        keep > 8 and width_of(text if keep == len(text) else f"{text[: keep // 2]}…{text[-keep // 2 :]}", size) > pixels
    ):
        keep -= 1
    return text if keep == len(text) else f"{text[: (keep + 1) // 2]}…{text[len(text) - keep // 2 :]}"


def _colorbar(paper: Any, marker: Figure, scheme: Scheme, place: tuple[float, float, float]) -> None:
    """The scale of coloured points: a column of small steps with its ends and its heading."""
    left, top, bottom = place
    low, high, steps = marker["cmin"], marker["cmax"], 40
    upper, span = top + 18, (bottom - top) * 0.6
    for step in range(steps):
        colour = colour_at(marker["colorscale"], 1 - (step + 0.5) / steps)
        # Each step reaches the end and is covered by the next: side by side they would show seams.
        paper.fill_between([left, left + 10], upper + span * step / steps, upper + span, facecolor=colour, linewidth=0)
    for share in (0.0, 0.5, 1.0):
        paper.text(left + 14, upper + span * (1 - share), f"{low + share * (high - low):.2g}", fontsize=11,
                   color=scheme.muted, va="center", ha="left")  # fmt: skip
    title = plain(marker["colorbar"]["title"]["text"])
    paper.text(left + 46, top - 8, title, fontsize=11, color=scheme.text, va="bottom", ha="right")


def _tidy(svg: str, title: str, summary: str, width: int, height: int, digest: str) -> str:
    """Without prologue, metadata, global styles and ids of matplotlib; with a name and a description to be read out."""
    body = svg[svg.index("<svg") :]
    body = body[body.index(">") + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S)
    body = re.sub(r"<defs>\s*<style type=\"text/css\">.*?</style>\s*</defs>", "", body, flags=re.S)
    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.S)  # matplotlib repeats every text as a comment
    body = re.sub(r'<g id="[^"]*"/>', "", body)
    body = re.sub(r'<g id="[^"]*">', "<g>", body)
    body = re.sub(r' transform="rotate\(-0 [^"]*"', "", body)
    body = re.sub(r' style="([^"]*)"', lambda match: _attributes(match[1]), body)
    body = re.sub(r"\n\s*", "\n", body)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{width}" '
        f'height="{height}" viewBox="0 0 {width} {height}" role="img" aria-labelledby="t{digest} d{digest}" '
        f'font-family="{_FONTS}" stroke-linejoin="round" stroke-linecap="butt">\n'
        f'<title id="t{digest}">{safe(title)}</title>\n<desc id="d{digest}">{safe(summary)}</desc>'
    )
    return head + body.strip("\n").join(("\n", "\n"))


def _attributes(style: str) -> str:
    """The declarations of a style attribute as attributes of their own: a strict page allows no inline styles."""
    found = []
    for declaration in style.split(";"):
        name, _, value = (part.strip() for part in declaration.partition(":"))
        if name == "font":
            size = re.search(r"([\d.]+)px", value)
            found += [f'font-size="{size[1]}"'] if size else []
        elif name and name != "font-family":
            found.append(f'{name}="{html.escape(value)}"')
    return "".join(f" {item}" for item in found)
