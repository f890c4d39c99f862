"""What is known of a machine's noise: floors per family of cases, false alarms, power; stored and read. Torch-free.

    known = load_noise(store, fingerprint)                   # None if `harness calibrate --noise` never ran
    margin, source = margin_for(known, "decode(...)", "tiny", "tps", policy=0.01)
    clopper_pearson(0, 200)                                  # (0.0, 0.0183): no alarm in 200 bounds the rate at 1.8%

A family is a kind of workload on one model: cases that differ in depth, batch or variant share its noise floor. The
noise floor is the margin at which a 95% interval over so many blocks leaves unchanged code alone 99 times in 100.
Stored beside the peaks, long form: STORE/calibration/<fingerprint>.noise.parquet. A damaged file is passed over and
named. Refuses no calibration for being old or from elsewhere, but says so wherever its margin is used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from harness.catalog import make_folder, write_file
from harness.compare import Comparison
from harness.distributions import student_t_ppf
from harness.power import supported_effect
from harness.schema import SCHEMAS, Damaged, decode, encode
from harness.stats import Values
from harness.store import Store

STATED_RATE = 0.01  # of false alarms, which the noise floor is to keep
LOOKS = (4, 8, 16)
OLD_AFTER = timedelta(days=30)
_CONFIDENCE = 0.95
_LIMIT_LEVEL = 0.95  # one-sided: the floor in use lies below the true one in one calibration of twenty
_RESAMPLES, _REPEATS = 4000, 100
_SUFFIX = ".noise.parquet"


@dataclass(frozen=True, slots=True)
class Rate:
    """How often something happened."""

    hits: int
    trials: int

    @property
    def value(self) -> float:
        """The share; NaN where nothing was tried."""
        return self.hits / self.trials if self.trials else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95% interval (Clopper and Pearson)."""
        return clopper_pearson(self.hits, self.trials)

    def __add__(self, other: Rate) -> Rate:
        return Rate(self.hits + other.hits, self.trials + other.trials)


