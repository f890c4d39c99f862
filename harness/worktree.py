"""Commits of this repository as folders to measure: detached git worktrees that go away whatever happens. Torch-free.

    repository = own_repository()
    with checkout_worktree(repository, "HEAD~1") as folder:      # a temporary folder that holds that commit
        ...                                                      # workers run with PYTHONPATH=folder
    removed = sweep(repository)                                  # what a killed process could not remove itself

No branch, ref or stash is made and no hook is run. A worktree's name holds its owner: host, process and its start. So
what a process leaves that was killed, at any moment, half-made or whole, is known for what it is and removed by the
next `checkout_worktree` or `sweep`. Worktrees with other names, or with a living owner, are never touched.

Refuses, with a UsageError: a revision that git does not know, a folder that is no git repository, a machine without
git. A lock file that somebody's killed git left in the repository (`index.lock`) does not disturb a worktree and is not
ours to remove.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.core import HarnessError, UsageError
from harness.store import process_start

_NAME = re.compile(r"minimind-bench-(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-(?P<start>\d+)-[0-9a-f]{8}")
_FOREIGN_SECONDS = 7 * 86400.0  # a worktree of another host, whose processes cannot be seen, is dead after this time
# NOTE: git sets these for its hooks, and they outrank `-C`: a gate in a pre-push hook would work on the wrong index.
_PLACES = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_COMMON_DIR",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_NAMESPACE",
    "GIT_PREFIX",
)
_QUIET = ("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false")


@dataclass(frozen=True, slots=True)
class Commit:
    """One commit: its full name and the first line of its message."""

    sha: str
    subject: str

    @property
    def short(self) -> str:
        """What tables show."""
        return self.sha[:9]


def run_git(repository: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run git in a repository and return what it said, in English, whatever its exit status.

    It runs in a process group of its own: Ctrl-C in a terminal reaches only us, and we end it with its children.
    Raises UsageError where there is no git.
    """
    kept = {name: value for name, value in os.environ.items() if name not in _PLACES}
    command = ["git", "--no-optional-locks", "-C", str(repository), *words]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
            env={**kept, "LC_ALL": "C"},
        )
    except FileNotFoundError as error:
        raise UsageError("comparing commits needs git, and there is none on PATH") from error
    with process:
        try:
            out, err = process.communicate()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """What git complained of, on one line."""
    lines = [line.strip().removeprefix("fatal: ").removeprefix("error: ") for line in done.stderr.splitlines()]
    return " ".join(line for line in lines if line) or f"git ended with code {done.returncode}"


def common_folder(repository: Path) -> Path:
    """The folder that all worktrees of a repository share (`.git` as a rule). Raises UsageError if it is none."""
    if not repository.is_dir():
        raise UsageError(f"{repository} is not a folder")
    done = run_git(repository, "rev-parse", "--git-common-dir")
    if done.returncode:
        raise UsageError(f"{repository} cannot be used as a git repository: {_reason(done)}")
    return (repository / done.stdout.strip()).resolve()


def own_repository() -> Path:
    """The checkout that this harness runs from. Raises UsageError where it is none (installed, exported)."""
    top = Path(__file__).resolve().parents[1]
    common_folder(top)
    found = run_git(top, "rev-parse", "--show-toplevel").stdout.strip()
    if not found or Path(found).resolve() != top:
        raise UsageError(f"commits are measured from a clone of this project, and {top} is not the top of one")
    return top


