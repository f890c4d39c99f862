"""What a person sees of a page: its text in order, its tables as rows of text, its links and its controls."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from dashboard.context import Context
from dashboard.query import Query
from harness.store import Store
from reports.language import Language

BLOCKS = {"Article", "Section", "H1", "H2", "P", "Div", "Figcaption", "Caption", "Tr", "Th", "Td", "Summary", "Nav"}


def context_of(store: Path | Store, language: Language = "en") -> Context:
    """A page's context over a store."""
    path = store.path if isinstance(store, Store) else store
    return Context(Query(path), Store.open(path), language)


def every(component: Any) -> Iterator[Any]:
    """The component and all in it, in order; texts too."""
    if component is None:
        return
    if isinstance(component, list | tuple):
        for child in component:
            yield from every(child)
        return
    yield component
    if not isinstance(component, str | int | float):
        yield from every(getattr(component, "children", None))


def shown(component: Any) -> str:
    """The visible text; blocks end with a line."""
    if component is None:
        return ""
    if isinstance(component, list | tuple):
        return "".join(map(shown, component))
    if isinstance(component, str | int | float):
        return str(component)
    text = shown(getattr(component, "children", None))
    return f"{text}\n" if type(component).__name__ in BLOCKS else text


def heading(component: Any) -> str:
    """The first heading."""
    return next(shown(part).strip() for part in every(component) if type(part).__name__ == "H1")


def sentence(component: Any) -> str:
    """The verdict in the first line of text."""
    return next(shown(part).strip() for part in every(component) if getattr(part, "id", None) == "page-sentence")


def tables(component: Any) -> list[list[list[str]]]:
    """Every table outside of figures: its rows of cells, the heading first."""
    found = []
    for part in _outside_figures(component):
        if type(part).__name__ == "Table":
            rows = [row for row in every(part) if type(row).__name__ == "Tr"]
            found.append([[shown(cell).strip() for cell in row.children] for row in rows])
    return found


def _outside_figures(component: Any) -> Iterator[Any]:
    if isinstance(component, list | tuple):
        for child in component:
            yield from _outside_figures(child)
    elif component is not None and type(component).__name__ != "Figure":
        yield component
        if not isinstance(component, str | int | float):
            yield from _outside_figures(getattr(component, "children", None))


def figures(component: Any) -> dict[str, dict[str, Any]]:
    """Name -> Plotly dict of every figure on the page."""
    return {
        part.id["name"]: part.data
        for part in every(component)
        if type(part).__name__ == "Store" and isinstance(part.id, dict) and part.id["type"] == "figure-data"
    }


def links(component: Any) -> dict[str, str]:
    """Text -> address of every link; of two with one text the first."""
    found: dict[str, str] = {}
    for part in every(component):
        if type(part).__name__ in ("Link", "A"):
            found.setdefault(shown(part).strip(), part.href)
    return found


def query_of(href: str) -> dict[str, list[str]]:
    """The query string of an address."""
    return parse_qs(urlsplit(href).query)


def control(component: Any, name: str) -> Any:
    """The control that writes a field of the state."""
    return next(
        part for part in every(component) if isinstance(getattr(part, "id", None), dict) and part.id.get("name") == name
    )


def commands(component: Any) -> list[str]:
    """Every command that the page offers to copy."""
    return [shown(part) for part in every(component) if getattr(part, "className", "") == "command"]
