"""The store behind the pages, opened when it is first there.

    source = Source(Path("results"))
    query, store = source.open()        # raises StoreError while there is none

A dashboard may be started before anything was measured: each request tries again, and keeps what it opened.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

from dashboard.query import Query
from dashboard.rows import Stamp
from harness.core import StoreError
from harness.store import Store


@dataclass(slots=True)
class Source:
    """One folder. `open` may be called by many threads at once; `write`: whether remarks may be added."""

    path: Path
    write: bool = False
    _query: Query | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def open(self) -> tuple[Query, Store]:
        """The queries and the store that they read. Raises StoreError where there is no store (any more)."""
        Store.open(self.path)
        with self._lock:
            if self._query is None:
                self._query = Query(self.path)
            return self._query, self._query.store

    def generation(self) -> str:
        """A text that changes when the store does; "" while there is none."""
        try:
            return self.open()[0].generation()
        except StoreError:
            return ""

    def stamp(self) -> Stamp | None:
        """What every page says about the store; None while there is none."""
        try:
            return self.open()[0].stamp()
        except StoreError:
            return None
