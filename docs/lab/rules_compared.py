"""How often rules for performance gates are wrong: ours and those in common use, on the same simulated measurements.

    python docs/lab/rules_compared.py                      # table to stdout, docs/figures/rules.svg and noise.svg
    python docs/lab/rules_compared.py --fit RUN --store results --models mine.json    # another machine's noise first

Noise: models fitted to A/A blocks (docs/lab/noise-2026-11-22.json). Every rule judges the same slowdowns; the others
get as many blocks as ours measures on average at the slowdown at which it takes longest. Two layouts: `A, then B`, one
side after the other in one process each (asv: two), as these tools are used; and `interleaved`, our blocks. In the
first, the machine's level moves from one block's length to the next as it was measured half a minute apart, which
favours it. An alarm is a rule's word that the candidate is slower. Deterministic for a seed.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rules_figures import noise_figure, rules_figure

from harness.calibration import clopper_pearson
from harness.noise import NoiseModel, Values, fit_noise_from_store
from harness.schedule import turns_of
from harness.sequential import Looks
from harness.simulation import GateRule, block_differences, judge
from harness.store import Store

HERE = Path(__file__).resolve().parent
MODELS = HERE / "noise-2026-11-22.json"
EFFECTS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.10)
PASSES = 25
PROMISE = 0.01  # the share of false alarms at which rules are compared
OURS = GateRule(looks=Looks((4, 8, 16), alpha=0.025), margin=0.005, limit=0.03)
CRITERION_SAMPLES, CRITERION_RESAMPLES = 100, 1000
ASV_SAMPLES = 20  # two processes of at most ten

Arms = tuple[Values, Values]  # seconds of iterations, [num, n] of the baseline and of the candidate
Scorer = Callable[[Arms], Values]


@dataclass(frozen=True)
class Rule:
    """Red where the score is above the threshold; the score is -inf where another condition of the rule fails."""

    name: str
    threshold: float
    score: Scorer
    processes: int = 1


@dataclass(frozen=True)
class Outcome:
    """The scores of one rule in one layout: effect -> score of every comparison."""

    name: str
    layout: str
    threshold: float
    scores: Mapping[float, Values]

    def rate(self, effect: float, threshold: float | None = None) -> float:
        """The share of alarms."""
        return float(np.mean(self.scores[effect] > (self.threshold if threshold is None else threshold)))

    def tuned(self, share: float = PROMISE) -> float:
        """The least threshold with at most this share of false alarms."""
        ordered = np.sort(self.scores[0.0])[::-1]
        return float(ordered[int(share * len(ordered))])


def relative(statistic: Callable[[Values], Values]) -> Scorer:
    """How much larger a statistic of the candidate is."""
    return lambda arms: statistic(arms[1]) / statistic(arms[0]) - 1


def median(x: Values) -> Values:
    """Of each row."""
    return np.asarray(np.median(x, axis=1))


def rank_z(arms: Arms) -> Values:
    """Mann and Whitney's U as a normal deviate, positive where the candidate is slower."""
    a, b = np.sort(arms[0], axis=1), arms[1]
    m, n = a.shape[1], b.shape[1]
    u = np.array([np.searchsorted(row, other).sum() for row, other in zip(a, b, strict=True)], dtype=float)
    return np.asarray((u - m * n / 2) / math.sqrt(m * n * (m + n + 1) / 12))


def bunched(x: Values, count: int) -> Values:
    """Means of `count` groups of successive iterations: a sample of tools that repeat within one."""
    size = x.shape[1] // count
    return np.asarray(x[:, : size * count].reshape(len(x), count, size).mean(axis=2))


def asv_score(arms: Arms) -> Values:
    """asv compare and continuous: the ratio of medians (factor 1.1), where Mann-Whitney's p is below 0.002."""
    a, b = (bunched(x, ASV_SAMPLES) for x in arms)
    return np.where(rank_z((a, b)) > 3.0902, median(b) / median(a) - 1, -math.inf)


def criterion_score(arms: Arms) -> Values:
    """criterion.rs: the lower end of the bootstrap interval of the change of the mean (95%, noise threshold 1%), where
    the bootstrapped t-test of the pooled samples has p < 0.05. Its 100,000 resamples are 1,000 here, shared."""
    a, b = (bunched(x, CRITERION_SAMPLES) for x in arms)
    n, rng = CRITERION_SAMPLES, np.random.default_rng(0)

    def weights(size: int) -> Values:
        picks = rng.integers(0, size, (CRITERION_RESAMPLES, n)) + size * np.arange(CRITERION_RESAMPLES)[:, None]
        return np.bincount(picks.ravel(), minlength=CRITERION_RESAMPLES * size).reshape(-1, size) / n

    def t(mean_a: Values, square_a: Values, mean_b: Values, square_b: Values) -> Values:
        variance = (square_a - mean_a**2 + square_b - mean_b**2) * n / (n - 1)
        return np.asarray((mean_b - mean_a) / np.sqrt(np.maximum(variance, 1e-300) / n))

    scale = a.mean(axis=1, keepdims=True)
    a, b = a / scale, b / scale
    both = np.concatenate([a, b], axis=1)
    w, v = weights(2 * n), weights(2 * n)
    null = t(both @ w.T, both**2 @ w.T, both @ v.T, both**2 @ v.T)
    seen = t(a.mean(axis=1), (a**2).mean(axis=1), b.mean(axis=1), (b**2).mean(axis=1))
    beyond = (null > seen[:, None]).mean(axis=1)
    p = 2 * np.minimum(beyond, 1 - beyond)
    changes = (b @ weights(n).T) / (a @ weights(n).T) - 1
    return np.where(p < 0.05, np.quantile(changes, 0.025, axis=1), -math.inf)


