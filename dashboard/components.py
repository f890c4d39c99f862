"""The pieces that pages are made of: frame, figure, table, chips, controls, messages. One look, one behaviour.

    page(
        context, context.say("Trend"), "decode tok/s +7.4% [6.1, 8.8] since 1a2b3c",
        controls(select(context, "metric", context.say("Metric"), [("tps", "tps")], state.metric)),
        figure(context, trend(points, title="...", unit="s", language=context.language), name="trend"),
        data_table(context, [Column("case"), Column("median", right=True)], [["decode", "3.1 ms"]], caption="..."),
    )

Text goes in as text: Dash escapes it, and nothing here takes HTML. Icons are glyphs. The controls of
dashboard.inputs may be imported from here too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Protocol, TypeAlias

from dash import dcc, html
from dash.development.base_component import Component

from dashboard.attributes import aria, data
from dashboard.context import Context
from dashboard.inputs import multi, segmented, select, slider, switch, text_box
from harness.core import VerdictName
from harness.registry import KL_RESOLUTION
from harness.tables import GLYPHS
from reports.language import verdict_word
from reports.wording import signed_percent

__all__ = [
    "Cell", "Child", "Column", "Kind", "Machine", "bound", "controls", "copy_button", "data_table", "empty", "figure",
    "link", "machine", "multi", "notice", "page", "quality", "ratio", "repeat", "section", "segmented", "select",
    "short_id", "slider", "switch", "text_box", "verdict", "when",
]  # fmt: skip

Child: TypeAlias = "Component | str | None"
Cell: TypeAlias = "Component | str | Sequence[Component | str]"
Kind = Literal["info", "warning", "error"]


class Machine(Protocol):
    """What `machine` reads: a RunRow or a RunLine."""

    @property
    def machine_id(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def device_name(self) -> str: ...
    @property
    def cpu_model(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Column:
    """A heading in the page's language; numbers are set to the right; `note` is shown where it is pointed at."""

    name: str
    right: bool = False
    note: str = ""


def page(context: Context, title: str, sentence: str, *children: Child) -> Component:
    """A whole page: its heading, the verdict in one sentence, then the rest. `sentence` is also what is announced."""
    return html.Article(
        [
            html.H1(title, id="page-title", tabIndex="-1"),
            html.P(sentence, className="sentence", id="page-sentence") if sentence else None,
            *children,
        ],
        className="page",
        lang=context.language,
    )


def section(title: str, *children: Child, name: str = "") -> Component:
    """A part of a page with its heading; `name` makes it a place that links can point at (`#name`)."""
    extra: dict[str, Any] = {"id": name} if name else {}
    return html.Section([html.H2(title), *children], className="part", **extra)


def controls(*children: Child) -> Component:
    """A row of controls; it wraps on a narrow window."""
    return html.Div([child for child in children if child is not None], className="controls")


def figure(context: Context, fig: Mapping[str, Any], *, name: str, height: int | None = None) -> Component:
    """A figure of reports.figures: drawn when scrolled to, with its sentence, its numbers as a table, and exports.

    The browser makes the table from the figure's `meta` when it is opened: as components it would be most of the page.
    `name` is unique on the page and names the exported files. The colours of the scheme are put in by the browser.
    """
    meta: Mapping[str, Any] = fig.get("layout", {}).get("meta", {})
    caption = f"figure-{name}-caption"
    fixed = height or fig.get("layout", {}).get("height") or 420
    return html.Figure(
        [
            dcc.Store(id={"type": "figure-data", "name": name}, data=dict(fig)),
            dcc.Graph(
                id={"type": "figure", "name": name},
                figure=_waiting(fixed),
                config={"displayModeBar": False, "displaylogo": False, "responsive": True, "showTips": False},
                responsive=True,
                style={"height": f"{fixed}px"},
                className="graph",
            ),
            html.Figcaption(
                [html.Strong(f"{meta['title']}. ") if meta.get("title") else None, str(meta.get("summary", ""))],
                id=caption,
            ),
            html.Div(
                [
                    _export_button(context.say("Save as PNG"), "PNG", name, "png"),
                    _export_button(context.say("Save as SVG"), "SVG", name, "svg"),
                    _export_button(context.say("Save the numbers as CSV"), "CSV", name, "csv"),
                    _export_button(context.say("Reset: show all of the figure"), context.say("Reset"), name, "reset"),
                ],
                className="figure-buttons",
            ),
            html.Details(
                [
                    html.Summary(context.say("The numbers of this figure ({n} rows)", n=len(meta.get("rows", ())))),
                    html.Div(
                        className="table-frame", role="region", tabIndex="0", **aria(label=meta.get("title", name))
                    ),
                ],
                className="figure-table",
            )
            if meta.get("columns")
            else None,
        ],
        role="group",
        id=f"figure-{name}",
        className="figure",
        **aria(labelledby=caption),
    )


