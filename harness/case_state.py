"""What is known of each case while a run goes on, for each side of it. Torch-free.

A run has one side; a session has several, whose workers run different code (two commits) and whose blocks interleave.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.core import Case, CaseFailed, Status
from harness.plan import Plan
from harness.registry import AXES, Work
from harness.schema import CaseRow
from harness.store import RunWriter

Turns = dict[int, float]


@dataclass(slots=True)
class CaseState:
    """What is known of a case while its run goes on; `row()` is what the store keeps of it.

    `turns`: of each block, each turn's median step time in seconds; what a schedule judges by.
    """

    case: Case
    group: str
    ordinal: int
    source: Mapping[str, Any]
    status: Status = "ok"
    reason: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    work: Work | None = None
    blocks: set[int] = field(default_factory=set)
    invalid_blocks: dict[int, str] = field(default_factory=dict)
    turns: dict[int, Turns] = field(default_factory=dict)
    unsteady: int = 0
    solo_done: bool = False

    def fail(self, error: CaseFailed) -> None:
        """Keep the first failure; later ones are its consequences."""
        if self.status == "ok":
            self.status, self.reason = error.status, str(error)

    def valid_turns(self) -> dict[int, Turns]:
        """The turns of the blocks that count."""
        return {block: turns for block, turns in self.turns.items() if block not in self.invalid_blocks}

    def row(self, suite: str) -> CaseRow:
        """The row of the `cases` table."""
        status: Status = self.status
        reason = self.reason
        if status == "ok" and self.unsteady * 2 > max(len(self.blocks), 1):
            status, reason = "not_steady", f"still speeding up after its warm-up in {self.unsteady} blocks"
        return CaseRow(
            case_id=self.case.case_id,
            workload=str(self.case.workload),
            model=self.case.model,
            variant=str(self.case.variant),
            status=status,
            reason=reason,
            suite=suite,
            group=self.group,
            ordinal=self.ordinal,
            num_params=int(self.facts.get("num_params", 0)),
            num_blocks=len(self.blocks),
            axes={name: self.case.variant.option(name) or axis.reference for name, axis in AXES.items()},
            params=dict(self.case.workload.params),
            facts={
                **self.facts,
                "invalid_blocks": {str(block): why for block, why in self.invalid_blocks.items()},
                "unsteady_blocks": self.unsteady,
                "solo_done": self.solo_done,
                "work": None if self.work is None else [self.work.tokens, self.work.flops, self.work.bytes],
            },
            source=self.source,
        )


@dataclass(slots=True, eq=False)
class Side:
    """One side of a session: its run and its cases; `root` is the folder whose code its workers run (None: this)."""

    writer: RunWriter
    states: dict[str, CaseState]
    name: str = ""
    root: Path | None = None


def new_states(plan: Plan) -> dict[str, CaseState]:
    """The state of every case of a plan before anything ran; what cannot run is already skipped with its reason."""
    states: dict[str, CaseState] = {}
    for group in plan.groups:
        for case in group.cases:
            if case.case_id not in states:
                source = asdict(plan.sources[case.model])
                state = CaseState(case, group.name, len(states), source)
                if (reason := plan.skips.get(case.case_id)) is not None:
                    state.status, state.reason = "skipped", reason
                states[case.case_id] = state
    return states
