"""What the Overview says of one machine: each suite's newest run against its baseline, gates, and what wants attention.

    standings = suite_standings(context, machine_id)
    standings[0].view.counts["regressed"]
    cells = axis_cells(context, standings)           # (case, "kv=prealloc") -> the newest comparison of that option

Reads the samples of two runs for each of at most MAX_SUITES suites; what was read is kept (dashboard.views_cache).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from dashboard import views_cache
from dashboard.choices import workload_name
from dashboard.context import Context
from dashboard.filters import Filter
from dashboard.rows import RunLine
from harness import registry
from harness.baselines import list_baselines
from harness.calibration import load_noise
from harness.compare import Comparison
from harness.core import Suite
from harness.gates import GateRow
from harness.schema import RunRow
from reports.kinds.gate import follows, judged_rows, rows_of
from reports.views import CaseView, ComparisonView, RunView

MAX_SUITES = 6
LOOKED_AT = 400  # newest runs of a machine
STALE = timedelta(days=14)
NOISY = 0.1  # relative spread from one run to the next


@dataclass(frozen=True, slots=True)
class Standing:
    """A suite's newest finished run on a machine; `view` compares it with `baseline`, where there is one.

    `why`: what made that run the baseline: the name of a tag, or that it was measured beside it or before it.
    """

    run: RunRow
    within: RunView
    baseline: RunRow | None
    why: str
    view: ComparisonView | None


@dataclass(frozen=True, slots=True)
class Gated:
    """The newest gate of a suite: a candidate measured beside its baseline, and what each gate says of it."""

    run: RunRow
    baseline: RunRow
    rows: tuple[GateRow, ...]


@dataclass(frozen=True, slots=True)
class AxisCell:
    """The newest word on one option of one axis for one case."""

    run_id: str
    case: CaseView


def suite_standings(context: Context, machine_id: str) -> tuple[Standing, ...]:
    """The suites that ran last on a machine, the newest first."""
    lines = context.query.runs(Filter().with_value("machine", machine_id), limit=LOOKED_AT).rows
    newest: dict[str, RunLine] = {}
    for line in lines:
        if line.status == "finished" and line.side in ("", "candidate"):
            newest.setdefault(line.suite, line)
    found = []
    for line in list(newest.values())[:MAX_SUITES]:
        run = context.query.run(line.run_id)
        if run is not None:
            found.append(_standing(context, run, lines))
    return tuple(found)


def _standing(context: Context, run: RunRow, lines: Sequence[RunLine]) -> Standing:
    within = views_cache.within(context, run.run_id)
    baseline, why = _baseline(context, run, lines)
    if baseline is None:
        return Standing(run, within, None, "", None)
    view = views_cache.comparison(context, baseline.run_id, run.run_id)
    return Standing(run, within, baseline, why, view)


def _baseline(context: Context, run: RunRow, lines: Sequence[RunLine]) -> tuple[RunRow | None, str]:
    """What a run is held against: the other side of its session, else a named baseline, else the run before it.

    `lines`: the runs of its machine, the newest first.
    """
    others = [line for line in lines if line.status == "finished" and line.run_id != run.run_id]
    mine = [line for line in others if line.suite == run.suite]
    beside = [line for line in mine if run.session and line.session == run.session]
    if beside:
        return context.query.run(beside[0].run_id), context.say("measured beside it")
    ids = {line.run_id for line in mine}
    for named in reversed(list_baselines(context.results)):
        if named.run_id in ids:
            return context.query.run(named.run_id), f"tag:{named.name}"
    place = next((number for number, line in enumerate(lines) if line.run_id == run.run_id), len(lines))
    earlier = [line for line in lines[place + 1 :] if line in mine and line.side in ("", "candidate")]
    return (context.query.run(earlier[0].run_id), context.say("the run before it")) if earlier else (None, "")


def newest_gates(context: Context, machine_id: str) -> tuple[Gated, ...]:
    """The newest gate of each suite that was measured on a machine, red rows with their second measurement."""
    which = Filter().with_value("machine", machine_id)
    lines = [line for line in context.query.runs(which, limit=LOOKED_AT).rows if line.session]
    newest: dict[str, list[tuple[RunRow, RunRow]]] = {}  # of each suite the last two sessions
    for line in lines:
        beside = [other for other in lines if other.session == line.session and other.side == "baseline"]
        suite = registry.SUITES.get(line.suite)
        pairs = newest.setdefault(line.suite, [])
        if line.side == "baseline" or len(pairs) == 2 or not beside or suite is None or not suite.gates:
            continue
        run, baseline = context.query.run(line.run_id), context.query.run(beside[0].run_id)
        if run is not None and baseline is not None:
            pairs.append((run, baseline))
    found = []
    for name, pairs in newest.items():
        if not pairs:
            continue

        def judge(run: RunRow, baseline: RunRow, suite: Suite = registry.SUITES[name]) -> tuple[GateRow, ...]:
            view = views_cache.comparison(context, baseline.run_id, run.run_id)
            noise = load_noise(context.results, run.fingerprint)
            return judged_rows(view.comparisons, view.only_in_a, view.only_in_b, suite, noise)

        again = pairs[0] if len(pairs) == 2 and follows(pairs[1][0], pairs[0][0]) else None
        run, baseline = pairs[1] if again else pairs[0]
        found.append(Gated(run, baseline, rows_of((run, baseline), again, judge)))
    return tuple(found)


def axis_cells(standings: Sequence[Standing]) -> dict[tuple[str, str], AxisCell]:
    """(model: workload, axis=option) -> the newest comparison with the reference in which only that axis differs."""
    found: dict[tuple[str, str], AxisCell] = {}
    for standing in standings:  # the newest first
        for view in standing.within.cases:
            variant = view.case.variant
            if (
                view.is_reference
                or " " in variant
                or variant == "reference"
                or view.case.workload.startswith("perplex")
            ):
                continue
            if view.comparison is not None and view.comparison.reference.variant != "reference":
                continue
            found.setdefault((f"{view.case.model}: {view.case.label}", variant), AxisCell(standing.run.run_id, view))
    return found


@dataclass(frozen=True, slots=True)
class Concern:
    """One thing that wants attention: in words, and where to look."""

    kind: str
    text: str
    href: str


def concerns(context: Context, machine_id: str, standings: Sequence[Standing]) -> tuple[Concern, ...]:
    """Open regressions, cases that broke, series that are noisy, machines that were not heard of for long."""
    found = []
    for standing in standings:
        view = standing.view
        if view is not None and standing.baseline is not None and view.counts["regressed"]:
            href = context.href("/compare", a=standing.baseline.run_id, b=standing.run.run_id, verdict="regressed")
            found.append(Concern(context.say("regression"), f"{standing.run.suite}: {_worst(context, view)}", href))
        broken = [one.case for one in standing.within.cases if one.case.status not in ("ok", "skipped")]
        if broken:
            first = broken[0]
            words = context.say(
                "cases that broke: {n}, first {case}: {status}", n=len(broken), case=first.label, status=first.status
            )
            href = context.href("/compare", b=standing.run.run_id, verdict="invalid")
            found.append(Concern(context.say("failure"), f"{standing.run.suite}: {words}", href))
    found += [*_noisy(context, machine_id), *_stale(context)]
    return tuple(found)


def _worst(context: Context, view: ComparisonView) -> str:
    worst = [c for c in view.changed if c.verdict == "regressed"]
    name = _name(worst[0]) if worst else ""
    return context.say("{n} regressed, most {case}", n=view.counts["regressed"], case=name)


def _name(c: Comparison) -> str:
    return f"{c.candidate.label} {c.candidate.variant} {c.metric}"


def _noisy(context: Context, machine_id: str) -> list[Concern]:
    lines = [line for line in views_cache.noise(context, machine_id) if (line.run_to_run or 0.0) > NOISY]
    if not lines:
        return []
    worst = max(lines, key=lambda line: line.run_to_run or 0.0)
    name = f"{workload_name(worst.workload)} {worst.variant}"
    words = context.say(
        "{n} series spread by more than {limit} from run to run, most {case} ({spread})",
        n=len(lines),
        limit=f"{NOISY:.0%}",
        case=name,
        spread=f"{worst.run_to_run:.0%}",
    )
    return [Concern(context.say("noise"), words, context.href("/noise", machine=machine_id))]


def _stale(context: Context) -> list[Concern]:
    """Machines that measured nothing for long, by the newest run of the store, so that an archive is not all stale."""
    machines = context.query.machines()
    latest = max((one.latest for one in machines if one.latest), default=datetime.now(UTC))
    found = []
    for one in machines:
        if one.latest is not None and latest - one.latest > STALE:
            words = context.say(
                "{machine} measured nothing since {time}",
                machine=one.name or one.machine_id,
                time=context.local(one.latest),
            )
            found.append(Concern(context.say("stale machine"), words, context.href("/runs", machine=one.machine_id)))
    return found
