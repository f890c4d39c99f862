"""The frame around every page: navigation, the controls that all pages share, the state of the store, messages.

    pages = found_pages()
    drawn = draw(Source(Path("results")), pages, "/compare", "?a=latest~1&b=latest&lang=zh")
    drawn.content       # the page; drawn.now says to the browser what state it shows

A pure function of store and address. It refuses nothing: no store, an address without a page, a filter that cannot be
read, a damaged file each become a message that says what and what to do.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from dash import Dash, dcc, html
from dash.development.base_component import Component

from dashboard import pages as pages_package
from dashboard import url
from dashboard.attributes import aria, data
from dashboard.components import Child, empty, notice, page, repeat
from dashboard.context import Context, shell_state
from dashboard.inputs import segmented, text_box
from dashboard.remarks import PAGES as REMARKED
from dashboard.remarks import remark_form
from dashboard.rows import Progress, Stamp
from dashboard.source import Source
from harness.core import HarnessError, StoreError
from reports.language import LANGUAGES, NAMES, say

PRODUCT = "minimind-bench"
MAX_PROBLEMS = 10  # told in full; of more, how many
KEYS = {  # `g` and then this letter goes to the page
    "/": "o", "/runs": "r", "/compare": "c", "/trend": "t", "/pareto": "p", "/roofline": "f", "/memory": "m",
    "/profile": "l", "/noise": "n", "/matrix": "x", "/help": "h",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Page:
    """One module of dashboard.pages; `register` adds callbacks of its own (a grid asks for its rows)."""

    path: str
    title: str
    order: int
    state_type: type
    layout: Callable[[Context, Any], Component]
    forms: tuple[str, ...] = ()
    export: Callable[[Context, Any, str], str | Path] | None = None
    register: Callable[[Dash, Source], None] | None = None


@dataclass(frozen=True, slots=True)
class Drawn:
    """What one address comes to. `now` is for the browser: path, title, and each field's text and default."""

    top: Component
    nav: Component
    content: Component
    now: Mapping[str, Any]


def found_pages() -> tuple[Page, ...]:
    """Every module of the package, by its order."""
    found = []
    for info in pkgutil.iter_modules(pages_package.__path__):
        module = importlib.import_module(f"{pages_package.__name__}.{info.name}")
        extra = {name: getattr(module, name, None) for name in ("export", "register")}
        forms = getattr(module, "EXPORTS", ())
        found.append(Page(module.PATH, module.TITLE, module.ORDER, module.State, module.layout, forms, **extra))
    return tuple(sorted(found, key=lambda entry: (entry.order, entry.path)))


def title_of(context: Context, entry: Page) -> str:
    """A page's title in the page's language; a page that is not listed here keeps its own."""
    titles = {
        "/": context.say("Overview"),
        "/runs": context.say("Runs"),
        "/compare": context.say("Compare"),
        "/trend": context.say("Trend"),
        "/pareto": context.say("Pareto"),
        "/roofline": context.say("Roofline"),
        "/memory": context.say("Memory"),
        "/profile": context.say("Profile"),
        "/noise": context.say("Noise"),
        "/matrix": context.say("Coverage"),
        "/case": context.say("Case"),
        "/help": context.say("Help"),
    }
    return titles.get(entry.path, entry.title)


def draw(source: Source, pages: Sequence[Page], pathname: str, search: str) -> Drawn:
    """The whole screen for an address."""
    path = "/" + (pathname or "/").strip("/")
    language, scheme = shell_state(search)
    entry = next((known for known in pages if known.path == path), None)
    try:
        query, store = source.open()
    except StoreError as error:
        return _without_store(source, pages, entry, str(error), search)
    context = Context(query, store, language, scheme, search, path, source.write)
    state: Any = None
    notices: tuple[str, ...] = ()
    if entry is None:
        content = _no_page(context, path)
    else:
        state, notices = url.parse(entry.state_type, search, language)
        content = _laid_out(context, entry, state)
    messages = [*_store_messages(context, query.stamp()), *(notice(context, "warning", text) for text in notices)]
    return _assembled(context, pages, entry, state, [*messages, content, _remarks(context)])


def _remarks(context: Context) -> Child:
    """The form for remarks, on the pages that show them and where they may be written."""
    if not context.write or context.path not in REMARKED:
        return None
    named = parse_qs(context.search.removeprefix("?")).get("case", ["*"])
    return remark_form(context, case=named[0])


