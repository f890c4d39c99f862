"""Models in other engines' formats, made and verified once per set of weights, kept in the machine's temporary folder.

    path = exported("onnx", digest(config, weights, onnxruntime.__version__), make)
    found = verified(path, f"onnxruntime {onnxruntime.__version__}", compare_with_torch)

Tracing or converting a model takes from seconds to a minute and hundreds of megabytes: it must be in no worker's load
time or peak memory, so `make` runs it in a process of its own (`run_child`). A stamp beside an export holds what its
comparison with the reference found, the digest of the bytes that were compared and the engine that computed: a later
process reads it, and compares again when any of these has changed. The folder belongs to the user alone and may be
deleted at any time; the newest few exports stay.
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
from typing import Any

import torch

import minimind
from harness.backends._sessions import TorchEngine
from harness.backends._torch import Weights, weights_of
from harness.core import CaseFailed, ModelSource, Unsupported, Variant
from harness.registry import options_of
from harness.telemetry import usable_cpus
from minimind.config import MiniMindConfig

KEPT = 12


class ExportedEngine(TorchEngine):
    """What the engines share that read an exported file on a CPU. `build` is what their options set."""

    build: Any
    threads: int

    def begin(self, backend: str, build: Any, source: ModelSource, variant: Variant, device: str, seed: int) -> Weights:
        """Take in what was asked for; returns the weights to export. Raises Unsupported elsewhere than on a CPU."""
        if device != "cpu":
            raise Unsupported(f"backend {backend} runs on the CPU only, not on {device}")
        self.source, self.seed, self.device, self.build = source, seed, torch.device(device), build
        for declared, value in options_of(variant):
            declared.apply(build, value)
        self.threads = build.threads or len(usable_cpus())
        torch.set_num_threads(self.threads)
        self.config, weights = weights_of(source, source.seed)
        return weights


def digest(config: MiniMindConfig, weights: Mapping[str, torch.Tensor], *made_by: str) -> str:
    """A name for these weights, for the code of the model and its exporters, and for what else made the export."""
    hashed = hashlib.sha256(json.dumps([config.to_dict(), torch.__version__, *made_by]).encode())
    for source in sorted(Path(minimind.__file__).parent.rglob("*.py")):  # two commits must not share an export
        hashed.update(source.read_bytes())
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
            for stamp in folder.glob(f".verified-{old.name}-*"):
                stamp.unlink(missing_ok=True)
    os.utime(path)
    return path


def verified(path: Path, engine: str, verify: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What `verify()` found about this export, now or when the same bytes were verified with the same engine.

    `engine` names all that decides the numbers besides the bytes: library, version, instruction sets, precision.
    `verify` raises CaseFailed where the export is not the model; then no stamp is left and the next load asks again.
    """
    stamp = path.with_name(f".verified-{path.name}-{hashlib.sha256(engine.encode()).hexdigest()[:8]}")
    about = {"engine": engine, "content": content_digest(path)}
    try:
        known = json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = None
    if isinstance(known, dict) and isinstance(known.get("found"), dict) and about.items() <= known.items():
        return dict(known["found"])
    stamp.unlink(missing_ok=True)
    found = verify()
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".making-") as scratch:
        draft = Path(scratch) / stamp.name
        draft.write_text(json.dumps({**about, "found": found}), encoding="utf-8")
        os.replace(draft, stamp)
    return found


def content_digest(path: Path) -> str:
    """SHA-256 of a file, or of a folder's files and their names."""
    files = sorted(entry for entry in path.rglob("*") if entry.is_file()) if path.is_dir() else [path]
    hashed = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        hashed.update(f"{file.relative_to(path).as_posix()} {content}\n".encode())
    return hashed.hexdigest()


def distance(own_BTV: torch.Tensor, other_BTV: torch.Tensor) -> dict[str, float]:
    """Largest absolute difference of logits and mean KL divergence from `other` (nats per token), in float64."""
    own, other = own_BTV.double(), other_BTV.double()
    own_log, other_log = own.log_softmax(-1), other.log_softmax(-1)
    kl = float((other_log.exp() * (other_log - own_log)).sum(-1).mean())
    # NOTE: rounding makes tiny divergences negative; max() would turn one that is not a number into 0.
    return {"max_difference": float((own - other).abs().max()), "kl": 0.0 if kl < 0 else kl}


def run_child(*arguments: str) -> None:
    """Run `python ARGUMENTS` to its end. Raises CaseFailed with the last line that it wrote."""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, *arguments], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise CaseFailed(f"the export failed: {lines[-1]}")
