"""The filter box: text as on the command line to a condition with bound values.

    found = parse_filter("norm=triton context>=2048 model=tiny,minimind-3 status=failed machine=ab12")
    condition, values = found.where()       # SQL over the views of dashboard.query, and what is bound to its marks

A clause is a field, one of = != >= <= > < and a value; clauses hold together. `=` and `!=` take several values with
commas and `*` for any text; a machine, commit or run may be cut short. Fields are those of FIELDS, every axis, every
parameter of a workload. It refuses (UsageError) anything else, naming what is allowed. No text of the user becomes SQL.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, TypeAlias

from harness import registry
from harness.core import UsageError, one_of

Level = Literal["run", "case", "metric"]
Kind = Literal["text", "start", "machine", "time", "flag"]
Bound: TypeAlias = "str | int | float | bool | datetime"
LEVELS: tuple[Level, ...] = ("run", "case", "metric")

# What a clause may be about: the level that it belongs to, the column, and how its value reads. A "start" may be cut
# short; a "machine" too, but a whole id means that machine alone, whatever others begin with it: machines never mix.
FIELDS: Mapping[str, tuple[Level, str, Kind]] = {
    "suite": ("run", "runs.suite", "text"),
    "machine": ("run", "runs.machine_id", "machine"),
    "commit": ("run", "runs.git_sha", "start"),
    "run": ("run", "runs.run_id", "start"),
    "run_status": ("run", "runs.status", "text"),
    "session": ("run", "runs.session", "text"),
    "device": ("run", "runs.device", "text"),
    "dirty": ("run", "runs.git_dirty", "flag"),
    "started": ("run", "runs.started_at", "time"),
    "model": ("case", "series.model", "text"),
    "workload": ("case", "series.kind", "text"),
    "variant": ("case", "series.variant", "text"),
    "case": ("case", "series.case_id", "start"),
    "group": ("case", 'cases."group"', "text"),
    "status": ("case", "cases.status", "text"),
    "metric": ("metric", "summary.metric", "text"),
}
_CLAUSE = re.compile(r"(?P<field>[a-z][a-z0-9_]*)(?P<sign>!=|>=|<=|=|>|<)(?P<value>.*)", re.DOTALL)
_NUMBER = re.compile(r"-?\d{1,15}")
_MAX_LENGTH, _MAX_CLAUSES = 2_000, 40
_FLAGS = {"yes": True, "true": True, "no": False, "false": False}


@dataclass(frozen=True, slots=True)
class Clause:
    """One condition: `field sign value`, as written; `kind` says where the field was found."""

    field: str
    sign: str
    value: str
    kind: Literal["field", "axis", "parameter"] = "field"

    @property
    def level(self) -> Level:
        """What it speaks of: the run, the case or the metric."""
        return FIELDS[self.field][0] if self.kind == "field" else "case"

    def __str__(self) -> str:
        return f"{self.field}{self.sign}{_quoted(self.value)}"


@dataclass(frozen=True, slots=True)
class Filter:
    """Clauses that hold together; none lets everything through. Make one with `parse_filter`."""

    clauses: tuple[Clause, ...] = ()

    @property
    def text(self) -> str:
        """The filter as it is written: `parse_filter(found.text) == found`."""
        return " ".join(map(str, self.clauses))

    def values_of(self, field: str) -> tuple[str, ...]:
        """The values that `field=...` asks for, for a picker beside the box; none where it does not."""
        return tuple(
            value for clause in self.clauses if (clause.field, clause.sign) == (field, "=") for value in _split(clause)
        )

    def with_value(self, field: str, value: str) -> Filter:
        """This filter with `field=value` in place of its other clauses on the field; without them for value "".

        A field that is not known here is an axis of the store.
        """
        others = tuple(clause for clause in self.clauses if clause.field != field)
        if not value:
            return Filter(others)
        known = _known_axes() | ({field} - FIELDS.keys() - _parameters())
        return Filter((*others, _clause(f"{field}={value}", known)))

    def where(self, *levels: Level) -> tuple[str, tuple[Bound, ...]]:
        """The condition of the clauses at these levels (all unless named), and the values for its marks in order.

        It speaks of the views `runs` (level run), `cases` and `series` (case) and `summary` (metric).
        """
        conditions, values = [], []
        for clause in self.clauses:
            if clause.level in (levels or LEVELS):
                condition, bound = _condition(clause)
                conditions.append(condition)
                values += bound
        return " AND ".join(conditions) or "TRUE", tuple(values)

    def speaks_of(self, level: Level) -> bool:
        """Whether a clause belongs to this level."""
        return any(clause.level == level for clause in self.clauses)


def parse_filter(text: str, *, axes: Collection[str] = ()) -> Filter:
    """Read the text of the box. `axes`: names known beside those of the registry, such as old ones in the store.

    Raises UsageError naming the clause that is wrong and what is allowed.
    """
    if len(text) > _MAX_LENGTH:
        raise UsageError(f"the filter has {len(text)} characters; at most {_MAX_LENGTH} are read")
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"the filter '{text}' has an open quotation mark") from error
    if len(words) > _MAX_CLAUSES:
        raise UsageError(f"the filter has {len(words)} clauses; at most {_MAX_CLAUSES} are read")
    known = _known_axes() | set(axes)
    return Filter(tuple(_clause(word, known) for word in words))


def fields(axes: Collection[str] = ()) -> tuple[str, ...]:
    """Every field that a filter may speak of, for help and completion."""
    return (*FIELDS, *sorted((_known_axes() | set(axes) | _parameters()) - FIELDS.keys()))


def _known_axes() -> set[str]:
    registry.load_all()
    return set(registry.AXES)


def _parameters() -> set[str]:
    return {name for kind in registry.WORKLOADS.values() for name in kind.defaults}


def _clause(word: str, axes: Collection[str]) -> Clause:
    match = _CLAUSE.fullmatch(word)
    if match is None:
        raise UsageError(f"'{word}' is not of the form field=value, for example norm=triton, context>=2048, model=tiny")
    field, sign, value = match["field"], match["sign"], match["value"]
    one_of("field of a filter", field, fields(axes))
    clause = Clause(field, sign, value, _kind_of(field, axes))
    if not value.strip(","):
        raise UsageError(f"'{word}' has no value, for example {field}=tiny")
    _check(clause, word)
    return clause


def _kind_of(field: str, axes: Collection[str]) -> Literal["field", "axis", "parameter"]:
    if field in FIELDS:
        return "field"
    return "axis" if field in axes else "parameter"


def _check(clause: Clause, word: str) -> None:
    """Refuse values and signs that the field cannot have."""
    kind = FIELDS[clause.field][2] if clause.kind == "field" else "text"
    ordered = kind == "time" or clause.kind == "parameter"
    if clause.sign not in ("=", "!=") and not ordered:
        raise UsageError(f"'{word}': {clause.field} can be compared with = and != only")
    if kind == "time":
        _time(clause.value)
        if clause.sign in ("=", "!="):
            raise UsageError(f"'{word}': {clause.field} can be compared with >=, <=, > and < only")
    if kind == "flag" and clause.value not in _FLAGS:
        raise UsageError(f"'{word}': {clause.field} is yes or no")
    if clause.kind == "parameter":
        for value in _split(clause):
            if not _NUMBER.fullmatch(value):
                raise UsageError(f"'{word}': {clause.field} is a whole number, for example {clause.field}>=2048")


def _split(clause: Clause) -> Iterator[str]:
    """The values of a clause: a comma separates, except in a variant, whose own text may hold one."""
    if clause.sign not in ("=", "!=") or clause.field == "variant":
        yield clause.value
        return
    yield from (value for value in clause.value.split(",") if value)


def _time(text: str) -> datetime:
    """In UTC and without its zone, as the view `runs` has it."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"'{text}' is not a time, for example 2026-11-22 or 2026-11-22T14:00") from error
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC).replace(tzinfo=None)


