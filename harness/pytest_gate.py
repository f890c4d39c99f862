"""Gates under pytest: `--harness-gate` makes the test of a case that really got worse fail, with the evidence.

    pytest suites/ --benchmark-only --harness-gate                          # against HEAD~1, interleaved
    pytest suites/ --benchmark-only --harness-gate --harness-against tag:release-1
    pytest benchmarks/ --harness-gate --harness-baseline saved.json         # your own pytest-benchmark tests

    @pytest.mark.harness_gate(metric="tps", margin=0.02, limit=0.05)        # limits of one test
    def test_it(benchmark): ...

The suites of this project are judged as `harness gate` judges: blocks of fresh processes, an interval, red only if red
again on fresh blocks. Tests of your own run once, in one process: their median is held against the saved one by a
fixed limit, and the message says that this is weaker evidence. In another project's conftest:
`pytest_plugins = ["harness.pytest_gate"]`. It refuses (pytest.UsageError) marker words and files that it cannot use;
a session that judged nothing does not pass.

PYTEST_DONT_REWRITE: it holds no tests, and `harness.pytest_plugin` has imported it before pytest loads it.
"""

from __future__ import annotations

import argparse
import math
import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from harness import registry
from harness.baselines import Baseline, parse_baseline
from harness.calibration import load_noise
from harness.core import Case, Gate, UsageError
from harness.execute import Request
from harness.gate_report import ORDER, change_text
from harness.gates import DEFAULT_LIMIT, GateRow, check_gates, confirmed, load_gates, red
from harness.importing import ImportedCase, Report, import_report, machine_of, read_report
from harness.machine import fingerprint, inspect_machine, versions
from harness.store import Store
from harness.telemetry import usable_cpus

DEFAULT_FILE = Path("gates.toml")

# A fixed limit alarms on unchanged code where it is narrower than the noise between processes, which rounds of
# one process cannot show: so wide that only what is worth a look fails.
FILE_LIMIT = 0.10
WEAK = "rounds of one process against rounds of another: no interval, a fixed limit"
_WORDS = ("metric", "kind", "margin", "limit", "fails")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the gate said of one test: `decision` as in `harness.gates`, and the line that says why."""

    test: str
    decision: str
    text: str


@dataclass(slots=True)
class GateSession:
    """The gate's words in this pytest session, and the file that it compares with, read once."""

    report: Report | None = None
    same_machine: bool = True
    outcomes: list[Outcome] = field(default_factory=list)

    def baseline(self, name: str) -> ImportedCase | None:
        """The benchmark of that name in the file of `--harness-baseline`."""
        cases = self.report.cases if self.report is not None else ()
        return next((case for case in cases if case.name == name), None)


SESSION = pytest.StashKey[GateSession]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The gate's options."""
    group = parser.getgroup("harness-gate", "gates of minimind-bench")
    group.addoption("--harness-gate", action="store_true", help="fail the tests of cases that really got worse")
    group.addoption(
        "--harness-against",
        default=None,
        metavar="BASELINE",
        help="a git revision, a stored run or a baseline's name, as `harness gate --against` (default: HEAD~1)",
    )
    group.addoption("--harness-baseline", default=None, metavar="FILE", help="compare with pytest-benchmark's own JSON")
    group.addoption("--harness-gates", default=None, metavar="FILE", help="gates of the suites (default: their own)")


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known; read the baseline's file before anything is measured."""
    config.addinivalue_line(
        "markers",
        "harness_gate(metric, kind, margin, limit, fails): what --harness-gate asks of this test (see docs/ci.md)",
    )
    if not wanted(config):
        for flag in ("--harness-against", "--harness-baseline", "--harness-gates"):
            if config.getoption(flag) is not None:
                raise pytest.UsageError(f"{flag} needs --harness-gate")
        return
    session = config.stash[SESSION] = GateSession()
    if (file := config.getoption("--harness-baseline")) is not None:
        if config.getoption("--harness-against") is not None:
            raise pytest.UsageError("--harness-against and --harness-baseline are two baselines: give one of them")
        try:
            session.report = read_report(Path(file))
        except UsageError as error:
            raise pytest.UsageError(f"--harness-baseline: {error}") from error
        session.same_machine = session.report.run.machine_id == _machine_here(config)


def _machine_here(config: pytest.Config) -> str:
    """This machine as pytest-benchmark describes it, hashed as a file's is; empty without pytest-benchmark."""
    if not config.pluginmanager.hasplugin("benchmark"):
        return ""
    return machine_of(config.hook.pytest_benchmark_generate_machine_info(config=config))


