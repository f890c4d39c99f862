"""How often the gate's own rule is wrong, and how often it sees an injected slowdown, from a calibration's runs.

    rounds = rounds_of(store, runs, 8, gates_of(suite))               # comparisons of eight blocks
    floors = judged(rounds, rounds.floors(campaign.block_seconds(), runs[-1]), suite)

What was measured is judged as the gate would have, one gate run after the other: looks, early ends, Holm over its
cases, red cases again on fresh blocks. A case's next comparison begins with the block after the last one that it took,
so no block counts for two first measurements. An injected case is judged among unchanged ones: the correction for their
number is hardest then. NOTE: the floors come from the same A/A blocks, which flatters few comparisons a little.
Torch-free.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import numpy as np

from harness.calibration import LOOKS, OLD_AFTER, Floor, NoiseCalibration, Rate, noise_floor
from harness.campaign import BUSY, BUSY_FROM
from harness.compare import Comparison, Measured, block_difference, compare_pairs, measured_cases
from harness.core import SOLO_BLOCK, Gate, Suite, Variant, Workload
from harness.gate_rules import settled
from harness.gates import GateRow, applicable, confirmed, evaluate, red
from harness.registry import WORKLOADS
from harness.schema import RunRow
from harness.sequential import Looks
from harness.stats import Values
from harness.store import Store

ALPHA = 0.05  # of a whole gate run, as `harness gate` has it

Pair = tuple[Measured, Measured]
Key = tuple[str, str, str]  # workload kind, model, metric


def gates_of(suite: Suite) -> tuple[Gate, ...]:
    """The statistical gates of a suite whatever the variant; where it has none, one on each workload's first metric."""
    declared = [replace(gate, variant="*") for gate in suite.gates if gate.kind == "statistical"]
    kinds = {workload.kind for grids in suite.grids.values() for grid in grids for workload in grid.workloads}
    headlines = sorted({WORKLOADS[kind].headline for kind in kinds if WORKLOADS[kind].timed})
    return tuple(dict.fromkeys(declared or [Gate(name) for name in headlines]))


def restricted(case: Measured, blocks: Iterable[int]) -> Measured:
    """The case as if only these blocks had been measured."""
    wanted = set(blocks)
    series = {}
    for name, found in case.series.items():
        if kept := {block: value for block, value in found.blocks.items() if block in wanted}:
            turns = {block: value for block, value in found.turns.items() if block in wanted}
            series[name] = replace(found, blocks=kept, turns=turns)
    invalid = {block: why for block, why in case.facts.get("invalid_blocks", {}).items() if int(block) in wanted}
    return replace(case, series=series, facts={**case.facts, "invalid_blocks": invalid})


@dataclass(slots=True)
class Rounds:
    """What calibration runs compared: `pairs` by what was measured, then by run; a comparison has at most `blocks`."""

    blocks: int
    pairs: dict[str, dict[str, list[Pair]]] = field(default_factory=dict)
    differences: dict[Key, list[Values]] = field(default_factory=dict)

    def add(self, cases: Sequence[Measured], metrics: Sequence[str]) -> None:
        """Take in one run."""
        places: dict[tuple[str, str, str], dict[str, Measured]] = {}
        for case in cases:
            place = places.setdefault((case.group, case.model, case.workload), {})
            place[_word_of(Variant.parse(case.variant))] = case
        for arms in places.values():
            for word, candidate in arms.items():
                if word and "" in arms:
                    self._add_pair(word, arms[""], candidate, metrics)

    def _add_pair(self, word: str, reference: Measured, candidate: Measured, metrics: Sequence[str]) -> None:
        seen = _blocks_seen(candidate)
        calm = {block for block in seen if block < BUSY_FROM}
        for kind, blocks in ((word, calm), (BUSY, seen - calm)):
            if blocks:
                pair = restricted(reference, blocks), restricted(candidate, blocks)
                self.pairs.setdefault(kind, {}).setdefault(candidate.run_id, []).append(pair)
        if word == "aa":
            for metric in metrics:
                a, b = (case.series.get(metric) for case in (reference, candidate))
                shared = sorted(calm & a.turns.keys() & b.turns.keys()) if a and b else []
                if a and b and len(shared) >= 2 and a.positive and b.positive:
                    key = Workload.parse(candidate.workload).kind, candidate.model, metric
                    values = [block_difference(a.turns[block], b.turns[block]) for block in shared]
                    self.differences.setdefault(key, []).append(np.asarray(values, dtype=np.float64))

    def floors(self, block_seconds: Mapping[tuple[str, str], float], newest: RunRow) -> tuple[Floor, ...]:
        """The noise of every family with at least two blocks; rates are still empty. `newest`: the last of the runs."""
        found = []
        for (kind, model, metric), cases in sorted(self.differences.items()):
            measured = {blocks: noise_floor(cases, blocks) for blocks in sorted({*LOOKS, self.blocks} - {1})}
            found.append(
                Floor(
                    workload=kind,
                    model=model,
                    metric=metric,
                    sd=measured[LOOKS[0]][0],
                    df=sum(len(values) - 1 for values in cases),
                    floors={blocks: floor for blocks, (_, floor) in measured.items()},
                    block_seconds=block_seconds.get((kind, model), float("nan")),
                    blocks=self.blocks,
                    measured_at=newest.started_at or datetime.now(UTC),
                    suite=newest.suite,
                    git_sha=newest.git_sha,
                )
            )
        return tuple(found)


