"""The negative control does the same work each time, and says so only when the machine moved."""

from __future__ import annotations

import pytest

from harness.control import MIN_HISTORY, control_moved, make_control

QUIET = {"matmul_fp32": 5e-4, "matmul_bf16": 1.2e-4, "copy": 5e-3, "tiny": 4e-4}


def scaled(**factors: float) -> dict[str, float]:
    return {name: seconds * factors.get(name, 1.0) for name, seconds in QUIET.items()}


def test_the_same_machine_has_not_moved() -> None:
    history = [scaled(copy=1 + 0.02 * step) for step in range(6)]
    assert control_moved(history, scaled(copy=1.3, tiny=0.8)) is None


def test_a_slower_piece_is_named_with_its_factor() -> None:
    reason = control_moved([QUIET] * 5, scaled(copy=3.2, matmul_fp32=6.0))
    assert reason is not None and "matmul_fp32" in reason and "6.00 times slower" in reason


def test_a_faster_machine_has_moved_too() -> None:
    reason = control_moved([QUIET] * 5, scaled(matmul_fp32=1 / 4))
    assert reason is not None and "matmul_fp32" in reason and "faster" in reason


def test_the_modes_of_amx_and_a_shared_core_are_noise() -> None:
    """bf16 products flip between two speeds by themselves; what is judged may differ by less than three times."""
    assert control_moved([QUIET] * 5, scaled(matmul_bf16=1 / 4)) is None
    assert control_moved([QUIET] * 5, scaled(tiny=2.2, matmul_fp32=1 / 2.2)) is None


def test_one_bad_control_in_the_history_does_not_move_the_median() -> None:
    history = [QUIET, QUIET, scaled(copy=50.0), QUIET, QUIET]
    assert control_moved(history, QUIET) is None
    assert control_moved(history, scaled(copy=50.0)) is not None


def test_tolerance_decides() -> None:
    assert control_moved([QUIET] * 3, scaled(tiny=1.2), tolerance=0.1) is not None
    assert control_moved([QUIET] * 3, scaled(tiny=1.2), tolerance=0.3) is None


def test_too_little_history_and_unknown_pieces_say_nothing() -> None:
    assert control_moved([QUIET] * (MIN_HISTORY - 1), scaled(copy=9.0)) is None
    assert control_moved([QUIET] * 5, {"new": 1.0}) is None
    assert control_moved([], QUIET) is None


def test_the_control_runs_four_pieces_again_and_again_and_allocates_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    control = make_control("cpu")
    first = control()
    for name in ("empty", "zeros", "ones", "rand", "empty_like"):
        monkeypatch.setattr(torch, name, lambda *args, **kwargs: pytest.fail("allocates in the timed part"))
    second = control()
    assert set(first) == set(second) == set(QUIET)
    assert all(0.0 < seconds < 60.0 for seconds in [*first.values(), *second.values()])
