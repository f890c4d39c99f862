"""What an allocator handed out over time, and what was held when it had handed out most.

    allocator("CPU", [0.0, 1e-4, 2e-4], [768.0, 1536.0, 768.0], held=[Held("aten::mm", 768.0, 1)])

Refuses nothing: without events the figure says that there is nothing. Of many events the lowest and the highest of
each stretch are drawn, so that no peak is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from reports import palette
from reports.figures.base import (
    MAX_POINTS,
    Figure,
    above_axis,
    assemble,
    axis_title,
    empty,
    hover,
    legend_on_top,
    safe,
    told,
)
from reports.figures.numbers import headed, number, plain_axis, scale_for
from reports.language import Language, say


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes in so many blocks that were held at the peak, allocated beneath the operations of this name."""

    name: str
    bytes: float
    blocks: int


def allocator(
    device: str,
    seconds: Sequence[float],
    allocated: Sequence[float],
    *,
    reserved: Sequence[float] = (),
    held: Sequence[Held] = (),
    language: Language = "en",
) -> Figure:
    """Bytes after each event, as steps; `reserved` as well where the allocator has a pool; the table says who held."""
    title = say(language, "Allocator of {device}", device=device)
    columns = [say(language, "allocated in"), say(language, "bytes"), say(language, "of the peak"),
               say(language, "blocks")]  # fmt: skip
    if not seconds:
        return empty(title, columns=columns, language=language)
    pooled = reserved if any(reserved) else ()
    peak = max(range(len(allocated)), key=allocated.__getitem__)
    time, size = scale_for([seconds[-1]], "s"), scale_for([*allocated, *pooled], "bytes")
    lines = [(say(language, "allocated"), allocated, palette.ENTITY_COLOURS[0], palette.ENTITY_DASHES[0])]
    if pooled:
        lines.append((say(language, "reserved"), pooled, palette.NEUTRAL, "dash"))
    traces: list[Figure] = []
    for name, values, colour, dash in lines:
        kept = _extremes(values)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": safe(name),
                "x": [time.of(seconds[place]) for place in kept],
                "y": [size.of(values[place]) for place in kept],
                "line": {"color": colour, "width": 1.5, "dash": dash, "shape": "hv"},
                "hoverinfo": "text",
                "hovertext": [hover(f"{name}: {number(values[k], 'bytes')}", number(seconds[k], "s")) for k in kept],
            }
        )
    traces.append(
        {
            "type": "scatter",
            "mode": "markers",
            "name": safe(say(language, "peak")),
            "x": [time.of(seconds[peak])],
            "y": [size.of(allocated[peak])],
            "marker": {"color": palette.NEUTRAL, "symbol": "diamond", "size": 10, "line": {"width": 0}},
            "hoverinfo": "text",
            "hovertext": [
                hover(
                    say(language, "peak"),
                    number(allocated[peak], "bytes"),
                    number(seconds[peak], "s"),
                    held[0].name if held else "",
                )
            ],
        }
    )
    top = max([*allocated, *pooled]) * 1.1 / size.factor or 1.0
    layout: Figure = {
        "xaxis": plain_axis() | {"title": axis_title(headed(say(language, "elapsed time"), time))},
        "yaxis": plain_axis() | {"range": [min(0.0, min(allocated) / size.factor), top]},
        "margin": {"t": 58, "r": 20},
        "annotations": [above_axis(size.unit)],
        "legend": legend_on_top(),
        "showlegend": True,
    }
    rows = [
        [
            one.name,
            number(one.bytes, "bytes"),
            f"{one.bytes / allocated[peak]:.1%}" if allocated[peak] > 0 else "-",
            f"{one.blocks:,}",
        ]
        for one in held
    ]
    summary = say(
        language,
        "{n} events; the most is {peak}, {when} after the start.",
        n=f"{len(seconds):,}",
        peak=number(allocated[peak], "bytes"),
        when=number(seconds[peak], "s"),
    )
    if held:
        most = say(language, "Most of that was allocated in {name}: {bytes}.", name=held[0].name,
                   bytes=number(held[0].bytes, "bytes"))  # fmt: skip
        summary = told(language, summary, most)
    return assemble(traces, layout, title=title, summary=summary, columns=columns, rows=rows)


def _extremes(values: Sequence[float]) -> list[int]:
    """Which entries to draw: all of a few; of many the lowest and highest of each stretch, the first and the last."""
    if len(values) <= MAX_POINTS:
        return list(range(len(values)))
    stretches = MAX_POINTS // 2 - 1
    bounds = [round(k * len(values) / stretches) for k in range(stretches + 1)]
    kept = {0, len(values) - 1}
    for start, end in pairwise(bounds):
        kept |= {min(range(start, end), key=values.__getitem__), max(range(start, end), key=values.__getitem__)}
    return sorted(kept)