def wanted(config: pytest.Config) -> bool:
    """Whether `--harness-gate` was given."""
    return bool(config.getoption("--harness-gate", default=False))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A marker with a word that nobody reads would be a gate that nobody keeps."""
    for item in items:
        for marker in item.iter_markers("harness_gate"):
            unknown = sorted(set(marker.kwargs) - set(_WORDS))
            if marker.args or unknown:
                named = f"unknown word '{unknown[0]}'" if unknown else "it takes names only"
                raise pytest.UsageError(f"{item.nodeid}: harness_gate: {named}. Known: {', '.join(_WORDS)}")


def _words(item: pytest.Item) -> list[dict[str, Any]]:
    return [dict(marker.kwargs) for marker in item.iter_markers("harness_gate")]


def marked_gates(item: pytest.Item, case: Case) -> list[Gate]:
    """The gates that a test's markers declare for its case; the metric is the workload's own unless named.

    Raises pytest.UsageError with what is wrong with them.
    """
    place = {"workload": str(case.workload), "model": case.model, "variant": str(case.variant)}
    headline = registry.WORKLOADS[case.workload.kind].headline
    found = [Gate(**{"metric": headline, **words, **place}) for words in _words(item)]
    try:
        check_gates(found, f"{item.nodeid}: harness_gate")
    except UsageError as error:
        raise pytest.UsageError(str(error)) from error
    return found


def note(config: pytest.Config, outcome: Outcome) -> None:
    """Keep an outcome for the summary, and fail the running test if it is red."""
    config.stash[SESSION].outcomes.append(outcome)
    if outcome.decision == "regressed":
        pytest.fail(f"harness gate: {outcome.text}", pytrace=False)


# Tests of your own: one process, a saved file.


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """After a test with the `benchmark` fixture: its median against the file's."""
    yield
    benchmark = getattr(item, "funcargs", {}).get("benchmark")
    if not wanted(item.config) or benchmark is None or "planned" in getattr(item, "fixturenames", ()):
        return
    words = _words(item)
    session = item.config.stash[SESSION]
    if not words and session.report is None:
        return
    if getattr(benchmark, "stats", None) is None:
        note(item.config, Outcome(item.nodeid, "invalid", "nothing was measured (is benchmarking disabled?)"))
        return
    for own in words or [{}]:
        note(item.config, _judge_median(item.nodeid, session, benchmark.fullname, benchmark.stats["median"], own))


def _judge_median(test: str, session: GateSession, name: str, now: float, words: Mapping[str, Any]) -> Outcome:
    if words.get("metric", "step_time") != "step_time" or words.get("kind", "statistical") != "statistical":
        raise pytest.UsageError(f"{test}: of a benchmark test only its duration is known (metric='step_time')")
    if session.report is None:
        return Outcome(test, "invalid", "no baseline: give a saved file with --harness-baseline FILE")
    known = session.baseline(name)
    if known is None:
        return Outcome(test, "invalid", f"{session.report.file} has no benchmark '{name}'")
    before = known.median_seconds
    limit = words.get("limit", words.get("margin", FILE_LIMIT))
    change = now / before - 1
    harm = {"worse": change, "better": -change, "change": abs(change)}[words.get("fails", "worse")]
    text = (
        f"median duration {before:.4g} s became {now:.4g} s, {change:+.1%}; limit {limit:.1%} "
        f"({'marker' if 'limit' in words or 'margin' in words else 'default'}), no interval, detectable: unknown. "
        f"Baseline {session.report.file} of {session.report.run.git_sha[:9] or 'no commit'}. Weak evidence: {WEAK}"
    )
    if not session.same_machine:
        return Outcome(test, "invalid", f"{text}; and it was measured on another machine, which decides nothing")
    return Outcome(test, "regressed" if harm > limit else "passed", text)


# The suites of this project: sessions of fresh processes.


def gates_for(config: pytest.Config, suite: str, marked: Sequence[Gate]) -> tuple[Gate, ...]:
    """The gates of a suite: its tests' markers, then the file of `--harness-gates`, else gates.toml or the suite's own.

    A suite that declares none is gated on the headline metric of every timed workload. Raises UsageError.
    """
    file = config.getoption("--harness-gates")
    declared = registry.SUITES[suite].gates
    if file is not None:
        declared = load_gates(Path(file)).gates
    elif DEFAULT_FILE.exists() and (found := load_gates(DEFAULT_FILE)).suite == suite:
        declared = found.gates
    elif not declared:
        timed = [kind for kind in registry.WORKLOADS.values() if kind.timed]
        declared = tuple(Gate(kind.headline, workload=f"{kind.name}(*") for kind in timed)
    return (*marked, *declared)


