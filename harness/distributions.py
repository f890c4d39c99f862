"""The few distributions that the statistics need, without scipy: Student's t, digamma, trigamma. Standard library only.

    student_t_ppf(0.975, 5)      # 2.5706: half a 95% interval of five degrees of freedom, in standard errors

Degrees of freedom need not be whole; inf is the normal distribution. Refuses df <= 0 and p outside 0..1 (ValueError).
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

_NORMAL = NormalDist()


def _log_beta_half(a: float) -> float:
    """log B(a, 1/2), without the cancellation of lgamma for large a (Stirling series of the ratio)."""
    if a < 40.0:
        return math.lgamma(a) + math.lgamma(0.5) - math.lgamma(a + 0.5)
    ratio = 0.5 * math.log(a) - 1 / (8 * a) + 1 / (192 * a**3) - 1 / (640 * a**5) + 17 / (14336 * a**7)
    return math.lgamma(0.5) - ratio


def _beta_fraction(x: float, a: float, b: float) -> float:
    """The continued fraction of the incomplete beta function, by Lentz's method (Numerical Recipes, 6.4)."""
    tiny = 1e-300
    c, d = 1.0, 1.0 - (a + b) * x / (a + 1.0)
    d = 1.0 / (d if abs(d) > tiny else tiny)
    h = d
    for m in range(1, 10_000):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 + numerator * d
            d = 1.0 / (d if abs(d) > tiny else tiny)
            c = 1.0 + numerator / c
            c = c if abs(c) > tiny else tiny
            h *= d * c
        if abs(d * c - 1.0) < 1e-15:
            break
    return h


def _upper_tail(t: float, df: float) -> float:
    """P(T > t) for t >= 0."""
    if df > 1e6:  # Wallace (1959): a normal deviate whose error is of the order df**-2; the fraction would be slow
        z = t if math.isinf(df) else (8 * df + 1) / (8 * df + 3) * math.sqrt(df * math.log1p(t * t / df))
        return 0.5 * math.erfc(z / math.sqrt(2.0))
    a, b = 0.5 * df, 0.5
    log_x = -math.log1p(t * t / df) if t < 1e150 else math.log(df) - 2 * math.log(t)
    log_y = 2 * math.log(t) - math.log(df) + log_x if t > 0 else -math.inf
    front = math.exp(a * log_x + b * log_y - _log_beta_half(a))
    x = math.exp(log_x)
    if x < (a + 1.0) / (a + b + 2.0):
        return 0.5 * front * _beta_fraction(x, a, b) / a
    return 0.5 - 0.5 * front * _beta_fraction(math.exp(log_y), b, a) / b


def _density(t: float, df: float) -> float:
    if math.isinf(df):
        return _NORMAL.pdf(t)
    return math.exp(-0.5 * (df + 1) * math.log1p(t * t / df) - 0.5 * math.log(df) - _log_beta_half(0.5 * df))


def student_t_cdf(t: float, df: float) -> float:
    """P(T <= t) of Student's t with `df` > 0 degrees of freedom (not necessarily whole; inf is the normal)."""
    _check_df(df)
    return 1.0 - _upper_tail(t, df) if t >= 0 else _upper_tail(-t, df)


@lru_cache(maxsize=4096)
def student_t_ppf(p: float, df: float) -> float:
    """The quantile t with P(T <= t) = p, 0 < p < 1; relative error below 1e-9.

    Newton's method, on the logarithms in the tail, kept inside a bracket that is halved where a step would leave it.
    """
    _check_df(df)
    if not 0.0 < p < 1.0:
        raise ValueError(f"p must lie strictly between 0 and 1, not {p}")
    tail = min(p, 1.0 - p)
    low, high = 0.0, 1.0
    while _upper_tail(high, df) > tail and high < 1e300:
        low, high = high, 2.0 * high
    t = 0.5 * (low + high)
    for _ in range(200):
        found, slope = _upper_tail(t, df), _density(t, df)
        low, high = (t, high) if found > tail else (low, t)
        if found > 0.25 or found == 0.0 or slope == 0.0:
            new = t + (found - tail) / slope if slope else 0.5 * (low + high)
        else:
            new = t * math.exp(min(math.log(found / tail) * found / (slope * t), 700.0))
        new = new if low < new < high else 0.5 * (low + high)
        if abs(new - t) <= 1e-14 * new:
            break
        t = new
    return math.copysign(t, p - 0.5) if tail < 0.5 else 0.0


def _check_df(df: float) -> None:
    if not df > 0:
        raise ValueError(f"degrees of freedom must be positive, not {df}")


def digamma(x: float) -> float:
    """The derivative of log gamma at x > 0, by its asymptotic series from 10 on (Abramowitz and Stegun 6.3.18)."""
    shift = 0.0
    while x < 10.0:
        shift, x = shift - 1.0 / x, x + 1.0
    y = 1.0 / (x * x)
    return shift + math.log(x) - 0.5 / x - y * (1 / 12 - y * (1 / 120 - y * (1 / 252 - y * (1 / 240 - y / 132))))


def trigamma(x: float) -> float:
    """The derivative of digamma at x > 0 (Abramowitz and Stegun 6.4.12)."""
    shift = 0.0
    while x < 10.0:
        shift, x = shift + 1.0 / (x * x), x + 1.0
    y = 1.0 / (x * x)
    return shift + 1.0 / x + y / 2 + y / x * (1 / 6 - y * (1 / 30 - y * (1 / 42 - y * (1 / 30 - y * 5 / 66))))


def trigamma_inverse(value: float) -> float:
    """x with trigamma(x) = value > 0, by Newton on 1/trigamma, which is nearly linear (Smyth 2004, appendix)."""
    x = 0.5 + 1.0 / value
    for _ in range(50):
        found = trigamma(x)
        slope = (trigamma(x * (1 + 1e-6)) - trigamma(x * (1 - 1e-6))) / (2e-6 * x)
        step = found * (1.0 - found / value) / slope
        x += step
        if abs(step) < 1e-10 * x:
            break
    return x
