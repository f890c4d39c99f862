"""Compiles the C++ kernels on first use and loads them into torch.

    load()              # afterwards torch.ops.minimind_cpu.* exist

The shared library lies in ~/.cache/minimind-bench (a temporary folder where that cannot be written), under a name that
changes with the source, the flags, the compiler, torch and the processor. It is built under a temporary name and
renamed, so that two processes may build at once. It uses torch's stable ABI headers, which compile in seconds, and
torch's own threads; it links no OpenMP runtime of its own.

Refuses, with a RuntimeError: no C++ compiler, a failed build (with the compiler's first errors), a torch without
OpenMP. Nothing else is run in their place.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

SOURCE = Path(__file__).parent / "csrc"
COMPILERS = ("g++", "clang++", "c++")
_FLAGS = ("-O3", "-march=native", "-std=c++20", "-fPIC", "-shared", "-fno-math-errno", "-w")


def find_compiler() -> str:
    """The path of a C++ compiler. Raises RuntimeError where there is none."""
    for name in COMPILERS:
        if path := shutil.which(name):
            return path
    raise RuntimeError(f"the C++ kernels need a compiler, and none of {', '.join(COMPILERS)} is on PATH")


def _processor() -> str:
    """What -march=native means here: the model and its instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    kept = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    return "\n".join(line for line in lines if line.startswith(kept))


def command(compiler: str, output: Path) -> list[str]:
    """The command that compiles the kernels into `output`."""
    from torch.utils.cpp_extension import include_paths, library_paths

    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    includes = [f"-I{path}" for path in include_paths()]
    # Torch's libraries are in the process already; their names suffice, no search path has to be kept.
    libraries = [*(f"-L{path}" for path in library_paths()), "-ltorch_cpu", "-lc10"]
    return [compiler, *_FLAGS, abi, *includes, str(SOURCE / "ops.cpp"), "-o", str(output), *libraries]


def _key(compiler: str) -> str:
    digest = hashlib.sha256()
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    for text in (torch.__version__, _processor(), version, " ".join(_FLAGS)):
        digest.update(text.encode())
    for path in sorted(SOURCE.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:20]


def cache_folder() -> Path:
    """Where libraries are kept: the user's cache, or a folder of this user's among the temporary files."""
    private = Path(tempfile.gettempdir()) / f"minimind-bench-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
    for folder in (Path.home() / ".cache" / "minimind-bench", private):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise RuntimeError(f"the C++ kernels need a folder to be built in, and {private} cannot be written")


def build(folder: Path | None = None) -> Path:
    """The shared library, compiled unless it is there already. Raises RuntimeError where that is impossible."""
    compiler = find_compiler()
    folder = folder or cache_folder()
    library = folder / f"kernels-{_key(compiler)}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder, prefix="build-") as scratch:
            output = Path(scratch) / library.name
            _compile(command(compiler, output))
            output.replace(library)
    return library


def _compile(arguments: Sequence[str]) -> None:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).splitlines()
        errors = [line for line in lines if "error" in line] or lines or ["the compiler said nothing"]
        raise RuntimeError("the C++ kernels could not be compiled:\n" + "\n".join(errors[:5]))


@cache
def load() -> None:
    """Build if need be, and register `torch.ops.minimind_cpu`. Raises RuntimeError where that is impossible."""
    if not torch.backends.openmp.is_available():
        raise RuntimeError("the C++ kernels need a torch that is built with OpenMP")
    torch.ops.load_library(str(build()))
