"""The nouns of the laboratory: errors, variants, workloads, cases, suites, samples. Torch-free.

    variant = Variant.parse("norm=fused kv=prealloc")
    case = Case(workload=Workload.parse("decode(context=512)"), model="minimind2-small", variant=variant)
    case.case_id          # stable across runs and machines: the identity of a series

Everything here is a frozen value. Whether an axis, option or workload *exists* is the registry's business
(`harness.registry`); this module only knows how they are written.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

SCHEMA_VERSION = 1
SOLO_BLOCK = -1  # the block number of what the solo pass measured

Status = Literal["ok", "skipped", "failed", "oom", "timeout", "wrong", "not_steady"]
VerdictName = Literal["improved", "regressed", "equivalent", "inconclusive", "invalid"]
Better = Literal["higher", "lower", "neither"]
Phase = Literal["warmup", "timed"]
Stage = Literal["backend", "config", "module", "cast", "quantize", "compile", "runtime"]
STAGES: tuple[Stage, ...] = ("backend", "config", "module", "cast", "quantize", "compile", "runtime")
Design = Literal["one_at_a_time", "product", "ladder", "pairs"]
GateKind = Literal["statistical", "exact", "bound"]


class HarnessError(Exception):
    """Root of every error that the harness raises on purpose.

    HarnessError
    ├── UsageError      the user named something that does not exist or cannot be: exit code 2
    ├── StoreError      results cannot be written or read: exit code 3
    ├── Unsupported     this machine or backend cannot run the case: a `skipped` row
    └── CaseFailed      the case ran and broke: a row with its status and reason
    """


class UsageError(HarnessError):
    """A name or value from the user that is not allowed; the message names it, the allowed ones and what to do."""


class StoreError(HarnessError):
    """The store cannot be read or written (read-only, full, not a store)."""


class Unsupported(HarnessError):
    """The case cannot run here; the message is the reason shown in the skipped row."""


class CaseFailed(HarnessError):
    """The case broke while it ran."""

    def __init__(self, reason: str, *, status: Status = "failed") -> None:
        super().__init__(reason)
        self.status: Status = status


_PAIR = re.compile(r"^(?P<axis>[a-z][a-z0-9_]*)=(?P<option>[A-Za-z0-9][A-Za-z0-9_.\-]*)$")
_WORKLOAD = re.compile(r"^(?P<kind>[a-z][a-z0-9_]*)(?:\((?P<params>[^()]*)\))?$")


def parse_pair(text: str) -> tuple[str, str]:
    """Split `axis=option`. Raises UsageError naming the text if it is not of that form."""
    match = _PAIR.match(text.strip())
    if match is None:
        raise UsageError(f"'{text}' is not of the form axis=option, for example kv=prealloc")
    return match["axis"], match["option"]


@dataclass(frozen=True, slots=True)
class Variant:
    """A point in the product of the axes: the options that differ from the reference, sorted by axis.

    An absent axis means its reference option, so the reference is the empty variant and two texts that differ in order
    or name a reference option are one variant (the registry drops reference options when it resolves a variant).
    """

    choices: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, choices: Mapping[str, str]) -> Variant:
        """The variant with these axis -> option choices."""
        return cls(tuple(sorted(choices.items())))

    @classmethod
    def parse(cls, text: str) -> Variant:
        """Read the canonical text: `reference`, or `axis=option` pairs separated by blanks or commas."""
        words = [word for word in re.split(r"[\s,]+", text.strip()) if word and word != "reference"]
        choices: dict[str, str] = {}
        for axis, option in map(parse_pair, words):
            if choices.setdefault(axis, option) != option:
                raise UsageError(f"axis '{axis}' is given twice in '{text}': {choices[axis]} and {option}")
        return cls.of(choices)

    def option(self, axis: str) -> str | None:
        """The option chosen on `axis`, or None where it is the reference."""
        return dict(self.choices).get(axis)

    def with_choice(self, axis: str, option: str) -> Variant:
        """This variant with one axis set."""
        return Variant.of({**dict(self.choices), axis: option})

    def __str__(self) -> str:
        return " ".join(f"{axis}={option}" for axis, option in self.choices) or "reference"


REFERENCE = Variant()


@dataclass(frozen=True, slots=True)
class Workload:
    """What is executed and how much of it, never how: a kind and its whole-number parameters."""

    kind: str
    params: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, kind: str, **params: int) -> Workload:
        """`Workload.of("decode", context=512)`; parameters left out take the kind's defaults when resolved."""
        return cls(kind, tuple(sorted(params.items())))

    @classmethod
    def parse(cls, text: str) -> Workload:
        """Read `kind` or `kind(name=3,other=4)`. Raises UsageError naming the text."""
        match = _WORKLOAD.match(text.strip())
        if match is None:
            raise UsageError(f"'{text}' is not a workload, for example decode(context=512,new_tokens=32)")
        params: dict[str, int] = {}
        for word in filter(None, (word.strip() for word in (match["params"] or "").split(","))):
            name, _, value = (part.strip() for part in word.partition("="))
            if not name.isidentifier() or not value.isdecimal():
                raise UsageError(f"'{word}' in workload '{text}' is not name=whole number")
            if params.setdefault(name, int(value)) != int(value):
                raise UsageError(f"parameter '{name}' is given twice in workload '{text}'")
        return cls.of(match["kind"], **params)

    def __getitem__(self, name: str) -> int:
        return dict(self.params)[name]

    def __str__(self) -> str:
        return f"{self.kind}({','.join(f'{name}={value}' for name, value in self.params)})"


