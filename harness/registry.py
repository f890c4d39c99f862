"""Declarations: axes, options, workload kinds, metrics, backends and suites, one decorated definition each. Torch-free.

    @option("norm", "fused", stage="module", claims=("RMSNorm",), numerics=close(fp32=1e-4))
    def fused_norm(build, value):
        "Torch's fused rms_norm."
        ...

`load_all()` imports every declaring module of the harness, the `suites` package and the user's plugins once; everything
else (the CLI, grids, the numerics test, tables) reads the dictionaries here. Declaring the same name twice is an error.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol

from harness.core import (
    REFERENCE,
    STAGES,
    Better,
    HarnessError,
    Iteration,
    ModelSource,
    Stage,
    Suite,
    UsageError,
    Variant,
    Workload,
    one_of,
)


@dataclass(frozen=True, slots=True)
class Numerics:
    """What an option may do to the numbers.

    exact: bit-equal logits; close: largest absolute difference of the logits within `tolerance` (per compute dtype);
    lossy: mean KL divergence from the reference within `max_kl` nats per token on the trained tiny model, None where no
    bound can be promised.
    """

    kind: Literal["exact", "close", "lossy"]
    tolerance: Mapping[str, float] = field(default_factory=dict)
    max_kl: float | None = None


EXACT = Numerics("exact")


def close(**tolerance: float) -> Numerics:
    """Equal within an absolute tolerance per compute dtype: `close(fp32=1e-4, bf16=0.1)`."""
    return Numerics("close", tolerance)


def lossy(max_kl: float | None) -> Numerics:
    """Changes the model's function, within a mean KL divergence in nats per token."""
    return Numerics("lossy", {}, max_kl)


@dataclass(frozen=True, slots=True)
class Axis:
    """One dimension of choice; `reference` is what an absent axis means."""

    name: str
    reference: str
    doc: str


@dataclass(frozen=True, slots=True)
class Option:
    """One choice on an axis. `pattern` makes it a family (`threads=N`); the value is passed to `apply`.

    `needs`: capability atoms of the machine (`harness.machine.capabilities`). `backends`: engines that can honour it.
    `claims`: model parts that it replaces; two claims on one part are refused. `evidence(facts)` says whether the
    option really ran: a session that fails it is `wrong`, never timed under a name that it did not earn.
    """

    axis: str
    name: str
    stage: Stage
    apply: Callable[[Any, str], None]
    doc: str
    needs: frozenset[str] = frozenset()
    backends: frozenset[str] = frozenset({"torch"})
    requires: tuple[Variant, ...] = ()
    excludes: tuple[Variant, ...] = ()
    claims: frozenset[str] = frozenset()
    numerics: Numerics = EXACT
    evidence: Callable[[Mapping[str, Any]], bool] | None = None
    pattern: str | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """How much one iteration does: tokens that count for the rate, FLOPs, bytes that must move."""

    tokens: int
    flops: float
    bytes: float


class Session(Protocol):
    """One prepared, repeatable execution of a case."""

    work: Work

    def iterate(self) -> Iteration:
        """Run once; the device is idle before and after."""
        ...

    def facts(self) -> dict[str, Any]:
        """What really ran: modules, cache, dtypes, threads, operations; may execute one extra, untimed iteration."""
        ...

    def quality(self) -> dict[str, float]:
        """Metric -> value for quality workloads; raises CaseFailed where the workload has none."""
        ...


class Engine(Protocol):
    """A loaded model in one variant; gives sessions."""

    def session(self, workload: Workload) -> Session:
        """Prepare a workload. Raises Unsupported where this engine has no such workload."""
        ...


@dataclass(frozen=True, slots=True)
class Backend:
    """An engine that executes cases. `axes`: those that it honours (None: all). `packages`: imports that it needs.

    `load(source, variant, device, seed)` builds the engine; `control(device)` returns a callable that runs the fixed
    negative control and gives name -> seconds. `preload`: modules to import once before the forks of the solo pass. A
    `scripted` backend's times do not depend on this machine (tests), so a
    busy neighbour cannot spoil them.
    """

    name: str
    load: Callable[[ModelSource, Variant, str, int], Engine]
    control: Callable[[str], Callable[[], dict[str, float]]]
    doc: str
    axes: frozenset[str] | None = None
    packages: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()
    scripted: bool = False


