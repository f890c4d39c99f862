"""Callbacks that run in the browser: functions of assets/*.js, so that no script stands in the page itself.

in_browser(app, "scheme", Output("shown", "data"), Input("url", "search"))      # dash_clientside.bench.scheme
"""

from __future__ import annotations

from typing import Any

from dash import ClientsideFunction, Dash

NAMESPACE = "bench"


def in_browser(app: Dash, name: str, *arguments: Any, **options: Any) -> None:
    """Let `dash_clientside.bench.<name>` answer to some inputs."""
    register: Any = app.clientside_callback
    register(ClientsideFunction(NAMESPACE, name), *arguments, **options)
