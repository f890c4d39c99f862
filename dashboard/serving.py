"""How requests are answered: quietly, and without telling the versions of what answers."""

from __future__ import annotations

from werkzeug.serving import WSGIRequestHandler


class Quiet(WSGIRequestHandler):
    """Logs errors only: a line per request would hide them."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say nothing of a request that was answered."""

    def version_string(self) -> str:
        """The `Server` header."""
        return "minimind-bench"
