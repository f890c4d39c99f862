"""Adding a remark to a history, where the dashboard was started with `--write`: one line of STORE/annotations.jsonl.

    serve_remarks(app.server, source)         # POST /annotations, only from the dashboard's own pages
    remark_form(context, back="/trend?...")   # what a page shows

Nothing else of a store is ever written. It refuses (403) a request from another site, (400) a remark that is empty, too
long or has a status that is not known.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from dash import dcc, html
from dash.development.base_component import Component
from flask import Flask, Response, redirect, request
from flask.typing import ResponseReturnValue

from dashboard.annotations import FILE_NAME, MAX_BYTES
from dashboard.components import section
from dashboard.context import Context
from dashboard.source import Source
from harness.core import StoreError, UsageError

MAX_TEXT = 500
STATUSES = ("", "acknowledged", "explained")
PAGES = ("/trend", "/case")  # where remarks are shown


def add_remark(store: Path, *, text: str, author: str = "", case: str = "*", status: str = "") -> None:
    """Append one remark. Raises UsageError for what cannot be one, StoreError where the file cannot be written."""
    words = " ".join(text.split())
    if not words or len(words) > MAX_TEXT:
        raise UsageError(f"a remark has 1 to {MAX_TEXT} characters, not {len(words)}")
    if status not in STATUSES:
        raise UsageError(f"status '{status[:40]}' is not one of {', '.join(STATUSES[1:])}")
    path = store / FILE_NAME
    row = {
        "time": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "author": author[:80],
        "text": words,
        "case": case[:200] or "*",
        "status": status,
    }
    line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
    try:
        if path.exists() and path.stat().st_size + len(line) > MAX_BYTES:
            raise StoreError(f"{path} has no room left for remarks ({MAX_BYTES:,} bytes): move old ones elsewhere")
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line)  # one write: lines of two writers never mix
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


def serve_remarks(server: Flask, source: Source) -> None:
    """`POST /annotations`, then back to the page. Only for a source that may be written."""

    def add() -> ResponseReturnValue:
        if not _from_here():
            return Response("A remark can only be sent from the dashboard's own pages.\n", 403, mimetype="text/plain")
        names = ("text", "author", "case", "status")
        given = {name: request.form.get(name, "") for name in names if name in request.form}
        try:
            add_remark(source.path, **{"text": "", **given})
        except (UsageError, StoreError) as error:
            return Response(f"{error}\n", 400, mimetype="text/plain")
        back = request.form.get("back", "/trend")
        safe = back.startswith(PAGES) and not urlsplit(back).netloc
        return redirect(back if safe else "/trend", code=303)

    if source.write:
        server.add_url_rule("/annotations", "annotations", add, methods=["POST"])


def _from_here() -> bool:
    """Whether a browser says that its own page of this server sent the form."""
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin", "")
    return site == "same-origin" or (site is None and urlsplit(origin).netloc == request.host)


def remark_form(context: Context, *, case: str) -> Component:
    """The form below a history. `case`: the pattern that is proposed."""
    statuses = [
        ("", context.say("a remark only")),
        ("acknowledged", context.say("acknowledged")),
        ("explained", context.say("explained")),
    ]
    boxes = [
        _box(context.say("Remark"), "text", "", MAX_TEXT),
        _box(context.say("Your name"), "author", "", 80),
        _box(context.say("Cases (a pattern)"), "case", case or "*", 200),
    ]
    chooser = html.Select([html.Option(label, value=value) for value, label in statuses], name="status")
    form = html.Form(
        [
            *boxes,
            html.Label([html.Span(context.say("Status"), className="control-label"), chooser]),
            dcc.Input(type="hidden", name="back", value=context.path + context.search, id="remark-back"),
            html.Button(context.say("Add the remark"), type="submit", className="quiet"),
        ],
        action="/annotations",
        method="post",
        className="remark",
    )
    return section(context.say("Add a remark"), form, name="remark")


def _box(label: str, name: str, value: str, most: int) -> Component:
    entry = dcc.Input(type="text", name=name, value=value, maxLength=most, id=f"remark-{name}", autoComplete="off")
    return html.Label([html.Span(label, className="control-label"), entry], className="control-wide")
