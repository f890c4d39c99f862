"""Every Triton kernel on the CPU, through triton's interpreter: a tool for correctness, never timed.

The tests themselves are interpreted/check_*.py. They need TRITON_INTERPRET=1 before triton is imported, so they run in
a pytest of their own; its output, with a line for every case, is this test's output (`pytest -rA`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed (pip install --no-deps triton)")
CHECKS = sorted((Path(__file__).parent / "interpreted").glob("check_*.py"))


def test_interpreted(interpret: Callable[[Iterable[Path]], Counter[str]]) -> None:
    """NOTE: a file that passes with no test in it would mean nothing, hence the counts."""
    passed = interpret(CHECKS)
    assert set(passed) == {path.stem for path in CHECKS} >= {"check_elementwise", "check_options"}
    assert all(count > 5 for count in passed.values()), passed


def test_a_failure_in_there_is_a_failure_here(
    interpret: Callable[[Iterable[Path]], Counter[str]], tmp_path: Path
) -> None:
    """And so is a skipped test."""
    path = tmp_path / "check_it.py"
    path.write_text("def test_it(): pass")
    assert interpret([path]) == {"check_it": 1}
    for body in ("assert False", "__import__('pytest').skip('no')"):
        path.write_text(f"def test_it(): pass\n\ndef test_other(): {body}")
        with pytest.raises(AssertionError, match=r"1 (failed|skipped)|1 passed, 1 skipped"):
            interpret([path])
