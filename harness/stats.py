"""Statistics of paired blocks: ratios with intervals, and what may be concluded from them. Torch-free, numpy only.

    estimate = paired_log_ratio(reference, candidate)     # one number per block and arm, in the same order
    verdict(estimate, margin=0.01, better="lower").name   # improved, regressed, equivalent, inconclusive, invalid

The unit of replication is the block (fresh processes), never the iteration. Everything is done on logarithms, so that a
ratio and its inverse are treated alike. Methods and figures: ../shared/MEASURING.md sections 3.5 and 3.6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from harness.core import Better, VerdictName
from harness.distributions import digamma, student_t_cdf, student_t_ppf, trigamma, trigamma_inverse
from harness.power import blocks_for, supported_effect
from harness.resampling import Values, bca_interval, sign_flip_p_value

__all__ = [
    "BCA_MIN_BLOCKS",
    "Estimate",
    "Values",
    "VariancePrior",
    "Verdict",
    "bca_interval",
    "blocks_for",
    "equivalence_p_value",
    "independent_log_ratio",
    "median",
    "minimum_detectable_effect",
    "noise",
    "p_value_beyond",
    "p_value_within",
    "paired_log_ratio",
    "quantile",
    "sign_flip_p_value",
    "student_t_cdf",
    "student_t_ppf",
    "supported_effect",
    "typical_interval",
    "variance_prior",
    "verdict",
]

_NORMAL = NormalDist()
_MAD_TO_SD = 1.482602218505602  # of a normal distribution
_MAX_BLOCKS = 10_000
BCA_MIN_BLOCKS = 20  # from here on the bootstrap, before that t
_PRIOR_WEIGHT = 2.0  # a prior is worth at most this many times a case's own degrees of freedom
_PRIOR_REACH = 2.0  # a case of more than this many times the prior's variance is another kind of case


def quantile(values: Sequence[float] | Values, q: float) -> float:
    """The q-quantile, interpolated linearly between order statistics (Hyndman and Fan's type 7, numpy's default).

    NaN if any value is; infinite values are values. Raises ValueError for no values or q outside 0..1.
    """
    if len(values) == 0 or not 0.0 <= q <= 1.0:
        raise ValueError(f"the quantile {q} of {len(values)} values is not defined")
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    if math.isnan(ordered[-1]):
        return math.nan
    index, part = divmod(q * (len(ordered) - 1), 1.0)
    low = float(ordered[int(index)])
    high = float(ordered[int(index) + 1]) if part else low
    return low if low == high else low + part * (high - low)


def median(values: Sequence[float] | Values) -> float:
    """The median."""
    return quantile(values, 0.5)


def noise(values: Sequence[float] | Values) -> float:
    """Robust relative spread: 1.4826 x median absolute deviation / |median|; estimates sd/mean of a normal series."""
    middle = median(values)
    if middle == 0.0 or not math.isfinite(middle):
        return math.nan
    return _MAD_TO_SD * median(np.abs(np.asarray(values, dtype=np.float64) - middle)) / abs(middle)


def typical_interval(block_medians: Sequence[float] | Values, *, confidence: float = 0.95) -> tuple[float, float]:
    """An interval for a series' typical value from its block medians: t on their logs (plain where one is <= 0).

    Widened, where need be, to hold the median of the block medians, the number shown with it. NaN for one block.
    """
    values = np.asarray(block_medians, dtype=np.float64)
    if len(values) < 2 or not np.all(np.isfinite(values)):
        return math.nan, math.nan
    logs = bool(np.all(values > 0))
    scaled = np.log(values) if logs else values
    half = student_t_ppf(0.5 + confidence / 2, len(values) - 1) * float(np.std(scaled, ddof=1)) / math.sqrt(len(values))
    centre = float(np.mean(scaled))
    low, high = (math.exp(centre - half), math.exp(centre + half)) if logs else (centre - half, centre + half)
    return min(low, median(values)), max(high, median(values))


@dataclass(frozen=True, slots=True)
class Estimate:
    """The ratio candidate / reference with its interval.

    `sd` is the per-block standard deviation of the log ratio as used (after moderation), NaN where unknown; `df` its
    degrees of freedom. One block without a prior has the interval 0..inf.
    """

    ratio: float
    low: float
    high: float
    confidence: float
    num_blocks: int
    sd: float
    df: float
    method: str


@dataclass(frozen=True, slots=True)
class VariancePrior:
    """What the variances of a suite's cases have in common: worth `df` degrees of freedom of its own."""

    variance: float
    df: float


