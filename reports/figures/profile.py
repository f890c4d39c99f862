"""Where the time goes: an icicle of stacks, also of one against another, and a timeline of lanes.

    icicle([Frame(("step", "attention"), 1.2e-3), Frame(("step", "mlp"), 2.0e-3)])
    timeline([Span("GPU", "gemm", 0.0, 1e-4)])

Refuses nothing: frames and spans without a duration are left out and counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reports import palette
from reports.figures.base import Figure, assemble, empty, hover, legend_on_top, safe, told
from reports.figures.numbers import headed, number, plain_axis, scale_for
from reports.figures.rowed import Rows, heading_number, plan_rows, row_layout
from reports.language import Language, say

MAX_NODES = 1500
MAX_SPANS = 2000
_ROOT = "all"
_BODY = 44  # pixels below the name of a lane; its bars lie in the middle
_THICK = 28
_NAMED = 4  # names with a look of their own in a timeline
_TABLE_ROWS = 200
_MARKED = "#e69f00"  # around what was looked for
_PLAIN = ("#4f6272", "#5b6f80")  # one frame beside the next: no meaning, so no hue; white text reads on both
_SAME = 0.002  # of the whole: a share that moved by less has not changed

Path = tuple[str, ...]


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


def icicle(
    frames: Sequence[Frame], *, other: Sequence[Frame] | None = None, find: str = "", language: Language = "en"
) -> Figure:
    """Widths by share of the whole, the largest MAX_NODES. With `other`: coloured by share here minus share there.

    `find`: frames whose name holds this text, in any case, are outlined and come first in the table.
    """
    title = say(language, "Where the time goes")
    columns = [say(language, "frame"), say(language, "share"), say(language, "parent")]
    if other is not None:
        columns = [say(language, "frame"), say(language, "share"), say(language, "share in the other"),
                   say(language, "change in points"), say(language, "parent")]  # fmt: skip
    totals, there = _totals(frames), _totals(other or ())
    whole = totals.get((), 0)
    if not whole > 0:
        return empty(title, columns=columns, language=language)
    shares = {path: value / whole for path, value in totals.items()}
    other_shares = {path: value / there[()] for path, value in there.items()} if there.get((), 0) > 0 else {}
    # A parent is never smaller than its children and stands before them, so that none is kept without it.
    kept = sorted(totals, key=lambda path: (-totals[path], len(path), path))[:MAX_NODES]
    ids = {path: str(order) for order, path in enumerate(kept)}
    deltas = {path: shares[path] - other_shares.get(path, 0.0) for path in kept} if other_shares else {}
    trace = {
        "type": "icicle",
        "ids": [ids[path] for path in kept],
        "labels": [safe(path[-1], length=60) if path else safe(_ROOT) for path in kept],
        "parents": [ids[path[:-1]] if path else "" for path in kept],
        "values": [totals[path] for path in kept],
        "branchvalues": "total",
        "sort": False,
        "tiling": {"orientation": "v", "pad": 0},
        "leaf": {"opacity": 1},
        "pathbar": {"visible": True, "thickness": 20},
        "textinfo": "label",
        "textfont": {"size": 12, "color": "#ffffff"},
        "marker": {"colors": [_frame_colour(path, deltas) for path in kept], "line": _outlines(kept, find)},
        "hoverinfo": "text",
        "hovertext": [_frame_hover(path, shares, other_shares, language) for path in kept],
    }
    rows = [
        [path[-1], f"{shares[path]:.1%}", " / ".join(path[:-1])]
        if other is None
        else [path[-1], f"{shares[path]:.1%}", f"{other_shares.get(path, 0.0):.1%}", _points(deltas.get(path, 0.0)),
              " / ".join(path[:-1])]
        for path in _for_table(kept, deltas, find)
    ]  # fmt: skip
    gone = sorted((path for path in other_shares if path and path not in shares), key=lambda p: (-other_shares[p], p))
    rows += [
        [path[-1], "-", f"{other_shares[path]:.1%}", _points(-other_shares[path]), " / ".join(path[:-1])]
        for path in gone[:_TABLE_ROWS]
    ]
    depth = max(len(path) for path in kept)
    layout = {
        "height": min(max(26 * (depth + 1) + 60, 220), 900),
        "margin": {"l": 4, "r": 4, "t": 4, "b": 4},
        "uniformtext": {"minsize": 10, "mode": "hide"},
    }
    summary = _icicle_sentence(shares, deltas, len(totals) - len(kept), len(gone), language)
    if find:
        summary = told(language, _found_sentence(shares, find, language), summary)
    return assemble([trace], layout, title=title, summary=summary, columns=columns, rows=rows)


def _totals(frames: Sequence[Frame]) -> dict[Path, int]:
    """Billionths of the whole in every frame and what it calls; () is the whole.

    Whole numbers, since Plotly draws nothing at all where children outweigh their parent by the last digit.
    """
    real = [frame for frame in frames if frame.value > 0 and math.isfinite(frame.value)]
    unit = math.fsum(frame.value for frame in real) / 1e9
    totals: dict[Path, int] = {}
    for frame in real:
        for depth in range(len(frame.path) + 1):
            totals[frame.path[:depth]] = totals.get(frame.path[:depth], 0) + max(round(frame.value / unit), 1)
    return totals


def _frame_colour(path: Path, deltas: dict[Path, float]) -> str:
    """Grey-blue in two tones by depth; with another profile: orange where the share grew, blue where it fell."""
    delta = deltas.get(path)
    if delta is None or abs(delta) < _SAME or not path:
        return _PLAIN[len(path) % 2]
    # A tenth of the whole has the full colour; both ends are dark enough for white text.
    return _mix("#5b6f80", "#b04a00" if delta > 0 else "#00629b", min(0.2 + abs(delta) / 0.1, 1.0))


def _mix(start: str, end: str, share: float) -> str:
    parts = [(int(start[k : k + 2], 16), int(end[k : k + 2], 16)) for k in (1, 3, 5)]
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in parts)


def _points(delta: float) -> str:
    """A difference of shares, in percentage points."""
    return f"{delta * 100:+.1f}".replace("-", "−")


def _frame_hover(path: Path, shares: dict[Path, float], other: dict[Path, float], language: Language) -> str:
    lines = [path[-1] if path else _ROOT, f"{shares[path]:.1%}"]
    if other:
        before = other.get(path, 0.0)
        change = _points(shares[path] - before)
        lines.append(say(language, "{share} in the other, {change} points", share=f"{before:.1%}", change=change))
    return hover(*lines)


def _for_table(kept: Sequence[Path], deltas: dict[Path, float], find: str) -> list[Path]:
    """The rows of the table: what was looked for, then largest share first, or largest change of share."""
    named = [path for path in kept if path]
    if deltas:
        named.sort(key=lambda path: -abs(deltas[path]))
    named.sort(key=lambda path: not _found(path, find))
    return named[:_TABLE_ROWS]


def _found(path: Path, find: str) -> bool:
    return bool(find) and bool(path) and find.casefold() in path[-1].casefold()


def _outlines(kept: Sequence[Path], find: str) -> dict[str, Any]:
    """Lines around the frames: thick around what was looked for."""
    if not any(_found(path, find) for path in kept):
        return {"width": 1}
    found = [_found(path, find) for path in kept]
    return {"width": [4 if it else 1 for it in found], "color": [_MARKED if it else "#ffffff" for it in found]}


def _found_sentence(shares: dict[Path, float], find: str, language: Language) -> str:
    """How much lies in frames of that name and in what they call; what lies in two of them counts once."""
    found = {path for path in shares if _found(path, find)}
    outer = [path for path in found if not any(path[:depth] in found for depth in range(1, len(path)))]
    return say(
        language,
        "{n} frames have '{text}' in their name: {share} of the time is in them.",
        n=len(found),
        text=find,
        share=f"{sum(shares[path] for path in outer):.1%}",
    )


def _icicle_sentence(
    shares: dict[Path, float], deltas: dict[Path, float], num_left_out: int, num_gone: int, language: Language
) -> str:
    # What has nearly all of the time is only the way to where the time goes.
    leaves = [path for path in shares if path and shares[path] < 0.9] or [path for path in shares if path]
    widest = max(leaves, key=lambda path: (shares[path], path))
    parts = [
        say(
            language,
            "{n} frames; the widest with less than 90% is {name}: {share}.",
            n=len(shares) - 1,
            name=widest[-1],
            share=f"{shares[widest]:.1%}",
        )
    ]
    moved = {path: delta for path, delta in deltas.items() if path}
    if moved:
        most = max(moved, key=lambda path: (abs(moved[path]), path))
        parts.append(
            say(
                language,
                "The share that changed most is {name}: {change} points (orange grew, blue fell).",
                name=most[-1],
                change=_points(moved[most]),
            )
        )
    if num_gone:
        parts.append(say(language, "{n} frames stand only in the other.", n=num_gone))
    if num_left_out:
        parts.append(say(language, "{n} smaller frames are not drawn.", n=num_left_out))
    return told(language, *parts)


def timeline(spans: Sequence[Span], *, language: Language = "en") -> Figure:
    """Bars per lane, the longest MAX_SPANS; each lane's heading has its idle time within first start and last end."""
    title = say(language, "Timeline")
    columns = [
        say(language, "lane"),
        say(language, "name"),
        say(language, "calls"),
        say(language, "total"),
        say(language, "of the whole"),
    ]
    real = [span for span in spans if math.isfinite(span.start) and math.isfinite(span.end) and span.end > span.start]
    if not real:
        return empty(title, columns=columns, language=language)
    start, end = min(span.start for span in real), max(span.end for span in real)
    lanes = list(dict.fromkeys(span.lane for span in real))
    shown = sorted(sorted(real, key=lambda span: span.start - span.end)[:MAX_SPANS], key=lambda span: span.start)
    scale = scale_for([end - start], "s")
    busy = {lane: _busy([span for span in real if span.lane == lane]) for lane in lanes}
    idle = {lane: end - start - busy[lane] for lane in lanes}
    named = [name for name, _ in Counter(_durations(real)).most_common(_NAMED)]
    axis = plain_axis() | {"range": [0, (end - start) / scale.factor]}
    heading = headed(say(language, "elapsed time"), scale)
    frame = plan_rows(lanes, body=_BODY, characters=32)
    layout = row_layout(frame, axis=axis, heading=heading, share=1.0)
    layout |= {"barmode": "overlay", "bargap": 0, "legend": legend_on_top(), "showlegend": True}
    layout["margin"] |= {"r": 16}
    layout["height"] += 50  # for a legend of several lines on a narrow screen
    for row, lane in enumerate(lanes):
        share = f"{idle[lane] / (end - start):.1%}"
        text = say(language, "idle {time} ({share})", time=number(idle[lane], "s"), share=share)
        layout["annotations"].append(heading_number(text, row, frame))
    looks = palette.styles(named)
    traces = []
    for name in [*named, None]:
        group = [span for span in shown if (span.name == name if name is not None else span.name not in named)]
        if group:
            traces.append(_bars(group, name, looks, lanes, frame, start, scale.factor, language))
    rows = _timeline_rows(real, end - start)
    longest = max(idle, key=idle.__getitem__)
    summary = say(
        language,
        "{n} spans over {time}, lanes: {lanes}; {lane} is idle for {idle} ({share}).",
        n=len(real),
        lanes=len(lanes),
        time=number(end - start, "s"),
        lane=longest,
        idle=number(idle[longest], "s"),
        share=f"{idle[longest] / (end - start):.1%}",
    )
    if len(shown) < len(spans):
        left_out = say(language, "{n} shorter or empty spans are not drawn.", n=len(spans) - len(shown))
        summary = told(language, summary, left_out)
    return assemble(traces, layout, title=title, summary=summary, columns=columns, rows=rows)


