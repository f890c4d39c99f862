"""Memory: what a run's cases held at their peak, how much of it the weights and the cache explain, how far it would go.

    /memory?run=latest&variant=kv=prealloc&along=context

One run on one machine. Weights are the bytes of the weights as the engine stores them, the cache is what was allocated
for keys and values; both are facts of the session. The measured peak is that of a process that did only this case. What
is left between the two is shown as it is: activations, the allocator, and what loading needed. Of three settings or
more its straight line is stacked too, and says how far a context would go. Where a profile recorded the allocator, its
timeline stands below (dashboard.allocator_part).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dash.development.base_component import Component

from dashboard import choices
from dashboard.allocator_part import allocator_part
from dashboard.components import (
    Cell,
    Column,
    controls,
    data_table,
    empty,
    figure,
    notice,
    page,
    section,
)
from dashboard.context import Context
from dashboard.footprints import Footprint, footprints, one_line, predicted, reach_of, rounded
from dashboard.inputs import segmented, select
from dashboard.rows import RunLine
from reports.figures import memory

PATH = "/memory"
TITLE = "Memory"
ORDER = 6


@dataclass(frozen=True, slots=True)
class State:
    """`along`: the parameter of the workload on the horizontal axis; `workload`: its kind."""

    filter: str = ""
    machine: str = ""
    run: str = ""
    model: str = ""
    workload: str = ""
    variant: str = ""
    along: Literal["context", "batch"] = "context"


def layout(context: Context, state: State) -> Component:
    """The page."""
    title = context.say("Memory")
    place = choices.place_of(context, state.machine, state.filter)
    run = choices.richest_run(context, place, state.run, ("kv_bytes",)) if place else None
    if place is None or run is None:
        what = context.say("No run matches: no peak was measured.")
        return page(context, title, what, empty(context, what, context.command("run kv_cache")))
    every = footprints(context, place, run, state.along)
    models = choices.distinct(found.model for found in every)
    model = state.model or choices.first_of((), models)
    kinds = choices.distinct(found.kind for found in every if found.model == model)
    kind = state.workload or choices.first_of(("decode", "generate", "prefill", "train_step"), kinds)
    chosen = [found for found in every if (found.model, found.kind) == (model, kind)]
    variants = choices.distinct(found.variant for found in chosen)
    variant = state.variant or choices.first_of(("reference",), variants)
    axes = [("context", context.say("context")), ("batch", context.say("batch"))]
    bar = controls(
        choices.machine_select(context, place),
        choices.run_select(context, place, run),
        select(context, "model", context.say("Model"), [(name, name) for name in models], model),
        select(context, "workload", context.say("Workload"), [(name, name) for name in kinds], kind),
        select(context, "variant", context.say("Variant"), [(name, name) for name in variants], variant),
        segmented(context, "along", context.say("Along"), axes, state.along),
    )
    shown = one_line([found for found in chosen if found.variant == variant])
    if not shown:
        what = context.say("Run {run} has no measured peak of {variant}.", run=run.run_id, variant=variant or "?")
        return page(context, title, what, bar, empty(context, what, context.command("run kv_cache")))
    limit = _limit(context, run)
    return page(
        context,
        title,
        sentence(context, state, shown, limit),
        bar,
        _figure(context, state, shown, limit),
        notice(
            context, "info",
            context.say(
                "What a peak has beyond weights and cache is activations, the allocator and what loading needed. It is "
                "not counted but drawn as the straight line through three measured peaks or more; fewer are drawn as "
                "they are."
            ),
        ),
        _variants_part(context, state, run, chosen, limit),
        allocator_part(context, place, run, [found.case_id for found in reversed(shown)]),
    )  # fmt: skip


def _figure(context: Context, state: State, shown: Sequence[Footprint], limit: float | None) -> Component:
    """Parts and peaks; only where every part was recorded, since a part that is not known is not nothing."""
    points = predicted(shown)
    if not points:
        what = context.say("This run did not record the size of these weights or caches: there is nothing to stack.")
        return empty(context, what, context.command("run kv_cache"))
    drawn = memory(points, x_label=_axis_label(context, state), limit=limit, language=context.language)
    return figure(context, drawn, name="memory")


def _axis_label(context: Context, state: State) -> str:
    return context.say("context (tokens)") if state.along == "context" else context.say("batch (sequences)")


def _limit(context: Context, run: RunLine) -> float | None:
    """Memory of the device that the case ran on; None for a GPU, whose memory the run does not name."""
    row = context.query.run(run.run_id)
    return float(row.ram_bytes) if row and row.device == "cpu" and row.ram_bytes > 0 else None


def sentence(context: Context, state: State, shown: Sequence[Footprint], limit: float | None) -> str:
    """The deepest case's peak, what explains it, and how far it would go."""
    last = shown[-1]
    peak = choices.amount(last.peak, "bytes")
    if last.rest is None:
        return context.say(
            "{name}: {peak} at its peak; its weights or its cache were not recorded, so nothing explains it.",
            name=last.name, peak=peak,
        )  # fmt: skip
    text = context.say(
        "{name}: {peak} at its peak: weights {weights}, cache {cache}, and {rest} of something else.",
        name=last.name, peak=peak, weights=choices.amount(last.weights, "bytes"),
        cache=choices.amount(last.cache, "bytes"), rest=choices.amount(last.rest, "bytes"),
    )  # fmt: skip
    far = reach_of(shown, limit) if state.along == "context" else None
    if far is None:
        return text
    further = context.say(
        "By memory alone this machine would hold a context of about {tokens} tokens.", tokens=rounded(far)
    )
    return f"{text} {further}"


def _variants_part(
    context: Context, state: State, run: RunLine, chosen: Sequence[Footprint], limit: float | None
) -> Component:
    """Every variant at its largest x, with what it costs in quality."""
    columns = [
        Column(context.say("Variant")), Column(_axis_label(context, state), right=True),
        Column(context.say("Weights"), right=True), Column(context.say("Cache"), right=True),
        Column(context.say("per token"), right=True), Column(context.say("Peak"), right=True),
        Column(context.say("Rest"), right=True),
        Column(
            context.say("Fits"), right=True,
            note=context.say("context that fits by memory alone, if cache and rest grow on as measured"),
        ),
        Column(context.say("Quality")),
    ]  # fmt: skip
    costs = choices.quality_of(context, run.run_id, chosen[0].model)
    rows: list[list[Cell]] = []
    for variant in choices.distinct(found.variant for found in chosen):
        line = one_line([found for found in chosen if found.variant == variant])
        last = line[-1]
        far = reach_of(line, limit) if state.along == "context" else None
        rows.append([
            variant,
            f"{last.x:,}",
            choices.amount(last.weights, "bytes"),
            choices.amount(last.cache, "bytes"),
            choices.amount(last.cache_per_token, "bytes"),
            choices.amount(last.peak, "bytes"),
            choices.amount(last.rest, "bytes"),
            "–" if far is None else rounded(far),
            choices.cost(context, costs.get(variant, {})),
        ])  # fmt: skip
    caption = context.say("Each variant at its largest measured setting")
    return section(
        context.say("Every variant"), data_table(context, columns, rows, caption=caption),
        choices.source(context, run),
    )  # fmt: skip