@dataclass(frozen=True, slots=True)
class Case:
    """Workload x model x variant: the identity of a series of measurements."""

    workload: Workload
    model: str
    variant: Variant = REFERENCE

    @property
    def case_id(self) -> str:
        """Twelve hexadecimal digits, equal wherever the same case is measured."""
        return hashlib.sha256(f"{self.workload}|{self.model}|{self.variant}".encode()).hexdigest()[:12]

    def __str__(self) -> str:
        return f"{self.model} {self.workload} {self.variant}"


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model's numbers come from. `name` is what tables show; paths are None for the embedded defaults.

    `preset` gives the shape (None: it comes with the weights). `seed` draws random weights where there are none.
    """

    name: str
    preset: str | None = None
    weights: str | None = None
    tokenizer: str | None = None
    data: str | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Grid:
    """Cases that belong together: every model x workload, with a design over the axes; all arms run interleaved."""

    models: tuple[str, ...]
    workloads: tuple[Workload, ...]
    axes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    design: Design = "one_at_a_time"
    extra: tuple[Variant, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampling:
    """How much is measured. A slice ends when both its minimum time and its minimum iterations are reached.

    `passes`: how often a block goes through its arms, each time in order and then in the reverse of it (ABBA). `looks`:
    the numbers of blocks at which an adaptive run judges what it has, the last of them at most `blocks`.
    """

    blocks: int = 6
    passes: int = 1
    slice_seconds: float = 0.25
    min_iterations: int = 3
    warmup_seconds: float = 0.25
    timeout_seconds: float = 120.0
    looks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Gate:
    """A rule on one metric of the cases whose texts match the patterns (as file names do: `decode*`).

    statistical: `margin` is the change that counts (None: the suite's), `limit` the change that a passing case has
    excluded (None: 3%). exact: the number is the same at every repetition, `margin` its relative tolerance (None: 0).
    bound: quality; `margin` is the largest relative worsening, `limit` the largest value, at least one of them.
    `fails` says which change turns the gate red.
    """

    metric: str
    kind: GateKind = "statistical"
    workload: str = "*"
    model: str = "*"
    variant: str = "*"
    margin: float | None = None
    limit: float | None = None
    fails: Literal["worse", "better", "change"] = "worse"


@dataclass(frozen=True, slots=True)
class Suite:
    """Declared cases, metrics, sampling and gates; `grids` holds one tuple of grids per device (cpu, cuda)."""

    name: str
    doc: str
    grids: Mapping[str, tuple[Grid, ...]]
    metrics: tuple[str, ...]
    sampling: Sampling = Sampling()
    version: int = 1
    margin: float = 0.01
    gates: tuple[Gate, ...] = ()


@dataclass(frozen=True, slots=True)
class Iteration:
    """What one repetition recorded, in nanoseconds of the worker's monotonic clock; the device was idle at both ends.

    `token_ns` holds the time at which each new token was on the host, where the workload streams tokens.
    """

    start_ns: int
    end_ns: int
    token_ns: tuple[int, ...] = ()

    @property
    def seconds(self) -> float:
        """Wall time of the repetition."""
        return (self.end_ns - self.start_ns) * 1e-9


@dataclass(frozen=True, slots=True)
class Sample:
    """One number of one repetition, as stored: SI units, one row."""

    case_id: str
    metric: str
    value: float
    unit: str
    block: int
    worker: str
    turn: int
    iteration: int
    phase: Phase
    t_ns: int


@dataclass(frozen=True, slots=True)
class Reading:
    """One telemetry value of one slice (CPU of others, steal, control times...)."""

    block: int
    source: str
    name: str
    value: float
    unit: str
    t_ns: int
    worker: str = ""
    case_id: str = ""
    turn: int = 0


def one_of(kind: str, name: str, known: Sequence[str] | Iterator[str]) -> str:
    """Return `name` if it is known, else raise UsageError that names it, the known ones and the nearest of them."""
    import difflib

    names = sorted(known)
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise UsageError(f"unknown {kind} '{name}'.{hint} Known: {', '.join(names) or 'none'}")