RULES = (
    Rule("median 5% slower", 0.05, relative(median)),
    Rule("median 7% slower", 0.07, relative(median)),
    Rule("median 10% slower (pytest-benchmark median:10%)", 0.10, relative(median)),
    Rule("pytest-benchmark mean:5%", 0.05, relative(lambda x: x.mean(axis=1))),
    Rule("pytest-benchmark min:5%", 0.05, relative(lambda x: x.min(axis=1))),
    Rule("rank test on pooled iterations, p < 0.05", 1.9600, rank_z),
    Rule("asv (factor 1.1, p < 0.002)", 0.10, asv_score, processes=2),
    Rule("criterion.rs (p < 0.05, noise threshold 1%)", 0.01, criterion_score),
)


def one_after_the_other(model: NoiseModel, seed: int, *, num: int, blocks: int, processes: int) -> Arms:
    """Iterations of A, then of B, for the time of `blocks` blocks together; no effect."""
    rng = np.random.default_rng([seed, 1, processes])
    half = blocks // 2
    logs = model.log_turns(rng, (0,) * 4 * PASSES, num=num, blocks=2 * half, effects=(0.0,), processes=2 * processes)
    seconds = model.iterate(rng, logs)
    return seconds[:, :half].reshape(num, -1), seconds[:, half:].reshape(num, -1)


def taking_turns(model: NoiseModel, seed: int, *, num: int, blocks: int) -> Arms:
    """Iterations of A and B from blocks of fresh processes that take turns; no effect."""
    rng = np.random.default_rng([seed, 2])
    arms = np.array(turns_of((0, 1), PASSES))
    seconds = model.iterate(rng, model.log_turns(rng, tuple(arms.tolist()), num=num, blocks=blocks))
    return seconds[:, :, arms == 0].reshape(num, -1), seconds[:, :, arms == 1].reshape(num, -1)


def our_differences(models: Sequence[NoiseModel], *, num: int, seed: int) -> list[Values]:
    """For each model [num, 32]: log differences of 16 blocks of unchanged code and of 16 fresh ones."""
    return [
        block_differences(model, np.random.default_rng([seed, 3]), num=num, blocks=32, passes=PASSES)
        for model in models
    ]


def our_outcome(drawn: Sequence[Values], rule: GateRule) -> tuple[Outcome, list[float]]:
    """Our scores, and the mean number of blocks at each effect (a slowdown shifts every log difference alike)."""
    last = rule.looks.blocks[-1]
    scores, used = dict[float, Values](), []
    for effect in EFFECTS:
        shifted = [differences + math.log1p(effect) for differences in drawn]
        found = [judge(d[:, :last], d[:, last : 2 * last], rule) for d in shifted]
        scores[effect] = np.concatenate([judged.score for judged in found])
        used.append(float(np.mean([judged.blocks.mean() for judged in found])))
    name = f"**ours** (margin {rule.margin:.1%}, looks {'/'.join(map(str, rule.looks.blocks))}, confirmed)"
    return Outcome(name, "interleaved", math.log1p(rule.margin), scores), used


def outcomes(models: Sequence[NoiseModel], *, num: int, blocks: int, seed: int) -> list[Outcome]:
    """The others' scores, in both layouts."""
    parts: dict[tuple[str, str], dict[float, list[Values]]] = {}
    for model in models:
        for processes in (1, 2):
            drawn = one_after_the_other(model, seed, num=num, blocks=blocks, processes=processes)
            for rule in RULES:
                if rule.processes == processes:
                    _score(parts, rule, "A, then B", drawn)
        drawn = taking_turns(model, seed, num=num, blocks=blocks)
        for rule in RULES:
            _score(parts, rule, "interleaved", drawn)
    return [
        Outcome(rule.name, layout, rule.threshold, {e: np.concatenate(s) for e, s in parts[rule.name, layout].items()})
        for layout in ("A, then B", "interleaved")
        for rule in RULES
    ]


def _score(parts: dict[tuple[str, str], dict[float, list[Values]]], rule: Rule, layout: str, drawn: Arms) -> None:
    for effect in EFFECTS:
        scores = rule.score((drawn[0], drawn[1] * (1 + effect)))
        parts.setdefault((rule.name, layout), {}).setdefault(effect, []).append(scores)


