"""Serve the dashboard: `python -m dashboard [--store DIR] [--host 127.0.0.1] [--port 8050] [--open]`.

Read-only and for this machine alone. `--host` opens it to others and then wants `--token`; `--write` lets readers add
remarks. It refuses (exit code 2) a host without a token and a port that is taken. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from dashboard.security import is_loopback

MIN_TOKEN = 16


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        prog="python -m dashboard",
        description="Show measurements in a browser: what changed, by how much, and whether to trust it.",
    )
    found.add_argument(
        "--store", metavar="DIR", default="results", help="folder with the results (default: %(default)s)"
    )
    found.add_argument(
        "--host", default="127.0.0.1", help="address to serve on (default: %(default)s, this machine only)"
    )
    found.add_argument("--port", type=int, default=8050, help="port (default: %(default)s; 0 takes a free one)")
    found.add_argument("--token", help=f"what readers must bring, {MIN_TOKEN} characters or more; needed with --host")
    found.add_argument("--write", action="store_true", help="let readers add remarks (STORE/annotations.jsonl)")
    found.add_argument("--open", action="store_true", help="open the page in the browser")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until interrupted; the exit code."""
    options = parser().parse_args(argv)
    if (wrong := _refused(options.host, options.port, options.token)) is not None:
        print(f"python -m dashboard: {wrong}", file=sys.stderr)
        return 2
    from werkzeug.serving import make_server

    from dashboard.app import build_app, warm
    from dashboard.serving import Quiet

    app = build_app(Path(options.store), write=options.write, token=options.token)
    try:
        server = make_server(options.host, options.port, app.server, threaded=True, request_handler=Quiet)
    except OSError as error:
        print(f"python -m dashboard: {_why_not(options.host, options.port, error)}", file=sys.stderr)
        return 2
    except SystemExit:  # werkzeug's own way of saying that the port is taken; it has printed why
        print(f"python -m dashboard: choose another port than {options.port} with --port", file=sys.stderr)
        return 2
    host = f"[{options.host}]" if ":" in options.host else options.host
    address = f"http://{host}:{server.server_port}/" + (f"?token={options.token}" if options.token else "")
    if not is_loopback(options.host):
        print(
            "Warning: other machines can reach this dashboard; whoever has the token can read all results.",
            file=sys.stderr,
        )
    print(f"Dashboard of {options.store}: {address} (Ctrl-C ends it)", flush=True)
    threading.Thread(target=warm, args=(app,), daemon=True).start()
    if options.open:
        webbrowser.open(address)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        return 0
    finally:
        server.server_close()
    return 0


def _refused(host: str, port: int, token: str | None) -> str | None:
    """Why these options cannot be, or None."""
    if not 0 <= port <= 65535:
        return f"port {port} does not exist; give one from 0 to 65535 with --port"
    if token is not None and len(token) < MIN_TOKEN:
        return f"a token needs {MIN_TOKEN} characters or more; `openssl rand -hex 16` makes one"
    if token is None and not is_loopback(host):
        return (
            f"--host {host} opens the dashboard to other machines; give a --token too "
            "(`openssl rand -hex 16` makes one), or leave --host out"
        )
    return None


def _why_not(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is taken, perhaps by another dashboard; choose one with --port (0 takes a free one)"
    if error.errno == errno.EACCES:
        return f"port {port} needs more rights; choose one above 1023 with --port"
    return f"cannot serve on {host}:{port}: {error.strerror or error}"


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # Python's own ending would tear threads out of a query that still runs, and abort
