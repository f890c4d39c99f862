"""Made-up runs for testing what reads a store: blocks and solo values as given, written by the real store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.core import Case, Sample, Status, Variant, Workload
from harness.registry import METRICS, load_all, resolve_workload
from harness.schema import CaseRow, RunRow
from harness.store import Store

load_all()  # whichever test comes first: cases are named by declared workloads

Blocks = Mapping[int, float | Sequence[float]]


@dataclass(frozen=True)
class Arm:
    """One case: `timed` holds metric -> block -> value or values, `solo` metric -> value."""

    variant: str = "reference"
    timed: Mapping[str, Blocks | Sequence[float]] = field(default_factory=dict)
    solo: Mapping[str, float] = field(default_factory=dict)
    status: Status = "ok"
    reason: str = ""
    invalid: Mapping[int, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    workload: str = "decode"
    model: str = "tiny"
    group: str = "lab-0"

    def case(self) -> Case:
        """The identity under which it is stored."""
        workload = resolve_workload(Workload.parse(self.workload))
        return Case(workload, self.model, Variant.parse(self.variant))

    def samples(self) -> list[Sample]:
        """All its samples; a sequence of numbers is one value per block."""
        found = [self._sample(name, value, -1, 0) for name, value in self.solo.items()]
        for name, blocks in self.timed.items():
            for block, values in (blocks if isinstance(blocks, Mapping) else dict(enumerate(blocks))).items():
                several = values if isinstance(values, Sequence) else [values]
                found += [self._sample(name, value, block, number) for number, value in enumerate(several)]
        return found

    def _sample(self, metric: str, value: float, block: int, iteration: int) -> Sample:
        unit = METRICS[metric].unit if metric in METRICS else "1"
        return Sample(self.case().case_id, metric, float(value), unit, block, "w", 0, iteration, "timed", 0)

    def row(self, ordinal: int) -> CaseRow:
        """Its row of the `cases` table."""
        case = self.case()
        facts = {**self.facts, "invalid_blocks": {str(block): why for block, why in self.invalid.items()}}
        return CaseRow(
            case.case_id,
            str(case.workload),
            case.model,
            str(case.variant),
            self.status,
            self.reason,
            group=self.group,
            ordinal=ordinal,
            facts=facts,
        )


def store_run(store: Store, *arms: Arm, suite: str = "lab", **run: Any) -> RunRow:
    """A finished run of these arms, in this order."""
    writer = store.begin(RunRow(suite=suite, **run))
    samples = [sample for arm in arms for sample in arm.samples()]
    writer.write(cases=[arm.row(number) for number, arm in enumerate(arms)], samples=samples)
    writer.finish("finished")
    return writer.run
