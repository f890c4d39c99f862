"""Models in other engines' formats, made once per set of weights and kept in the machine's temporary folder.

    path = exported("onnx", digest(config, weights, onnxruntime.__version__), make)

Tracing or converting a model takes from seconds to a minute and hundreds of megabytes: it must be in no worker's load
time or peak memory, so `make` runs it in a process of its own (`run_child`). The folder belongs to the user alone and
may be deleted at any time; the newest few exports stay. An engine verifies what it loads in any case.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from harness.core import CaseFailed
from minimind.config import MiniMindConfig

KEPT = 12


def digest(config: MiniMindConfig, weights: Mapping[str, torch.Tensor], *made_by: str) -> str:
    """A name for these weights and the versions and choices that made the export."""
    hashed = hashlib.sha256(json.dumps([config.to_dict(), torch.__version__, *made_by]).encode())
    for name, tensor in sorted(weights.items()):
        hashed.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        hashed.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return hashed.hexdigest()[:24]


def export_folder() -> Path:
    """Where exports stay: a folder of this user's."""
    return Path(tempfile.gettempdir()) / f"minimind-bench-{os.getuid()}"


def exported(kind: str, name: str, make: Callable[[Path], None]) -> Path:
    """The file or folder of this name, made by `make(path)` where it is not there; appears whole or not at all."""
    folder = export_folder() / kind
    folder.mkdir(parents=True, exist_ok=True)
    folder.parent.chmod(0o700)  # PermissionError where the folder is somebody else's
    path = folder / name
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder, prefix=".making-") as scratch:
            make(Path(scratch) / name)
            if not path.exists():  # else another worker was faster
                os.replace(Path(scratch) / name, path)
        for old in sorted(folder.glob("[!.]*"), key=lambda entry: entry.stat().st_mtime)[:-KEPT]:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    os.utime(path)
    return path


def run_child(*arguments: str) -> None:
    """Run `python ARGUMENTS` to its end. Raises CaseFailed with the last line that it wrote."""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, *arguments], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise CaseFailed(f"the export failed: {lines[-1]}")