def resolve(repository: Path, revision: str) -> str:
    """The full name of the commit that a revision means.

    Raises UsageError naming it, with git's reason, names that are near, and what a shallow clone lacks.
    """
    common_folder(repository)
    if revision and not revision.startswith("-"):
        done = run_git(repository, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
        if done.returncode == 0:
            return done.stdout.strip()
    asked = run_git(repository, "rev-list", "--max-count=1", "--end-of-options", revision or "''", "--")
    reason = _reason(asked) if asked.returncode else "it is not one commit"
    names = run_git(
        repository, "for-each-ref", "--format=%(refname:short)", "refs/heads", "refs/tags", "refs/remotes"
    ).stdout.split()
    near = [name for name in names if name.rpartition("/")[2] == revision]
    near = list(dict.fromkeys([*near, *difflib.get_close_matches(revision, names, n=3)]))
    hint = f". Did you mean {' or '.join(near)}?" if near else ""
    raise UsageError(f"'{revision}' is not a commit of {repository}: {reason}{hint}{_shallow_hint(repository)}")


def _shallow_hint(repository: Path) -> str:
    shallow = run_git(repository, "rev-parse", "--is-shallow-repository").stdout.strip() == "true"
    return ". This clone is shallow; `git fetch --unshallow` brings the rest of its history" if shallow else ""


def find_commit(repository: Path, revision: str) -> Commit:
    """The commit that a revision means. Raises UsageError as `resolve` does."""
    sha = resolve(repository, revision)
    return Commit(sha, run_git(repository, "log", "--max-count=1", "--format=%s", sha).stdout.strip())


def list_commits(repository: Path, good: str, bad: str) -> list[Commit]:
    """The commits after `good` up to and including `bad`, oldest first, along bad's first parents.

    Only commits that contain `good` are listed: where good came in by a merge, the list begins with that merge. Each
    contains the one before it, which is what makes a binary search right; a list with the commits of side branches
    would not. Raises UsageError where good is not an ancestor of bad, or where there is nothing between them.
    """
    old, new = resolve(repository, good), resolve(repository, bad)
    if old == new:
        raise UsageError(f"'{good}' and '{bad}' are the same commit {old[:9]}: there is nothing between them")
    if run_git(repository, "merge-base", "--is-ancestor", old, new).returncode:
        if run_git(repository, "merge-base", "--is-ancestor", new, old).returncode == 0:
            raise UsageError(f"the good commit '{good}' is younger than the bad one '{bad}'; swap them")
        base = run_git(repository, "merge-base", old, new).stdout.strip()
        hint = f"; they parted at {base[:9]}, which can be the good one" if base else _shallow_hint(repository)
        raise UsageError(f"the good commit '{good}' is not an ancestor of the bad one '{bad}'{hint}")
    between = run_git(repository, "rev-list", "--ancestry-path", f"{old}..{new}").stdout.split()
    containing = set(between)
    chain = run_git(repository, "log", "--first-parent", "--format=%H%x00%s", f"{old}..{new}").stdout
    commits = [Commit(*line.split("\0", 1)) for line in chain.splitlines()]
    return [commit for commit in reversed(commits) if commit.sha in containing]


@contextmanager
def checkout_worktree(repository: Path, revision: str) -> Iterator[Path]:
    """A temporary folder outside the tree that holds a commit, detached; removed at the end, also by Ctrl-C or SIGTERM.

    What killed processes left behind is removed first. Raises UsageError as `resolve` does, HarnessError with git's
    reason where the worktree cannot be made (a full disk, a missing object).
    """
    sha = resolve(repository, revision)
    sweep(repository)
    entries = common_folder(repository) / "worktrees"
    folder = _temporary_folder() / _own_name()
    try:
        folder.mkdir(mode=0o700)
        done = run_git(repository, *_QUIET, "worktree", "add", "--quiet", "--detach", str(folder), sha)
        if done.returncode:
            raise HarnessError(f"no worktree of {revision} ({sha[:9]}) could be made: {_reason(done)}")
        yield folder
    finally:
        _remove(folder, entries / folder.name)


def sweep(repository: Path) -> list[Path]:
    """Remove the worktrees whose owner is dead; returns their folders. Raises UsageError if this is no repository."""
    entries = common_folder(repository) / "worktrees"
    removed = []
    for entry in sorted(entries.glob("minimind-bench-*")):
        folder = _folder_of(entry)
        if folder is not None and _is_dead(entry):
            _remove(folder, entry)
            removed.append(folder)
    for folder in sorted(_temporary_folder().glob("minimind-bench-*")):
        if _is_dead(folder) and not _is_claimed(folder):
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
    return [folder for folder in removed if not folder.exists()]


def _own_name() -> str:
    pid = os.getpid()
    return f"minimind-bench-{_host()}-{pid}-{process_start(pid)}-{secrets.token_hex(4)}"


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _temporary_folder() -> Path:
    return Path(tempfile.gettempdir()).resolve()


def _is_dead(path: Path) -> bool:
    """Whether a name is one of ours and its owner is gone."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        return False
    if match["host"] == _host():
        return process_start(int(match["pid"])) != int(match["start"])
    try:
        return time.time() - path.lstat().st_mtime > _FOREIGN_SECONDS
    except OSError:
        return False


def _folder_of(entry: Path) -> Path | None:
    """Where the worktree of an entry of git's lies; None if it was moved elsewhere, by which it is no longer ours."""
    try:
        folder = Path((entry / "gitdir").read_text().strip()).parent
    except OSError:  # git was killed before it wrote that
        return _temporary_folder() / entry.name
    return folder if folder.name == entry.name else None


def _is_claimed(folder: Path) -> bool:
    """Whether a repository, this or another, has an entry for the folder: then its own sweep removes both."""
    try:
        text = (folder / ".git").read_text()
    except OSError:
        return False
    return Path(text.partition("gitdir:")[2].strip()).is_dir()


def _remove(folder: Path, entry: Path) -> None:
    """Remove a worktree and git's entry of it, whole or half-made. A second Ctrl-C waits until that is done."""
    signals = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        for _ in range(20):
            if entry.exists():
                run_git(entry.parents[1], "worktree", "remove", "--force", "--force", str(folder))
            # git refuses what is half-made; and workers that are ending may still have written into the folder
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(entry, ignore_errors=True)
            if not folder.exists() and not entry.exists():
                return
            time.sleep(0.05)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
