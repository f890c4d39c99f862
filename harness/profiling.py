"""Records where the time of one prepared session goes, in the solo pass, after everything that is measured there.

    facts["profile"] = record(session, Path("results/artifacts/<run>/<case>"), "cpu")

Writes <stem>.trace.json with torch.profiler (operations, kernels, the allocator's events) and <stem>.collapsed with
py-spy, which samples the stacks of this process from outside. Both slow the session down a little: their times are
shares, never results. Refuses nothing: what could not be written is said in the facts.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness.profiles import ITERATION, SUFFIX
from harness.registry import Session

ITERATIONS = 5
EVENTS = 50_000  # in a trace, from which on it has one iteration only
STACK_SECONDS = 3
STACK_RATE = 200  # samples a second
_PR_SET_PTRACER, _ANY = 0x59616D61, -1  # Linux, Yama: who may look into this process besides its parents


def record(session: Session, stem: Path, device: str) -> dict[str, str]:
    """Write both files of a case; what came of each, in words. The session is warmed up by its solo pass."""
    return {"trace": _trace(session, stem, device), "stacks": _stacks(session, stem)}


def _trace(session: Session, stem: Path, device: str) -> str:
    profiler: Any = importlib.import_module("torch.profiler")
    kinds = profiler.ProfilerActivity
    activities = [kinds.CPU, kinds.CUDA] if device == "cuda" else [kinds.CPU]

    def recorded(count: int) -> Any:
        with profiler.profile(activities=activities, profile_memory=True) as found:
            for _ in range(count):
                with profiler.record_function(ITERATION):
                    session.iterate()
        return found

    first = recorded(1)  # the profiler's own start falls into this one
    events = len(first.events())
    count = max(1, min(ITERATIONS, EVENTS // max(events, 1)))
    target = stem.with_name(stem.name + SUFFIX["trace"])
    partial = target.with_name(target.name + ".tmp")
    recorded(count).export_chrome_trace(str(partial))
    partial.replace(target)
    return f"{count} iterations"


def _stacks(session: Session, stem: Path) -> str:
    beside = Path(sys.executable).with_name("py-spy")
    program = str(beside) if beside.exists() else shutil.which("py-spy")
    if program is None:
        return "py-spy is not installed (pip install py-spy)"
    target = stem.with_name(stem.name + SUFFIX["collapsed"])
    raw = target.with_name(target.name + ".tmp")
    if hasattr(ctypes.CDLL(None), "prctl"):
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _ANY, 0, 0, 0)
    words = ["record", "--pid", str(os.getpid()), "--nonblocking", "--format", "raw", "--function"]
    words += ["--output", str(raw), "--rate", str(STACK_RATE), "--duration", str(STACK_SECONDS)]
    with subprocess.Popen([program, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as sampler:
        while sampler.poll() is None:
            _sampled(session)
        said = sampler.stderr.read().strip().splitlines() if sampler.stderr else []
    try:
        lines = raw.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return f"py-spy failed: {said[-1] if said else f'exit code {sampler.returncode}'}"
    raw.unlink()
    inner = [found for line in lines if (found := _beneath(line))]
    if not inner:
        return "py-spy saw no stack of the session"
    target.write_text("\n".join(inner) + "\n", encoding="utf-8")
    return f"{sum(int(line.rpartition(' ')[2]) for line in inner)} samples"


def _sampled(session: Session) -> None:
    """The frame beneath which a sample counts."""
    session.iterate()


def _beneath(line: str) -> str:
    """The frames of a collapsed stack that the session's iterations are made of; empty for other stacks."""
    frames, _, count = line.rpartition(" ")
    names = frames.split(";")
    here = [place for place, name in enumerate(names) if name.startswith("_sampled (") and "profiling.py" in name]
    inner = names[here[-1] + 1 :] if here else []
    return f"{';'.join(inner)} {count}" if inner and count.isdecimal() else ""
