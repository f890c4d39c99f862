"""Callbacks that run in the browser: functions of assets/*.js, so that no script stands in the page itself.

in_browser(app, "scheme", Output("shown", "data"), Input("url", "search"))      # dash_clientside.bench.scheme
"""

from __future__ import annotations

from typing import Any

from dash import ALL, MATCH, ClientsideFunction, Dash, Input, Output, State

NAMESPACE = "bench"


def in_browser(app: Dash, name: str, *arguments: Any, **options: Any) -> None:
    """Let `dash_clientside.bench.<name>` answer to some inputs."""
    register: Any = app.clientside_callback
    register(ClientsideFunction(NAMESPACE, name), *arguments, **options)


def register_in_browser(app: Dash) -> None:
    """The callbacks that every page has: address, colours, figures, announcements, looking for news."""
    in_browser(
        app,
        "state",
        Output("url", "search"),
        Input({"type": "state", "name": ALL}, "value"),
        Input({"type": "switch", "name": ALL}, "checked"),
        Input({"type": "drawer", "name": ALL}, "opened"),
        State("now", "data"),
        prevent_initial_call=True,
    )
    in_browser(
        app,
        "asked",
        Output("asked", "data"),
        Input("url", "pathname"),
        Input("url", "search"),
        State("asked", "data"),
    )
    in_browser(app, "language", Output("language", "data"), Input("url", "search"), State("language", "data"))
    in_browser(app, "scheme", Output("provider", "forceColorScheme"), Output("shown", "data"), Input("url", "search"))
    in_browser(
        app,
        "figure",
        Output({"type": "figure", "name": MATCH}, "figure"),
        Input({"type": "figure-data", "name": MATCH}, "data"),
        Input("shown", "data"),
        State("templates", "data"),
    )
    in_browser(app, "arrived", Output("live", "children"), Input("now", "data"), prevent_initial_call=True)
    in_browser(app, "pulse", Output("seen-pulse", "data"), Input("pulse", "n_intervals"), prevent_initial_call=True)
