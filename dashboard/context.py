"""What a page is given beside its own state: the data, the language, and the way to write links.

    def layout(context: Context, state: State) -> Component:
        return page(context, context.say("Trend"), sentence, link(context, "...", "/compare", a="latest~1", b="latest"))

A page is a function of this and its state, nothing else. `store` is None where there is no store: the shell then shows
its own page and calls no layout, so a page may say `context.results`, which refuses (StoreError) that case.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs

from dashboard import url
from dashboard.query import Query
from harness.core import StoreError
from harness.store import Store
from reports.language import LANGUAGES, Language, say

Scheme = Literal["auto", "light", "dark"]
SCHEMES: tuple[Scheme, ...] = ("auto", "light", "dark")


@dataclass(frozen=True, slots=True)
class Context:
    """The data and the address that a page is drawn from.

    `language` and `scheme` are part of every address (`lang=zh`, `scheme=dark`); `href` carries them on. `search` is
    the query string as it came; `write`: whether remarks may be added.
    """

    query: Query
    store: Store | None
    language: Language = "en"
    scheme: Scheme = "auto"
    search: str = ""
    path: str = "/"
    write: bool = False

    def say(self, template: str, /, **values: Any) -> str:
        """The template in the page's language; a literal at each call (see reports.language)."""
        return say(self.language, template, **values)

    def href(self, path: str, /, **state: Any) -> str:
        """The address of a page: state fields by name; None, "" and () are left out."""
        pairs = [
            (name, text)
            for name, value in state.items()
            if value is not None and value != "" and value != ()
            for text in url.encode(value)
        ]
        return url.join(path, [*pairs, *self.shell])

    @property
    def shell(self) -> list[tuple[str, str]]:
        """What every address carries on: language and scheme where they are not the default."""
        kept = [("lang", self.language)] if self.language != "en" else []
        return [*kept, ("scheme", self.scheme)] if self.scheme != "auto" else list(kept)

    @property
    def results(self) -> Store:
        """The store. Raises StoreError where there is none."""
        if self.store is None:
            raise StoreError(f"there is no store at {self.query.path}")
        return self.store

    def command(self, words: str) -> str:
        """`python -m harness <words>` on this store, for people to copy; `words` are ours, never a value from data."""
        path = self.query.path
        return f"python -m harness {words}" + ("" if path == Path("results") else f" --store {shlex.quote(str(path))}")

    def local(self, when: datetime) -> str:
        """A time in this machine's zone, to the minute."""
        return f"{when.astimezone():%Y-%m-%d %H:%M}"


def shell_state(search: str) -> tuple[Language, Scheme]:
    """Language and scheme of a query string; what is not known counts as the default."""
    values = parse_qs(search[: url.MAX_LENGTH].removeprefix("?"), errors="replace")
    named, drawn = values.get("lang", [""])[-1], values.get("scheme", [""])[-1]
    language = next((known for known in LANGUAGES if known == named), LANGUAGES[0])
    return language, next((known for known in SCHEMES if known == drawn), SCHEMES[0])