@dataclass(frozen=True, slots=True)
class WorkloadKind:
    """A kind of work. `timed` kinds run in blocks; the others only in the solo pass (quality).

    `label` is a format string over the parameters: the short name in tables. `headline` is the metric shown first.
    """

    name: str
    defaults: Mapping[str, int]
    label: str
    headline: str
    doc: str
    timed: bool = True


@dataclass(frozen=True, slots=True)
class Record:
    """All that a metric may look at: what was executed, what was recorded, what the machine can reach."""

    workload: Workload
    work: Work
    iteration: Iteration | None = None
    measured: Mapping[str, float] = field(default_factory=dict)
    peak_flops: float | None = None
    peak_bandwidth: float | None = None


@dataclass(frozen=True, slots=True)
class Metric:
    """A named number with its unit. `timed` metrics come once per iteration, the others once per solo pass.

    `compute` is a pure function of the record; None means that the metric has no value there. An `exact` metric has the
    same value at every repetition, so two single values of it can be compared without an interval; values no further
    apart than its `resolution` differ by rounding only.
    """

    name: str
    unit: str
    better: Better
    doc: str
    compute: Callable[[Record], float | None]
    workloads: frozenset[str] | None = None
    timed: bool = True
    exact: bool = False
    resolution: float = 0.0

    def applies(self, workload: Workload) -> bool:
        """Whether the metric is defined for this workload kind."""
        return self.workloads is None or workload.kind in self.workloads


KL_RESOLUTION = 1e-9  # nats per token; what rounding alone makes of equal distributions stays below

AXES: dict[str, Axis] = {}
OPTIONS: dict[tuple[str, str], Option] = {}
WORKLOADS: dict[str, WorkloadKind] = {}
METRICS: dict[str, Metric] = {}
BACKENDS: dict[str, Backend] = {}
SUITES: dict[str, Suite] = {}


def _add(table: dict[Any, Any], key: Any, value: Any, kind: str) -> None:
    if key in table:
        raise HarnessError(f"{kind} {key!r} is declared twice")
    table[key] = value


def _doc(function: Callable[..., Any]) -> str:
    text = (function.__doc__ or "").strip()
    if not text:
        raise HarnessError(f"{function.__name__} needs a docstring: it is what `harness list` shows")
    return re.sub(r"\s+", " ", text.split("\n\n")[0])


def axis(name: str, *, reference: str, doc: str) -> Axis:
    """Declare an axis and its reference option's name."""
    declared = Axis(name, reference, doc)
    _add(AXES, name, declared, "axis")
    return declared


def option(
    axis_name: str,
    name: str,
    *,
    stage: Stage,
    needs: Iterable[str] = (),
    backends: Iterable[str] = ("torch",),
    requires: Iterable[str] = (),
    excludes: Iterable[str] = (),
    claims: Iterable[str] = (),
    numerics: Numerics = EXACT,
    evidence: Callable[[Mapping[str, Any]], bool] | None = None,
    pattern: str | None = None,
) -> Callable[[Callable[[Any, str], None]], Callable[[Any, str], None]]:
    """Declare an option; the decorated function applies it to a `Build` at its stage (see `Option`)."""
    if stage not in STAGES:
        raise HarnessError(f"option {axis_name}={name}: stage '{stage}' is not one of {', '.join(STAGES)}")

    def register(apply: Callable[[Any, str], None]) -> Callable[[Any, str], None]:
        declared = Option(
            axis=axis_name,
            name=name,
            stage=stage,
            apply=apply,
            doc=_doc(apply),
            needs=frozenset(needs),
            backends=frozenset(backends),
            requires=tuple(map(Variant.parse, requires)),
            excludes=tuple(map(Variant.parse, excludes)),
            claims=frozenset(claims),
            numerics=numerics,
            evidence=evidence,
            pattern=pattern,
        )
        _add(OPTIONS, (axis_name, name), declared, "option")
        return apply

    return register