def _condition(clause: Clause) -> tuple[str, list[Bound]]:
    """SQL with a mark for every value. Columns come from the table above, never from the text."""
    if clause.kind == "axis":
        test, bound = _any_of("options.option", "text", clause)
        such = f"options.case_id = series.case_id AND options.axis = ? AND ({test})"
        found = f"EXISTS (SELECT 1 FROM options WHERE {such})"
        return _negated(clause, found), [clause.field, *bound]
    if clause.kind == "parameter":
        if clause.sign in ("=", "!="):
            marks = ", ".join("?" for _ in _split(clause))
            test, bound = f"parameters.value IN ({marks})", [int(value) for value in _split(clause)]
        else:
            test, bound = f"parameters.value {clause.sign} ?", [int(clause.value)]
        such = f"parameters.case_id = series.case_id AND parameters.name = ? AND {test}"
        found = f"EXISTS (SELECT 1 FROM parameters WHERE {such})"
        return _negated(clause, found), [clause.field, *bound]
    _, column, kind = FIELDS[clause.field]
    if kind == "time":
        return f"{column} {clause.sign} ?", [_time(clause.value)]
    if kind == "flag":
        return _negated(clause, f"{column} = ?"), [_FLAGS[clause.value]]
    test, bound = _any_of(column, kind, clause)
    return _negated(clause, test), bound


def _negated(clause: Clause, condition: str) -> str:
    return f"NOT ({condition})" if clause.sign == "!=" else f"({condition})"


def _any_of(column: str, kind: Kind, clause: Clause) -> tuple[str, list[Bound]]:
    """Whether a text column is one of the clause's values; `*` stands for any text, a "start" may be cut short."""
    tests: list[str] = []
    bound: list[Bound] = []
    for value in _split(clause):
        if kind == "machine" and "*" not in value:
            whole = "SELECT 1 FROM runs AS other WHERE other.machine_id = ?"
            tests.append(f"{column} = ? OR {column} LIKE ? ESCAPE '\\' AND NOT EXISTS ({whole})")
            bound += [value, _pattern(value) + "%", value]
        elif "*" in value or kind == "start":
            tests.append(f"{column} LIKE ? ESCAPE '\\'")
            bound.append(_pattern(value) + ("%" if kind == "start" else ""))
        else:
            tests.append(f"{column} = ?")
            bound.append(value)
    return " OR ".join(tests) or "FALSE", bound


def _pattern(value: str) -> str:
    """The value as a pattern of LIKE, where only `*` stands for any text."""
    return value.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_").replace("*", "%")


def _quoted(value: str) -> str:
    """The value as the box takes it: in quotation marks where it holds a blank or a mark."""
    return shlex.quote(value) if re.search(r"[\s'\"\\]", value) else value
