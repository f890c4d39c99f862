"""What several pages choose alike: one machine, the runs on it, one run of these; and how cases and metrics are called.

    place = place_of(context, state.machine, state.filter)    # None: the store has no run
    run = run_of(context, place, state.run)                   # the newest that matches, or the one named
    controls(machine_select(context, place), run_select(context, place, run))

Machines never mix: a place is one machine and a filter on its runs. It refuses (UsageError) a machine or a run that the
store does not have, naming those that it has.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import quote

from dash import html
from dash.development.base_component import Component

from dashboard.components import link, quality, repeat
from dashboard.components import machine as machine_chip
from dashboard.context import Context
from dashboard.filters import Filter, parse_filter
from dashboard.inputs import select
from dashboard.rows import CaseLine, MachineLine, NoiseLine, RunLine, SummaryLine
from harness import registry
from harness.calibration import NoiseCalibration, load_noise
from harness.core import Better, UsageError, Workload
from harness.schema import PeakRow
from harness.tables import quantity
from reports.figures import sparkline
from reports.palette import NEUTRAL

RECENT = 50  # runs that a picker offers
LOOKED_AT = 20  # runs among which a page looks for one that has something to show
QUALITY = ("kl", "ppl", "top1_agreement")
_KEY = re.compile(r"[0-9A-Za-z]{1,64}")  # a fingerprint that may become the name of a file
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Place:
    """One machine of a store and the filter that keeps to it; `filter` holds the machine's clause too."""

    machine: MachineLine
    machines: tuple[MachineLine, ...]
    filter: Filter


def place_of(context: Context, machine: str, text: str) -> Place | None:
    """The machine named, else the filter's, else the one with the newest run; None where the store has no run.

    Raises UsageError for a filter that cannot be read and for a machine that is not there.
    """
    found = parse_filter(text, axes=tuple(context.query.axes()))
    machines = tuple(context.query.machines())
    if not machines:
        return None
    wanted = machine or next(iter(found.values_of("machine")), "")
    named = [known for known in machines if known.machine_id.startswith(wanted)]
    if not named:
        known_ids = ", ".join(known.machine_id for known in machines[:8])
        raise UsageError(f"no machine '{wanted[:60]}' in this store; known: {known_ids}")
    chosen = max(named, key=lambda known: known.latest.timestamp() if known.latest else 0.0)
    return Place(chosen, machines, found.with_value("machine", chosen.machine_id))


def machine_select(context: Context, place: Place) -> Component:
    """The control over the field `machine`."""
    options = [(known.machine_id, f"{known.name} {known.machine_id[:8]}".strip()) for known in place.machines]
    return select(context, "machine", context.say("Machine"), options, place.machine.machine_id)


def recent_runs(context: Context, place: Place, limit: int = RECENT) -> tuple[RunLine, ...]:
    """The newest runs of a place that have a measured case, the newest first."""
    found = context.query.runs(place.filter, limit=limit)
    return tuple(run for run in found.rows if run.num_ok)


def newest_lines(context: Context, place: Place) -> list[SummaryLine]:
    """Every case and metric with a number in the newest run of each suite of a place; suites that ran often first."""
    recent = recent_runs(context, place)
    newest = {run.suite: run.run_id for run in reversed(recent)}
    often = Counter(run.suite for run in recent)
    lines = lines_of(context, place, tuple(newest.values()))
    found = [line for line in lines if line.metric and line.median is not None]
    return sorted(found, key=lambda line: -often[line.suite])


def lines_of(
    context: Context, place: Place, run_ids: Sequence[str], metrics: Sequence[str] | None = None
) -> tuple[SummaryLine, ...]:
    """The summary of some runs of a place, as far as its filter lets the cases through."""
    if not run_ids:
        return ()
    return context.query.summary(place.filter.with_value("run", ",".join(run_ids)), metrics)


def run_of(context: Context, place: Place, wanted: str) -> RunLine | None:
    """The run whose id starts so (`latest` and "": the newest); None where none matches the place's filter.

    Raises UsageError for a run that is not on this machine.
    """
    if wanted in ("", "latest"):
        return next(iter(recent_runs(context, place)), None)
    named = Filter().with_value("machine", place.machine.machine_id).with_value("run", wanted)
    found = context.query.runs(named, limit=1)
    if not found.rows:
        known = ", ".join(run.run_id for run in recent_runs(context, place, 5))
        raise UsageError(f"no run '{wanted[:60]}' on machine {place.machine.machine_id[:8]}; the newest are {known}")
    return found.rows[0]


def richest_run(context: Context, place: Place, wanted: str, metrics: Sequence[str]) -> RunLine | None:
    """The run named; else of the newest the one with the most cases that have these metrics, else the newest."""
    if wanted:
        return run_of(context, place, wanted)
    recent = recent_runs(context, place, LOOKED_AT)
    counts = Counter(line.run_id for line in lines_of(context, place, [run.run_id for run in recent], metrics))
    return max(recent, key=lambda run: counts[run.run_id], default=None)


def run_select(context: Context, place: Place, chosen: RunLine | None) -> Component:
    """The control over the field `run`: the newest runs of the place."""
    options = [(run.run_id, run_label(context, run)) for run in recent_runs(context, place)]
    return select(context, "run", context.say("Run"), options, chosen.run_id if chosen else None)


