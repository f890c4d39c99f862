"""Without a GPU Triton is interpreted or compiles ahead of time: two things that exclude each other in one process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def interpret() -> Callable[[Iterable[Path]], Counter[str]]:
    """Runs files of tests in one pytest of their own under TRITON_INTERPRET=1, prints what it said, and returns how
    many tests of each file (by name) passed; fails unless every one did."""

    def run(paths: Iterable[Path]) -> Counter[str]:
        # No dash: its pytest plugin warns, and for files elsewhere our configuration does not keep it out.
        flags = ["-v", "--no-header", "-p", "no:cacheprovider", "-p", "no:dash"]
        command = [sys.executable, "-m", "pytest", *flags, *map(str, paths)]
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        child = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200, check=False
        )
        print(child.stdout, child.stderr, sep="\n")
        passed = Counter(re.findall(r"^(?:\S*/)?(check_\w+)\.py::.* PASSED", child.stdout, re.M))
        *_, last = child.stdout.strip().splitlines() or ["nothing was printed"]
        assert child.returncode == 0 and f" {passed.total()} passed in " in f" {last.strip('= ')} ", last
        return passed

    return run
