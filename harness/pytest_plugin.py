"""Suites under pytest-benchmark: `pytest suites/ --benchmark-only`.

The cases are those of `python -m harness run`, measured by the same runner, interleaved and in fresh processes, and
stored in the same Parquet. Each test then replays its case's own durations to pytest-benchmark through a clock that
advances by what was measured, so that its table, JSON, compare and save work on honest numbers. Without
`--benchmark-only` the tests are collected and skipped. With `--harness-gate` each suite is measured beside a baseline,
and the test of a case that really got worse fails (`harness.pytest_gate`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest

from harness import pytest_gate, registry
from harness.compare import Measured, measured_cases
from harness.core import Case, UsageError
from harness.execute import Request, execute
from harness.gates import GateRow
from harness.store import Store

pytest_plugins = ["harness.pytest_gate"]


@dataclass(frozen=True, slots=True)
class PlannedCase:
    """One case of one suite, as a test parameter."""

    suite: str
    case: Case
    skip: str | None

    def __str__(self) -> str:
        return f"{self.suite}/{self.case.workload}/{self.case.model}/{str(self.case.variant).replace(' ', ',')}"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The harness's own options, beside pytest-benchmark's."""
    group = parser.getgroup("harness", "suites of minimind-bench")
    group.addoption("--axis", action="append", default=[], metavar="AXIS=OPTION,...", help="compare these options")
    group.addoption("--store", default="results", metavar="DIR", help="folder of the results (default: results)")
    group.addoption("--device", default=None, metavar="NAME", help="cpu or cuda (default: cuda where there is one)")
    group.addoption("--blocks", type=int, default=None, metavar="K", help="number of blocks (default: the suite's)")
    group.addoption("--harness-seed", type=int, default=0, metavar="N", help="orders, prompts, random weights")
    group.addoption("--plugin", action="append", default=[], metavar="MODULE", help="more declarations")


def _wanted(config: pytest.Config) -> bool:
    return bool(config.getoption("benchmark_only", default=False))


@cache
def _request(config: pytest.Config) -> Request:
    from harness.commands.run import parse_axes
    from harness.machine import check_device, find_gpus

    return Request(
        suite="",
        device=check_device(config.getoption("--device") or ("cuda" if find_gpus() else "cpu")),
        axes=parse_axes(config.getoption("--axis")),
        blocks=config.getoption("--blocks"),
        seed=config.getoption("--harness-seed"),
        plugins=tuple(config.getoption("--plugin")),
    )


def planned_cases(config: pytest.Config) -> list[PlannedCase]:
    """Every timed case of every suite under the options given. Raises pytest.UsageError for a bad one."""
    try:
        request = _request(config)
        registry.load_all(request.plugins)
        found = []
        for name in sorted(registry.SUITES):
            if request.device in registry.SUITES[name].grids:
                plan = replace(request, suite=name).plan()
                timed = [case for group in plan.groups for case in group.timed()]
                found += [PlannedCase(name, case, plan.skips.get(case.case_id)) for case in dict.fromkeys(timed)]
        return found
    except UsageError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise whatever asks for `planned`."""
    if "planned" in metafunc.fixturenames:
        metafunc.parametrize("planned", planned_cases(metafunc.config), ids=str)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without --benchmark-only the suites are collected, not run."""
    if not _wanted(config):
        skip = pytest.mark.skip(reason="a benchmark: give --benchmark-only to run it")
        for item in items:
            if "planned" in getattr(item, "fixturenames", ()):
                item.add_marker(skip)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """pytest-benchmark tells machines apart by system and Python only; ours names the hardware."""
    from harness.machine import inspect_machine

    machine = inspect_machine(_request(config).device)
    machine_info["minimind_bench"] = {"machine_id": machine.machine_id, "cpu_model": machine.cpu_model}