def clopper_pearson(hits: int, trials: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of a probability from `hits` in `trials` (Clopper and Pearson 1934); 0..1 for no trials.

    Each end is the probability at which as many hits or more (fewer) have half the error: found by bisection.
    """
    if not 0 <= hits <= trials:
        raise ValueError(f"{hits} of {trials} is no count")
    tail = (1 - confidence) / 2

    def solve(count: int, wanted: float) -> float:
        """p with P(at least `count`) = wanted, summed over whichever side has fewer terms."""
        upper = trials - count < count
        k = np.arange(count, trials + 1) if upper else np.arange(count)
        log_ways = np.array([math.lgamma(trials + 1) - math.lgamma(i + 1) - math.lgamma(trials - i + 1) for i in k])
        low, high = 0.0, 1.0
        for _ in range(50):
            p = 0.5 * (low + high)
            share = float(np.sum(np.exp(log_ways + k * math.log(p) + (trials - k) * math.log1p(-p))))
            low, high = (p, high) if (share if upper else 1.0 - share) < wanted else (low, p)
        return 0.5 * (low + high)

    return (solve(hits, tail) if hits else 0.0), (solve(hits + 1, 1 - tail) if hits < trials else 1.0)


@dataclass(frozen=True, slots=True)
class Bound:
    """An estimate with its 90% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Floor:
    """The noise of one metric in one family of cases, and what verdicts made of it.

    `sd`: standard deviation of one block's log difference between two unchanged arms, from `df` degrees of freedom.
    `floors`: by number of blocks, the margin at which a false alarm is as rare as stated. `false_alarms`: A/A
    comparisons called regressed or improved; `red`: those that a gate failed, after its repetition. `power`: by
    injected slowdown, comparisons that a gate failed; `beside_neighbour`: A/A comparisons that it failed beside a busy
    process. `blocks`: of each such comparison.
    """

    workload: str
    model: str
    metric: str
    sd: Bound
    df: int
    floors: Mapping[int, Bound]
    block_seconds: float
    blocks: int
    measured_at: datetime
    false_alarms: Rate = Rate(0, 0)
    red: Rate = Rate(0, 0)
    power: Mapping[float, Rate] = field(default_factory=dict)
    beside_neighbour: Rate = Rate(0, 0)
    suite: str = ""
    git_sha: str = ""

    @property
    def family(self) -> str:
        """As shown: `decode on tiny`."""
        return f"{self.workload} on {self.model}"

    def margin(self, blocks: int) -> float:
        """The floor to use for so many blocks: the upper limit of what was measured for as many, or for fewer."""
        known = sorted(self.floors)
        return self.floors[max((k for k in known if k <= blocks), default=known[0])].high

    def detectable(self, blocks: int, policy: float = 0.01, power: float = 0.8) -> float:
        """The slowdown that so many blocks show beyond the margin in use with this power."""
        margin = max(policy, self.margin(blocks))
        return supported_effect(
            self.sd.value, blocks, margin=margin, alpha=(1 - _CONFIDENCE) / 2, power=power, df=blocks - 1
        )


def noise_floor(differences: Sequence[Values], blocks: int, *, seed: int = 0) -> tuple[Bound, Bound]:
    """(sd, floor) of a family from the block log differences of its A/A cases, one array a case.

    The floor is the quantile 1 - STATED_RATE of how far the nearer end of a 95% t interval over `blocks` blocks lies
    from no change, over comparisons that are made up of the measured blocks: residuals drawn at random (so that their
    heavy tails count) around differences that persist from block to block, if the cases show any. Its interval repeats
    that on blocks drawn again. Raises ValueError for fewer than two blocks of every case.
    """
    usable = [np.asarray(values, dtype=np.float64) for values in differences if len(values) >= 2]
    if not usable:
        raise ValueError("a noise floor needs at least two blocks of a case")
    rng = np.random.default_rng(seed)
    sd, floor = _floor_once(usable, blocks, rng, _RESAMPLES)
    # Blocks drawn again are off twice: as the measured ones are, and once more by the drawing.
    again = [
        _floor_once([rng.choice(x, len(x)) for x in usable], blocks, rng, _RESAMPLES // 4, 2) for _ in range(_REPEATS)
    ]
    low, high = np.quantile(np.array(again), [1 - _LIMIT_LEVEL, _LIMIT_LEVEL], axis=0)
    # A resample of n blocks spreads less than the blocks do, by (n - 1) / n of the variance.
    shrunk = math.sqrt(np.mean([(len(x) - 1) / len(x) for x in usable]))
    return (
        Bound(sd, min(sd, float(low[0]) / shrunk), max(sd, float(high[0]) / shrunk)),
        Bound(floor, min(floor, float(low[1])), max(floor, float(high[1]) / shrunk)),
    )


def _floor_once(
    cases: Sequence[Values], blocks: int, rng: np.random.Generator, resamples: int, times_off: int = 1
) -> tuple[float, float]:
    """(sd, floor); `times_off`: by how many standard errors' worth of chance a case's mean is off."""
    degrees = sum(len(x) - 1 for x in cases)
    variance = sum(float(np.sum((x - x.mean()) ** 2)) for x in cases) / degrees
    if variance == 0.0:
        return 0.0, math.expm1(max(abs(float(x.mean())) for x in cases))
    residuals = np.concatenate([(x - x.mean()) * math.sqrt(len(x) / (len(x) - 1)) for x in cases])
    persistent = max(0.0, float(np.mean([x.mean() ** 2 - times_off * variance / len(x) for x in cases])))
    drawn = rng.choice(residuals, (resamples, blocks)) + rng.normal(0.0, math.sqrt(persistent), (resamples, 1))
    half = student_t_ppf(0.5 + _CONFIDENCE / 2, blocks - 1) * drawn.std(axis=1, ddof=1) / math.sqrt(blocks)
    beyond = float(np.quantile(np.abs(drawn.mean(axis=1)) - half, 1 - STATED_RATE))
    return math.sqrt(variance), math.expm1(max(beyond, 0.0))


@dataclass(frozen=True, slots=True)
class NoiseCalibration:
    """All floors of one machine in one state (`fingerprint`: hardware, versions, device, threads)."""

    fingerprint: str
    machine_id: str
    device: str
    floors: tuple[Floor, ...]
    versions: Mapping[str, str] = field(default_factory=dict)
    asked_for: str = ""  # the fingerprint that it was loaded for

    @property
    def measured_at(self) -> datetime:
        """The day of the oldest floor."""
        return min(floor.measured_at for floor in self.floors)

    def is_old(self, now: datetime | None = None) -> bool:
        """Whether a floor is older than 30 days."""
        return (now or datetime.now(UTC)) - self.measured_at > OLD_AFTER

    def from_other_machine(self) -> bool:
        """Whether it was measured elsewhere, or with other versions, than it was loaded for."""
        return self.asked_for not in ("", self.fingerprint)

    def flags(self, now: datetime | None = None) -> str:
        """Why not to rely on it, in words; empty where there is no reason."""
        words = []
        if self.from_other_machine():
            words.append(f"on another machine or with other versions ({self.machine_id})")
        if self.is_old(now):
            words.append(f"more than {OLD_AFTER.days} days ago")
        return " and ".join(words)

    def floor_for(self, workload: str, model: str, metric: str) -> Floor | None:
        """The floor of a case's family (`workload`: its kind or whole text); None where none was measured."""
        key = (workload.partition("(")[0].strip(), model, metric)  # imported runs may name theirs in another form
        return next((floor for floor in self.floors if (floor.workload, floor.model, floor.metric) == key), None)

    def floor(self, comparison: Comparison) -> tuple[float, str] | None:
        """The margin that a comparison's family and number of blocks need, and its source (`gates.NoiseFloors`)."""
        candidate, estimate = comparison.candidate, comparison.estimate
        found = self.floor_for(candidate.workload, candidate.model, comparison.metric)
        if found is None:
            return None
        return found.margin(estimate.num_blocks if estimate else max(LOOKS)), self._source(found)

    def _source(self, floor: Floor) -> str:
        flags = self.flags()
        place = flags or "on this machine"
        return f"A/A noise floor of {floor.family}, calibrated {floor.measured_at:%Y-%m-%d} {place}"


def margin_for(
    calibration: NoiseCalibration | None, workload: str, model: str, metric: str, policy: float, *, blocks: int = 8
) -> tuple[float, str]:
    """(margin, where it comes from) of a verdict: the larger of policy and the noise floor of the case's family."""
    floor = calibration.floor_for(workload, model, metric) if calibration is not None else None
    if calibration is None or floor is None:
        return policy, "policy; no noise floor was calibrated for this family"
    margin = floor.margin(blocks)
    return (margin, calibration._source(floor)) if margin > policy else (policy, "policy")


def save_noise(store: Store, calibration: NoiseCalibration) -> Path:
    """Store floors under the machine's fingerprint; one replaces an older one of its family and metric."""
    folder = store.path / "calibration"
    make_folder(folder)
    path = folder / f"{calibration.fingerprint}{_SUFFIX}"
    with store.catalog.lock(wait=True):
        before = _read(store, path)
        every = [*(before.floors if before else ()), *calibration.floors]
        last = {(floor.workload, floor.model, floor.metric): floor for floor in every}
        rows = [row for floor in last.values() for row in _rows_of(replace(calibration, floors=()), floor)]
        write_file(path, encode(pa.Table.from_pylist(rows, schema=SCHEMAS["noise"]), "noise", {}))
    return path


def load_noise(store: Store, fingerprint: str) -> NoiseCalibration | None:
    """The calibration of a machine: under its fingerprint, else the newest of another one, which says so itself."""
    folder = store.path / "calibration"
    names = [name for name in store.catalog.names(folder) if name.endswith(_SUFFIX)]
    if f"{fingerprint}{_SUFFIX}" in names:  # else it may be no file name at all
        own = _read(store, folder / f"{fingerprint}{_SUFFIX}")
        if own is not None:
            return replace(own, asked_for=fingerprint)
    others = [_read(store, folder / name) for name in names]
    newest = max((found for found in others if found), key=lambda found: found.measured_at, default=None)
    return None if newest is None else replace(newest, asked_for=fingerprint)


def _rows_of(calibration: NoiseCalibration, floor: Floor) -> list[dict[str, Any]]:
    """A floor in long form: one row per number."""
    common = {
        "fingerprint": calibration.fingerprint,
        "machine_id": calibration.machine_id,
        "device": calibration.device,
        "versions": json.dumps(dict(calibration.versions)),
        "suite": floor.suite,
        "git_sha": floor.git_sha,
        "measured_at": floor.measured_at,
        "workload": floor.workload,
        "model": floor.model,
        "metric": floor.metric,
        "blocks": floor.blocks,
    }

    def row(name: str, value: float, **rest: Any) -> dict[str, Any]:
        return {**common, "name": name, "value": value, **rest}

    def counted(name: str, rate: Rate, **rest: Any) -> dict[str, Any]:
        low, high = rate.interval
        return row(name, rate.value, low=low, high=high, hits=rate.hits, trials=rate.trials, **rest)

    return [
        row("sd", floor.sd.value, low=floor.sd.low, high=floor.sd.high, trials=floor.df),
        row("block_seconds", floor.block_seconds),
        *(row("floor", f.value, low=f.low, high=f.high, blocks=k) for k, f in floor.floors.items()),
        counted("false_alarms", floor.false_alarms),
        counted("red", floor.red),
        counted("beside_neighbour", floor.beside_neighbour),
        *(counted("power", rate, effect=effect) for effect, rate in floor.power.items()),
    ]


def _read(store: Store, path: Path) -> NoiseCalibration | None:
    """What a file holds; None if there is none, or it is damaged: then it is named in the store's problems."""
    try:
        rows = decode(path, "noise").to_pylist()
        if not rows:
            raise Damaged("holds no row")
        families: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        for row in rows:
            families.setdefault((row["workload"], row["model"], row["metric"]), []).append(row)
        floors = tuple(_floor_of(of_family) for of_family in families.values())
        first = rows[0]
        versions = json.loads(first["versions"] or "{}")
    except FileNotFoundError:
        return None
    except (Damaged, KeyError, TypeError, ValueError) as damage:
        store.catalog.note(path, damage if isinstance(damage, Damaged) else f"is not a whole calibration: {damage!r}")
        return None
    return NoiseCalibration(first["fingerprint"], first["machine_id"], first["device"], floors, versions)


def _floor_of(rows: Sequence[Mapping[str, Any]]) -> Floor:
    by_name = {row["name"]: row for row in rows}
    sd = by_name["sd"]

    def rate(row: Mapping[str, Any]) -> Rate:
        return Rate(int(row["hits"]), int(row["trials"]))

    return Floor(
        workload=sd["workload"],
        model=sd["model"],
        metric=sd["metric"],
        sd=Bound(sd["value"], sd["low"], sd["high"]),
        df=int(sd["trials"]),
        floors={row["blocks"]: Bound(row["value"], row["low"], row["high"]) for row in rows if row["name"] == "floor"},
        block_seconds=float(by_name["block_seconds"]["value"]),
        blocks=int(sd["blocks"]),
        measured_at=sd["measured_at"],
        false_alarms=rate(by_name["false_alarms"]),
        red=rate(by_name["red"]),
        power={row["effect"]: rate(row) for row in rows if row["name"] == "power"},
        beside_neighbour=rate(by_name["beside_neighbour"]),
        suite=sd["suite"] or "",
        git_sha=sd["git_sha"] or "",
    )
