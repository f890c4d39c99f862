"""What a page shows as a file: `/export/<page>.<form>?<state>`, for the pages that have an `export`.

    serve_exports(app.server, source, found_pages())
    client.get("/export/compare.md?a=latest~1&b=latest")

It refuses a page or form that is not offered (404) and, in words, a state that cannot be shown (400).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flask import Flask, Response, abort, request, send_file

from dashboard import url
from dashboard.context import Context, shell_state
from dashboard.shell import Page
from dashboard.source import Source
from harness.core import HarnessError

_MIME = {"csv": "text/csv", "md": "text/markdown", "json": "application/json", "txt": "text/plain"}


def serve_exports(server: Flask, source: Source, pages: Sequence[Page]) -> None:
    """`/export/<page>.<form>?<state>`: what a page shows as a file."""
    by_path = {page.path: page for page in pages if page.export is not None}

    def export(name: str, form: str) -> Response:
        page = by_path.get(f"/{name}")
        if page is None or page.export is None or form not in page.forms:
            abort(404)
        search = request.query_string.decode("utf-8", errors="replace")
        language, scheme = shell_state(search)
        state: Any = url.parse(page.state_type, search, language)[0]
        try:
            query, store = source.open()
            found = page.export(Context(query, store, language, scheme, search, page.path), state, form)
            if isinstance(found, Path):  # sent piece by piece: a trace can be large
                return send_file(found.resolve(), mimetype=_MIME[form], as_attachment=True, download_name=found.name)
        except HarnessError as error:
            return Response(f"{error}\n", status=400, mimetype="text/plain")
        except OSError as error:
            return Response(f"{name}.{form} cannot be read: {error.strerror}\n", status=404, mimetype="text/plain")
        answer = Response(found, mimetype=_MIME[form])
        answer.headers["Content-Disposition"] = f'attachment; filename="{name}.{form}"'
        return answer

    server.add_url_rule("/export/<name>.<form>", "export", export)