def _busy(spans: Sequence[Span]) -> float:
    """Seconds in which at least one of the spans runs."""
    total, reached = 0.0, -math.inf
    for span in sorted(spans, key=lambda span: span.start):
        total += max(span.end - max(span.start, reached), 0.0)
        reached = max(reached, span.end)
    return total


def _durations(spans: Sequence[Span]) -> dict[str, float]:
    found: dict[str, float] = {}
    for span in spans:
        found[span.name] = found.get(span.name, 0.0) + span.end - span.start
    return found


def _bars(
    spans: Sequence[Span],
    name: str | None,
    looks: dict[str, palette.Style],
    lanes: Sequence[str],
    frame: Rows,
    origin: float,
    factor: float,
    language: Language,
) -> Figure:
    """One trace per name, so that the legend can name it; everything else in grey."""
    rows = {lane: row for row, lane in enumerate(lanes)}
    colour = palette.NEUTRAL if name is None else looks[name].colour
    return {
        "type": "bar",
        "orientation": "h",
        "name": safe(say(language, "other") if name is None else name, length=24),
        "base": [(span.start - origin) / factor for span in spans],
        "x": [(span.end - span.start) / factor for span in spans],
        "y": [frame.at(rows[span.lane], _BODY / 2) for span in spans],
        "width": frame.thick(_THICK),
        "marker": {"color": colour, "line": {"width": 0}, "pattern": _pattern(name, colour)},
        "hoverinfo": "text",
        "hovertext": [
            hover(span.name, number(span.end - span.start, "s"), f"+{number(span.start - origin, 's')}", span.lane)
            for span in spans
        ],
    }


def _pattern(name: str | None, colour: str) -> Figure:
    """Strokes over the fill that tell the names apart without their colours."""
    patterns = ("", "/", "\\", "x", "-", "|")
    shape = "" if name is None else patterns[palette.ENTITY_COLOURS.index(colour)]
    return {"shape": shape, "size": 6, "solidity": 0.25, "fillmode": "overlay", "fgcolor": "#ffffff", "fgopacity": 0.6}


def _timeline_rows(spans: Sequence[Span], whole: float) -> list[list[str]]:
    """Per lane and name: calls, total, share of the whole; the largest first."""
    totals: dict[tuple[str, str], float] = {}
    calls: Counter[tuple[str, str]] = Counter()
    for span in spans:
        key = span.lane, span.name
        totals[key] = totals.get(key, 0.0) + span.end - span.start
        calls[key] += 1
    order = sorted(totals, key=lambda key: (-totals[key], key))[:_TABLE_ROWS]
    return [[*key, f"{calls[key]:,}", number(totals[key], "s"), f"{totals[key] / whole:.1%}"] for key in order]
