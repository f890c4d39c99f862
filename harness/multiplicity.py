"""P-values of many tests, adjusted for how many there were: Holm for a gate set, Benjamini-Hochberg else. Torch-free.

    holm([0.01, 0.04, 0.03])                  # [0.03, 0.06, 0.06]: compare each with alpha
    benjamini_hochberg([0.01, 0.04, 0.03])    # [0.03, 0.04, 0.04]

NaN is a test that was not made (nothing measured, no better direction): it stays NaN and does not count into the
family, so it can neither be significant nor make the others stricter. A test that was made and says nothing has the
p-value 1 and counts. Refuses numbers outside 0..1 (ValueError).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["benjamini_hochberg", "holm"]

_Floats = NDArray[np.float64]


def holm(p_values: Sequence[float] | _Floats) -> list[float]:
    """Holm's (1979) step-down: rejecting where the result is at most alpha, the chance of any false alarm is <= alpha.

    Holds however the tests depend on each other. The i-th smallest of m is multiplied by m - i + 1.
    """

    def step_down(p: _Floats) -> _Floats:
        return np.maximum.accumulate(p * (len(p) - np.arange(len(p))))

    return _adjusted(p_values, step_down)


def benjamini_hochberg(p_values: Sequence[float] | _Floats) -> list[float]:
    """Benjamini and Hochberg's (1995) step-up: rejecting where the result is at most q, the false ones expected among
    the rejected are a share of at most q.

    Holds for independent tests and for positively dependent ones (Benjamini and Yekutieli 2001), such as cases that
    share a machine's moods. The i-th smallest of m is multiplied by m / i.
    """

    def step_up(p: _Floats) -> _Floats:
        scaled = p * (len(p) / np.arange(1, len(p) + 1))
        return np.minimum.accumulate(scaled[::-1])[::-1]

    return _adjusted(p_values, step_up)


def _adjusted(p_values: Sequence[float] | _Floats, rule: Callable[[_Floats], _Floats]) -> list[float]:
    """The rule applied to the ascending p-values that are numbers, put back into the given order, at most 1."""
    p = np.asarray(p_values, dtype=np.float64)
    made = ~np.isnan(p)
    if np.any((p[made] < 0) | (p[made] > 1)):
        raise ValueError(f"p-values lie in 0..1, not {p[made & ((p < 0) | (p > 1))].tolist()[:5]}")
    order = np.flatnonzero(made)[np.argsort(p[made], kind="stable")]
    adjusted = p.copy()
    adjusted[order] = np.minimum(rule(p[order]), 1.0)
    return [float(x) for x in adjusted]
