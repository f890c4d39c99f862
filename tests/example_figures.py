"""Every figure with typical data, with one point, and with text that means harm, for tests of figures and drawings."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from reports.figures import (
    AxisOf,
    Ceiling,
    Cell,
    Change,
    Curve,
    Effect,
    Figure,
    Frame,
    Held,
    LadderStep,
    LossCurve,
    Mark,
    MemoryPoint,
    Pair,
    ParetoPoint,
    RawSeries,
    RoofPoint,
    ScalingLine,
    Span,
    TrendPoint,
    Value,
    allocator,
    bars,
    ecdf,
    fit_line,
    forest,
    heat,
    icicle,
    ladder,
    losses,
    memory,
    pareto,
    roofline,
    scaling,
    strip,
    timeline,
    trend,
)
from reports.language import Language

START = datetime(2026, 11, 1, 8, tzinfo=UTC)
HOSTILE = '<img src=x onerror=alert(1)> %{x} $\\alpha$ & "quoted"\x00\n<a href="javascript:alert(2)">'
X, Y = AxisOf("tpot", "s", "lower"), AxisOf("tps", "tokens/s", "higher")
LENGTHS = (128.0, 512.0, 2048.0)


def trend_points(count: int, name: str = "") -> list[TrendPoint]:
    """A history that falls by a tenth in the middle."""
    values = [50.0 if number < count // 2 else 45.0 for number in range(count)]
    return [
        TrendPoint(f"run{k}", f"{name}c{k:06x}", START + timedelta(hours=k), v + k % 3, v - 1, v + 3, 0)
        for k, v in enumerate(values)
    ]


def effects(name: str = "") -> list[Effect]:
    """One of each verdict."""
    return [
        Effect(f"{name}slower", 0.90, 0.88, 0.92, "regressed", "higher"),
        Effect(f"{name}faster", 1.21, 1.18, 1.24, "improved", "higher", "a note"),
        Effect(f"{name}same", 1.002, 0.995, 1.009, "equivalent", "higher"),
        Effect(f"{name}open", 1.05, 0.8, 1.4, "inconclusive", "higher"),
        Effect(f"{name}spoiled", 1.1, None, None, "invalid", "higher"),
        Effect(f"{name}base", 1.0, None, None, "reference", "higher"),
    ]


def curve(name: str, factor: float, loss: float | None, count: int = 4) -> Curve:
    """Throughput bought with latency: the larger factor is the worse curve."""
    sizes = [2**power for power in range(count)]
    return Curve(
        name,
        [
            ParetoPoint(f"batch={n}", 0.004 * factor * (1 + n / 9), 60 * n / (1 + n / 9) / factor, loss=loss)
            for n in sizes
        ],
    )


def examples(language: Language = "en", name: str = "", size: int = 5) -> dict[str, Figure]:
    """All figures. name: stands in every text from outside; size: how many points a series has."""
    lengths = [128.0 * (k + 1) for k in range(size)]
    times = [0.01 + 2e-6 * x for x in lengths]
    frames = [Frame((f"{name}step", f"{name}f{k % 3}", f"{name}g{k}"), 1.0 + k) for k in range(size)]
    spans = [Span(f"{name}GPU", f"{name}k{k % 3}", 2e-4 * k, 2e-4 * k + 1e-4) for k in range(size)]
    raw = [RawSeries(f"{name}A", [0.012 + 1e-5 * k for k in range(size)], [k < size // 4 for k in range(size)])]
    columns = [f"{name}o{k}" for k in range(min(size, 8))]
    cells = {(f"{name}row", columns[0]): Cell(f"{name}1.2×", 1.2, "improved", "/compare?a=1")}
    ceilings = [Ceiling(f"{name}DRAM", "bandwidth", 2e10, name), Ceiling(f"{name}f32", "compute", 2e11, name)]
    built: dict[str, Callable[[], Figure]] = {
        "forest": lambda: forest(effects(name), limit=0.97, language=language),
        "bars": lambda: bars(
            [Pair(f"{name}case", Value(f"{name}a", 0.01, 0.009, 0.011, 8), Value(f"{name}b", 0.008, None, None, 8))],
            unit="s",
            language=language,
        ),
        "ladder": lambda: ladder(
            [LadderStep(f"{name}start", 50, None, None, None), LadderStep(f"{name}next", 60, 1.2, 1.1, 1.3)],
            unit="tokens/s",
            language=language,
        ),
        "trend": lambda: trend(
            trend_points(size, name),
            title=f"{name}tps",
            unit="tokens/s",
            changes=[Change(1, size // 2, 50, 45, 0.88, 0.92)],
            marks=[Mark(1, 0, f"{name}new driver")],
            band=0.01,
            limit=44,
            better="higher",
            language=language,
        ),
        "pareto": lambda: pareto(
            [curve(f"{name}slow", 1.0, 0.0), curve(f"{name}fast", 0.8, 0.02)], x=X, y=Y, language=language
        ),
        "roofline": lambda: roofline(
            ceilings, [RoofPoint(f"{name}p{k}", 0.5 * (k + 1), 8e9, name) for k in range(size)], language=language
        ),
        "memory": lambda: memory(
            [MemoryPoint(x, 1e8, x * 1e4, 2e6, 1.1e8 + x * 1e4) for x in lengths],
            x_label=f"{name}context",
            limit=2e8,
            language=language,
        ),
        "scaling": lambda: scaling(
            [ScalingLine(f"{name}a", [(x, y, y * 0.99, y * 1.01) for x, y in zip(lengths, times, strict=True)],
                         fit_line(lengths, times))],
            x_label=f"{name}context", y_label=f"{name}tpot", unit="s", language=language,
        ),
        "losses": lambda: losses(
            [LossCurve(f"{name}fp32", range(size), [8 / (k + 1) for k in range(size)])], language=language
        ),
        "heat": lambda: heat([f"{name}row"], columns, cells, title=f"{name}title", language=language),
        "icicle": lambda: icicle(frames, other=frames[1:], language=language),
        "allocator": lambda: allocator(
            f"{name}CPU",
            [1e-4 * k for k in range(size)],
            [768.0 * (k % 7 + 1) for k in range(size)],
            reserved=[8192.0] * size,
            held=[Held(f"{name}aten::mm", 768.0, 1)],
            language=language,
        ),
        "timeline": lambda: timeline(spans, language=language),
        "strip": lambda: strip(raw, unit="s", language=language),
        "ecdf": lambda: ecdf(raw, unit="s", language=language),
    }  # fmt: skip
    return {key: build() for key, build in built.items()}


def nothing(language: Language = "en") -> dict[str, Figure]:
    """All figures of no data, or of data in which no number is one."""
    bad = math.nan
    return {
        "forest": forest([], language=language),
        "bars": bars([], unit="s", language=language),
        "ladder": ladder([], unit="s", language=language),
        "trend": trend([], title="none", unit="s", language=language),
        "trend without values": trend(
            [TrendPoint("r", "c", None, bad, None, None, 0)], title="none", unit="s", language=language
        ),
        "pareto": pareto([Curve("a", [ParetoPoint("p", bad, 1.0)])], x=X, y=Y, language=language),
        "roofline": roofline([], [], language=language),
        "memory": memory([], x_label="context", language=language),
        "scaling": scaling([ScalingLine("a", [(1.0, bad, None, None)])], x_label="x", y_label="y", unit="s"),
        "losses": losses([LossCurve("a", [0], [bad])], language=language),
        "heat": heat([], [], {}, title="none", language=language),
        "icicle": icicle([Frame(("a",), 0.0)], language=language),
        "timeline": timeline([Span("GPU", "k", 1.0, 1.0)], language=language),
        "allocator": allocator("CPU", [], [], language=language),
        "strip": strip([RawSeries("A", [bad], [False])], unit="s", language=language),
        "ecdf": ecdf([RawSeries("A", [], [])], unit="s", language=language),
    }