def _word_of(variant: Variant) -> str:
    """What a case is among the arms of its place: `` (unchanged), `aa`, or the percent of its slowdown."""
    return variant.option("spin") or variant.option("control") or ""


@dataclass(frozen=True, slots=True)
class Judge:
    """The gate's own rule: its gates, the margin from policy, the floors that widen it, and when it looks."""

    gates: tuple[Gate, ...]
    policy: float
    floors: NoiseCalibration
    looks: Looks

    def run(self, pairs: Sequence[Pair]) -> tuple[tuple[GateRow, ...], list[int]]:
        """One gate run: looks, an early end for what is settled; and how many blocks each pair took."""
        wanted = {gate.metric for gate in self.gates}
        left, comparisons = dict(enumerate(pairs)), []
        reached, taken = list(pairs), [0] * len(pairs)
        for look in self.looks.blocks:
            for number, pair in left.items():
                reached[number], taken[number] = _blocks_of(pair, 0, look), look
            comparisons = compare_pairs(
                reached,
                metrics=wanted,
                margin=self.policy,
                confidence=self.looks.confidence_after,
            )
            undecided = {c.candidate.case_id for c in comparisons if not self._settled(c)}
            left = {number: pair for number, pair in left.items() if pair[1].case_id in undecided}
            if not left:
                break
        return evaluate(self.gates, comparisons, calibration=self.floors, policy=self.policy), taken

    def _settled(self, comparison: Comparison) -> bool:
        case, estimate = comparison.candidate, comparison.estimate
        found = applicable(self.gates, Workload.parse(case.workload), case.model, case.variant)
        gate = found.get(comparison.metric)
        if gate is None:
            return True
        if estimate is None or not estimate.num_blocks > 1:
            return False
        margin = gate.margin if gate.margin is not None else self.policy
        floor = self.floors.floor(comparison)
        return settled(gate, estimate, max(margin, floor[0] if floor else 0.0))

    def rates(self, rounds: Rounds) -> dict[str, dict[Key, Rate]]:
        """By what was measured (`aa`, `changed`, `busy`, a percent), then by family: how often the gate failed.

        `changed` counts A/A comparisons that were called regressed or improved, before any repetition. Disturbed
        comparisons count as not red beside a neighbour, and not at all elsewhere.
        """
        found: dict[str, dict[Key, Rate]] = {}
        unchanged = [
            [_blocks_of(pair, 0, rounds.blocks) for pair in pairs] for pairs in rounds.pairs.get("aa", {}).values()
        ]
        for word, by_run in rounds.pairs.items():
            beside = [] if word in ("aa", BUSY) else unchanged
            for number, pairs in enumerate(by_run.values()):
                among = beside[number % len(beside)] if beside else []
                for row, final in self._decided(pairs, among, rounds.blocks):
                    if row.decision == "invalid" and word != BUSY:
                        continue
                    key = Workload.parse(row.case.workload).kind, row.case.model, row.gate.metric
                    _count(found, word, key, final.decision == "regressed")
                    if word == "aa":
                        _count(found, "changed", key, row.decision in ("regressed", "improved"))
        return found

    def _decided(self, pairs: Sequence[Pair], beside: Sequence[Pair], blocks: int) -> Iterator[tuple[GateRow, GateRow]]:
        """(row at the first measurement, row after the repetition of red ones), one gate run after the other.

        `beside`: unchanged pairs among which each of these is judged alone; none: these are one gate run.
        """
        begun = dict.fromkeys(range(len(pairs)), 0)
        while begun := {n: start for n, start in begun.items() if _num_blocks(pairs[n]) - start >= blocks}:
            cut = {n: _blocks_of(pairs[n], start, blocks) for n, start in begun.items()}
            for numbers in [[n] for n in cut] if beside else [list(cut)]:
                own = [cut[n] for n in numbers]
                others = _without(beside, own)
                rows, taken = self.run([*own, *others])
                ids = {candidate.case_id for _, candidate in own}
                rows = tuple(row for row in rows if row.case.case_id in ids)
                wanted = {row.case.case_id for row in red(rows)}
                fresh = []
                for n, num_taken in zip(numbers, taken, strict=False):  # `others` come last
                    begun[n] += num_taken
                    spare = min(blocks, _num_blocks(pairs[n]) - num_taken)
                    if pairs[n][1].case_id in wanted and spare > 1:
                        fresh.append(_blocks_of(pairs[n], begun[n], spare))
                again, _ = self.run(fresh) if fresh else ((), [])
                yield from zip(rows, confirmed(rows, again), strict=True)


