"""What the gate would have said of measured A/A blocks, had one side been slower by an exact factor.

    python docs/lab/shifted_power.py --store DIR [--percent 1,2,3,5]

Takes the A/A blocks that `harness calibrate --noise` stored, multiplies the times of one side, and judges both as the
gate does: looks, early ends, correction for the number of cases, red cases again on fresh blocks. The noise is real,
the slowdown is arithmetic: it has no noise of its own, and none of the side effects that a real one may have.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from harness.campaign import noise_suite, offered
from harness.compare import Measured
from harness.execute import Request
from harness.registry import METRICS, load_all
from harness.store import Store
from harness.verdict_rates import Pair, Rounds, calibration_runs, gates_of, judged, rounds_of


def slower(case: Measured, factor: float) -> Measured:
    """The case with every time multiplied."""
    series = {}
    for name, found in case.series.items():
        times = 1 / factor if METRICS[name].better == "higher" else factor
        turns = {block: {turn: value * times for turn, value in of.items()} for block, of in found.turns.items()}
        series[name] = replace(
            found, blocks={block: value * times for block, value in found.blocks.items()}, turns=turns
        )
    return replace(case, series=series)


def main() -> None:
    """Print one line per family and size, and their sums."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", required=True)
    parser.add_argument("--suite", default="gate")
    parser.add_argument("--percent", default="1,2,3,5")
    arguments = parser.parse_args()
    load_all()
    plan = Request(arguments.suite).plan()
    suite = noise_suite(plan, ())
    blocks = plan.sampling.blocks
    store = Store.open(arguments.store)
    with offered(suite):
        newest = store.runs()[-1]
        runs = calibration_runs(store, suite, blocks, newest.fingerprint)
        gates = gates_of(suite)
        rounds = rounds_of(store, runs, blocks, gates)
        aa = rounds.pairs.get("aa", {})
        shifted: dict[str, dict[str, list[Pair]]] = {"aa": aa}
        for percent in arguments.percent.split(","):
            factor = 1 + float(percent) / 100
            shifted[percent] = {run: [(a, slower(b, factor)) for a, b in pairs] for run, pairs in aa.items()}
        floors = judged(Rounds(blocks, shifted, rounds.differences), rounds.floors({}, newest), suite)
    num_blocks = sum(floor.df for floor in floors)
    print(f"{len(runs)} runs, about {num_blocks} case-blocks beyond the means")
    print(
        "| family | sd of a block | A/A red | A/A called changed |",
        " | ".join(f"+{p}% red" for p in shifted if p != "aa"),
        "|",
    )
    sums: dict[str, tuple[int, int]] = {}

    def counted(name: str, hits: int, trials: int) -> str:
        before = sums.get(name, (0, 0))
        sums[name] = before[0] + hits, before[1] + trials
        return f"{hits} of {trials}"

    for floor in floors:
        cells = [
            counted("red", floor.red.hits, floor.red.trials),
            counted("changed", floor.false_alarms.hits, floor.false_alarms.trials),
        ]
        cells += [counted(f"{effect:g}", rate.hits, rate.trials) for effect, rate in sorted(floor.power.items())]
        print("|", " | ".join([floor.family, f"{floor.sd.value:.2%}", *cells]), "|")
    print("| all | |", " | ".join(f"{hits} of {trials}" for hits, trials in sums.values()), "|")


if __name__ == "__main__":
    main()
