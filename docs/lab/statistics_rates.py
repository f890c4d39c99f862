"""Simulated error rates of the statistics: looks, steps of bisect, quantiles, change points. Prints Markdown tables.

python docs/lab/statistics_rates.py looks|steps|quantiles|changes
"""

from __future__ import annotations

import math
import sys

import numpy as np
from numpy.typing import NDArray

from harness.change_points import change_points
from harness.quantiles import quantile_ratio
from harness.sequential import Looks, Spending, decide_step
from harness.stats import VariancePrior, student_t_ppf, variance_prior

Array = NDArray[np.float64]
SPENDINGS: tuple[Spending, ...] = ("obrien-fleming", "pocock", "early")


def draw(rng: np.random.Generator, shape: tuple[int, ...], noise: str) -> Array:
    """Symmetric block differences: normal, heavy-tailed, or one in twenty ten times as noisy."""
    if noise == "t3":
        return rng.standard_t(3, shape)
    x = rng.standard_normal(shape)
    return x * np.where(rng.random(shape) < 0.05, 10.0, 1.0) if noise == "outliers" else x


def moderated(variance: Array, df: float) -> tuple[Array, Array]:
    """Variances and degrees of freedom of suites x cases, as harness.stats lends them within a suite."""
    used, freedom = variance.copy(), np.full(variance.shape, df)
    for i, row in enumerate(variance):
        prior = variance_prior(row.tolist(), [df] * len(row))
        if prior is not None:
            weight = min(prior.df, 2.0 * df)
            lent = row <= 2.0 * prior.variance
            used[i] = np.where(lent, np.maximum(row, (weight * prior.variance + df * row) / (weight + df)), row)
            freedom[i] = np.where(lent, df + weight, df)
    return used, freedom


def first_reds(x: Array, looks: Looks, *, lend: bool) -> tuple[Array, Array]:
    """Whether each of suites x cases is red at any look, and after how many blocks it is settled."""
    red, cost = np.zeros(x.shape[:2], bool), np.full(x.shape[:2], float(looks.blocks[-1]))
    for look, count in enumerate(looks.blocks):
        variance = x[..., :count].var(axis=-1, ddof=1)
        used, df = moderated(variance, count - 1.0) if lend else (variance, np.full(variance.shape, count - 1.0))
        level = 1 - looks.nominal_alpha(look)
        critical = np.vectorize(lambda d, p=level: student_t_ppf(p, float(d)))(np.round(df, 2))
        new = ~red & (x[..., :count].mean(axis=-1) > critical * np.sqrt(used / count))
        cost[new] = count
        red |= new
    return red, cost


def looks_table(suites: int = 4_000, cases: int = 25) -> None:
    rng = np.random.default_rng(0)
    print(f"{suites * cases:,} cases a cell; alpha 2.5% one-sided; suites of {cases} cases with sds from 0.7 to 1.4\n")
    print("| spending | noise | t | moderated t | power at 1.0 sd | blocks then |\n|---|---|---:|---:|---:|---:|")
    for spending in SPENDINGS:
        for noise in ("normal", "t3", "outliers"):
            looks = Looks(alpha=0.025, spending=spending)
            sds = np.exp(rng.uniform(-0.35, 0.35, (suites, cases, 1)))
            x = draw(rng, (suites, cases, 16), noise) * sds
            plain, lent = (first_reds(x, looks, lend=lend)[0].mean() for lend in (False, True))
            power, cost = first_reds(x + 1.0, looks, lend=True)
            print(f"| {spending} | {noise} | {plain:.2%} | {lent:.2%} | {power.mean():.1%} | {cost.mean():.1f} |")


def steps_table(trials: int = 2_000) -> None:
    rng = np.random.default_rng(0)
    print(f"{trials:,} steps a cell; alpha = beta = 5%; at most 24 blocks\n")
    print("| effect / block sd | prior | false bad | false good | undecided | blocks |\n|---:|---|---:|---:|---:|---:|")
    for scale in (8.0, 4.0, 2.0, 1.0, 0.5):
        for df in (0.0, 8.0):
            sd = math.log1p(0.05) / scale
            prior = VariancePrior(sd**2, df) if df else None
            count = {"bad": [0, 0], "good": [0, 0], "more": [0, 0]}
            blocks = 0
            for truth in (0, 1):
                for x in rng.normal(truth * math.log1p(0.05), sd, (trials, 24)):
                    for num in range(3, 25):
                        step = decide_step(x[:num], effect=0.05, alpha=0.05, beta=0.05, prior=prior)
                        if step != "more":
                            break
                    count[step][truth] += 1
                    blocks += num
            lent = f"{df:g} df" if df else "none"
            wrong = f"{count['bad'][0] / trials:.2%} | {count['good'][1] / trials:.2%}"
            print(
                f"| {scale:g} | {lent} | {wrong} | {sum(count['more']) / trials / 2:.1%} | {blocks / trials / 2:.1f} |"
            )