def _waiting(height: float) -> dict[str, Any]:
    """What stands there until a figure is scrolled to: nothing, in any scheme, at its size."""
    clear, hidden = "rgba(0,0,0,0)", {"visible": False}
    layout = {"height": height, "xaxis": hidden, "yaxis": hidden, "paper_bgcolor": clear, "plot_bgcolor": clear}
    return {"data": [], "layout": layout}


def _export_button(title: str, text: str, name: str, form: str) -> Component:
    marks = data(figure=name, form=form)
    return html.Button(text, type="button", title=title, className="quiet", **aria(label=title), **marks)


def data_table(
    context: Context,
    columns: Sequence[Column],
    rows: Sequence[Sequence[Cell]],
    *,
    caption: str = "",
    label: str = "",
    name: str = "",
    marks: Sequence[str] = (),
) -> Component:
    """A table that scrolls inside itself. The first column heads its row; `marks` are class names, one for each row.

    `label` names it for assistive technology where the heading above says it already and no caption is shown.
    """
    label = label or caption or context.say("Table")
    head = html.Thead(
        html.Tr(
            [
                html.Th(column.name, scope="col", className="number" if column.right else "", title=column.note or None)
                for column in columns
            ]
        )
    )
    body = []
    for number, row in enumerate(rows):
        cells = [
            _cell(cell, place, right=place < len(columns) and columns[place].right) for place, cell in enumerate(row)
        ]
        body.append(html.Tr(cells, className=marks[number] if number < len(marks) else ""))
    table = html.Table(
        [html.Caption(html.Span(caption)) if caption else None, head, html.Tbody(body)], className="data"
    )
    extra: dict[str, Any] = {"id": name} if name else {}
    return html.Div(table, className="table-frame", role="region", tabIndex="0", **aria(label=label), **extra)


def _cell(cell: Cell, place: int, *, right: bool) -> Component:
    children = list(cell) if isinstance(cell, Sequence) and not isinstance(cell, str) else cell
    name = "number" if right else ""
    return html.Td(children, className=name) if place else html.Th(children, className=name, scope="row")


def verdict(context: Context, name: VerdictName | Literal["reference"]) -> Component:
    """A verdict's chip: glyph and word; the colour only repeats them."""
    if name == "reference":
        return html.Span(context.say("reference"), className="verdict verdict-reference")
    glyph = GLYPHS[name].split(" ")[0]
    return html.Span(
        [html.Span(glyph, className="glyph", **aria(hidden=True)), " ", verdict_word(context.language, name)],
        className=f"verdict verdict-{name}",
    )


def bound(value: float) -> str:
    """An end of an interval with three decimals; beyond a thousand it is as good as nothing or infinity."""
    return f"{value:.3f}" if 1e-3 < value < 1e3 else ("0" if value < 1 else "∞")


def ratio(
    context: Context, value: float | None, low: float | None, high: float | None, name: VerdictName | None = None
) -> Component:
    """`1.074 [1.061, 1.088]` with `+7.4%` beside it; a dash where there is none. Coloured by the verdict only."""
    if value is None:
        return html.Span("–", className="ratio", title=context.say("no ratio"))
    text = f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{bound(low)}, {bound(high)}]"
    percent = signed_percent(value - 1) if 0.01 < value < 100 else ""
    marked = f" verdict-{name}" if name in ("improved", "regressed") else ""
    return html.Span([text, " ", html.Small(percent)], className=f"ratio{marked}")