def _laid_out(context: Context, entry: Page, state: Any) -> Component:
    try:
        return entry.layout(context, state)
    except HarnessError as error:  # what the address asks for cannot be: the message says what can
        return page(
            context,
            title_of(context, entry),
            context.say("This cannot be shown."),
            notice(context, "error", str(error)),
            html.P(dcc.Link(context.say("Show the page without these settings"), href=context.href(entry.path))),
        )


def _no_page(context: Context, path: str) -> Component:
    return page(
        context,
        context.say("No such page"),
        context.say("There is no page at {path}.", path=path[:80]),
        html.P(dcc.Link(context.say("Go to the overview"), href=context.href("/"))),
    )


@dataclass(frozen=True, slots=True)
class _NoQuery:
    """Stands in for the queries where there is no store to ask; only its path is known."""

    path: Any


def _without_store(source: Source, pages: Sequence[Page], entry: Page | None, reason: str, search: str) -> Drawn:
    language, scheme = shell_state(search)
    query: Any = _NoQuery(source.path)
    context = Context(query, None, language, scheme, search, entry.path if entry else "/")
    content = page(
        context,
        context.say("There are no results here yet"),
        reason,
        empty(
            context,
            context.say("A first measurement takes about a minute and makes the store."),
            context.command("run quickstart"),
        ),
        html.P(context.say("Or look at a made-up store, clearly marked as such:")),
        repeat(context, "python -m harness sample-store sample && python -m dashboard --store sample"),
    )
    return _assembled(context, pages, entry, None, [content])


def _assembled(
    context: Context, pages: Sequence[Page], entry: Page | None, state: Any, content: Sequence[Child]
) -> Drawn:
    filtered = state is not None and "filter" in url.field_types(type(state))
    title = title_of(context, entry) if entry else context.say("No such page")
    values = {"lang": [context.language], "scheme": [context.scheme]}
    defaults = {"lang": ["en"], "scheme": ["auto"]}
    if state is not None:
        plain = type(state)()
        for field in fields(state):
            values[field.name] = list(url.encode(getattr(state, field.name)))
            defaults[field.name] = list(url.encode(getattr(plain, field.name)))
        values |= {name: given for name, given in _shown(content) if name in values}
    now = {
        "path": context.path,
        "title": f"{title} · {PRODUCT}",
        "language": {"en": "en", "zh": "zh-Hans"}[context.language],
        "words": {
            "skip": context.say("Skip to the page"),
            "nav": context.say("Pages"),
        },
        "values": values,
        "defaults": defaults,
    }
    top = _top(context, state.filter if filtered else None)
    return Drawn(top, _navigation(context, pages, entry), html.Div(list(content)), now)


def _shown(content: Any) -> Iterator[tuple[str, list[str]]]:
    """What the page's controls stand at: where the address says nothing, the page's own choice, which is no news."""
    for child in content if isinstance(content, list | tuple) else [content]:
        if isinstance(child, Component):
            name = getattr(child, "id", None)
            if isinstance(name, dict) and name.get("type") == "state" and hasattr(child, "value"):
                yield name["name"], list(url.encode("" if child.value is None else child.value))
            yield from _shown(getattr(child, "children", None))


def _top(context: Context, text: str | None) -> Component:
    """The controls that all pages share; the filter only where the page reads one."""
    languages = [(name, NAMES[name] if name != "en" else "EN") for name in LANGUAGES]
    schemes = [
        ("auto", context.say("Auto")),
        ("light", context.say("Light")),
        ("dark", context.say("Dark")),
    ]
    keys = {**aria(label=context.say("Keys")), **data(keys="yes")}
    return html.Div(
        [
            html.Div(
                text_box(context, "filter", context.say("Filter"), text, placeholder="norm=triton context>=2048"),
                className="filter",
            )
            if text is not None
            else html.Div(className="filter"),
            segmented(context, "lang", context.say("Language"), languages, context.language),
            segmented(context, "scheme", context.say("Colours"), schemes, context.scheme),
            html.Div(
                [
                    html.Button(
                        context.say("Copy link"),
                        type="button",
                        className="quiet",
                        **data(copy_link="yes", copied=context.say("Copied.")),
                    ),
                    html.Button("?", type="button", className="quiet", **keys),
                    _key_list(context),
                ],
                className="buttons",
            ),
        ],
        className="top-controls",
    )


