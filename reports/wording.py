"""How numbers, cases and machines are written in pages and reports, the same everywhere.

    change_text(comparison)        # "+7.4% [+6.1%, +8.8%]", or "2.11× [1.31, 3.45]" for large ones
    case_name(comparison)          # "tiny: decode 8 @ 1000 (batch 1) kv=prealloc"
    machine_line(run)              # "Intel Xeon, 2 cores, 24.0 GiB; torch 2.13, Python 3.11; machine 5cef0b44a416"

Digits follow the interval: nothing is printed finer than it is known. Torch-free.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from harness.compare import Comparison
from harness.schema import RunRow
from reports.figures.numbers import ratio_text, scale_for
from reports.language import Language, say

_LARGE = math.log(1.6)  # from here on a ratio is easier to read than a percentage
_GIB = 2**30


def percent(value: float, *, digits: int = 1) -> str:
    """A share or relative change: `1.8%`."""
    return f"{value:.{digits}%}" if math.isfinite(value) else "-"


def signed_percent(value: float) -> str:
    """A relative change with its sign: `+7.4%`; two digits below 1%."""
    if not math.isfinite(value):
        return "+∞" if value > 0 else "-"
    return f"{0.0 if abs(value) < 5e-5 else value:+.{2 if abs(value) < 0.00995 else 1}%}"


def duration(seconds: float) -> str:
    """A time in the unit that suits it, down to nanoseconds: `6.5 µs`."""
    if not math.isfinite(seconds):
        return "-"
    scale = scale_for([seconds], "s")
    return f"{seconds / scale.factor:.3g} {scale.unit}"


def ratio_of(comparison: Comparison) -> float | None:
    """B over A; None where no ratio can be formed."""
    if comparison.estimate is not None:
        return comparison.estimate.ratio
    a, b = comparison.reference_value, comparison.candidate_value
    return b / a if a and b is not None else None


def change_text(comparison: Comparison) -> str:
    """The effect with its interval, as a percentage, or as a factor where that is large."""
    ratio, estimate = ratio_of(comparison), comparison.estimate
    if ratio is None:
        return "-"
    if estimate is None:
        return effect_text(ratio, None, None)
    return effect_text(ratio, estimate.low, estimate.high)


def effect_text(ratio: float, low: float | None, high: float | None) -> str:
    """A ratio and the ends of its interval; bare where there is none."""
    if not 0 < ratio < math.inf:
        return "-"
    if abs(math.log(ratio)) > _LARGE:
        return ratio_text(ratio, low, high)
    if low is None or high is None:
        return signed_percent(ratio - 1)
    return f"{signed_percent(ratio - 1)} [{signed_percent(low - 1)}, {signed_percent(high - 1)}]"


def case_name(comparison: Comparison, language: Language = "en") -> str:
    """Model, workload and variant of the candidate, and what it stands against where that is another than upstream."""
    ours, theirs = comparison.candidate, comparison.reference
    name = f"{ours.model}: {ours.label} {ours.variant}"
    if theirs.variant in (ours.variant, "reference"):
        return name
    return say(language, "{name} against {reference}", name=name, reference=theirs.variant)


def joined(language: Language, sentences: Iterable[str]) -> str:
    """Sentences one after another: Chinese ones need no space between them."""
    return (" " if language == "en" else "").join(sentence for sentence in sentences if sentence)


def place_name(comparison: Comparison) -> str:
    """Model and workload only, where the variants are known already."""
    return f"{comparison.candidate.model}: {comparison.candidate.label}"


def short_names(comparisons: Sequence[Comparison], language: Language = "en", *, length: int = 52) -> list[str]:
    """Names for a figure: what follows from the rest, or is the same in all, is left out; the table has it.

    Of a name longer than `length`, which a figure cuts in its middle, the rarest words come first.
    """
    models = {c.candidate.label: c.candidate.model for c in comparisons}
    metrics = {c.candidate.label: c.metric for c in comparisons}
    tells_model = all(models[c.candidate.label] == c.candidate.model for c in comparisons)
    tells_metric = all(metrics[c.candidate.label] == c.metric for c in comparisons)
    counts = Counter(word for c in comparisons for word in c.candidate.variant.split())

    def named(c: Comparison) -> str:
        place = c.candidate.label if tells_model else f"{c.candidate.model}: {c.candidate.label}"
        tail = "" if tells_metric else f" {c.metric}"
        theirs, words = c.reference.variant, c.candidate.variant.split()
        against = "" if theirs in ("reference", c.candidate.variant) else theirs
        name = f"{place} {c.candidate.variant}"
        if against:
            name = say(language, "{name} against {reference}", name=name, reference=against)
        if len(name + tail) <= length:
            return name + tail
        return f"{place} {' '.join(sorted(words, key=lambda word: (counts[word], words.index(word))))}{tail}"

    return [named(c) for c in comparisons]


def most_changed(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """The largest effect first, by its ratio either way; what has none last."""

    def size(comparison: Comparison) -> float:
        ratio = ratio_of(comparison)
        return abs(math.log(ratio)) if ratio is not None and 0 < ratio < math.inf else -1.0

    return sorted(comparisons, key=size, reverse=True)


def machine_line(run: RunRow, language: Language = "en") -> str:
    """The machine and versions of a run in one line."""
    device = f", {run.device_name}" if run.device == "cuda" else ""
    hardware = say(
        language, "{cpu}, {cores} cores{device}", cpu=run.cpu_model or "?", cores=run.cores or "?", device=device
    )
    memory = f"{run.ram_bytes / _GIB:.1f} GiB" if run.ram_bytes else "?"
    versions = ", ".join(f"{name} {value}" for name, value in (("torch", run.torch), ("Python", run.python)) if value)
    machine = say(language, "machine {machine}", machine=run.machine_id or "?")
    return "; ".join(filter(None, (f"{hardware}, {memory}", versions, machine)))


def commit_text(run: RunRow, language: Language = "en") -> str:
    """The commit, and whether the tree differed from it."""
    if not run.git_sha:
        return say(language, "not recorded")
    dirty = say(language, " with uncommitted changes") if run.git_dirty else ""
    return f"{run.git_sha[:9]}{dirty}"


def run_name(run: RunRow) -> str:
    """How a run is called in text: its id, its suite."""
    return f"{run.run_id} ({run.suite})"