def metric(
    name: str,
    *,
    unit: str,
    better: Better,
    workloads: Iterable[str] | None = None,
    timed: bool = True,
    exact: bool = False,
    resolution: float = 0.0,
) -> Callable[[Callable[[Record], float | None]], Callable[[Record], float | None]]:
    """Declare a metric; the decorated function is pure and its docstring is the definition shown to users."""

    def register(compute: Callable[[Record], float | None]) -> Callable[[Record], float | None]:
        kinds = None if workloads is None else frozenset(workloads)
        declared = Metric(name, unit, better, _doc(compute), compute, kinds, timed, exact, resolution)
        _add(METRICS, name, declared, "metric")
        return compute

    return register


def workload(
    name: str, *, defaults: Mapping[str, int], label: str, headline: str, doc: str, timed: bool = True
) -> WorkloadKind:
    """Declare a workload kind with its parameters' defaults, its label and its first metric."""
    kind = WorkloadKind(name, dict(defaults), label, headline, doc, timed)
    _add(WORKLOADS, name, kind, "workload")
    return kind


def backend(declared: Backend) -> Backend:
    """Declare a backend; it becomes the option `backend=<name>`."""
    _add(BACKENDS, declared.name, declared, "backend")
    return declared


def suite(declared: Suite) -> Suite:
    """Declare a suite by hand (modules of the `suites` package just set SUITE)."""
    _add(SUITES, declared.name, declared, "suite")
    return declared


def _import_children(package: str) -> None:
    module = importlib.import_module(package)
    for info in pkgutil.iter_modules(module.__path__):
        if not info.name.startswith(("_", "test_", "conftest")):
            child = importlib.import_module(f"{package}.{info.name}")
            declared = getattr(child, "SUITE", None)
            if isinstance(declared, Suite) and SUITES.get(declared.name) is not declared:
                suite(declared)


@cache
def _load_builtin() -> None:
    for module in ("harness.workloads", "harness.metrics"):
        importlib.import_module(module)
    for package in ("harness.backends", "harness.options", "suites"):
        _import_children(package)


# What running somebody's module can raise through a mistake in it, other than our own errors, which say it better.
_PLUGIN_MISTAKES = (ImportError, SyntaxError, NameError, AttributeError, TypeError, ValueError, LookupError, OSError)


