"""What a number of blocks can detect, and how many blocks an effect takes: planning before measuring. Torch-free.

    supported_effect(0.02, 8, margin=0.01, alpha=0.025, power=0.8)   # 0.034: eight blocks of 2% noise show 3.4%
    blocks_for(0.03, 0.02, margin=0.01, alpha=0.025, power=0.8)      # 11

Noise is the standard deviation of one block's log ratio; alpha is one-sided (0.025 for a two-sided 95% interval). The
power is that of the noncentral t distribution (normal noise, estimated from the blocks), not a sum of two quantiles.
Refuses what is no noise, level or power (ValueError).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from harness.distributions import student_t_ppf

_NODES = 240  # of the quadrature over the noise's own estimate: power to 0.001 even at 1e-5 and two blocks
MAX_BLOCKS = 10_000


def supported_effect(
    sd: float, blocks: int, *, margin: float, alpha: float, power: float, df: float | None = None
) -> float:
    """The true relative change that a gate of this many blocks shows as beyond the margin with this power.

    sd: of one block's log ratio. df: degrees of freedom of the noise, `blocks - 1` unless a prior lends some. With
    margin=0 it is also the smallest limit that unchanged code is shown to keep with this power. For several looks, take
    the last look's nominal alpha: earlier ones can only add. inf for one block without a prior.
    """
    if not (sd >= 0 and blocks >= 1 and margin >= 0):
        raise ValueError(f"no effect for a noise of {sd}, {blocks} blocks and a margin of {margin}")
    freedom = blocks - 1.0 if df is None else df
    if not freedom > 0:
        return math.inf
    distance = _noncentrality(freedom, alpha, power) * sd / math.sqrt(blocks)
    return math.expm1(min(math.log1p(margin) + distance, 700.0))


def blocks_for(effect: float, sd: float, *, margin: float, alpha: float, power: float, lent: float = 0.0) -> int | None:
    """The fewest blocks (at least 2) that show this true change as beyond the margin with this power.

    lent: degrees of freedom from a prior. None where the change is not beyond the margin or takes over 10,000 blocks.
    """
    if not effect > margin:
        return None

    def enough(blocks: int) -> bool:
        found = supported_effect(sd, blocks, margin=margin, alpha=alpha, power=power, df=blocks - 1 + lent)
        return found <= effect

    low, high = 1, 2
    while not enough(high):
        if high >= MAX_BLOCKS:
            return None
        low, high = high, min(2 * high, MAX_BLOCKS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


@lru_cache(maxsize=4096)
def _noncentrality(df: float, alpha: float, power: float) -> float:
    """By how many standard errors the truth must lie beyond a bound for t at one-sided `alpha` to show it."""
    if not (0 < alpha < 1 and 0 < power < 1):
        raise ValueError(f"alpha and power lie between 0 and 1, not {alpha} and {power}")
    critical = student_t_ppf(1 - alpha, df)
    low, high = -40.0, 2.0
    while _noncentral_t_tail(critical, df, high) < power:
        high *= 2.0
    while high - low > 1e-7 * max(1.0, abs(high)):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _noncentral_t_tail(critical, df, middle) < power else (low, middle)
    return high


def _noncentral_t_tail(critical: float, df: float, shift: float) -> float:
    """P(T > critical) of the noncentral t: the normal's tail, averaged over the noise that was estimated."""
    scale, weight = _scale_nodes(df)
    return float(np.dot(weight, [0.5 * math.erfc((critical * s - shift) / math.sqrt(2.0)) for s in scale.tolist()]))


@lru_cache(maxsize=1)
def _legendre() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    return nodes, weights


@lru_cache(maxsize=512)
def _scale_nodes(df: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Values and weights of s / sigma, which is distributed as sqrt(chi-squared / df), by Gauss-Legendre."""
    if math.isinf(df):
        return np.ones(1), np.ones(1)
    nodes, weights = _legendre()
    # NOTE: with few degrees of freedom the density reaches down to 0 and is not smooth there.
    low, high = max(0.0, 1.0 - 9.0 / math.sqrt(2 * df)), 1.0 + 9.0 / math.sqrt(2 * df)
    s = 0.5 * (high - low) * nodes + 0.5 * (high + low)
    log_density = (df - 1) * np.log(s) - 0.5 * df * s**2
    w = weights * np.exp(log_density - np.max(log_density))
    return s, w / np.sum(w)
