"""How long the statistics of 10,000 cases take: estimates, verdicts, a shared prior, p-values, Holm and BH.

python docs/lab/statistics_speed.py
"""

from __future__ import annotations

import time

import numpy as np

from harness.multiplicity import benjamini_hochberg, holm
from harness.stats import equivalence_p_value, p_value_beyond, paired_log_ratio, variance_prior, verdict


def seconds(num_cases: int, num_blocks: int) -> tuple[float, str]:
    """Wall seconds of the whole chain, and the method that the intervals were made by."""
    rng = np.random.default_rng(0)
    a, b = np.exp(rng.normal(0.0, 0.02, (2, num_cases, num_blocks)))
    start = time.perf_counter()
    variances = np.log(b / a).var(axis=1, ddof=1).tolist()
    prior = variance_prior(variances, [num_blocks - 1.0] * num_cases)
    found = [paired_log_ratio(x, y, prior=prior) for x, y in zip(a, b, strict=True)]
    for estimate in found:
        verdict(estimate, margin=0.01, better="lower")
        equivalence_p_value(estimate, margin=0.01)
    worse = [p_value_beyond(estimate, margin=0.01, better="lower") for estimate in found]
    holm(worse)
    benjamini_hochberg(worse)
    return time.perf_counter() - start, found[0].method


if __name__ == "__main__":
    print("| cases | blocks | method | seconds |\n|---:|---:|---|---:|")
    for num_blocks in (4, 8, 16, 30):
        taken, method = seconds(10_000, num_blocks)
        print(f"| 10,000 | {num_blocks} | {method} | {taken:.2f} |")
