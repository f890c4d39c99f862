"""What a run and a comparison say, as typed values that pages and reports show alike. Torch-free.

    view = comparison_view(store, "latest~1", "latest")
    view.sentence("en")                     # "1 of 14 cases regressed: tiny: decode 8 @ 1000 ... tps -6.9% [...]; ..."
    [c.as_dict() for c in view.comparisons]          # exactly the rows of `harness compare A B -o json`
    run_view(store, "latest").cases[0].quality.ppl   # quality stands beside every speed

Nothing is computed here that the command line does not compute: verdicts, intervals and margins come from
`harness.compare` and `harness.calibration`. Refuses (UsageError) a run or variant that the store does not have.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

from harness import registry
from harness.calibration import NoiseCalibration, load_noise
from harness.catalog import Problem
from harness.compare import DEFAULT_MARGIN, Comparison, Measured, compare_within, measured_cases
from harness.core import VerdictName, one_of
from harness.schema import RunRow
from harness.sides import Side, calibrated_margin, compare_sides, open_side
from harness.store import Store
from harness.tables import QUALITY, run_table
from reports.language import Language, say
from reports.wording import case_name, change_text, most_changed, percent

VERDICTS: tuple[VerdictName, ...] = ("regressed", "improved", "inconclusive", "invalid", "equivalent")
SIGNIFICANT: frozenset[VerdictName] = frozenset({"regressed", "improved"})
DifferenceKind = Literal["commit", "versions", "machine", "variant", "suite"]

# Which fields of a run's row belong to which kind of difference; what is not here differs between any two runs.
_DIFFERENCES: Mapping[DifferenceKind, tuple[str, ...]] = {
    "commit": ("git_sha", "git_dirty"),
    "versions": ("python", "torch", "triton", "cuda", "driver", "packages"),
    "machine": ("machine_id", "device", "device_name", "cpu_model", "cores", "threads", "ram_bytes", "os"),
    "suite": ("suite", "suite_version", "seed"),
}


@dataclass(frozen=True, slots=True)
class Quality:
    """What a variant costs in quality. `model`: where that was measured; `borrowed`: on another one, which is trained.

    `ppl`, `kl` (nats per token) and `top1` (share) are None where they were not measured; `ppl` too on random weights.
    """

    model: str
    borrowed: bool
    ppl: float | None
    kl: float | None
    top1: float | None
    data_fingerprint: str


@dataclass(frozen=True, slots=True)
class SideView:
    """One side as the user named it, with what that turned out to be."""

    text: str
    run: RunRow
    variant: str | None
    cases: tuple[Measured, ...]

    @property
    def reference(self) -> str:
        """The side by its run's id, which means the same tomorrow."""
        return self.run.run_id if self.variant is None else f"{self.run.run_id}/{self.variant}"


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not the same on both sides."""

    kind: DifferenceKind
    what: str
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class ComparisonView:
    """B against A. `comparisons` is what `harness compare` prints, in its order; `headline` one of them per case.

    `counts`: of the headline comparisons, or of all where metrics were named. `quality`: by (run id, case id).
    """

    a: SideView
    b: SideView
    margin: float
    comparisons: tuple[Comparison, ...]
    headline: tuple[Comparison, ...]
    counts: Mapping[VerdictName, int]
    only_in_a: tuple[Measured, ...]
    only_in_b: tuple[Measured, ...]
    differences: tuple[Difference, ...]
    quality: Mapping[tuple[str, str], Quality]
    command: str
    problems: tuple[Problem, ...] = ()

    @property
    def interleaved(self) -> bool:
        """Whether block k of both sides was measured at the same time."""
        a, b = self.a.run, self.b.run
        return a.run_id == b.run_id or (a.session != "" and a.session == b.session)

    @property
    def changed(self) -> list[Comparison]:
        """The significant headline comparisons, the largest effect first."""
        return most_changed(c for c in self.headline if c.verdict in SIGNIFICANT)

    def sentence(self, language: Language = "en") -> str:
        """The verdict in words."""
        return verdict_sentence(self.headline, language)

    def warnings(self, language: Language = "en") -> list[str]:
        """What a reader must know before believing the ratios."""
        kinds = list(dict.fromkeys(difference.kind for difference in self.differences))
        found = []
        if len(kinds) > 1:
            names = ", ".join(difference_word(kind, language) for kind in kinds)
            found.append(
                say(
                    language,
                    "More than one thing differs between A and B ({kinds}): the ratios are of all of it together.",
                    kinds=names,
                )
            )
        if not self.interleaved:
            found.append(
                say(
                    language,
                    "Two runs, not interleaved: what changed on the machine in between is in the ratios.",
                )
            )
        if self.a.run.machine_id != self.b.run.machine_id:
            found.append(say(language, "The two sides come from different machines."))
        elif self.a.run.fingerprint != self.b.run.fingerprint:
            found.append(say(language, "The two sides come from different versions of the machine's software."))
        return found


@dataclass(frozen=True, slots=True)
class CaseView:
    """One case of a run: what was measured, its headline comparison with its reference, its quality."""

    case: Measured
    comparison: Comparison | None
    is_reference: bool
    quality: Quality | None
    same_output: bool | None


@dataclass(frozen=True, slots=True)
class RunView:
    """A run as `harness show` has it: every case with its status and reason, every comparison within the run."""

    run: RunRow
    margin: float
    cases: tuple[CaseView, ...]
    comparisons: tuple[Comparison, ...]
    headline: tuple[Comparison, ...]
    counts: Mapping[VerdictName, int]
    statuses: Mapping[str, int]
    noise: NoiseCalibration | None
    problems: tuple[Problem, ...] = ()

    @property
    def command(self) -> str:
        """The line that measures it again."""
        return self.run.command

    @property
    def changed(self) -> list[Comparison]:
        """The significant headline comparisons, the largest effect first."""
        return most_changed(c for c in self.headline if c.verdict in SIGNIFICANT)

    def reasons(self) -> dict[tuple[str, str], list[Measured]]:
        """(status, reason) -> the cases that were not measured for it."""
        found: dict[tuple[str, str], list[Measured]] = {}
        for view in self.cases:
            if view.case.status != "ok":
                found.setdefault((view.case.status, view.case.reason), []).append(view.case)
        return found

    def sentence(self, language: Language = "en") -> str:
        """The verdict in words; where nothing was compared, what was measured."""
        if self.headline:
            return verdict_sentence(self.headline, language)
        measured, total = self.statuses.get("ok", 0), len(self.cases)
        return say(
            language, "{measured} of {total} cases were measured; none was compared.", measured=measured, total=total
        )


def comparison_view(
    store: Store, a: str, b: str, *, metrics: Sequence[str] | None = None, margin: float | None = None
) -> ComparisonView:
    """B against A, each as `harness compare` takes it. `margin`: relative, the policy's where None.

    Raises UsageError for a run, variant or metric that is not known, naming those that are.
    """
    registry.load_all()
    for name in metrics or ():
        one_of("metric", name, list(registry.METRICS))
    first, second = open_side(store, a), open_side(store, b)
    policy = DEFAULT_MARGIN if margin is None else margin
    margin_of = calibrated_margin(store, second.run, policy)
    comparisons = compare_sides(first, second, metrics=metrics or None, margin=margin_of)
    headline = [c for c in comparisons if metrics or c.metric in (c.candidate.headline, "status")]
    compared_a = {(c.reference.run_id, c.reference.case_id) for c in comparisons}
    compared_b = {(c.candidate.run_id, c.candidate.case_id) for c in comparisons}
    side_a, side_b = (
        SideView(text, side.run, side.variant, tuple(_cases_of(side))) for text, side in ((a, first), (b, second))
    )
    return ComparisonView(
        side_a,
        side_b,
        margin=policy,
        comparisons=tuple(comparisons),
        headline=tuple(headline),
        counts=_counts(headline),
        only_in_a=tuple(case for case in side_a.cases if (case.run_id, case.case_id) not in compared_a),
        only_in_b=tuple(case for case in side_b.cases if (case.run_id, case.case_id) not in compared_b),
        differences=tuple(differences(first, second)),
        quality={**_quality_by_case(first.cases), **_quality_by_case(second.cases)},
        command=shlex.join(["python", "-m", "harness", "compare", side_a.reference, side_b.reference])
        + ("" if margin is None else f" --margin {margin:g}"),
        problems=tuple(store.problems),
    )


def run_view(store: Store, run: str | RunRow, *, margin: float | None = None) -> RunView:
    """A run, by what `Store.find_run` takes. `margin`: relative, the suite's own where None. Raises UsageError."""
    registry.load_all()
    row = store.find_run(run) if isinstance(run, str) else run
    suite = registry.SUITES.get(row.suite)
    policy = margin if margin is not None else (suite.margin if suite else DEFAULT_MARGIN)
    noise = load_noise(store, row.fingerprint)
    cases = measured_cases(store, row.run_id)
    comparisons = compare_within(cases, margin=calibrated_margin(store, row, policy))
    headline = [c for c in comparisons if c.metric in (c.candidate.headline, "status")]
    records = {record["case_id"]: record for record in run_table(cases, comparisons, "", []).records}
    quality, versus = _quality_by_case(cases), {c.candidate.case_id: c for c in headline}
    views = [
        CaseView(
            case,
            versus.get(case.case_id),
            case.case_id not in versus,
            quality.get((case.run_id, case.case_id)),
            records.get(case.case_id, {}).get("same_output"),
        )
        for case in cases
    ]
    statuses = Counter(case.status for case in cases)
    return RunView(
        row,
        policy,
        tuple(views),
        tuple(comparisons),
        tuple(headline),
        _counts(headline),
        dict(statuses),
        noise,
        tuple(store.problems),
    )