def run_label(context: Context, run: RunLine) -> str:
    """A run in a few words: when, suite, commit."""
    when = context.local(run.started_at) if run.started_at else "?"
    return f"{when} {run.suite} {run.git_sha[:8]}".strip()


def better_of(metric: str) -> Better:
    """Which direction of a metric is the good one; `neither` for one that is not declared here."""
    registry.load_all()
    declared = registry.METRICS.get(metric)
    return declared.better if declared else "neither"


def doc_of(metric: str) -> str:
    """What a metric means, as it is declared; "" for one that is not declared here."""
    registry.load_all()
    declared = registry.METRICS.get(metric)
    return declared.doc if declared else ""


def workload_name(text: str) -> str:
    """The short name of a workload, its whole text where the kind is not declared here."""
    registry.load_all()
    try:
        parsed = Workload.parse(text)
        return registry.workload_label(parsed) if parsed.kind in registry.WORKLOADS else text
    except (UsageError, KeyError):  # a kind whose parameters were named otherwise once
        return text


def headline(workload: str, otherwise: str = "") -> str:
    """The metric shown first for a workload; `otherwise` for a kind that is not declared here."""
    registry.load_all()
    kind = registry.WORKLOADS.get(kind_of(workload))
    return kind.headline if kind else otherwise


def parameters(text: str) -> Mapping[str, int]:
    """A workload's parameters; none where its text is not of our form."""
    try:
        return dict(Workload.parse(text).params)
    except UsageError:
        return {}


def kind_of(text: str) -> str:
    """A workload's kind: the text before its parameters."""
    return text.partition("(")[0]


def case_name(line: SummaryLine | CaseLine | NoiseLine) -> str:
    """A case as people read it: `tiny: decode 8 @ 1000, kv=prealloc`."""
    return f"{line.model}: {workload_name(line.workload)}, {line.variant}"


def quality_of(context: Context, run_id: str, model: str) -> Mapping[str, Mapping[str, float]]:
    """Variant -> quality metric -> value of one run: on this model, else on the one that the run measured it on."""
    found: dict[str, dict[str, float]] = {}
    lines = context.query.summary((run_id,), QUALITY)
    for line in sorted(lines, key=lambda line: line.model == model):
        if line.median is not None:
            found.setdefault(line.variant, {})[line.metric] = line.median
    return found


def cost(context: Context, found: Mapping[str, float]) -> Component:
    """What a variant costs in quality, as a table's cell that keeps its width."""
    shown = quality(context, ppl=(None, found.get("ppl")), kl=found.get("kl"), top1=found.get("top1_agreement"))
    return roomy(shown)


def whole(piece: Component | str) -> Component:
    """A piece of a table's cell that is never broken over two lines."""
    return html.Span(piece, style={"whiteSpace": "nowrap"})


def roomy(piece: Component | Sequence[Component | str] | str) -> Component:
    """A piece of a table's cell that keeps room for some words on a narrow screen, where the table scrolls."""
    return html.Div(piece, style={"minWidth": "11rem"})


def source(context: Context, run: RunLine) -> Component:
    """Where the numbers of a page come from: the machine, the run, and the command that measures them again."""
    named = link(context, run.run_id, "/runs", filter=f"run={run.run_id}")
    return html.Div([html.P([machine_chip(context, run), " ", named]), repeat(context, run.command)])


def distinct(items: Iterable[T]) -> tuple[T, ...]:
    """The items without repetition, in order of first appearance."""
    return tuple(dict.fromkeys(items))


def first_of(preferred: Sequence[str], offered: Sequence[str]) -> str:
    """The first of the preferred names that is on offer, else the first on offer, else ""."""
    return next((name for name in (*preferred, *offered) if name in offered), "")


def amount(value: float | None, unit: str) -> str:
    """A number with its unit as the terminal's tables write it; a dash for none."""
    return "–" if value is None or not math.isfinite(value) else quantity(value, unit)


def spark(context: Context, values: Sequence[float | None], label: str = "") -> Component | str:
    """Values in their order as a picture in a table's cell; a dash for fewer than two. No label: they are runs."""
    drawn = sparkline(values, colour=NEUTRAL)
    if not drawn:
        return "–"
    label = label or context.say("history of {n} runs", n=len(values))
    source = f"data:image/svg+xml,{quote(drawn, safe=' /:=;,')}"
    return html.Img(src=source, alt=label, title=label, className="spark", width=72, height=16)


def noise_of(context: Context, run_id: str) -> NoiseCalibration | None:
    """The noise calibration for the machine of a run; another machine's, which says so, where it has none."""
    run = context.query.run(run_id)
    key = run.fingerprint if run and _KEY.fullmatch(run.fingerprint) else "-"
    return load_noise(context.results, key)


def peaks_of(context: Context, run_id: str) -> list[PeakRow]:
    """The measured peaks of the machine of a run, in the state that it was in then."""
    run = context.query.run(run_id)
    return context.results.calibration(run.fingerprint) if run and _KEY.fullmatch(run.fingerprint) else []


def marked(text: str) -> list[Component | str]:
    """Text in which what stands between backticks is code."""
    return [html.Code(piece) if place % 2 else piece for place, piece in enumerate(text.split("`")) if piece]
