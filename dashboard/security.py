"""Who may read the dashboard, and what a browser may do with its pages.

    protect(app.server, script_hashes=app.csp_hashes(), token=None)

Without a token only requests addressed to this machine itself are answered, whatever they come through: a page from
elsewhere that has its name resolve to 127.0.0.1 (DNS rebinding) gets 403. With a token every request must bring it:
once as `?token=...`, which becomes a cookie and leaves the address, or as `Authorization: Bearer`.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from urllib.parse import urlencode, urlsplit

from flask import Flask, Response, redirect, request
from flask.typing import ResponseReturnValue

COOKIE = "minimind_bench_token"
MAX_REQUEST_BYTES = 1 << 20


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own: localhost, 127.0.0.0/8, ::1."""
    if host.rstrip(".").lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def policy(script_hashes: Sequence[str]) -> str:
    """The content security policy: own files only; the hashes are of Dash's own inline scripts.

    NOTE: inline styles cannot be forbidden: Mantine, AG Grid and Plotly write `style` elements while they run.
    """
    scripts = " ".join(["'self'", *dict.fromkeys(script_hashes)])
    return (
        f"default-src 'self'; script-src {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
        "font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    )


def protect(server: Flask, *, script_hashes: Sequence[str], token: str | None) -> None:
    """Put guard and headers on every answer of a server."""
    rules = policy(script_hashes)
    server.config["MAX_CONTENT_LENGTH"] = MAX_REQUEST_BYTES
    server.before_request(_ask_for(token) if token else _only_this_machine)

    def headers(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = rules
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["X-Frame-Options"] = "DENY"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cross-Origin-Opener-Policy"] = "same-origin"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        if request.path.startswith("/assets/") and "m" in request.args:  # the name holds the time of its last change
            response.headers["Cache-Control"] = "private, max-age=31536000, immutable"
        return response

    server.after_request(headers)


def _only_this_machine() -> ResponseReturnValue | None:
    host = urlsplit(f"//{request.host}").hostname or ""
    if is_loopback(host):
        return None
    return _refusal(403, f"This dashboard answers only on this machine, not as '{host}'. Use http://127.0.0.1.")


def _ask_for(token: str) -> Callable[[], ResponseReturnValue | None]:
    expected = token.encode()

    def guard() -> ResponseReturnValue | None:
        given = request.args.get("token")
        if given is not None and hmac.compare_digest(given.encode(), expected) and request.method == "GET":
            pairs = [pair for pair in request.args.items(multi=True) if pair[0] != "token"]
            path = "/" + request.path.lstrip("/")  # `//elsewhere` would be another host
            answer = redirect(path + (f"?{urlencode(pairs)}" if pairs else ""))
            answer.set_cookie(COOKIE, token, httponly=True, samesite="Strict", secure=request.is_secure)
            return answer
        brought = request.headers.get("Authorization", "").removeprefix("Bearer ") or request.cookies.get(COOKIE, "")
        if hmac.compare_digest(brought.encode(), expected):
            return None
        return _refusal(401, "This dashboard wants its token: open the address with ?token=... that its start printed.")

    return guard


def _refusal(status: int, text: str) -> Response:
    return Response(text + "\n", status=status, mimetype="text/plain")