def verdict_sentence(headline: Sequence[Comparison], language: Language = "en") -> str:
    """How many cases changed, the largest change, and what would have shown where nothing did."""
    if not headline:
        return say(language, "There is no case in common: nothing can be compared.")
    counts, total = _counts(headline), len(headline)
    changed = most_changed(c for c in headline if c.verdict in SIGNIFICANT)
    parts = []
    if not changed:
        parts.append(
            say(language, "No significant change in {total} cases", total=total) + _would_show(headline, language)
        )
    for verdict, words in (
        ("regressed", say(language, "{count} of {total} cases regressed", count=counts["regressed"], total=total)),
        ("improved", say(language, "{count} of {total} cases improved", count=counts["improved"], total=total)),
    ):
        first = next((c for c in changed if c.verdict == verdict), None)
        if first is not None:
            parts.append(
                f"{words} ({say(language, 'most')}: {case_name(first, language)} {first.metric} {change_text(first)})"
            )
    unmeasured = sum(c.verdict == "invalid" and not_measured(c) for c in headline)
    invalid = counts["invalid"] - unmeasured
    for count, words in (
        (counts["equivalent"], say(language, "{count} unchanged", count=counts["equivalent"])),
        (counts["inconclusive"], say(language, "{count} inconclusive", count=counts["inconclusive"])),
        (invalid, say(language, "{count} invalid", count=invalid)),
        (unmeasured, say(language, "{count} not measured", count=unmeasured)),
    ):
        if count:
            parts.append(words)
    return say(language, "{parts}.", parts=say(language, "; ").join(parts))