def gate_suite(
    config: pytest.Config, request: Request, store: Store, marked: Sequence[Gate]
) -> tuple[str, Sequence[GateRow]]:
    """Measure a suite beside its baseline as `harness gate` does; returns the candidate's run and the gate's rows.

    `request.only` names the selected cases; no others get blocks. Raises pytest.UsageError for a baseline that is none.
    """
    from harness.commands import gate as verb

    report = config.stash[SESSION].report
    try:
        plan, gates = request.plan(), gates_for(config, request.suite, marked)
        key = fingerprint(inspect_machine(request.device), versions(), request.device, threads=len(usable_cpus()))
        if report is not None:
            run = store.find_run(import_report(store, report)[0])
            baseline = Baseline("run", f"run:{run.run_id}", run=run)
        else:
            baseline = parse_baseline(config.getoption("--harness-against") or "HEAD~1", store, None)
            verb.check_baseline(baseline, plan, key, timed=True)
        words = argparse.Namespace(axis=[], model=[])
        line = shlex.join(["python", "-m", "pytest", *config.invocation_params.args])
        request = replace(request, repeat=line)
        session = verb.Session(request, plan, gates, "pytest", store, baseline, load_noise(store, key), words)
        wanted = None if baseline.kind == "variant" else frozenset(request.only)
        with verb.opened_sides(session) as sides:
            first = verb.measure_once(session, sides, request, wanted)
            rows = verb.judge(session, first)
            if reds := red(rows):
                rows = confirmed(rows, verb.judge_again(session, sides, reds))
    except UsageError as error:
        raise pytest.UsageError(str(error)) from error
    return first.runs["candidate"], rows


def describe_row(row: GateRow) -> str:
    """One line with effect, interval, smallest detectable effect, margin and its source, limit, and the reason."""
    mde = row.minimum_detectable_effect
    detectable = "unknown" if mde is None or not math.isfinite(mde) else f"{mde:.1%}"
    limit = "none" if row.limit is None else f"{row.limit:g}" if row.gate.kind == "bound" else f"{row.limit:.1%}"
    return (
        f"{row.decision}: {row.metric} {change_text(row)}, detectable {detectable}, margin {row.margin:.1%} "
        f"({row.margin_source}), limit {limit}: {row.reason or 'no reason given'}"
    )


def note_rows(config: pytest.Config, test: str, rows: Sequence[GateRow], seconds: Sequence[float], case: Case) -> None:
    """Keep what the gate says of a case, and fail its test if any of it is red."""
    session = config.stash[SESSION]
    found = [Outcome(test, row.decision, f"{row.case.label}: {describe_row(row)}") for row in rows]
    if session.report is not None:  # one block gives no interval: the fixed limit stands in for statistical gates
        found = [one for one, row in zip(found, rows, strict=True) if row.gate.kind != "statistical"]
        found.append(_against_file(test, session, rows, seconds, case))
    found.sort(key=lambda outcome: ORDER.index(outcome.decision))
    if not found:
        found = [Outcome(test, "skipped", "no gate is declared for this case")]
    session.outcomes += found[1:]
    reds = [outcome.text for outcome in found if outcome.decision == "regressed"]
    note(config, replace(found[0], text="\n  ".join(reds)) if reds else found[0])


def _against_file(
    test: str, session: GateSession, rows: Sequence[GateRow], seconds: Sequence[float], case: Case
) -> Outcome:
    assert session.report is not None
    known = next((one for one in session.report.cases if one.case.case_id == case.case_id), None)
    if known is None:
        return Outcome(test, "invalid", f"{session.report.file} does not hold this case")
    limits = [row.gate.limit for row in rows if row.gate.kind == "statistical" and row.gate.limit is not None]
    words = {"limit": max(limits[0], DEFAULT_LIMIT)} if limits else {}
    return _judge_median(test, session, known.name, statistics.median(seconds), words)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What was judged, and every row that could not be decided, with its reason."""
    if SESSION not in config.stash:
        return
    outcomes = config.stash[SESSION].outcomes
    terminalreporter.section("harness gate")
    for outcome in outcomes:
        if outcome.decision in ("inconclusive", "invalid", "improved"):
            terminalreporter.write_line(f"{outcome.test}\n  {outcome.text}")
    counts = {
        name: sum(one.decision == name for one in outcomes) for name in dict.fromkeys(o.decision for o in outcomes)
    }
    text = ", ".join(f"{count} {name}" for name, count in counts.items())
    terminalreporter.write_line(text or "no test was judged by a gate", yellow=not judged_any(outcomes))


def judged_any(outcomes: Sequence[Outcome]) -> bool:
    """Whether the gate came to a word on anything: one that judges nothing must not look green."""
    return any(outcome.decision not in ("skipped", "invalid") for outcome in outcomes)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A gate that judged nothing fails."""
    config = session.config
    if SESSION in config.stash and exitstatus == pytest.ExitCode.OK and not config.option.collectonly:
        if not judged_any(config.stash[SESSION].outcomes):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
