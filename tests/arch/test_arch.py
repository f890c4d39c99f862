"""Promises about the shape of the code that neither a type checker nor the import rules can state.

The floor plan itself is checked by `lint-imports`; here stands what it means when the code runs: reading results needs
no torch, `--help` is quick, and whatever is public explains itself.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
READING = (
    "harness.core", "harness.store", "harness.stats", "harness.compare", "harness.sequential", "harness.change_points",
    "harness.noise", "harness.gates", "harness.gate_report", "harness.calibration", "harness.importing", "reports",
    "dashboard",
)  # fmt: skip
MEASURING = ("torch", "triton", "minimind", "kernels")
DOCUMENTED = sorted(path for package in ("harness", "minimind", "kernels") for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("module", READING)
def test_reading_results_imports_nothing_that_measures(module: str) -> None:
    """In a fresh interpreter, so that no other test's imports are seen."""
    program = f"import sys, {module}\nprint(*[name for name in {MEASURING} if name in sys.modules])"
    child = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    assert child.stdout.split() == []


def cpu_seconds(*argv: str) -> float:
    """User and system time of a child process, which must succeed; unlike the wall clock, blind to busy neighbours."""
    child = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0
    return usage.ru_utime + usage.ru_stime


def test_help_takes_at_most_300_ms_of_cpu_time() -> None:
    """The least of five tries: the first one may still write byte code, and interruptions only ever add."""
    times = [cpu_seconds(sys.executable, "-m", "harness", "--help") for _ in range(5)]
    assert min(times) <= 0.3, times


def undocumented(path: Path) -> Iterator[str]:
    """Names in one file that lack a docstring: the module, and its public functions and classes."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    if tree.body and ast.get_docstring(tree) is None:
        yield "the module"
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        overload = any(ast.unparse(decorator).endswith("overload") for decorator in node.decorator_list)
        if not overload and ast.get_docstring(node) is None:
            yield f"{node.name}, line {node.lineno}"


def test_the_packages_that_must_be_documented_are_there() -> None:
    """Otherwise the test below would pass by finding no file."""
    assert {path.relative_to(ROOT).parts[0] for path in DOCUMENTED} >= {"harness", "minimind"}


@pytest.mark.parametrize("path", DOCUMENTED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_is_public_has_a_docstring(path: Path) -> None:
    """Modules, functions and classes without a leading underscore."""
    assert list(undocumented(path)) == []


def test_every_dependency_is_pinned_except_torch_and_triton() -> None:
    """Whatever pyproject.toml names has a line in constraints.txt, but for what a machine keeps as its own."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(text for extra in project["optional-dependencies"].values() for text in extra),
    ]
    names = {normalised(re.split(r"[\[<>=!~; ]", text, maxsplit=1)[0]) for text in wanted}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {normalised(line.split("==")[0]) for line in lines if "==" in line}
    assert names - pinned == {"torch", "triton", "minimind-bench"}
    assert pinned.isdisjoint({"torch", "triton"})


def normalised(name: str) -> str:
    """A package name as the packaging standards compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()
