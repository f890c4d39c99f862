"""Every case of every suite as a pytest-benchmark test: `pytest suites/ --benchmark-only`."""

import pytest

from harness.pytest_plugin import replay, replay_clock


@pytest.mark.benchmark(timer=replay_clock)
def test_case(planned, benchmark, measured_suites):
    """Replays what the harness measured for this case."""
    replay(benchmark, planned, measured_suites)