def _num_blocks(pair: Pair) -> int:
    """Disturbed ones included."""
    return len(_blocks_seen(pair[0]) | _blocks_seen(pair[1]))


def _blocks_of(pair: Pair, first: int, count: int) -> Pair:
    """The pair as it stood after `count` blocks from the `first` on, disturbed ones included, as on a ring."""
    reference, candidate = pair
    every = sorted(_blocks_seen(candidate) | _blocks_seen(reference))
    blocks = [*every[first:], *every[:first]][:count]
    return restricted(reference, blocks), restricted(candidate, blocks)


def _blocks_seen(case: Measured) -> set[int]:
    measured = {block for series in case.series.values() for block in series.turns if block != SOLO_BLOCK}
    return measured | {int(block) for block in case.facts.get("invalid_blocks", {})}


def _count(found: dict[str, dict[Key, Rate]], word: str, key: Key, hit: bool) -> None:
    of_word = found.setdefault(word, {})
    of_word[key] = of_word.get(key, Rate(0, 0)) + Rate(int(hit), 1)


def _without(beside: Sequence[Pair], own: Sequence[Pair]) -> list[Pair]:
    """The pairs of other cases: one gate run holds a case once."""
    held = {reference.case_id for reference, _ in own}
    return [pair for pair in beside if pair[0].case_id not in held]


def judged(rounds: Rounds, floors: Sequence[Floor], suite: Suite) -> tuple[Floor, ...]:
    """The floors with what the gate's rule made of every round: false alarms and power."""
    looks = Looks(suite.sampling.looks or (rounds.blocks,), alpha=ALPHA / 2).upto(rounds.blocks)
    known = NoiseCalibration("", "", "", tuple(floors))
    rates = Judge(gates_of(suite), suite.margin, known, looks).rates(rounds)
    done = []
    for floor in floors:
        key = floor.workload, floor.model, floor.metric
        of_family = {word: by_key.get(key, Rate(0, 0)) for word, by_key in rates.items()}
        done.append(
            replace(
                floor,
                red=of_family.pop("aa", Rate(0, 0)),
                false_alarms=of_family.pop("changed", Rate(0, 0)),
                beside_neighbour=of_family.pop(BUSY, Rate(0, 0)),
                power={float(word) / 100: rate for word, rate in of_family.items() if rate.trials},
            )
        )
    return tuple(done)


def calibration_runs(store: Store, suite: Suite, blocks: int, fingerprint: str) -> list[RunRow]:
    """The runs of the last 30 days that tell of this machine's noise with so many blocks a comparison, newest last."""
    found, since = [], datetime.now(UTC) - OLD_AFTER
    for run in store.runs():
        if run.started_at is None or run.started_at < since:
            continue
        if run.suite == suite.name and run.suite_version == suite.version and run.fingerprint == fingerprint:
            if int(json.loads(run.plan).get("blocks") or 0) == blocks:
                found.append(run)
    return found


def rounds_of(store: Store, runs: Sequence[RunRow], blocks: int, gates: Sequence[Gate]) -> Rounds:
    """All rounds of some runs."""
    rounds = Rounds(blocks)
    for run in runs:
        rounds.add(measured_cases(store, run.run_id), [gate.metric for gate in gates])
    return rounds