def not_measured(comparison: Comparison) -> bool:
    """Whether one of the two was skipped or broke, so that there is nothing to judge."""
    return any(case.status not in ("ok", "not_steady") for case in (comparison.reference, comparison.candidate))


def _would_show(headline: Sequence[Comparison], language: Language) -> str:
    effects = sorted(c.minimum_detectable_effect for c in headline if c.minimum_detectable_effect is not None)
    finite = [effect for effect in effects if effect == effect and effect < float("inf")]
    if not finite:
        return ""
    return say(
        language,
        "; the smallest change that would have shown is {least}, in the middle case {middle}",
        least=percent(finite[0]),
        middle=percent(finite[len(finite) // 2]),
    )


def differences(a: Side, b: Side) -> list[Difference]:
    """What differs between two sides: commit, versions, machine, variant, suite."""
    found = [
        Difference(kind, name, _shown(getattr(a.run, name)), _shown(getattr(b.run, name)))
        for kind, names in _DIFFERENCES.items()
        for name in names
        if name != "packages" and getattr(a.run, name) != getattr(b.run, name)
    ]
    found += [Difference("versions", name, x, y) for name, x, y in _packages_differing(a.run, b.run)]
    if a.variant != b.variant:
        found.append(Difference("variant", "variant", a.variant or "-", b.variant or "-"))
    return found


def difference_word(kind: DifferenceKind, language: Language = "en") -> str:
    """The kind of a difference in words."""
    words: dict[DifferenceKind, str] = {
        "commit": say(language, "commit"),
        "versions": say(language, "versions"),
        "machine": say(language, "machine"),
        "variant": say(language, "variant"),
        "suite": say(language, "suite"),
    }
    return words[kind]


def _packages_differing(a: RunRow, b: RunRow) -> list[tuple[str, str, str]]:
    ours, theirs = (json.loads(run.packages or "{}") for run in (a, b))
    known = {field.name for field in fields(RunRow)}
    names = [name for name in sorted({*ours, *theirs} - known) if ours.get(name) != theirs.get(name)]
    return [(name, str(ours.get(name, "-")), str(theirs.get(name, "-"))) for name in names]


def _shown(value: object) -> str:
    return "-" if value in ("", None) else str(value)


def _cases_of(side: Side) -> Iterable[Measured]:
    return (case for case in side.cases if side.variant is None or case.variant == side.variant)


def _counts(comparisons: Iterable[Comparison]) -> dict[VerdictName, int]:
    found = Counter(c.verdict for c in comparisons)
    return {verdict: found[verdict] for verdict in VERDICTS}


def _quality_by_case(cases: Sequence[Measured]) -> dict[tuple[str, str], Quality]:
    """Each case's quality as the table of its run shows it: its own model's, else a trained one's of its variant."""
    found: dict[tuple[str, str], Quality] = {}
    for case in cases:  # those that are measured for nothing else have no row of their own there
        if not QUALITY.isdisjoint(case.series):
            values = {name: series.median for name, series in case.series.items()}
            fingerprint = case.facts.get("data_fingerprint") or ""
            found[case.run_id, case.case_id] = _quality(values, case, case.model, fingerprint)
    by_id = {case.case_id: case for case in cases}
    for record in run_table(cases, [], "", []).records:
        case, model = by_id[record["case_id"]], record["quality_model"]
        if model is not None:
            values = {name: cell["value"] for name, cell in record["metrics"].items()}
            found[case.run_id, case.case_id] = _quality(values, case, model, record["data_fingerprint"] or "")
    return found


def _quality(values: Mapping[str, float], case: Measured, model: str, fingerprint: str) -> Quality:
    """PPL only of a trained model: that of random weights means nothing."""
    borrowed = model != case.model
    ppl = values.get("ppl") if borrowed or case.facts.get("trained") else None
    return Quality(model, borrowed, ppl, values.get("kl"), values.get("top1_agreement"), fingerprint)
