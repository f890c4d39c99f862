"""The controls of pages: each writes its value into the address, under the name of a field of the page's State.

    select(context, "metric", context.say("Metric"), [("tps", "tps"), ("ttft", "ttft")], state.metric)

A page holds no other state and needs no callback for a control: one generic callback in the browser changes the query
string, and the page is drawn again from that. A value that is not on offer is shown as it stands, never dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import dash_mantine_components as dmc
from dash import html
from dash.development.base_component import Component

from dashboard.attributes import aria
from dashboard.context import Context

Options: TypeAlias = "Sequence[tuple[str, str]]"  # (value, label)


def _state_id(name: str) -> dict[str, str]:
    return {"type": "state", "name": name}


def _choices(options: Options) -> list[dict[str, str]]:
    return [{"value": value, "label": label} for value, label in options]


def select(
    context: Context, name: str, label: str, options: Options, value: str | None, *, clearable: bool = False
) -> Component:
    """One of several values, found by typing. A value that is not on offer is offered as it is."""
    known = {offered for offered, _ in options}
    extra = [] if not value or value in known else [(value, value)]
    drawn: Component = dmc.Select(
        id=_state_id(name),
        label=label,
        data=_choices([*options, *extra]),
        value=value or None,
        searchable=len(options) > 6,
        clearable=clearable,
        allowDeselect=clearable,
        nothingFoundMessage=context.say("nothing found"),
        placeholder=context.say("any") if clearable else None,
        size="xs",
        className="control",
        maxDropdownHeight=320,
        limit=200,
        comboboxProps={"width": "max-content", "position": "bottom-start"},
    )
    return drawn


def multi(context: Context, name: str, label: str, options: Options, values: Sequence[str]) -> Component:
    """Any number of values; none means all."""
    known = {offered for offered, _ in options}
    drawn: Component = dmc.MultiSelect(
        id=_state_id(name),
        label=label,
        data=_choices([*options, *((value, value) for value in values if value not in known)]),
        value=list(values),
        searchable=True,
        clearable=True,
        nothingFoundMessage=context.say("nothing found"),
        placeholder="" if values else context.say("all"),
        size="xs",
        className="control control-wide",
        maxDropdownHeight=320,
        limit=200,
    )
    return drawn


def segmented(context: Context, name: str, label: str, options: Options, value: str) -> Component:
    """One of a few values, all in sight."""
    caption = f"label-{name}"
    return html.Div(
        [
            html.Span(label, className="control-label", id=caption),
            dmc.SegmentedControl(
                id=_state_id(name), data=_choices(options), value=value, size="xs", **aria(labelledby=caption)
            ),
        ],
        className="control",
    )


def text_box(context: Context, name: str, label: str, value: str, *, placeholder: str = "") -> Component:
    """A line of text; it counts when Enter is pressed or the box is left."""
    drawn: Component = dmc.TextInput(
        id=_state_id(name),
        label=label,
        value=value,
        placeholder=placeholder,
        debounce=True,
        size="xs",
        className="control",
    )
    return drawn


def side_box(
    context: Context,
    name: str,
    label: str,
    offered: Sequence[tuple[str, Sequence[str]]],
    value: str,
    *,
    placeholder: str = "",
) -> Component:
    """A side of a comparison: any text of that grammar, or one of those on offer, in groups; each is offered once."""
    seen: set[str] = set()
    groups = []
    for heading, texts in offered:
        items = [text for text in texts if text not in seen]
        seen.update(items)
        if items:
            groups.append({"group": heading, "items": items})
    drawn: Component = dmc.Autocomplete(
        id=_state_id(name),
        label=label,
        data=groups,
        value=value,
        placeholder=placeholder,
        debounce=True,
        size="xs",
        className="control control-wide side-box",
        maxDropdownHeight=360,
        limit=200,
        clearable=True,
        comboboxProps={"position": "bottom-start"},
    )
    return drawn


def slider(
    context: Context, name: str, label: str, low: float, high: float, value: float, *, step: float, shown: str = ""
) -> Component:
    """A number on a scale; it counts when let go. `shown`: the number as people read it, with its unit."""
    caption = f"label-{name}"
    return html.Div(
        [
            html.Span(f"{label} {shown or format(value, 'g')}", className="control-label", id=caption),
            dmc.Slider(
                id=_state_id(name), min=low, max=high, step=step, value=value, size="sm", updatemode="mouseup",
                thumbLabel=label, label=None,
            ),
        ],
        className="control control-wide",
    )  # fmt: skip


def switch(context: Context, name: str, label: str, value: bool) -> Component:
    """A setting that is on or off."""
    drawn: Component = dmc.Switch(
        id={"type": "switch", "name": name}, label=label, checked=value, size="xs", className="control control-switch"
    )
    return drawn
