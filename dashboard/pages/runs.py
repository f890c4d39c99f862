"""Runs: everything that was measured, to be searched, sorted, and compared two by two.

    layout(context, State(filter="suite=gate", sort="geomean"))

The grid holds only the rows in sight: it asks for a stretch, and the database filters and sorts. A filter that cannot
be read is refused (UsageError). No figure here, so that the page is there at once.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import dash_ag_grid as dag
from dash import Dash, Input, Output, dcc, html
from dash import State as Held
from dash.development.base_component import Component

from dashboard import url
from dashboard.attributes import aria
from dashboard.browser import in_browser
from dashboard.components import bound, controls, empty, page, select, short_id
from dashboard.context import Context, shell_state
from dashboard.filters import Filter, parse_filter
from dashboard.query import Query
from dashboard.rows import RunLine, RunsPage
from dashboard.source import Source
from harness.core import HarnessError
from harness.profiles import profiled

PATH = "/runs"
TITLE = "Runs"
ORDER = 2
EXPORTS = ("csv",)
GRID = "runs-grid"
BLOCK_ROWS = 100
MAX_EXPORT = 100_000
MAX_TICKED = 60  # runs whose ids fit into a filter in the address
SortBy = Literal[
    "started_at", "suite", "status", "git_sha", "machine_id", "num_ok", "num_skipped", "num_failed", "geomean", "noise"
]


@dataclass(frozen=True, slots=True)
class State:
    """`baseline`: the run that geomeans are relative to; `sort` and `order` are set by the grid's headings."""

    filter: str = ""
    machine: str = ""
    suite: str = ""
    baseline: str = ""
    sort: SortBy = "started_at"
    order: Literal["asc", "desc"] = "desc"


def layout(context: Context, state: State) -> Component:
    """The list of runs with its filters, or why there is none."""
    which = condition(context.query, state)
    found = _asked(context, state, which, offset=0, limit=1)
    everything = context.query.stamp().num_runs
    title = context.say("Runs")
    if not everything:
        return page(
            context,
            title,
            context.say("Nothing was measured yet."),
            empty(context, context.say("The store is there, but it holds no run."), context.command("run quickstart")),
        )
    pickers = _pickers(context, state)
    if not found.total:
        reset = dcc.Link(context.say("Show all {n} runs", n=f"{everything:,}"), href=context.href(PATH))
        what = context.say("None of the {n} runs matches: {filter}", n=f"{everything:,}", filter=which.text)
        return page(context, title, what, pickers, empty(context, what), html.P(reset))
    return page(
        context,
        title,
        _sentence(context, found.total, everything),
        pickers,
        _actions(context, state),
        _grid(context, state, found.total),
    )


def condition(query: Query, state: State) -> Filter:
    """What the box and the pickers say together. Raises UsageError naming what is not understood."""
    found = parse_filter(state.filter, axes=tuple(query.axes()))
    for name, value in (("machine", state.machine), ("suite", state.suite)):
        found = found.with_value(name, value) if value else found
    return found


def export(context: Context, state: State, form: str) -> str:
    """All runs that match, not only those in sight, as CSV; numbers in full."""
    found = _asked(context, state, condition(context.query, state), offset=0, limit=MAX_EXPORT)
    names = list(RunLine.__dataclass_fields__)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for line in found.rows:
        writer.writerow([_plain(getattr(line, name)) for name in names])
    return text.getvalue()


def _plain(value: Any) -> Any:
    """A cell for programs; text that a spreadsheet would take for a formula is marked as text."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t"):
        return "'" + value
    return "" if value is None else value.isoformat() if hasattr(value, "isoformat") else value


def register(app: Dash, source: Source) -> None:
    """The grid asks for its rows; what is chosen in it becomes a link; its headings' order goes into the address."""

    @app.callback(
        Output(GRID, "getRowsResponse"), Input(GRID, "getRowsRequest"), Held("url", "search"), prevent_initial_call=True
    )
    def rows(request: Mapping[str, Any] | None, search: str | None) -> dict[str, Any]:
        return answer(source, request or {}, search or "")

    in_browser(
        app,
        "chosen",
        *(Output(f"runs-{name}", field) for name in ("compare", "trend", "pareto") for field in ("href", "className")),
        Output("runs-hint", "children"),
        Input(GRID, "selectedRows"),
        Held("runs-words", "data"),
        prevent_initial_call=True,
    )
    in_browser(
        app,
        "sorted",
        Output("url", "search", allow_duplicate=True),
        Input(GRID, "columnState"),
        prevent_initial_call=True,
    )