def quality(
    context: Context,
    *,
    ppl: tuple[float | None, float | None] = (None, None),
    kl: float | None = None,
    top1: float | None = None,
    note: str = "",
) -> Component:
    """What a speed costs in quality: PPL of A and B, KL in nats per token, share of equal first choices."""
    parts: list[Child] = []
    before, after = ppl
    if before is not None and after is not None:
        parts.append(f"PPL {before:.2f} → {after:.2f}" if f"{before:.2f}" != f"{after:.2f}" else f"PPL {after:.2f}")
    elif after is not None:
        parts.append(f"PPL {after:.2f}")
    if kl is not None:
        parts.append("KL 0" if abs(kl) < KL_RESOLUTION else f"KL {kl:.2g}")
    if top1 is not None:
        parts.append(f"top-1 {top1:.1%}")
    if not parts:
        return html.Span(
            note or context.say("not measured"), className="missing", title=context.say("quality was not measured here")
        )
    whole = [html.Span(part, className="whole") for part in parts]
    separated = [piece for part in whole for piece in (part, ", ")][:-1]
    return html.Span([*separated, html.Small(f" ({note})") if note else None], className="quality")


def machine(context: Context, run: Machine) -> Component:
    """Where a number was measured: the device (or processor) and the machine's id."""
    where = run.device_name if run.device not in ("", "cpu") and run.device_name else run.cpu_model or run.device_name
    return html.Span(
        [where or context.say("unknown machine"), " ", html.Code(short_id(run.machine_id))],
        className="machine",
        title=context.say("machine {id}, device {device}", id=run.machine_id, device=run.device or "?"),
    )


def short_id(machine_id: str) -> str:
    """A machine's id where there is little room; ids of twelve digits stay whole."""
    return machine_id if len(machine_id) <= 20 else machine_id[:17] + "…"


def repeat(context: Context, command: str) -> Component:
    """A command that measures this again, with a button that copies it; a dash where none is known."""
    if not command:
        return html.Span("–", className="missing", title=context.say("the command was not recorded"))
    return html.Span(
        [html.Code(command, className="command"), copy_button(context, command, context.say("Copy the command"))],
        className="repeat",
    )


def copy_button(context: Context, text: str, label: str, *, shown: str = "") -> Component:
    """A button that puts a text on the clipboard and says so."""
    marks = data(copy=text, copied=context.say("Copied."))
    return html.Button(
        shown or context.say("Copy"),
        type="button",
        className="quiet copy",
        title=label,
        **aria(label=label),
        **marks,
    )


def empty(context: Context, what: str, command: str = "") -> Component:
    """Why nothing is shown, and the command that would fill it."""
    fill = [html.P(context.say("This fills it:")), repeat(context, command)] if command else []
    return html.Div([html.P(what, className="what"), *fill], className="empty", role="note")


def notice(context: Context, kind: Kind, text: str, *children: Child) -> Component:
    """A message above or among the content, with its sign."""
    words = {
        "info": context.say("Note"),
        "warning": context.say("Warning"),
        "error": context.say("Error"),
    }
    signs = {"info": "i", "warning": "!", "error": "✗"}
    return html.Div(
        [
            html.Span(signs[kind], className="sign", **aria(hidden=True)),
            html.Div([html.Strong(f"{words[kind]}: "), text, *children]),
        ],
        className=f"notice notice-{kind}",
        role="alert" if kind == "error" else "status",
    )


def link(context: Context, text: Cell, path: str, /, **state: Any) -> Component:
    """A link to a page in a state; language and scheme go with it."""
    children = list(text) if isinstance(text, Sequence) and not isinstance(text, str) else text
    return dcc.Link(children, href=context.href(path, **state))


def when(context: Context, time: datetime | None) -> Component:
    """A time in this machine's zone, the same in UTC when pointed at."""
    if time is None:
        return html.Span("–", className="missing")
    utc = time.astimezone(UTC)
    return html.Time(context.local(time), dateTime=f"{utc:%Y-%m-%dT%H:%M:%SZ}", title=f"{utc:%Y-%m-%d %H:%M:%S} UTC")
