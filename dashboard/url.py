"""The state of a page as its query string, both ways.

    @dataclass(frozen=True, slots=True)
    class State:
        metric: str = "tps"
        metrics: tuple[str, ...] = ()
        sort: Literal["effect", "name"] = "effect"

    state, notices = parse(State, "?metric=ttft&sort=nonsense")     # sort="effect", one notice in words
    format("/compare", state)                                       # "/compare?metric=ttft"

A field is a str, int, float, bool, tuple[str, ...] or a Literal of str, with a default. Only what differs from its
default stands in the address; a tuple repeats its name, an empty one whose default is not empty stands as `name=`.
Nothing is refused: nonsense becomes the default, with a notice that says what was wrong and what is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints
from urllib.parse import parse_qsl, urlencode

from reports.language import Language, say

S = TypeVar("S")
SHELL_FIELDS = ("lang", "scheme")  # of every page: see dashboard.context.Shell
MAX_LENGTH = 20_000  # of a query string that is looked at
MAX_TEXT = 2_000  # of one value


def field_types(state_type: type) -> Mapping[str, Any]:
    """Field name -> annotated type, of a state dataclass."""
    return get_type_hints(state_type)


def parse(
    state_type: type[S], search: str, language: Language = "en", *, known: Sequence[str] = SHELL_FIELDS
) -> tuple[S, tuple[str, ...]]:
    """The state in a query string (with or without its `?`), and notices about what in it was not understood.

    `known`: names that belong to somebody else and are passed over in silence.
    """
    notices: list[str] = []
    if len(search) > MAX_LENGTH:
        notices.append(say(language, "The address is too long; the end of it was not read."))
    values: dict[str, list[str]] = {}
    for name, value in parse_qsl(search[:MAX_LENGTH].removeprefix("?"), keep_blank_values=True, errors="replace"):
        values.setdefault(name, []).append(value[:MAX_TEXT].replace("\x00", ""))
    types = field_types(state_type)
    found: dict[str, Any] = {}
    for name, given in values.items():
        if name in types:
            try:
                found[name] = _read(types[name], given)
            except ValueError as error:
                allowed = str(error) or say(language, "something else")
                notices.append(
                    say(
                        language,
                        "'{value}' is not a value of {name}; allowed: {allowed}. The default is shown.",
                        value=_short(given[-1]),
                        name=name,
                        allowed=allowed,
                    )
                )
        elif name not in known:
            notices.append(say(language, "This page has no setting '{name}'; it was passed over.", name=_short(name)))
    return state_type(**found), tuple(notices)


def encode(value: Any) -> tuple[str, ...]:
    """A field's value as the texts that follow `name=`; one text, or as many as a tuple has (none: one empty text)."""
    if isinstance(value, bool):
        return ("yes" if value else "no",)
    if isinstance(value, tuple | list):
        return tuple(str(item) for item in value) or ("",)
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return (str(int(value)),)
    return (str(value),)


def query(state: Any) -> list[tuple[str, str]]:
    """The (name, text) pairs of the fields that differ from their default."""
    default = type(state)()
    pairs = []
    for field in fields(state):
        value = getattr(state, field.name)
        if value != getattr(default, field.name):
            pairs += [(field.name, text) for text in encode(value)]
    return pairs


def format(path: str, state: Any) -> str:  # the pair of `parse`
    """The address of a page in a state."""
    return join(path, query(state))


def join(path: str, pairs: Sequence[tuple[str, str]]) -> str:
    """A path and its query string; blanks and the signs of variants (`=`, `,`, `:`) stay readable."""
    return f"{path}?{urlencode(pairs, safe='=:,()/@~*')}" if pairs else path


def _read(kind: Any, given: Sequence[str]) -> Any:
    """One field's value from its texts. Raises ValueError whose text says what is allowed."""
    last = given[-1]
    if get_origin(kind) is tuple:
        return tuple(text for text in given if text)
    if get_origin(kind) is Literal:
        if last not in get_args(kind):
            raise ValueError(", ".join(map(str, get_args(kind))))
        return last
    if kind is bool:
        if last not in ("yes", "no"):
            raise ValueError("yes, no")
        return last == "yes"
    if kind is int:
        digits = last.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) < 19):
            raise ValueError("0, 1, 2, ...")
        return int(last)
    if kind is float:
        return _read_float(last)
    return last


def _read_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise ValueError("0.5, 1, 20, ...") from error
    if not math.isfinite(value):
        raise ValueError("0.5, 1, 20, ...")
    return value


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