def answer(source: Source, request: Mapping[str, Any], search: str) -> dict[str, Any]:
    """The rows that the grid asked for, and how many there are; none where the filter cannot be read."""
    language, scheme = shell_state(search)
    state, _ = url.parse(State, search, language)
    sorts = request.get("sortModel") or [{"colId": state.sort, "sort": state.order}]
    first, last = int(request.get("startRow") or 0), int(request.get("endRow") or BLOCK_ROWS)
    try:
        query, store = source.open()
        context = Context(query, store, language, scheme, search, PATH)
        profiles = profiled(query.path)
        found = query.runs(
            condition(query, state),
            sort=str(sorts[0].get("colId", state.sort)),
            descending=sorts[0].get("sort") == "desc",
            offset=max(first, 0),
            limit=min(max(last - first, 0), 1_000),
            baseline=state.baseline or None,
        )
    except HarnessError:
        return {"rowData": [], "rowCount": 0}
    return {
        "rowData": [_row(context, line, len(profiles.get(line.run_id, ()))) for line in found.rows],
        "rowCount": found.total,
    }


def _asked(context: Context, state: State, which: Filter, *, offset: int, limit: int) -> RunsPage:
    return context.query.runs(
        which,
        sort=state.sort,
        descending=state.order == "desc",
        offset=offset,
        limit=limit,
        baseline=state.baseline or None,
    )


def _sentence(context: Context, total: int, everything: int) -> str:
    machines = len(context.query.machines())
    shown = (
        context.say("{n} run" if total == 1 else "{n} runs", n=f"{total:,}")
        if total == everything
        else context.say("{n} of {all} runs", n=f"{total:,}", all=f"{everything:,}")
    )
    known = (
        context.say("{n} machines in the store", n=machines)
        if machines != 1
        else context.say("one machine in the store")
    )
    return context.say("{shown}; {machines}. Choose two to compare them.", shown=shown, machines=known)


def _pickers(context: Context, state: State) -> Component:
    machines = [
        (one.machine_id, f"{one.name or one.machine_id} ({short_id(one.machine_id)})")
        for one in context.query.machines()
    ]
    suites = [(name, name) for name in context.query.suites()]
    recent = [(line.run_id, run_name(context, line)) for line in context.query.runs(limit=50).rows]
    return controls(
        select(context, "machine", context.say("Machine"), machines, state.machine, clearable=True),
        select(context, "suite", context.say("Suite"), suites, state.suite, clearable=True),
        select(context, "baseline", context.say("Baseline of the mean ratio"), recent, state.baseline, clearable=True),
    )


def run_name(context: Context, line: RunLine) -> str:
    """A run in a picker: when, which suite, which commit."""
    when = context.local(line.started_at) if line.started_at else "–"
    return f"{when} · {line.suite} · {line.git_sha[:8] or '–'} {line.subject[:40]}".rstrip()


def _actions(context: Context, state: State) -> Component:
    hints = {
        "none": context.say("Tick two runs to compare them."),
        "one": context.say("One run is ticked: tick another, or open it by its time."),
        "two": context.say("The older one becomes A, the newer one B."),
        "many": context.say("{n} runs are ticked: a comparison takes two.", n="{n}"),
        "beyond": context.say("{n} runs are ticked: at most {most} go into an address.", n="{n}", most=MAX_TICKED),
    }
    words: dict[str, Any] = {"shell": dict(context.shell), "hints": hints, "most": MAX_TICKED}
    pairs = url.query(state)
    names = {
        "compare": context.say("Compare the two"),
        "trend": context.say("Trend of these"),
        "pareto": context.say("Pareto of these"),
    }
    return html.Div(
        [
            *(
                dcc.Link(text, href=context.href(f"/{name}"), id=f"runs-{name}", className="gone")
                for name, text in names.items()
            ),
            html.Span(hints["none"], id="runs-hint", className="muted", role="status"),
            html.A(
                context.say("CSV of all that match"),
                href=url.join("/export/runs.csv", pairs),
                className="button",
                download="runs.csv",
            ),
            dcc.Store(id="runs-words", data=words),
        ],
        className="exports actions",
    )


def _grid(context: Context, state: State, total: int) -> Component:
    grid: Component = dag.AgGrid(
        id=GRID,
        columnDefs=_columns(context, state),
        rowModelType="infinite",
        className="runs-grid",
        defaultColDef={"sortable": True, "resizable": True, "suppressHeaderMenuButton": True, "suppressMovable": True},
        dashGridOptions={
            "theme": {"function": "bench_theme(themeQuartz)"},
            "rowSelection": {"mode": "multiRow", "headerCheckbox": False, "enableClickSelection": False},
            "selectionColumnDef": {"width": 44, "pinned": "left"},
            "cacheBlockSize": BLOCK_ROWS,
            "maxBlocksInCache": 10,
            "infiniteInitialRowCount": 1,
            "rowBuffer": 5,
            "suppressCellFocus": False,
            "enableCellTextSelection": True,
            "ensureDomOrder": True,
            "animateRows": False,
            "tooltipShowDelay": 400,
        },
        getRowId="params.data.run_id",
        style={"height": f"min(72vh, {60 + 34 * total}px)", "width": "100%"},
    )
    return html.Div(grid, className="grid-frame", role="region", **aria(label=context.say("Runs")))