def variance_prior(variances: Sequence[float], dfs: Sequence[float]) -> VariancePrior | None:
    """The prior of Smyth (2004, section 6.2): moments of the log variances of several cases; None for fewer than three.

    Zero variances (deterministic metrics) say nothing about noise and are left out. Where the variances differ no more
    than chance explains, the prior would be worth infinitely many degrees of freedom: capped at twice a case's own.
    """
    used = [(s2, d) for s2, d in zip(variances, dfs, strict=True) if s2 > 0 and math.isfinite(s2) and d > 0]
    if len(used) < 3:
        return None
    logs = [math.log(s2) - digamma(d / 2) + math.log(d / 2) for s2, d in used]
    centre = math.fsum(logs) / len(logs)
    spread = math.fsum((e - centre) ** 2 for e in logs) / (len(logs) - 1)
    excess = spread - math.fsum(trigamma(d / 2) for _, d in used) / len(used)
    cap = _PRIOR_WEIGHT * max(d for _, d in used)
    if excess <= 0:
        return VariancePrior(math.exp(centre), cap)
    df = 2.0 * trigamma_inverse(excess)
    return VariancePrior(math.exp(centre + digamma(df / 2) - math.log(df / 2)), min(df, cap))


def _moderate(variance: float, df: float, prior: VariancePrior | None) -> tuple[float, float]:
    """A case's variance and degrees of freedom with the prior's help; never a variance below the case's own.

    Smyth's moderated variance lends a case the others' degrees of freedom. That is right for alike cases and wrong for
    one that is really noisier: simulated with one case of ten at five times the others' sd and 4 blocks, its 95%
    interval covered 81% and false alarms at a 1% margin were 12%. So the moderated variance is used only upwards (max
    with the case's own), and a case above twice the prior's variance keeps its own variance and degrees of freedom:
    it then covers 94% with 3.7% false alarms, alike cases 96%, and power at +3% is 73% where plain t has 60%.
    """
    if prior is None:
        return variance, df
    if df == 0:
        return prior.variance, prior.df
    if variance > _PRIOR_REACH * prior.variance:
        return variance, df
    weight = min(prior.df, _PRIOR_WEIGHT * df)
    return max(variance, (weight * prior.variance + df * variance) / (weight + df)), weight + df


def _logs(name: str, values: Sequence[float] | Values) -> Values:
    found = np.asarray(values, dtype=np.float64)
    wrong = [f"{name}[{i}] = {v:g}" for i, v in enumerate(found.tolist()) if not (v > 0 and math.isfinite(v))]
    if wrong or len(found) == 0:
        raise ValueError(f"a ratio needs positive, finite values: {', '.join(wrong[:5]) or name + ' has none'}")
    return np.log(found)


def paired_log_ratio(
    reference: Sequence[float] | Values,
    candidate: Sequence[float] | Values,
    *,
    confidence: float = 0.95,
    prior: VariancePrior | None = None,
    method: Literal["auto", "t", "bca"] = "auto",
    seed: int = 0,
) -> Estimate:
    """exp(mean of log(candidate_k / reference_k)) over blocks k, with its interval.

    `t`: Student's t, its variance moderated by `prior` (see `_moderate`); `bca`: bootstrap for many blocks, whose
    distribution speaks for itself; `auto`: bca from 20 blocks. Block ratios that are all equal give a zero-width
    interval, whatever the prior: a deterministic metric. Raises ValueError naming values not positive and finite.
    """
    if len(reference) != len(candidate):
        raise ValueError(f"blocks do not pair: {len(reference)} of the reference, {len(candidate)} of the candidate")
    d = _logs("candidate", candidate) - _logs("reference", reference)
    num_blocks, mean = len(d), float(np.mean(d))
    variance = float(np.var(d, ddof=1)) if num_blocks > 1 else math.nan
    if num_blocks > 1 and float(np.ptp(d)) < 1e-12:
        ratio = float(candidate[0] / reference[0])
        return Estimate(ratio, ratio, ratio, confidence, num_blocks, 0.0, num_blocks - 1.0, "t")
    if method == "bca" or (method == "auto" and num_blocks >= BCA_MIN_BLOCKS):
        low, high = bca_interval(d, confidence=confidence, seed=seed, expand=True)
        sd, df = math.sqrt(variance), num_blocks - 1.0
        return Estimate(math.exp(mean), math.exp(low), math.exp(high), confidence, num_blocks, sd, df, "bca")
    used, df = _moderate(variance, num_blocks - 1.0, prior)
    return _t_estimate(
        mean, math.sqrt(used), df, confidence, num_blocks, "t" if df == num_blocks - 1 else "moderated t"
    )


