"""From a suite to a plan: which cases, in which groups, with every skip and its reason. Torch-free, touches no device.

A group is a set of arms (variants) measured interleaved over the same models and workloads; its first arm is the
reference. Plan and execution are apart, so `--dry-run` and the tests see exactly what a run would do.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from harness.core import Case, Grid, ModelSource, Sampling, Suite, UsageError, Variant, one_of
from harness.registry import (
    AXES,
    METRICS,
    SUITES,
    WORKLOADS,
    find_option,
    resolve_variant,
    resolve_workload,
    why_unsupported,
)


@dataclass(frozen=True, slots=True)
class Group:
    """Cases whose arms are compared with each other; `baseline` is the arm that the others are divided by."""

    name: str
    arms: tuple[Variant, ...]
    baseline: Variant
    cases: tuple[Case, ...]

    def timed(self) -> tuple[Case, ...]:
        """The cases that run in blocks."""
        return tuple(case for case in self.cases if WORKLOADS[case.workload.kind].timed)


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a run will do."""

    suite: Suite
    device: str
    seed: int
    sampling: Sampling
    sources: Mapping[str, ModelSource]
    groups: tuple[Group, ...]
    skips: Mapping[str, str]

    def by_variant(self) -> Plan:
        """The same cases, each variant in groups of its own: what is compared are the sides of a session."""
        groups = []
        for group in self.groups:
            for number, arm in enumerate(group.arms):
                cases = tuple(case for case in group.cases if case.variant == arm)
                if cases:
                    groups.append(Group(f"{group.name}-{number}", (arm,), arm, cases))
        return replace(self, groups=tuple(groups))

    def restricted(self, case_ids: Sequence[str]) -> Plan:
        """Only these timed cases, with the references that they are compared with and the quality of their variants."""
        kept = []
        wanted = {case.variant for group in self.groups for case in group.timed() if case.case_id in case_ids}
        for group in self.groups:
            chosen = [case for case in group.timed() if case.case_id in case_ids]
            arms = {group.baseline, *((case.variant for case in chosen) if group.timed() else wanted)}
            places = {(case.workload, case.model) for case in chosen}
            cases = tuple(
                case
                for case in group.cases
                if case.variant in arms
                and ((case.workload, case.model) in places or not WORKLOADS[case.workload.kind].timed)
            )
            if chosen or not group.timed():
                kept.append(replace(group, cases=cases, arms=tuple(arm for arm in group.arms if arm in arms)))
        return replace(self, groups=tuple(kept))


def arms_of(grid: Grid) -> tuple[Variant, ...]:
    """The variants of a grid by its design, the reference point of its axes first."""
    axes = {name: tuple(dict.fromkeys(options)) for name, options in grid.axes.items()}
    base = Variant.of({name: options[0] for name, options in axes.items() if options})
    singles = [base.with_choice(name, option) for name, options in axes.items() for option in options[1:]]
    found: Iterable[Variant]
    if grid.design == "product":
        names = list(axes)
        found = (Variant.of(dict(zip(names, point, strict=True))) for point in itertools.product(*axes.values()))
    elif grid.design == "ladder":
        found = itertools.accumulate(
            ((name, option) for name, options in axes.items() for option in options[1:]),
            lambda variant, choice: variant.with_choice(*choice),
            initial=base,
        )
    elif grid.design == "pairs":
        moves = [(name, option) for name, options in axes.items() for option in options[1:]]
        doubles = (
            base.with_choice(*one).with_choice(*two)
            for one, two in itertools.combinations(moves, 2)
            if one[0] != two[0]
        )
        found = (base, *singles, *doubles)
    else:
        found = (base, *singles)
    return tuple(dict.fromkeys(resolve_variant(variant) for variant in (*found, *grid.extra)))


def with_axes(grid: Grid, asked: Mapping[str, Sequence[str]]) -> Grid:
    """The grid with the user's `--axis` choices: an axis that it has is narrowed or widened, another is added.

    The axis's reference option stays the first arm unless the user names several options, the first of which then is.
    Axes of the grid that the user does not name stay at its first option.
    """
    if not asked:
        return grid
    axes = {name: options[:1] for name, options in grid.axes.items() if name not in asked}
    for name, options in asked.items():
        for option in options:
            find_option(name, option)
        reference = AXES[name].reference
        axes[name] = tuple(options) if len(options) > 1 else tuple(dict.fromkeys((reference, *options)))
    return replace(grid, axes=axes, extra=())


def make_plan(
    suite_name: str,
    *,
    device: str,
    capabilities: frozenset[str],
    seed: int = 0,
    asked: Mapping[str, Sequence[str]] | None = None,
    sampling: Sampling | None = None,
    source: ModelSource | None = None,
    models: Sequence[str] = (),
) -> Plan:
    """The plan of a suite on a device. Raises UsageError naming the bad suite, model, axis, option, workload or metric.

    `asked` are the `--axis` choices, `source` replaces the suite's models by the user's weights, `models` by presets.
    """
    from minimind.config import PRESETS

    suite = SUITES[one_of("suite", suite_name, list(SUITES))]
    for name in (*models, *([source.preset] if source and source.preset else ())):
        one_of("model", name, list(PRESETS))
    for name in suite.metrics:
        one_of(f"metric of suite {suite.name}", name, list(METRICS))
    grids = suite.grids.get(device)
    if grids is None:
        raise UsageError(f"suite '{suite.name}' has no cases for device '{device}'. It has: {', '.join(suite.grids)}")
    groups: list[Group] = []
    skips: dict[str, str] = {}
    sources: dict[str, ModelSource] = {}
    scored: set[str] = set()  # the same quality case in several grids is measured once
    for number, grid in enumerate(grids):
        narrowed = with_axes(grid, asked or {})
        names = (source.name,) if source else tuple(models) or narrowed.models
        for name in names:
            sources[name] = source or ModelSource(name, seed=seed)
        arms = arms_of(narrowed)
        workloads = tuple(map(resolve_workload, narrowed.workloads))
        cases = tuple(
            case
            for case in (Case(workload, name, arm) for name in names for workload in workloads for arm in arms)
            if WORKLOADS[case.workload.kind].timed or case.case_id not in scored
        )
        scored |= {case.case_id for case in cases}
        for arm in arms:
            if (reason := why_unsupported(arm, capabilities)) is not None:
                skips |= {case.case_id: reason for case in cases if case.variant == arm}
        if cases:
            groups.append(Group(f"{suite.name}-{number}", arms, arms[0], cases))
    merged = sampling or suite.sampling
    return Plan(suite, device, seed, merged, sources, tuple(groups), skips)