def _columns(context: Context, state: State) -> list[dict[str, Any]]:
    def column(field: str, name: str, width: int, **more: Any) -> dict[str, Any]:
        start = {"initialSort": state.order} if field == state.sort else {}
        return {"field": field, "headerName": name, "initialWidth": width, **start, **more}

    number = {"type": "rightAligned", "sortingOrder": ["desc", "asc"]}
    link, plain = {"cellRenderer": "RunLink", "cellRendererParams": {"to": "href"}}, {"sortable": False}
    profile = {"cellRenderer": "RunLink", "cellRendererParams": {"to": "profile"}, "type": "rightAligned"}
    ratio = column(
        "geomean",
        context.say("Mean ratio [95%]"),
        190,
        headerTooltip=context.say(
            "How many times as good as the baseline, over the cases that both have; above 1 is better."
        ),
        cellClassRules={
            "cell-better": "params.data && params.data.significant == 'better'",
            "cell-worse": "params.data && params.data.significant == 'worse'",
        },
        **number,
    )
    noise = column(
        "noise",
        context.say("Noise"),
        85,
        headerTooltip=context.say("Spread of the samples of the first metric of each case, the middle case."),
        **number,
    )
    return [
        column("started_at", context.say("Time"), 158, sortingOrder=["desc", "asc"], tooltipField="utc", **link),
        column("suite", context.say("Suite"), 120),
        column("git_sha", context.say("Commit"), 112, tooltipField="git_full"),
        column("subject", context.say("Subject"), 240, flex=1, minWidth=180, tooltipField="subject", **plain),
        *([ratio] if state.baseline else []),
        column("num_ok", context.say("OK"), 66, **number),
        column("num_skipped", context.say("Skipped"), 92, **number),
        column("num_failed", context.say("Failed"), 82, cellClassRules={"cell-failed": "params.value > 0"}, **number),
        noise,
        column("status", context.say("Status"), 112),
        column("machine_id", context.say("Machine"), 200, tooltipField="machine_full"),
        column(
            "artifacts",
            context.say("Artifacts"),
            96,
            headerTooltip=context.say("Cases with a profile"),
            **profile,
            **plain,
        ),
        column("command", context.say("Repeat"), 90, cellRenderer="RunCommand", **plain),
    ]


def _row(context: Context, line: RunLine, artifacts: int) -> dict[str, Any]:
    """One run as the texts of its cells; `artifacts`: its cases with a profile. Renderers set them as text, never as
    HTML."""
    name = line.device_name if line.device not in ("", "cpu") and line.device_name else line.cpu_model
    return {
        "run_id": line.run_id,
        "href": context.href("/compare", b=line.run_id),
        "started_at": context.local(line.started_at) if line.started_at else "–",
        "utc": f"{line.run_id}, {line.started_at:%Y-%m-%d %H:%M:%S} UTC" if line.started_at else line.run_id,
        "order": line.started_at.timestamp() if line.started_at else 0.0,
        "suite": line.suite,
        "git_sha": (line.git_sha[:8] or "–") + ("*" if line.git_dirty else ""),
        "git_full": line.git_sha + (f" ({context.say('with uncommitted changes')})" if line.git_dirty else ""),
        "subject": line.subject,
        "machine_id": f"{short_id(line.machine_id)} {name}",
        "machine_full": f"{line.machine_id} {name} ({line.device})",
        "status": _status(context, line.status),
        "num_ok": line.num_ok,
        "num_skipped": line.num_skipped,
        "num_failed": line.num_failed,
        **_mean_ratio(line),
        "noise": "–" if line.noise is None else f"{line.noise:.1%}",
        "artifacts": str(artifacts or "–"),
        "profile": context.href("/profile", run=line.run_id) if artifacts else "",
        "command": line.command,
        "copy": context.say("Copy the command"),
        "copied": context.say("Copied."),
    }


def _mean_ratio(line: RunLine) -> dict[str, str]:
    if line.geomean is None:
        return {"geomean": "–", "significant": ""}
    low, high = line.geomean_low, line.geomean_high
    if low is None or high is None:
        return {"geomean": f"{line.geomean:.3f}", "significant": ""}
    significant = "better" if low > 1 else "worse" if high < 1 else ""
    glyph = {"better": "▲ ", "worse": "▼ ", "": ""}[significant]
    return {"geomean": f"{glyph}{line.geomean:.3f} [{bound(low)}, {bound(high)}]", "significant": significant}


def _status(context: Context, status: str) -> str:
    words = {
        "running": context.say("running"),
        "finished": context.say("finished"),
        "interrupted": context.say("interrupted"),
        "failed": context.say("failed"),
    }
    return words.get(status, status)
