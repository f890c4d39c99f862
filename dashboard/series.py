"""What each series of the store is: workload, model, variant, axes, and the metric that is shown first of it.

    found = identity("02f3c90e03db", "decode(batch=1,context=128,new_tokens=32)", "tiny", "kv=prealloc", {})
    found.axes["norm"], found.params["context"], found.headline     # "native", 128, "tps"

An axis that the stored row lacks stands at its reference option; axes that only the store knows are kept. Texts that
are no workload or variant of ours (imported ones) are kept as they are, without parameters or options.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import pyarrow as pa

from harness import registry
from harness.core import UsageError, Variant, Workload
from harness.stats import student_t_ppf

_CONFIDENCE = 0.95
_MANY_BLOCKS = 256  # from here on Student's t is the normal distribution, as far as a list of runs shows it


@dataclass(frozen=True, slots=True)
class Identity:
    """One series. `direction`: 1 where more of the headline metric is better, -1 where less, 0 where there is none."""

    case_id: str
    workload: str
    kind: str
    model: str
    variant: str
    axes: Mapping[str, str]
    params: Mapping[str, int]
    headline: str
    direction: int


def identity(case_id: str, workload: str, model: str, variant: str, stored_axes: Mapping[str, str]) -> Identity:
    """The series of a stored case row. The registry must be loaded."""
    parsed = _workload(workload)
    kind = registry.WORKLOADS.get(parsed.kind)
    headline = kind.headline if kind is not None and kind.timed else ""
    metric = registry.METRICS.get(headline)
    direction = {"higher": 1, "lower": -1, "neither": 0}[metric.better] if metric is not None else 0
    references = {name: axis.reference for name, axis in registry.AXES.items()}
    axes = {**references, **stored_axes, **_choices(variant)}
    return Identity(
        case_id,
        workload,
        parsed.kind,
        model,
        variant,
        axes,
        dict(parsed.params),
        headline if direction else "",
        direction,
    )


def _workload(text: str) -> Workload:
    try:
        return Workload.parse(text)
    except UsageError:
        return Workload(text)


def _choices(variant: str) -> dict[str, str]:
    try:
        return dict(Variant.parse(variant).choices)
    except UsageError:
        return {}


def series_tables(found: Collection[Identity]) -> tuple[pa.Table, pa.Table, pa.Table]:
    """The tables `series`, `options` (case, axis, option) and `parameters` (case, name, value)."""
    names = ("case_id", "workload", "kind", "model", "variant", "headline")
    text, whole = pa.string(), pa.int64()
    series = pa.table(
        {
            **{name: pa.array([getattr(one, name) for one in found], text) for name in names},
            "direction": pa.array([one.direction for one in found], whole),
        }
    )
    options = [(one.case_id, axis, option) for one in found for axis, option in one.axes.items()]
    params = [(one.case_id, name, value) for one in found for name, value in one.params.items()]
    return (
        series,
        pa.table(
            {
                name: pa.array([row[at] for row in options], text)
                for at, name in enumerate(("case_id", "axis", "option"))
            }
        ),
        pa.table(
            {
                "case_id": pa.array([row[0] for row in params], text),
                "name": pa.array([row[1] for row in params], text),
                "value": pa.array([row[2] for row in params], whole),
            }
        ),
    )


def student_table(counts: Iterable[int]) -> pa.Table:
    """`student` (num_blocks, t): the quantile of Student's t of a 95% interval over so many blocks."""
    known = sorted(count for count in counts if 2 <= count <= _MANY_BLOCKS)
    return pa.table(
        {
            "num_blocks": pa.array(known, pa.int64()),
            "t": pa.array([_student_t(count - 1) for count in known], pa.float64()),
        }
    )


@cache
def _student_t(df: int) -> float:
    return student_t_ppf(0.5 + _CONFIDENCE / 2, df)
