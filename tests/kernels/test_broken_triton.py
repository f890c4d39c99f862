"""Where Triton is missing, broken or bypassed, a case is skipped or wrong; nothing runs under a name not earned."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import registry
from harness.backends._torch import load
from harness.capability import capabilities
from harness.core import Case, CaseFailed, ModelSource, Variant, Workload
from harness.registry import resolve_workload, why_unsupported
from harness.worker import check_evidence
from kernels import reference

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ("norm=triton", "norm=triton-add", "mlp=triton")
registry.load_all()
DECODE = resolve_workload(Workload.of("decode", batch=1, context=4, new_tokens=2))


# Every module with a kernel, what launching one says, and what building each option says.
PROGRAM = f"""
import json, sys
sys.modules["triton"] = None
import torch
from harness import registry
from harness.backends._torch import load
from harness.core import ModelSource, Unsupported, Variant
from kernels.ahead_of_time import kernel_modules
from kernels.triton_rms_norm import triton_rms_norm

registry.load_all()
found = {{"modules": list(kernel_modules())}}
try:
    triton_rms_norm(torch.ones(2, 4), (4,))
except RuntimeError as error:
    found["launch"] = str(error)
for text in {TEXTS}:
    try:
        load(ModelSource("tiny"), Variant.parse(text), "cpu", 0)
    except Unsupported as error:
        found[text] = str(error)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def without_triton() -> dict[str, Any]:
    """What happens in a fresh interpreter in which `import triton` fails."""
    child = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    found: dict[str, Any] = json.loads(child.stdout)
    return found


def test_every_kernel_module_is_importable_without_triton(without_triton: dict[str, Any]) -> None:
    """And its table is there; only launching wants triton."""
    assert {"kernels.triton_rms_norm", "kernels.add_rms_norm", "kernels.swiglu"} <= set(without_triton["modules"])


def test_launching_without_triton_says_why(without_triton: dict[str, Any]) -> None:
    assert "triton_rms_norm: triton cannot be imported" in without_triton["launch"]


@pytest.mark.parametrize("text", TEXTS)
def test_an_option_whose_triton_is_broken_is_unsupported(text: str, without_triton: dict[str, Any]) -> None:
    """As on a GPU box where triton is installed but does not load; the harness makes `skipped` of it."""
    assert "triton cannot be imported" in without_triton[text]


@pytest.mark.parametrize("text", TEXTS)
def test_on_a_cpu_the_options_are_skipped_with_a_reason(text: str) -> None:
    reason = why_unsupported(Variant.parse(text), capabilities("cpu"))
    assert reason is not None and "triton" in reason


@pytest.mark.parametrize("text", TEXTS)
def test_a_kernel_never_falls_back_to_torch(text: str) -> None:
    """Put past the plan's check on purpose, a CPU tensor is refused by the operator itself."""
    pytest.importorskip("triton", reason="triton is not installed (pip install --no-deps triton)")
    engine = load(ModelSource("tiny"), Variant.parse(text), "cpu", 0)
    with pytest.raises(RuntimeError, match="needs CUDA tensors, not cpu"):
        engine.session(DECODE)


@pytest.mark.parametrize(("text", "module", "name"), [
    ("norm=triton", "kernels.triton_rms_norm", "triton_rms_norm"),
    ("mlp=triton", "kernels.swiglu", "triton_swiglu"),
])  # fmt: skip
def test_a_silent_substitute_is_wrong(text: str, module: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right numbers from another function: the facts lack the operator."""

    def norm(x: torch.Tensor, shape: torch.Size, weight: torch.Tensor, eps: float, *, cast_first: bool) -> torch.Tensor:
        return (reference.rms_norm_cast_first if cast_first else reference.rms_norm)(x, shape, weight, eps)

    monkeypatch.setattr("kernels._triton.WHY_NO_TRITON", None)
    monkeypatch.setattr(f"{module}.{name}", norm if "norm" in name else reference.swiglu)
    facts = load(ModelSource("tiny"), Variant.parse(text), "cpu", 0).session(DECODE).facts()
    with pytest.raises(CaseFailed, match=f"{text} was asked for but did not run") as error:
        check_evidence(Case(DECODE, "tiny", Variant.parse(text)), facts)
    assert error.value.status == "wrong"