def iterations(
    rng: np.random.Generator, num_blocks: int, size: int, *, tail: float, speed: float, process_sd: float = 0.02
) -> Array:
    """Seconds of blocks x iterations: a process's own speed, noise of 3%, one in ten slow by up to the tail."""
    body = rng.normal(0, 0.03, (num_blocks, size)) + rng.normal(0, process_sd, (num_blocks, 1))
    slow = (rng.random((num_blocks, size)) < 0.1) * rng.uniform(0.0, tail, (num_blocks, size))
    return np.exp(body + slow) * speed


def quantiles_table(trials: int = 2_000) -> None:
    rng = np.random.default_rng(0)
    print(f"{trials:,} comparisons a line; 95% intervals\n")
    print("| quantile | blocks | iterations a block | change | truth | found | coverage |")
    print("|---|---:|---:|---|---:|---:|---:|")
    changes = (("none", 0.5, 1.0), ("all 5% slower", 0.5, 1.05), ("tail twice as long", 1.0, 1.0))
    for q, num_blocks, size in ((0.9, 4, 10), (0.9, 8, 20), (0.99, 8, 40), (0.99, 8, 200), (0.99, 4, 400)):
        for change, tail, speed in changes:
            sides = [
                iterations(rng, 1, 2_000_000, tail=t, speed=s, process_sd=0.0) for t, s in ((0.5, 1), (tail, speed))
            ]
            truth = float(np.quantile(sides[1], q) / np.quantile(sides[0], q)) if tail != 0.5 else speed
            found = [
                quantile_ratio(
                    list(iterations(rng, num_blocks, size, tail=0.5, speed=1.0)),
                    list(iterations(rng, num_blocks, size, tail=tail, speed=speed)),
                    q,
                )
                for _ in range(trials)
            ]
            middle = math.exp(np.mean([math.log(x.ratio) for x in found]))
            covered = np.mean([x.low <= truth <= x.high for x in found])
            print(f"| {q:g} | {num_blocks} | {size} | {change} | {truth:.3f} | {middle:.3f} | {covered:.1%} |")


def changes_table(trials: int = 1_000) -> None:
    rng = np.random.default_rng(0)
    print(f"{trials:,} histories a line\n\n| runs | noise | histories with a false alarm |\n|---:|---|---:|")

    def history(n: int, noise: str) -> Array:
        if noise.startswith("AR"):
            x = rng.standard_normal(n)
            for i in range(1, n):
                x[i] = 0.3 * x[i - 1] + math.sqrt(1 - 0.09) * x[i]
            return x
        if noise == "spikes":
            return rng.standard_normal(n) + (rng.random(n) < 0.05) * rng.uniform(3, 10, n)
        return draw(rng, (n,), noise)

    for n in (8, 20, 100, 300):
        for noise in ("normal", "t3", "spikes", "AR(1) 0.3"):
            alarms = np.mean([len(change_points(np.exp(0.02 * history(n, noise)))) > 0 for _ in range(trials)])
            print(f"| {n} | {noise} | {alarms:.1%} |")
    print("\n| runs after the change | change / noise sd | found | place covered | size covered | runs in the range |")
    print("|---:|---:|---:|---:|---:|---:|")
    for after in (3, 5, 10, 30):
        for size in (2.0, 3.0, 5.0):
            found = place = covered = 0
            width = []
            for _ in range(trials):
                x = 0.02 * rng.standard_normal(60)
                x[60 - after :] += 0.02 * size
                changes = change_points(np.exp(x))
                if len(changes) == 1:
                    only = changes[0]
                    found += 1
                    place += only.index_low <= 60 - after <= only.index_high
                    covered += only.low <= math.exp(0.02 * size) <= only.high
                    width.append(only.index_high - only.index_low + 1)
            if found:
                shares = f"{found / trials:.1%} | {place / found:.1%} | {covered / found:.1%} | {np.mean(width):.1f}"
                print(f"| {after} | {size:g} | {shares} |")


if __name__ == "__main__":
    tables = {"looks": looks_table, "steps": steps_table, "quantiles": quantiles_table, "changes": changes_table}
    tables[sys.argv[1]]()