def independent_log_ratio(
    reference: Sequence[float] | Values, candidate: Sequence[float] | Values, *, confidence: float = 0.95
) -> Estimate:
    """The ratio of two runs that share no blocks: Welch's t on the log block values.

    NOTE: what changed on the machine between the runs is in the ratio, and not in the interval. `num_blocks` is the
    smaller of both, `sd` is scaled so that sd / sqrt(num_blocks) is the standard error. Raises ValueError as above.
    """
    a, b = _logs("reference", reference), _logs("candidate", candidate)
    mean, num_blocks = float(np.mean(b) - np.mean(a)), min(len(a), len(b))
    if num_blocks < 2:
        return _t_estimate(mean, math.nan, 0.0, confidence, num_blocks, "welch t")
    parts = [float(np.var(x, ddof=1)) / len(x) if float(np.ptp(x)) > 1e-12 else 0.0 for x in (a, b)]
    total = sum(parts)
    df = total**2 / sum(p**2 / (len(x) - 1) for p, x in zip(parts, (a, b), strict=True)) if total > 0 else math.inf
    return _t_estimate(mean, math.sqrt(total * num_blocks), df, confidence, num_blocks, "welch t")


def _t_estimate(mean: float, sd: float, df: float, confidence: float, num_blocks: int, method: str) -> Estimate:
    if not df > 0 or math.isnan(sd):
        return Estimate(math.exp(mean), 0.0, math.inf, confidence, num_blocks, math.nan, 0.0, method)
    half = student_t_ppf(0.5 + confidence / 2, df) * sd / math.sqrt(num_blocks)
    low, high = math.exp(mean - half), math.exp(min(mean + half, 700.0))
    return Estimate(math.exp(mean), low, high, confidence, num_blocks, sd, df, method)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an estimate says against a margin.

    `minimum_detectable_effect`: the smallest true relative change that as many blocks of this noise would show as
    beyond the margin with 80% power (inf where unknown). `blocks_to_decide`: how many blocks would decide if ratio and
    noise stayed as they are; None unless inconclusive, or where no number up to 10,000 would.
    """

    name: VerdictName
    minimum_detectable_effect: float
    blocks_to_decide: int | None
    reason: str


def verdict(estimate: Estimate | None, *, margin: float, better: Better, invalid: str | None = None) -> Verdict:
    """Judge candidate / reference: regressed, improved, equivalent, inconclusive or invalid.

    `regressed` or `improved` if the whole interval is beyond the margin, `equivalent` if it lies within
    1/(1+margin)..1+margin, else `inconclusive`; `invalid` for the reason given, or if nothing was measured. A metric
    for which neither direction is better is never improved or regressed.
    """
    if invalid is not None or estimate is None or estimate.num_blocks == 0 or not math.isfinite(estimate.ratio):
        return Verdict("invalid", math.inf, None, invalid or "nothing was measured")
    effect = minimum_detectable_effect(estimate, margin=margin)
    lower, upper = 1.0 / (1.0 + margin), 1.0 + margin
    beyond = "above" if estimate.low > upper else "below" if estimate.high < lower else None
    shown = f"{estimate.ratio:.4g} ({estimate.low:.4g} to {estimate.high:.4g})"
    if beyond is not None and better != "neither":
        name: VerdictName = "improved" if (beyond == "above") == (better == "higher") else "regressed"
        return Verdict(name, effect, None, f"ratio {shown} lies {beyond} the margin of {margin:.1%}")
    if beyond is not None:
        return Verdict("inconclusive", effect, None, f"ratio {shown}: it changed, but neither direction is better")
    if lower <= estimate.low and estimate.high <= upper:
        return Verdict("equivalent", effect, None, f"ratio {shown} lies within the margin of {margin:.1%}")
    if not estimate.df > 0:
        return Verdict("inconclusive", effect, None, f"ratio {estimate.ratio:.4g}: one block has no interval")
    blocks = _blocks_to_decide(estimate, margin)
    more = f"about {blocks} blocks would decide" if blocks else f"no number of blocks up to {_MAX_BLOCKS} would decide"
    reason = f"ratio {shown} reaches across the margin of {margin:.1%}; changes from {effect:.1%} would show; {more}"
    return Verdict("inconclusive", effect, blocks, reason)


def p_value_beyond(
    estimate: Estimate, *, margin: float, better: Better, side: Literal["worse", "better"] = "worse"
) -> float:
    """One-sided p-value of "the true change on this side is at most the margin"; small means: it is beyond it.

    Below (1 - confidence) / 2 exactly where `verdict` says `regressed` (side worse) or `improved` (better). NaN where
    neither direction is better: there is nothing to test. 1 for one block, whose noise is unknown.
    """
    if better == "neither":
        return math.nan
    return _p_value(estimate, margin, above=(better == "lower") == (side == "worse"), beyond=True)


def p_value_within(estimate: Estimate, *, limit: float, better: Better) -> float:
    """One-sided p-value of "it got worse by the limit or more"; small means: a loss of that size is excluded.

    The test behind a gate's promise (non-inferiority). NaN where neither direction is better.
    """
    if better == "neither":
        return math.nan
    return _p_value(estimate, limit, above=better == "lower", beyond=False)


def equivalence_p_value(estimate: Estimate, *, margin: float) -> float:
    """Two one-sided tests (Schuirmann 1987): the p-value of "the true change is the margin or more", either way.

    Below (1 - confidence) / 2 exactly where a two-sided interval lies within the margins, so `equivalent` at 95% asks
    for 2.5%: stricter than the usual 5% of this test, which belongs to the 90% interval.
    """
    if estimate.method != "bca" and estimate.df > 0:  # symmetric: the nearer margin has the larger p-value
        return _p_value(estimate, margin, above=estimate.ratio > 1.0, beyond=False)
    return max(_p_value(estimate, margin, above=above, beyond=False) for above in (True, False))


def _p_value(estimate: Estimate, margin: float, *, above: bool, beyond: bool) -> float:
    """Student's t of the log ratio's distance from the margin above (or below) 1.

    A bootstrapped interval is not symmetric: its standard error is read from the end that looks at the margin, so that
    test and interval agree at the interval's confidence.
    """
    bound = 1.0 + margin if above else 1.0 / (1.0 + margin)
    facing_low = above == beyond
    if estimate.sd == 0.0:
        if beyond:
            return float(not (estimate.ratio > bound if above else estimate.ratio < bound))
        return float(not (estimate.ratio <= bound if above else estimate.ratio >= bound))
    if not estimate.df > 0 or math.isnan(estimate.sd):
        return 1.0
    if estimate.method == "bca":
        width = math.log(estimate.ratio / estimate.low if facing_low else estimate.high / estimate.ratio)
        error = width / student_t_ppf(0.5 + estimate.confidence / 2, estimate.df)
    else:
        error = estimate.sd / math.sqrt(estimate.num_blocks)
    distance = math.log(estimate.ratio) - math.log(bound)
    if not error > 0:
        return float(distance <= 0.0) if facing_low else float(distance >= 0.0)
    return student_t_cdf((-distance if facing_low else distance) / error, estimate.df)


def minimum_detectable_effect(estimate: Estimate, *, margin: float, power: float = 0.8) -> float:
    """The smallest true relative change shown as beyond the margin with this power; inf where the noise is unknown."""
    if not estimate.df > 0 or math.isnan(estimate.sd):
        return math.inf
    quantiles = student_t_ppf(0.5 + estimate.confidence / 2, estimate.df) + student_t_ppf(power, estimate.df)
    return math.expm1(min(math.log1p(margin) + quantiles * estimate.sd / math.sqrt(estimate.num_blocks), 700.0))


def _blocks_to_decide(estimate: Estimate, margin: float) -> int | None:
    """The fewest blocks whose interval about the present ratio would lie wholly beyond or wholly within the margin."""
    room = abs(abs(math.log(estimate.ratio)) - math.log1p(margin))
    lent = max(estimate.df - (estimate.num_blocks - 1), 0.0)
    level = 0.5 + estimate.confidence / 2
    if not room > 0 or (_NORMAL.inv_cdf(level) * estimate.sd / room) ** 2 >= _MAX_BLOCKS:
        return None
    # The normal's count is a lower bound, and t's lies a few blocks above it.
    blocks = max(estimate.num_blocks + 1, math.ceil((_NORMAL.inv_cdf(level) * estimate.sd / room) ** 2))
    # The half-width t(level) * sd / sqrt(blocks) still reaches the margin; asked of the cdf, ten times as fast as t.
    while student_t_cdf(room * math.sqrt(blocks) / estimate.sd, blocks - 1 + lent) <= level:
        blocks += 1
    return blocks if blocks <= _MAX_BLOCKS else None