def table(found: Sequence[Outcome]) -> str:
    """Markdown: false alarms with their interval, power, and power where all raise the promised share."""
    shown = [f"+{e:.0%}" for e in EFFECTS[1:]]
    tuned = [f"{text}, tuned" for text in ("+3%", "+5%")]
    lines = [
        f"| rule | layout | false alarms (95% interval) | {' | '.join(shown)} | {' | '.join(tuned)} |",
        "|---|---|---|" + "---:|" * (len(shown) + len(tuned)),
    ]
    for outcome in found:
        scores = outcome.scores[0.0]
        hits = int(np.count_nonzero(scores > outcome.threshold))
        low, high = clopper_pearson(hits, len(scores))
        cells = [f"{outcome.rate(effect):.1%}" for effect in EFFECTS[1:]]
        cells += [f"{outcome.rate(effect, outcome.tuned()):.1%}" for effect in (0.03, 0.05)]
        alarms = f"{hits / len(scores):.2%} ({low:.2%} to {high:.2%})"
        lines.append(f"| {outcome.name} | {outcome.layout} | {alarms} | {' | '.join(cells)} |")
    return "\n".join(lines)


def settings_table(drawn: Sequence[Values]) -> str:
    """Our rule at other settings."""
    lines = [
        "| margin | first stage | spending | false alarms | +2% | +3% | +5% | blocks at 0% | blocks at +3% |",
        "|---:|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for margin in (0.01, 0.005, 0.0):
        for rows in (1, 30):
            for spending in ("obrien-fleming", "pocock"):
                alpha = 0.05 if rows > 1 else 0.025
                rule = GateRule(looks=Looks((4, 8, 16), alpha, spending), margin=margin, rows=rows)
                found, used = our_outcome(drawn, rule)
                stage = f"Holm over {rows} cases" if rows > 1 else "each case 2.5%"
                rates = " | ".join(f"{found.rate(effect):.1%}" for effect in (0.02, 0.03, 0.05))
                lines.append(
                    f"| {margin:.1%} | {stage} | {spending} | {found.rate(0.0):.2%} | {rates} "
                    f"| {used[0]:.1f} | {used[EFFECTS.index(0.03)]:.1f} |"
                )
    return "\n".join(lines)


def family_table(models: Sequence[NoiseModel], drawn: Sequence[Values]) -> str:
    """Our rule on each family by itself."""
    lines = [
        "| family | sd of a block's difference | process sd | switch | false alarms | +2% | +3% | +5% | blocks at 0% |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for model, differences in zip(models, drawn, strict=True):
        found, used = our_outcome([differences], OURS)
        rates = " | ".join(f"{found.rate(effect):.1%}" for effect in (0.02, 0.03, 0.05))
        lines.append(
            f"| {model.family} | {differences.std():.1%} | {model.process:.1%} | {math.expm1(model.switch):.0%} "
            f"| {found.rate(0.0):.2%} | {rates} | {used[0]:.1f} |"
        )
    return "\n".join(lines)


def read_models(path: Path) -> list[NoiseModel]:
    """The models of a JSON list."""
    return [NoiseModel.from_json(json.dumps(fields)) for fields in json.loads(path.read_text())]


def write_models(path: Path, models: Sequence[NoiseModel]) -> None:
    """A JSON list, one model a line."""
    path.write_text("[\n" + ",\n".join(json.dumps(asdict(model)) for model in models) + "\n]\n")


def main(argv: Sequence[str] | None = None) -> None:
    """The table to stdout, the figures to a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=500, help="comparisons of each family of cases and effect")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE.parent / "figures", help="folder of the figures")
    parser.add_argument("--models", type=Path, default=MODELS, help="JSON file of the noise models")
    parser.add_argument("--fit", nargs="+", metavar="RUN", help="first fit the models to these A/A runs of the store")
    parser.add_argument("--store", type=Path, default=Path("results"))
    asked = parser.parse_args(argv)
    if asked.fit:
        write_models(asked.models, list(fit_noise_from_store(Store.open(asked.store), asked.fit).values()))
    models = read_models(asked.models)
    drawn = our_differences(models, num=asked.simulations, seed=asked.seed)
    ours, used = our_outcome(drawn, OURS)
    blocks = 2 * math.ceil(max(used) / 2)
    others = outcomes(models, num=asked.simulations, blocks=blocks, seed=asked.seed)
    print(f"{asked.simulations} comparisons for each of {len(models)} families and each effect, seed {asked.seed}.")
    shown = ", ".join(f"{blocks:.1f} at {effect:.0%}" for effect, blocks in zip(EFFECTS, used, strict=True))
    print(f"Blocks that ours measures on average: {shown}; all others: {blocks}.\n")
    print(table([ours, *others]))
    print()
    print(family_table(models, drawn))
    print()
    print(settings_table(drawn))
    asked.out.mkdir(parents=True, exist_ok=True)
    rules_figure(asked.out / "rules.svg", [ours, *others], EFFECTS, PROMISE)
    noise_figure(asked.out / "noise.svg", models, seed=asked.seed)


if __name__ == "__main__":
    main()
