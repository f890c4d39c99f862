"""Git repositories made for a test: independent of the user's configuration, and comparable before and after."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_CONFIG = {
    "user.name": "Test",
    "user.email": "test@example.org",
    "init.defaultBranch": "main",
    "commit.gpgSign": "false",
    "core.autocrlf": "false",
    "gc.auto": "0",
    "protocol.file.allow": "always",
}


def git(folder: Path, *words: str) -> str:
    """What git says in a folder; it must succeed."""
    settings = [word for name, value in _CONFIG.items() for word in ("-c", f"{name}={value}")]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(
        ["git", *settings, "-C", str(folder), *words],
        capture_output=True,
        text=True,
        check=False,
        env={**kept, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def new_repository(folder: Path) -> Path:
    """An empty repository."""
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet")
    return folder


def commit(folder: Path, subject: str, **files: str) -> str:
    """Write files, commit everything that changed; the commit's full name."""
    for name, text in files.items():
        (folder / name).write_text(text)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--no-verify", "-m", subject)
    return git(folder, "rev-parse", "HEAD")


def state_of(folder: Path) -> dict[str, str]:
    """All that a command may not leave changed: worktrees, refs, the tree, configuration, git's folders."""
    asked = {
        "worktrees": ("worktree", "list", "--porcelain"),
        "refs": ("for-each-ref",),
        "head": ("symbolic-ref", "HEAD"),
        "status": ("status", "--porcelain", "--ignored"),
        "config": ("config", "--local", "--list"),
    }
    entries = sorted(path.name for path in (folder / ".git").iterdir())
    inside = folder / ".git" / "worktrees"
    held = sorted(path.name for path in inside.iterdir()) if inside.is_dir() else []
    return {name: git(folder, *words) for name, words in asked.items()} | {
        "entries": " ".join(name for name in entries if name != "worktrees"),
        "held": " ".join(held),
    }


def copy_of_this(folder: Path) -> Path:
    """A repository with this harness and the scripted backend in one commit: of this tree, be it committed or not."""
    new_repository(folder)
    for name in ("harness", "minimind", "kernels", "suites"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "fake_backend.py", folder / "tests")
    (folder / ".gitignore").write_text("__pycache__/\n")
    commit(folder, "the beginning")
    return folder


def plant(folder: Path, subject: str, factor: float | None) -> str:
    """Commit code whose scripted decode takes so many times longer (None: it fails); the commit's full name."""
    code = {"broken": ["decode"]} if factor is None else {"factor": {"decode": factor}}
    (folder / "fake.json").write_text(json.dumps({**code, "subject": subject}))
    return commit(folder, subject)


def bisect_words(store: Path, *words: str) -> list[str]:
    """A search over one case of the scripted backend; each commit loads its own file of it."""
    common = ("--axis", "fake=plain", "--device", "cpu", "--plugin", "tests/fake_backend.py", "--store", str(store))
    return ["bisect", "fake_slow", *words, *common]


def start_there(repository: Path, words: Sequence[str], folder: Path) -> subprocess.Popen[str]:
    """The command line of the repository's own harness, with its temporary files in a folder of the test."""
    cleared = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    return subprocess.Popen(
        [sys.executable, "-m", "harness", *words],
        cwd=repository,
        env={**cleared, "TMPDIR": str(folder), "COLUMNS": "200", "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish_there(child: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Its exit code, stdout and stderr."""
    try:
        out, err = child.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        raise
    return child.returncode, out, err
