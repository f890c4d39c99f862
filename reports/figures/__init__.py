"""Figures as plain Plotly dicts: typed data in, a dict with caption and table out; the same for reports and dashboard.

    from reports.figures import Effect, forest
    figure = forest([Effect("decode(context=512)", 1.07, 1.05, 1.09, "improved", "higher")], language="en")
    figure["layout"]["meta"]["summary"]    # a sentence: the caption, and what a screen reader says

Every function is pure and refuses nothing: empty input gives a figure that says so. `reports.drawing.to_svg` draws the
dicts without a browser.
"""

from reports.figures.allocator import Held, allocator
from reports.figures.base import Figure, assemble, empty
from reports.figures.capacity import MemoryPoint, memory, reach
from reports.figures.effects import Effect, Pair, Value, bars, forest
from reports.figures.grid import Cell, heat
from reports.figures.history import Along, Change, Mark, TrendPoint, trend
from reports.figures.lines import Fit, LossCurve, ScalingLine, fit_line, losses, scaling
from reports.figures.numbers import change_text, measured, number, ratio_text
from reports.figures.peaks import Ceiling, RoofPoint, roof_of, roofline
from reports.figures.profile import Frame, Span, icicle, timeline
from reports.figures.samples import RawSeries, ecdf, strip
from reports.figures.sparkline import sparkline
from reports.figures.tradeoffs import AxisOf, Curve, ParetoPoint, frontier, pareto, read_at
from reports.figures.waterfall import LadderStep, ladder

__all__ = [
    "Along",
    "AxisOf",
    "Ceiling",
    "Cell",
    "Change",
    "Curve",
    "Effect",
    "Figure",
    "Fit",
    "Frame",
    "Held",
    "LadderStep",
    "LossCurve",
    "Mark",
    "MemoryPoint",
    "Pair",
    "ParetoPoint",
    "RawSeries",
    "RoofPoint",
    "ScalingLine",
    "Span",
    "TrendPoint",
    "Value",
    "allocator",
    "assemble",
    "bars",
    "change_text",
    "ecdf",
    "empty",
    "fit_line",
    "forest",
    "frontier",
    "heat",
    "icicle",
    "ladder",
    "losses",
    "measured",
    "memory",
    "number",
    "pareto",
    "ratio_text",
    "reach",
    "read_at",
    "roof_of",
    "roofline",
    "scaling",
    "sparkline",
    "strip",
    "timeline",
    "trend",
]
