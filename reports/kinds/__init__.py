"""The kinds of report: each a function from a store and a request to a `Document`.

    from reports.kinds import KINDS, build
    document = build(store, "long_context", Request(refs=("kv_cache",), language="zh"))

A kind reads what the store has, says what is missing and which command would fill it, and prints no number that no run
stands behind. Refuses (UsageError) an unknown kind, or a run that the store does not have. A new kind is one file here
and one line below.
"""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace

from harness import registry
from harness.core import one_of
from harness.store import Store
from reports.document import Document
from reports.sources import Request

Build = Callable[[Store, Request], Document]

KINDS: Mapping[str, str] = {  # kind -> module; each has a function `build`
    "run": "run",
    "comparison": "comparison",
    "gate": "gate",
    "environment": "environment",
    "training_system": "training_system",
    "profile_report": "profile_report",
    "long_context": "long_context",
    "quantization": "quantization",
    "serving": "serving",
    "experiment_record": "experiment_record",
    "final": "final",
}


def build(store: Store, kind: str, request: Request) -> Document:
    """The report of a kind. Raises UsageError naming the known kinds."""
    one_of("report", kind, list(KINDS))
    registry.load_all()
    function: Build = importlib.import_module(f"{__name__}.{KINDS[kind]}").build
    document = function(store, request)
    problems = tuple(f"{problem.path.name}: {problem.reason}" for problem in store.problems)
    return replace(document, problems=problems, command=document.command or command_of(kind, request))


def command_of(kind: str, request: Request) -> str:
    """The line that makes the report again."""
    words = ["python", "-m", "harness", "report", kind, *request.refs]
    return shlex.join([*words, *(["--language", request.language] if request.language != "en" else [])])
