"""The Dash app: every page is drawn on the server from the store and the address, by one callback.

    app = build_app(Path("results"))
    app.server.test_client().get("/").status_code      # 200; `python -m dashboard` serves it

Other callbacks run in the browser (assets/a_shell.js): controls write the address, figures take the scheme's colours.
Everything is served from here and read-only; see dashboard.security for who may read it. It refuses nothing: a folder
without a store gets a page that says so.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import dash_mantine_components as dmc
from dash import Dash, Input, Output, State, dcc, html, no_update, set_props
from dash.development.base_component import Component
from dash.exceptions import PreventUpdate

from dashboard import shell, theme
from dashboard.browser import register_in_browser
from dashboard.components import notice
from dashboard.context import Context, shell_state
from dashboard.exports import serve_exports
from dashboard.remarks import serve_remarks
from dashboard.security import protect
from dashboard.source import Source
from reports.language import say

QUIET_MS, BUSY_MS = 30_000, 5_000  # between looks at the store: while nothing is measured, and while a run goes on


def build_app(store_path: Path, *, write: bool = False, token: str | None = None) -> Dash:
    """The app on a store. `token`: what a reader must bring; None answers this machine only.

    `write`: whether remarks may be added to the store's annotations; nothing else is ever written.
    """
    source = Source(store_path, write=write)
    pages = shell.found_pages()
    app = Dash(
        "dashboard",
        assets_folder=str(Path(__file__).parent / "assets"),
        title=shell.PRODUCT,
        update_title="",
        suppress_callback_exceptions=True,
        on_error=_fault,
        add_log_handler=False,
        include_pages_meta=False,
    )
    app.layout = lambda: _layout(source)
    register_in_browser(app)
    _register_on_server(app, source, pages)
    for page in pages:
        if page.register is not None:
            page.register(app, source)
    serve_exports(app.server, source, pages)
    serve_remarks(app.server, source)
    app.server.extensions["overview"] = partial(shell.draw, source, pages, "/", "")
    protect(app.server, script_hashes=app.csp_hashes(), token=token)
    return app


def warm(app: Dash) -> None:
    """Draw the first page once, so that whoever comes first does not wait for what is then kept."""
    app.server.extensions["overview"]()


def _layout(source: Source) -> Component:
    """The page that is sent first: the frame, empty, and what the callbacks hold."""
    held = [
        dcc.Location(id="url", refresh=False),
        dcc.Store(id="asked"),
        dcc.Store(id="language"),
        dcc.Store(id="generation", data=source.generation()),
        dcc.Store(id="now"),
        dcc.Store(id="shown"),
        dcc.Store(id="templates", data=theme.templates()),
        dcc.Store(id="seen-pulse"),
        dcc.Interval(id="pulse", interval=QUIET_MS),
    ]
    provider: Component = dmc.MantineProvider(
        [*held, shell.frame()], id="provider", theme=theme.mantine(), defaultColorScheme="auto"
    )
    return html.Div(provider)


def _register_on_server(app: Dash, source: Source, pages: tuple[shell.Page, ...]) -> None:
    @app.callback(
        Output("top", "children"),
        Output("nav", "children"),
        Output("page", "children"),
        Output("now", "data"),
        Input("asked", "data"),
        Input("generation", "data"),
        State("url", "pathname"),
        State("url", "search"),
        State("now", "data"),
    )
    def draw(
        asked: str, generation: str, pathname: str, search: str, before: Mapping[str, Any] | None
    ) -> tuple[Any, ...]:
        drawn = shell.draw(source, pages, pathname, search or "")
        same = before is not None and _frame_key(before) == _frame_key(drawn.now)
        top, nav = (no_update, no_update) if same else (drawn.top, drawn.nav)  # a filter half typed is left alone
        return top, nav, drawn.content, {**drawn.now, "address": asked}

    @app.callback(
        Output("generation", "data"),
        Output("stamp", "children"),
        Output("stamp", "lang"),
        Output("running", "children"),
        Output("pulse", "interval"),
        Input("seen-pulse", "data"),
        Input("language", "data"),
        State("url", "search"),
        State("generation", "data"),
        State("pulse", "interval"),
        State("stamp", "lang"),
    )
    def look(
        seen: int | None, language: str, search: str, before: str, interval: int, spoken: str | None
    ) -> tuple[Any, ...]:
        generation = source.generation()
        if seen is not None and generation == before and interval == QUIET_MS and language == spoken:
            raise PreventUpdate
        stamp = source.stamp()
        running = stamp.running if stamp else ()
        return (
            no_update if generation == before else generation,
            shell.stamp_text(search or "", stamp),
            language,
            shell.progress(search or "", running),
            BUSY_MS if running else QUIET_MS,
        )


def _frame_key(now: Mapping[str, Any]) -> tuple[Any, ...]:
    values = now["values"]
    return now["path"], values["lang"], values["scheme"], values.get("filter")


def _fault(error: Exception) -> None:
    """A mistake of ours in a callback: told on the page and, in full, where the dashboard was started."""
    traceback.print_exception(error, file=sys.stderr)
    language, scheme = shell_state("")
    words = say(language, "A fault of the dashboard: this page could not be drawn. The terminal has the details.")
    query: Any = None
    set_props("page", {"children": notice(Context(query, None, language, scheme), "error", words)})
