"""The two sides of a comparison as text: a run by name, commit, tag or machine, and a variant of it. Torch-free.

    a, b = open_side(store, "tag:release-1@engines"), open_side(store, "latest/backend=onnxruntime")
    rows = compare_sides(a, b, margin=calibrated_margin(store, b.run, 0.01))

    RUN                    what `Store.find_run` takes: an id, its beginning, a suite, latest, latest~1
    commit:REV[@SUITE]     the newest finished run of a commit: a sha of the store or its beginning, or a git revision
    tag:NAME[@SUITE]       the run that a baseline's name stands for, or that suite's at the same commit and machine
    machine:ID[@SUITE]     the newest finished run of a machine
    .../VARIANT            one variant of it; an engine is one, too: latest/backend=onnxruntime

It refuses (UsageError) what it does not find, naming the ones that there are. Whether two sides may be judged against
each other is not decided here: machines and versions that differ are for the reader to see.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from harness.baselines import list_baselines
from harness.calibration import load_noise, margin_for
from harness.compare import (
    DEFAULT_MARGIN,
    Comparison,
    MarginOf,
    Measured,
    compare_pairs,
    measured_cases,
)
from harness.core import HarnessError, UsageError, Variant, one_of
from harness.registry import resolve_variant
from harness.schema import RunRow
from harness.store import Store
from harness.worktree import own_repository, resolve

SideKind = Literal["run", "commit", "tag", "machine"]
_SUITE = re.compile(r"^(?P<name>.+)@(?P<suite>[A-Za-z0-9][A-Za-z0-9_.\-]*)$")
_SHA_START = re.compile(r"[0-9a-f]{4,40}")
_NUM_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Side:
    """One side of `harness compare A B`: a run, and a variant of it where one is named (`RUN/kv=prealloc`)."""

    run: RunRow
    variant: str | None = None
    cases: Sequence[Measured] = field(default=())


@dataclass(frozen=True, slots=True)
class KnownSide:
    """A side that a picker can offer: the text for `open_side`, its kind, and the run that it means now."""

    text: str
    kind: SideKind
    run: RunRow


def open_side(store: Store, text: str) -> Side:
    """Read the text of a side with the cases of its run. Raises UsageError naming what is unknown."""
    reference, variant = _split_variant(text)
    run = find_side(store, reference)
    cases = measured_cases(store, run.run_id)
    if not variant:
        return Side(run, None, cases)
    canonical = str(resolve_variant(Variant.parse(variant)))
    one_of(f"variant of run {run.run_id}", canonical, sorted({case.variant for case in cases}))
    return Side(run, canonical, cases)


def _split_variant(text: str) -> tuple[str, str]:
    """A revision may hold a slash, so after a prefix only what reads like a variant is one."""
    reference, _, variant = text.partition("/")
    if ":" not in reference:
        return reference, variant
    reference, slash, variant = text.rpartition("/")
    return (reference, variant) if slash and ("=" in variant or variant == "reference") else (text, "")


def find_side(store: Store, reference: str) -> RunRow:
    """The run that a side means, without its variant. Raises UsageError naming what is unknown."""
    kind, colon, rest = reference.partition(":")
    ways = {"commit": _of_commit, "tag": _of_tag, "machine": _of_machine}
    if not colon or kind not in ways:
        return store.find_run(reference)
    match = _SUITE.match(rest)
    name, suite = (match["name"], match["suite"]) if match else (rest, "")
    if not name:
        raise UsageError(
            f"'{reference}' names no {kind}; write for example commit:HEAD~1, tag:release-1 or machine:ab12"
        )
    return ways[kind](store, name, suite)


def _of_commit(store: Store, revision: str, suite: str) -> RunRow:
    runs = _finished(store)
    shas = list(dict.fromkeys(run.git_sha for run in runs if run.git_sha))
    starting = [sha for sha in shas if _SHA_START.fullmatch(revision) and sha.startswith(revision)]
    if len(starting) > 1:
        raise UsageError(f"'{revision}' may be any of the commits {_listed(starting)}; give more of it")
    sha = starting[0] if starting else _resolved(revision, shas)
    mine = [run for run in runs if run.git_sha == sha]
    if not mine:
        raise UsageError(f"no finished run of commit {sha[:9]} ({revision}). Known: {_listed(shas)}")
    # What ran on changed files is not the commit, and counts only where nothing else is there.
    return _newest(
        [run for run in mine if not run.git_dirty and suite in ("", run.suite)] or mine, suite, f"commit {sha[:9]}"
    )


def _resolved(revision: str, shas: Sequence[str]) -> str:
    try:
        return resolve(own_repository(), revision)
    except HarnessError as error:
        raise UsageError(f"no run of commit '{revision}' ({error}). Known: {_listed(shas)}") from error


def _of_tag(store: Store, name: str, suite: str) -> RunRow:
    names = {named.name: named.run_id for named in list_baselines(store)}
    one_of("tag", name, list(names))
    run = store.run(names[name])
    if run is None:
        raise UsageError(f"tag '{name}' is run {names[name]}, which is no longer in store {store.path}")
    if suite in ("", run.suite):
        return run
    beside = [other for other in _finished(store) if (other.git_sha, other.machine_id) == (run.git_sha, run.machine_id)]
    return _newest(beside, suite, f"commit {run.git_sha[:9]} on machine {run.machine_id}, as tag '{name}'")


def _of_machine(store: Store, machine_id: str, suite: str) -> RunRow:
    runs = _finished(store)
    known = list(dict.fromkeys(run.machine_id for run in runs))
    starting = [machine_id] if machine_id in known else [name for name in known if name.startswith(machine_id)]
    if len(starting) > 1:
        raise UsageError(f"'{machine_id}' may be any of the machines {', '.join(starting)}; give more of it")
    if not starting:
        one_of("machine", machine_id, known)
    return _newest([run for run in runs if run.machine_id == starting[0]], suite, f"machine {starting[0]}")


def _finished(store: Store) -> list[RunRow]:
    return [run for run in store.runs() if run.status == "finished"]


def _newest(runs: Sequence[RunRow], suite: str, what: str) -> RunRow:
    found = [run for run in runs if suite in ("", run.suite)]
    if not found:
        known = ", ".join(sorted({run.suite for run in runs})) or "none"
        raise UsageError(f"no finished run of suite '{suite}' of {what}. Suites that it has: {known}")
    return found[-1]


def _listed(shas: Sequence[str]) -> str:
    """The newest few, shortened."""
    return ", ".join(sha[:9] for sha in shas[-_NUM_SHOWN:][::-1]) or "none"


def known_sides(store: Store) -> tuple[KnownSide, ...]:
    """What a picker can offer: tags, machines, commits and runs, the newest first within each kind."""
    runs = _finished(store)[::-1]
    by_id = {run.run_id: run for run in runs}
    tags = [
        KnownSide(f"tag:{named.name}", "tag", by_id[named.run_id])
        for named in list_baselines(store)[::-1]
        if named.run_id in by_id
    ]
    machines: dict[str, KnownSide] = {}
    commits: dict[str, KnownSide] = {}
    for run in runs:
        machines.setdefault(run.machine_id, KnownSide(f"machine:{run.machine_id}", "machine", run))
        if run.git_sha:
            commits.setdefault(run.git_sha, KnownSide(f"commit:{run.git_sha[:12]}", "commit", run))
    return (*tags, *machines.values(), *commits.values(), *(KnownSide(run.run_id, "run", run) for run in runs))


def variants_of(store: Store, run: RunRow) -> tuple[str, ...]:
    """The variants that a run has cases of, in the order of its plan: what may follow the slash."""
    rows = sorted(store.cases(run.run_id).to_pylist(), key=lambda row: row["ordinal"])
    return tuple(dict.fromkeys(row["variant"] for row in rows))


def calibrated_margin(store: Store, run: RunRow, policy: float) -> MarginOf:
    """The margin of each case: the policy's, or the noise floor of its family where this machine's is wider."""
    found = load_noise(store, run.fingerprint)
    calibration = None if found is None or found.from_other_machine() else found

    def margin_of(case: Measured, metric: str) -> tuple[float, str]:
        series = case.series.get(metric)
        blocks = max(len(series.blocks), 2) if series is not None else 2
        return margin_for(calibration, case.workload, case.model, metric, policy, blocks=blocks)

    return margin_of


def compare_sides(
    a: Side,
    b: Side,
    *,
    metrics: Iterable[str] | None = None,
    margin: float | MarginOf = DEFAULT_MARGIN,
) -> list[Comparison]:
    """B against A. Cases match by identity, or by model and workload where either side names a variant."""
    by_variant = a.variant is not None or b.variant is not None

    def key(case: Measured) -> tuple[str, ...]:
        return (case.model, case.workload) if by_variant else (case.case_id,)

    references: dict[tuple[str, ...], Measured] = {}  # of several variants the first, which is the run's own reference
    for case in a.cases:
        if a.variant is None or case.variant == a.variant:
            references.setdefault(key(case), case)
    candidates = [case for case in b.cases if b.variant is None or case.variant == b.variant]
    pairs = [(references[key(case)], case) for case in candidates if key(case) in references]
    return compare_pairs(pairs, metrics=metrics, margin=margin)
