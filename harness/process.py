"""The parent's side of a worker process: start it, ask it, wait without polling, and bury it. Torch-free."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from harness.core import CaseFailed, Status, Variant

PROTOCOL = 1  # of requests and replies; two commits can be measured together only if they speak the same


class WorkerDied(CaseFailed):
    """The worker process ended or was killed while it held a request."""


class Worker(Protocol):
    """What the runner asks of a worker: a `WorkerProcess`, or a scripted one."""

    name: str

    @property
    def alive(self) -> bool:
        """Whether it can still be asked."""
        ...

    def ready(self, timeout: float) -> dict[str, Any]:
        """Wait until it has imported what it needs."""
        ...

    def ask(self, request: dict[str, Any], *, timeout: float) -> dict[str, Any]:
        """Its answer. Raises CaseFailed."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...

    def close(self) -> None:
        """Let it end."""
        ...


class Start(Protocol):
    """What makes workers."""

    def __call__(
        self, name: str, *, device: str, variant: Variant, seed: int, plugins: Sequence[str], root: Path | None
    ) -> Worker:
        """A worker that runs the code in `root` (None: this code)."""
        ...


class WorkerProcess:
    """A fresh `python -m harness.worker`, in a process group of its own so that its forks die with it.

    `root` is the folder whose code it runs, and in which it runs; None is this code in the present folder.
    """

    def __init__(
        self,
        name: str,
        *,
        device: str,
        variant: Variant,
        seed: int,
        plugins: Sequence[str] = (),
        root: Path | None = None,
    ) -> None:
        self.name = name
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        code = str(root or Path(__file__).resolve().parents[1])
        paths = [code, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "harness.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
            cwd=root,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        self._buffer = b""
        self._selector = selectors.DefaultSelector()
        assert self._process.stdout is not None
        self._selector.register(self._process.stdout, selectors.EVENT_READ)
        self._hello = {"do": "hello", "device": device, "variant": str(variant), "seed": seed, "plugins": list(plugins)}
        self.tell(self._hello)  # answered when the imports are done; several workers import at once

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def ready(self, timeout: float) -> dict[str, Any]:
        """Wait until the worker has imported what it needs; what it says of itself (pid, protocol)."""
        return self._reply(self._hello, timeout)

    def ask(self, request: dict[str, Any], *, timeout: float) -> dict[str, Any]:
        """Send a request and wait for its result, at most `timeout` seconds.

        Raises CaseFailed with the worker's own status and reason, WorkerDied if the process ended or hung (a hanging
        one is killed).
        """
        self.tell(request)
        return self._reply(request, timeout)

    def tell(self, request: dict[str, Any]) -> None:
        """Send a request without waiting."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the reply, or its absence, says why
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()

    def _reply(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        reply = json.loads(self._line(request, time.monotonic() + timeout, timeout))
        if (error := reply.get("error")) is not None:
            raise CaseFailed(error["reason"], status=error["status"])
        return dict(reply["result"])

    def _line(self, request: dict[str, Any], until: float, timeout: float) -> bytes:
        assert self._process.stdout is not None
        while b"\n" not in self._buffer:
            if not self._selector.select(max(until - time.monotonic(), 0.0)):
                self.kill()
                raise WorkerDied(f"no answer to '{request['do']}' within {timeout:g} s", status="timeout")
            chunk = os.read(self._process.stdout.fileno(), 1 << 20)
            if not chunk:
                raise self._post_mortem()
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _post_mortem(self) -> WorkerDied:
        code = self._process.wait()
        self._log.seek(0)
        tail = self._log.read().decode(errors="replace").strip().splitlines()[-1:]
        said = f": {tail[0]}" if tail else ""
        if code == -signal.SIGKILL:
            return WorkerDied("killed by the system, most likely out of memory" + said, status="oom")
        how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        status: Status = "failed"
        return WorkerDied(f"the worker process {how}{said}", status=status)

    def kill(self) -> None:
        """End the process and its forks at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """Let the worker end by itself; kill it if it does not within five seconds."""
        assert self._process.stdin is not None and self._process.stdout is not None
        if self.alive:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            try:
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self.kill()
        self._selector.close()
        self._process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._log.close()


@contextlib.contextmanager
def machine_lock() -> Iterator[None]:
    """Held while a block runs, so that two runs at once on one machine take turns instead of disturbing each other."""
    path = Path(tempfile.gettempdir()) / "minimind-bench.lock"
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
    except PermissionError:  # another user's file in a sticky folder: it may not be created again, but it can be locked
        handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
