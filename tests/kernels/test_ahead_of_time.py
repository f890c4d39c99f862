"""Every Triton kernel is compiled for sm_80 and sm_90 with no GPU present; a register spilled to memory is a failure.

Kernels are found through the tables in their modules (`kernels.ahead_of_time`), so that a new one is covered by being
written. In a child process, because compiling and TRITON_INTERPRET exclude each other, and with a limit on its time,
because a bad configuration can take minutes. `pytest -rA` shows the table.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kernels.ahead_of_time import CAPABILITIES, kernel_modules

pytest.importorskip("triton", reason="triton is not installed (pip install --no-deps triton)")
ROOT = Path(__file__).resolve().parents[2]
SECONDS = 400
TABLES = kernel_modules()


def run(*command: str) -> str:
    """stdout of a Python child that compiles."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    child = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    return child.stdout


def test_every_module_that_defines_a_kernel_has_a_table() -> None:
    """A kernel that nobody compiles could spill unseen."""
    for path in sorted((ROOT / "kernels").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        defined = {
            line[4:].partition("(")[0] for line in text.splitlines() if line.startswith("def ") and "_kernel(" in line
        }
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if "@jit" in text and name != "kernels._triton":
            entries = TABLES[name]
            assert defined <= {getattr(entry.kernel, "__name__", None) or entry.kernel.fn.__name__ for entry in entries}


@pytest.fixture(scope="module")
def compiled() -> list[dict[str, Any]]:
    """What each kernel needs on each capability."""
    return [json.loads(line) for line in run("-m", "kernels.ahead_of_time", "--json").splitlines()]


@pytest.mark.parametrize("module", TABLES)
def test_no_kernel_spills(module: str, compiled: list[dict[str, Any]]) -> None:
    found = [row for row in compiled if row["module"] == module]
    assert len(found) == len(TABLES[module]) * len(CAPABILITIES)
    for row in found:
        print("{kernel:34} {case:28} sm_{capability} {registers} registers, {shared_bytes} B shared".format(**row))
        assert row["spill_bytes"] == 0, row
        # What one multiprocessor has: 64 Ki registers, and 163 KiB (sm_80) or 227 KiB (sm_90) of shared memory.
        assert 0 < row["registers"] * row["num_threads"] <= 65536, row
        assert row["shared_bytes"] <= {80: 163, 90: 227}[row["capability"]] * 1024, row


def test_a_spill_would_be_seen() -> None:
    """One warp that holds 8192 columns in its registers cannot: otherwise the test above would prove nothing."""
    program = """
import dataclasses
from kernels.ahead_of_time import resources
from kernels.triton_rms_norm import AHEAD_OF_TIME
wide = next(entry for entry in AHEAD_OF_TIME if "E=8192" in entry.case)
print(resources(dataclasses.replace(wide, num_warps=1), 90).spill_bytes)
"""
    assert int(run("-c", program)) > 0
