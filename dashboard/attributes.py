"""Attributes of elements whose names have a hyphen, as keyword arguments.

    html.Button("x", **aria(label="Close"), **data(copy="text"))      # aria-label="Close" data-copy="text"

An attribute that is None is left out.
"""

from __future__ import annotations

from typing import Any


def aria(**values: Any) -> dict[str, Any]:
    """`aria-<name>` for assistive technology; True and False are written out, as the standard wants them."""
    return {f"aria-{name}": _text(value) for name, value in values.items() if value is not None}


def data(**values: Any) -> dict[str, Any]:
    """`data-<name>`, which the scripts in assets/ read; `_` in a name becomes `-`."""
    return {f"data-{name.replace('_', '-')}": _text(value) for name, value in values.items() if value is not None}


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