def _plugin_module(name: str) -> Any:
    if not name.endswith(".py"):
        return importlib.import_module(name)
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"plugin '{name}' is not a file")
    spec = importlib.util.spec_from_file_location(f"harness_plugin_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@cache
def _load_plugin(name: str) -> None:
    try:
        module = _plugin_module(name)
    except _PLUGIN_MISTAKES as error:
        what = f"{type(error).__name__}: {error}"
        raise UsageError(f"plugin '{name}' cannot be loaded: {what}; give a module or a .py file") from error
    declared = getattr(module, "SUITE", None)
    if isinstance(declared, Suite) and SUITES.get(declared.name) is not declared:
        suite(declared)


def load_all(plugins: Sequence[str] = ()) -> None:
    """Import all declarations: the harness's own, the `suites` package, the user's plugins (modules or .py files)."""
    _load_builtin()
    for name in plugins:
        _load_plugin(name)


def option_names(axis_name: str) -> list[str]:
    """The options of an axis as shown to users; a family shows as `<name>`."""
    if axis_name == "backend":
        return sorted(BACKENDS)
    return sorted(
        f"<{declared.name}>" if declared.pattern else declared.name
        for (of_axis, _), declared in OPTIONS.items()
        if of_axis == axis_name
    )


def find_option(axis_name: str, value: str) -> Option | None:
    """The declaration behind `axis=value`; None for the backend axis and for a reference option that does nothing.

    Raises UsageError naming the known axes or options.
    """
    declared_axis = AXES[one_of("axis", axis_name, list(AXES))]
    if axis_name == "backend":
        one_of("option of axis backend", value, list(BACKENDS))
        return None
    if (found := OPTIONS.get((axis_name, value))) is not None and found.pattern is None:
        return found
    for (of_axis, _), declared in OPTIONS.items():
        if of_axis == axis_name and declared.pattern and re.fullmatch(declared.pattern, value):
            return declared
    if value == declared_axis.reference:
        return None
    names = sorted({*option_names(axis_name), declared_axis.reference})
    one_of(f"option of axis {axis_name}", value, names)
    raise UsageError(f"unknown option of axis {axis_name} '{value}'. Known: {', '.join(names)}")


def resolve_variant(variant: Variant) -> Variant:
    """Check every name and drop reference options, so that equal variants have equal text."""
    kept = {}
    for axis_name, value in variant.choices:
        find_option(axis_name, value)
        if value != AXES[axis_name].reference:
            kept[axis_name] = value
    return Variant.of(kept)


def workload_label(workload_spec: Workload) -> str:
    """The short name of a workload in tables: `decode 32 @ 128`."""
    label = WORKLOADS[workload_spec.kind].label.format(**dict(workload_spec.params))
    return label.replace(" (batch 1)", "")


def resolve_workload(workload_spec: Workload) -> Workload:
    """Check the kind and the parameters' names, and fill in the defaults."""
    kind = WORKLOADS[one_of("workload", workload_spec.kind, list(WORKLOADS))]
    for name, value in workload_spec.params:
        one_of(f"parameter of workload {kind.name}", name, list(kind.defaults))
        if value < 1:
            raise UsageError(f"parameter {name} of workload {kind.name} must be at least 1, not {value}")
    return Workload.of(kind.name, **{**kind.defaults, **dict(workload_spec.params)})


def backend_of(variant: Variant) -> Backend:
    """The backend that executes a variant."""
    name = variant.option("backend") or AXES["backend"].reference
    return BACKENDS[one_of("backend", name, list(BACKENDS))]


def options_of(variant: Variant) -> list[tuple[Option, str]]:
    """The declared options of a variant with their values, in stage order; a reference option where declared."""
    found = []
    for name, declared_axis in AXES.items():
        value = variant.option(name) or declared_axis.reference
        declared = find_option(name, value)
        if declared is not None:
            found.append((declared, value))
    return sorted(found, key=lambda pair: (STAGES.index(pair[0].stage), pair[0].axis))


def why_unsupported(variant: Variant, capabilities: frozenset[str]) -> str | None:
    """Why a variant cannot run with these capability atoms, or None if it can."""
    engine = backend_of(variant)
    if missing := [name for name in engine.packages if f"pkg:{name}" not in capabilities]:
        return f"backend {engine.name} needs the package {', '.join(missing)}, which is not installed"
    for axis_name, value in variant.choices:
        if axis_name != "backend" and engine.axes is not None and axis_name not in engine.axes:
            return f"backend {engine.name} does not offer axis {axis_name} ({axis_name}={value})"
    claimed: dict[str, str] = {}
    for declared, value in options_of(variant):
        text = f"{declared.axis}={value}"
        chosen = variant.option(declared.axis) is not None
        if missing := sorted(declared.needs - capabilities):
            return f"{text} needs {', '.join(missing)}, which this machine does not offer"
        if chosen and engine.name not in declared.backends:
            return f"backend {engine.name} does not offer {text}"
        for other in declared.requires:
            if any(_chosen(variant, name) != option_name for name, option_name in other.choices):
                return f"{text} requires {other}"
        for other in declared.excludes:
            if other != REFERENCE and all(_chosen(variant, name) == value_ for name, value_ in other.choices):
                return f"{text} excludes {other}"
        for part in declared.claims:
            if part in claimed:
                return f"{text} and {claimed[part]} both replace {part}"
            claimed[part] = text
    return None


def _chosen(variant: Variant, axis_name: str) -> str:
    return variant.option(axis_name) or AXES[axis_name].reference