class ReplayClock:
    """A timer that stands still until it is told how much time a repetition took."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


replay_clock = ReplayClock()


@dataclass(slots=True)
class MeasuredSuites:
    """Runs each suite once, over the selected cases only, when its first case is asked for."""

    config: pytest.Config
    selected: Sequence[tuple[pytest.Item, PlannedCase]]
    runs: dict[str, dict[str, Measured]] = field(default_factory=dict)
    rows: dict[str, Sequence[GateRow]] = field(default_factory=dict)
    durations: dict[str, list[float]] = field(default_factory=dict)

    def case(self, planned: PlannedCase) -> Measured:
        """The measured case, with everything that the store holds of it."""
        if planned.suite not in self.runs:
            self._run(planned.suite)
        return self.runs[planned.suite][planned.case.case_id]

    def _run(self, suite: str) -> None:
        chosen = [(item, planned.case) for item, planned in self.selected if planned.suite == suite]
        request = replace(_request(self.config), suite=suite, only=tuple(case.case_id for _, case in chosen))
        store = Store.open(self.config.getoption("--store"), create=True)
        if pytest_gate.wanted(self.config):
            marked = [gate for item, case in chosen for gate in pytest_gate.marked_gates(item, case)]
            run_id, self.rows[suite] = pytest_gate.gate_suite(self.config, request, store, marked)
        else:
            run_id = execute(request, store, lambda done, text: None, lambda text: print(text, file=sys.stderr))
        self.runs[suite] = {case.case_id: case for case in measured_cases(store, run_id)}
        samples = store.samples(run_id).to_pylist()
        for row in samples:
            if row["metric"] == "step_time" and row["phase"] == "timed":
                self.durations.setdefault(f"{suite}/{row['case_id']}", []).append(row["value"])

    def seconds(self, planned: PlannedCase) -> list[float]:
        """The duration of every timed repetition of a case."""
        return self.durations[f"{planned.suite}/{planned.case.case_id}"]

    def rows_of(self, planned: PlannedCase) -> list[GateRow]:
        """What the gate says of a case, and of the quality of its variant, which no test of its own stands for."""
        timed = {case.case.case_id for _, case in self.selected}
        return [
            row
            for row in self.rows[planned.suite]
            if row.case.case_id == planned.case.case_id
            or (row.case.case_id not in timed and row.case.variant == str(planned.case.variant))
        ]


@pytest.fixture(scope="session")
def measured_suites(request: pytest.FixtureRequest) -> MeasuredSuites:
    """The runs behind this session's benchmark tests."""
    selected = [(item, found) for item in request.session.items if (found := _params(item).get("planned")) is not None]
    return MeasuredSuites(request.config, selected)


def _params(item: pytest.Item) -> dict[str, Any]:
    return getattr(getattr(item, "callspec", None), "params", {})


def replay(benchmark: Any, planned: PlannedCase, suites: MeasuredSuites) -> None:
    """Hand a measured case to pytest-benchmark: durations as rounds, the other metrics in `extra_info`."""
    if planned.skip is not None:
        pytest.skip(planned.skip)
    measured = suites.case(planned)
    if measured.status == "skipped":
        pytest.skip(measured.reason)
    if measured.status not in ("ok", "not_steady"):
        pytest.fail(f"{measured.status}: {measured.reason}", pytrace=False)
    durations = iter(suites.seconds(planned))

    def repetition() -> None:
        replay_clock.now += next(durations)

    benchmark.group = f"{planned.suite}: {planned.case.model} {registry.workload_label(planned.case.workload)}"
    benchmark.extra_info.update(_extra_info(measured, suites.runs[planned.suite].values()))
    benchmark.pedantic(repetition, rounds=len(suites.seconds(planned)), iterations=1, warmup_rounds=0)
    if pytest_gate.wanted(suites.config):
        pytest_gate.note_rows(
            suites.config, str(planned), suites.rows_of(planned), suites.seconds(planned), planned.case
        )


def _extra_info(measured: Measured, cases: Any) -> dict[str, Any]:
    """TTFT, TPS, memory, PPL, MFU...: every metric's median, the variant's quality, and where it came from."""
    info: dict[str, Any] = {name: series.median for name, series in measured.series.items()}
    for other in cases:
        if (other.model, other.variant) == (measured.model, measured.variant):
            info |= {name: s.median for name, s in other.series.items() if name in ("ppl", "kl", "top1_agreement")}
    return {
        **info,
        "run_id": measured.run_id,
        "case_id": measured.case_id,
        "variant": measured.variant,
        "status": measured.status,
    }
