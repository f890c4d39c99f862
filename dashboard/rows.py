"""What `dashboard.query` answers with: plain frozen rows, no SQL and no figure in them.

    line = query.runs(Filter(), limit=50).rows[0]
    line.num_failed, line.machine_id, line.command

Times are in UTC, values in SI units with the unit beside them. A number that does not exist is None, a text "".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from harness.catalog import Problem


@dataclass(frozen=True, slots=True)
class Progress:
    """A run that goes on: `done` is the share of its planned blocks that are stored, 0 to 1."""

    run_id: str
    suite: str
    done: float
    started_at: datetime | None


@dataclass(frozen=True, slots=True)
class Stamp:
    """The state of the store that every page shows. `complete_as_of`: when the newest finished run ended."""

    num_runs: int
    complete_as_of: datetime | None
    problems: tuple[Problem, ...]
    running: tuple[Progress, ...]
    synthetic: bool
    schema_version: int


@dataclass(frozen=True, slots=True)
class RunLine:
    """One run in a list. Cases are counted by status; `num_failed`: neither ok nor skipped.

    `geomean`: how many times as good as the baseline run the cases that both have are, by the headline metric of each
    (above 1 is better, whichever direction the metric counts), with a 95% interval; None where they have none in common
    or the machines differ. `noise`: median over cases of the robust relative spread of the headline's samples.
    """

    run_id: str
    started_at: datetime | None
    finished_at: datetime | None
    status: str
    suite: str
    git_sha: str
    git_dirty: bool
    subject: str
    machine_id: str
    device: str
    device_name: str
    cpu_model: str
    num_ok: int
    num_skipped: int
    num_failed: int
    geomean: float | None
    geomean_low: float | None
    geomean_high: float | None
    noise: float | None
    command: str
    session: str
    side: str


@dataclass(frozen=True, slots=True)
class RunsPage:
    """A stretch of the list of runs; `total` counts all that match."""

    rows: tuple[RunLine, ...]
    total: int


@dataclass(frozen=True, slots=True)
class CaseLine:
    """One case of one run as it stands, in the order of the plan."""

    case_id: str
    workload: str
    model: str
    variant: str
    axes: Mapping[str, str]
    status: str
    reason: str
    num_blocks: int
    num_params: int
    facts: Mapping[str, Any]
    suite: str
    group: str


@dataclass(frozen=True, slots=True)
class SummaryLine:
    """One metric of one case in one run: median over blocks with its 95% interval, and the spread of the samples.

    A case without any number has one line with metric "", n 0 and its status.
    """

    run_id: str
    started_at: datetime | None
    git_sha: str
    machine_id: str
    suite: str
    case_id: str
    workload: str
    model: str
    variant: str
    axes: Mapping[str, str]
    metric: str
    unit: str
    status: str
    n: int
    num_blocks: int
    median: float | None
    low: float | None
    high: float | None
    noise: float | None


@dataclass(frozen=True, slots=True)
class SampleLine:
    """One stored number of one iteration; block -1 is the solo pass."""

    value: float
    unit: str
    block: int
    turn: int
    iteration: int
    phase: str
    t_ns: int


@dataclass(frozen=True, slots=True)
class MachineLine:
    """One machine as a picker offers it. `name`: its device, or its processor."""

    machine_id: str
    name: str
    device: str
    num_runs: int
    latest: datetime | None


@dataclass(frozen=True, slots=True)
class MatrixCell:
    """What became of the cases at one row and column, each case counted once per machine by its newest run.

    `num_failed`: failed, oom, timeout, not_steady. `reasons`: distinct texts of what is not ok, the commonest first.
    """

    row: str
    column: str
    num_ok: int
    num_skipped: int
    num_failed: int
    num_wrong: int
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NoiseLine:
    """The noise of one series on one machine, and what the stored noise calibration says of its family.

    `run_to_run`: robust relative spread from one run to the next, unmoved by a step (None under three runs); `drift`:
    the relative change from the first run to the last along a straight line through the logarithms; `within`: median
    over runs of the spread within a run. `floor`: the margin that the calibration asks for at this number of blocks.
    """

    case_id: str
    workload: str
    model: str
    variant: str
    metric: str
    unit: str
    num_runs: int
    num_blocks: int
    run_to_run: float | None
    drift: float | None
    within: float | None
    floor: float | None
    floor_source: str