def _key_list(context: Context) -> Component:
    """The list of keys, opened by `?`."""
    rows = [
        ("/", context.say("to the filter")),
        ("g o, g r, g c, g t, g p", context.say("to Overview, Runs, Compare, Trend, Pareto")),
        ("j, k", context.say("next, previous row")),
        ("x", context.say("choose a row (Runs)")),
        ("Enter", context.say("open what is under the focus")),
        ("Esc", context.say("close a drawer or this list")),
        ("?", context.say("this list")),
    ]
    lines = [html.Tr([html.Th(html.Kbd(keys), scope="row"), html.Td(words)]) for keys, words in rows]
    return html.Dialog(
        [
            html.H2(context.say("Keys")),
            html.Table(html.Tbody(lines), className="data"),
            html.Button(context.say("Close"), type="button", className="quiet", **data(keys_close="yes")),
        ],
        id="keys",
        **aria(label=context.say("Keys")),
    )


def _navigation(context: Context, pages: Sequence[Page], entry: Page | None) -> Component:
    items = []
    for known in pages:
        if known.order > 0:
            here = entry is not None and known.path == entry.path
            text = title_of(context, known)
            anchor = dcc.Link(text, href=context.href(known.path), className="nav-link here" if here else "nav-link")
            items.append(html.Li(anchor, **data(key=KEYS.get(known.path))))
    return html.Ul(items)


def _store_messages(context: Context, stamp: Stamp) -> list[Component]:
    """What holds for every page: made-up data, files that could not be read."""
    found = []
    if stamp.synthetic:
        words = context.say("This store is synthetic: made up by harness sample-store, nothing in it was measured.")
        found.append(notice(context, "warning", words))
    if stamp.problems:
        lines: list[Component] = [
            html.Li([html.Code(str(path)), f": {reason}"]) for path, reason in stamp.problems[:MAX_PROBLEMS]
        ]
        hidden = len(stamp.problems) - len(lines)
        if hidden > 0:
            lines.append(html.Li(context.say("and {n} more", n=hidden)))
        told = html.Details([html.Summary(context.say("Which, and why")), html.Ul(lines)])
        check = html.P(repeat(context, context.command("store check")))
        words = context.say(
            "Files of the store that could not be read: {n}. Everything else is shown.", n=len(stamp.problems)
        )
        found.append(notice(context, "warning", words, told, check))
    return found


def stamp_text(search: str, stamp: Stamp | None) -> str:
    """How much data there is and how recent, for the top of every page."""
    language, _ = shell_state(search)
    if stamp is None:
        return say(language, "no store")
    until = f"{stamp.complete_as_of.astimezone():%Y-%m-%d %H:%M}" if stamp.complete_as_of else "–"
    return say(
        language,
        "{n} run, complete as of {time}, store v{version}"
        if stamp.num_runs == 1
        else "{n} runs, complete as of {time}, store v{version}",
        n=f"{stamp.num_runs:,}",
        time=until,
        version=stamp.schema_version,
    )


def progress(search: str, running: Sequence[Progress]) -> list[Component]:
    """A line with a bar for every run that goes on."""
    language, _ = shell_state(search)
    lines: list[Component] = []
    for run in running:
        since = f"{run.started_at.astimezone():%H:%M}" if run.started_at else "–"
        words = say(
            language,
            "{suite} is running since {time}: {done} done ({run})",
            suite=run.suite,
            time=since,
            done=f"{run.done:.0%}",
            run=run.run_id,
        )
        bar = html.Progress(value=f"{run.done:.3f}", max="1", **aria(label=words))
        lines.append(html.Div([html.Span(words), bar], className="running"))
    return lines


def frame() -> Component:
    """What stands still while pages change; the rest is filled in by the callbacks of dashboard.app."""
    return html.Div(
        [
            html.A("↓", href="#page", className="skip", id="skip"),
            html.Header(
                [
                    html.Div(
                        [
                            html.Button(
                                "☰", id="nav-button", type="button", className="quiet", **aria(expanded=False)
                            ),
                            html.Span(PRODUCT, className="brand"),
                            html.Span(id="stamp", className="stamp"),
                        ],
                        className="bar",
                    ),
                    html.Div(id="top"),
                ],
                className="header",
            ),
            html.Nav(id="nav", className="nav"),
            html.Main([html.Div(id="running"), html.Div(_skeleton(), id="page", tabIndex="-1")], className="main"),
            html.Div(id="live", className="unseen", role="status", **aria(live="polite")),
        ],
        id="shell",
    )


def _skeleton() -> Component:
    """What stands there until the first answer."""
    bars = [html.Div(className=f"bone bone-{number}") for number in range(6)]
    return html.Div(bars, className="skeleton", **aria(hidden=True))
