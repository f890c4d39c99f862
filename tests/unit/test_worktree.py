"""Worktrees of commits: made in a temporary folder, removed whatever happens, swept when their owner is dead."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from harness.core import HarnessError, UsageError
from harness.store import process_start
from harness.worktree import checkout_worktree, list_commits, own_repository, resolve, run_git, sweep
from tests.scratch_repository import commit, git, new_repository, state_of

DEAD = 4_194_305  # above the largest process id that Linux gives


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Worktrees of these tests lie in a temporary folder of their own."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Three commits on a line, the second tagged, the working tree with a change of its own."""
    folder = new_repository(tmp_path / "repository")
    for number in range(3):
        commit(folder, f"number {number}", value=str(number))
    git(folder, "tag", "middle", "HEAD~1")
    (folder / "value").write_text("changed, not committed")
    return folder


def leftovers(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "temporary").iterdir())


def name_of(pid: int, start: int, host: str | None = None) -> str:
    """The name of a worktree as another process would give it."""
    import hashlib

    digest = hashlib.sha256((host or socket.gethostname()).encode()).hexdigest()[:8]
    return f"minimind-bench-{digest}-{pid}-{start}-0123abcd"


def test_a_worktree_holds_the_commit_and_leaves_no_trace(repository: Path, tmp_path: Path) -> None:
    before = state_of(repository)
    with checkout_worktree(repository, "middle") as folder:
        assert (folder / "value").read_text() == "1"
        assert git(folder, "rev-parse", "HEAD") == resolve(repository, "middle")
        assert run_git(folder, "symbolic-ref", "-q", "HEAD").returncode == 1, "detached"
        assert not folder.is_relative_to(repository) and stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert str(folder) in git(repository, "worktree", "list")
        (folder / "untracked").write_text("x")
        (folder / "value").write_text("x")
    assert state_of(repository) == before and leftovers(tmp_path) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_it_goes_whatever_is_raised(error: type[BaseException], repository: Path, tmp_path: Path) -> None:
    before = state_of(repository)
    with pytest.raises(error):
        with checkout_worktree(repository, "HEAD"):
            raise error
    assert state_of(repository) == before and leftovers(tmp_path) == []


def test_several_at_once_of_one_commit(repository: Path) -> None:
    with checkout_worktree(repository, "HEAD") as one, checkout_worktree(repository, "HEAD") as two:
        assert one != two and (one / "value").read_text() == (two / "value").read_text() == "2"


def test_hooks_do_not_run(repository: Path, tmp_path: Path) -> None:
    hook = repository / ".git" / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\necho ran > {tmp_path}/hook\n")
    hook.chmod(0o755)
    with checkout_worktree(repository, "HEAD"):
        pass
    assert not (tmp_path / "hook").exists()


def test_it_works_inside_a_hook(repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where git tells its children by variables which repository and index to use."""
    other = new_repository(tmp_path / "other")
    commit(other, "other", value="of another repository")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git" / "index"))
    with checkout_worktree(repository, "HEAD") as folder:
        assert (folder / "value").read_text() == "2"


def test_a_foreign_lock_neither_disturbs_nor_is_removed(repository: Path) -> None:
    lock = repository / ".git" / "index.lock"
    lock.write_text("")
    with checkout_worktree(repository, "HEAD") as folder:
        assert (folder / "value").read_text() == "2"
    assert sweep(repository) == [] and lock.exists()


def test_from_a_worktree_and_from_a_subfolder(repository: Path, tmp_path: Path) -> None:
    git(repository, "worktree", "add", "--detach", str(tmp_path / "linked"), "middle")
    (repository / "below").mkdir()
    for place in (tmp_path / "linked", repository / "below"):
        with checkout_worktree(place, "main~2") as folder:
            assert (folder / "value").read_text() == "0"
    assert leftovers(tmp_path) == [] and (tmp_path / "linked").exists()


def test_a_worktree_that_cannot_be_made_says_why(repository: Path, tmp_path: Path) -> None:
    blob = git(repository, "rev-parse", "HEAD:value")
    (repository / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    before = state_of(repository)
    with pytest.raises(HarnessError, match=r"no worktree of HEAD \([0-9a-f]{9}\) could be made: .*[Uu]nable to read"):
        with checkout_worktree(repository, "HEAD"):
            pass
    assert state_of(repository) == before and leftovers(tmp_path) == []


# What killed processes leave behind --------------------------------------------------------------------------------

HOLDER = """
import sys, time
from pathlib import Path
from harness.worktree import checkout_worktree
with checkout_worktree(Path(sys.argv[1]), "HEAD") as folder:
    print(folder, flush=True)
    time.sleep(600)
"""


def holder(repository: Path, tmp_path: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that holds a worktree, and the worktree."""
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary"), "PYTHONPATH": str(Path.cwd())}
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(repository)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert child.stdout is not None
    return child, Path(child.stdout.readline().strip())


def end(child: subprocess.Popen[str], number: signal.Signals) -> None:
    child.send_signal(number)
    child.communicate(timeout=60)


def test_a_live_worktree_is_left_alone_and_a_dead_one_removed(repository: Path, tmp_path: Path) -> None:
    before = state_of(repository)
    child, folder = holder(repository, tmp_path)
    try:
        assert sweep(repository) == [] and (folder / "value").exists(), "its owner lives"
    finally:
        end(child, signal.SIGKILL)
    assert folder.exists(), "nobody could remove it"
    assert sweep(repository) == [folder]
    assert state_of(repository) == before and leftovers(tmp_path) == []


def test_the_next_worktree_sweeps(repository: Path, tmp_path: Path) -> None:
    child, folder = holder(repository, tmp_path)
    end(child, signal.SIGKILL)
    with checkout_worktree(repository, "HEAD"):
        assert not folder.exists()


def test_a_folder_that_the_system_cleared_leaves_no_entry(repository: Path, tmp_path: Path) -> None:
    """After a reboot: the temporary files are gone, git's entry is there."""
    import shutil

    before = state_of(repository)
    child, folder = holder(repository, tmp_path)
    end(child, signal.SIGKILL)
    shutil.rmtree(folder)
    assert sweep(repository) == [folder] and state_of(repository) == before


@pytest.mark.parametrize("files", [{}, {"locked": "initializing\n"}, {"locked": "", "HEAD": "x", "commondir": "../.."}])
def test_an_entry_that_git_had_only_begun_is_removed(files: dict[str, str], repository: Path) -> None:
    before = state_of(repository)
    entry = repository / ".git" / "worktrees" / name_of(DEAD, 1)
    entry.mkdir(parents=True)
    for name, text in files.items():
        (entry / name).write_text(text)
    assert len(sweep(repository)) == 1
    assert not entry.exists() and state_of(repository) == before


def test_an_empty_folder_that_git_never_got_to_is_removed(repository: Path, tmp_path: Path) -> None:
    folder = tmp_path / "temporary" / name_of(DEAD, 1)
    folder.mkdir()
    assert sweep(repository) == [folder] and not folder.exists()


def test_a_process_with_the_same_number_is_not_the_owner(repository: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "temporary" / name_of(os.getpid(), process_start(os.getpid()) + later) for later in (0, 1)]
    for folder in folders:
        folder.mkdir()
    assert sweep(repository) == [folders[1]]


def test_another_hosts_worktree_is_left_alone_until_it_is_old(repository: Path, tmp_path: Path) -> None:
    folder = tmp_path / "temporary" / name_of(DEAD, 1, host="elsewhere")
    folder.mkdir()
    assert sweep(repository) == []
    os.utime(folder, (0, 0))
    assert sweep(repository) == [folder]


def test_what_is_not_ours_is_never_touched(repository: Path, tmp_path: Path) -> None:
    """The user's own worktrees, a dead one and one that was moved, folders with other names, another repository's."""
    git(repository, "worktree", "add", "--detach", str(tmp_path / "own"))
    git(repository, "worktree", "add", "--detach", str(tmp_path / "gone"))
    (tmp_path / "gone" / ".git").unlink()
    child, folder = holder(repository, tmp_path)
    end(child, signal.SIGKILL)
    git(repository, "worktree", "move", str(folder), str(tmp_path / "kept"))
    (tmp_path / "temporary" / "minimind-bench-1234").mkdir()
    other = new_repository(tmp_path / "other")
    commit(other, "other", value="x")
    child, elsewhere = holder(other, tmp_path)
    end(child, signal.SIGKILL)
    before = state_of(repository)
    assert sweep(repository) == []
    assert state_of(repository) == before and (tmp_path / "kept" / "value").exists()
    assert leftovers(tmp_path) == sorted(["minimind-bench-1234", elsewhere.name])
    assert sweep(other) == [elsewhere]


# Names of commits --------------------------------------------------------------------------------------------------


def test_a_revision_becomes_a_full_name(repository: Path) -> None:
    full = git(repository, "rev-parse", "HEAD~1")
    git(repository, "tag", "-a", "-m", "annotated", "marked", "middle")
    assert {resolve(repository, name) for name in ("HEAD~1", "middle", "marked", full, full[:10], "main^")} == {full}


@pytest.mark.parametrize(
    ("revision", "said"),
    [
        ("mian", "bad revision 'mian'. Did you mean main?"),
        ("midle", "Did you mean middle?"),
        ("HEAD~9", "bad revision 'HEAD~9'"),
        ("HEAD~1..HEAD", "it is not one commit"),
        ("HEAD:value", "'HEAD:value' is not a commit"),
        ("0" * 40, "bad object"),
        ("--all", "'--all' is not a commit"),
        ("", "'' is not a commit"),
    ],
)
def test_a_bad_revision_is_named_with_gits_reason(revision: str, said: str, repository: Path) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(repository, revision)
    assert said in str(caught.value) and f"'{revision}' is not a commit of {repository}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_branch_of_a_remote_is_suggested(repository: Path, tmp_path: Path) -> None:
    git(repository, "branch", "feature")
    git(tmp_path, "clone", "--quiet", str(repository), "clone")
    with pytest.raises(UsageError, match=r"Did you mean origin/feature\?"):
        resolve(tmp_path / "clone", "feature")


def test_a_shallow_clone_says_how_to_get_the_rest(repository: Path, tmp_path: Path) -> None:
    full = git(repository, "rev-parse", "HEAD~2")
    git(tmp_path, "clone", "--quiet", "--depth", "1", repository.as_uri(), "shallow")
    shallow = tmp_path / "shallow"
    for revision in ("HEAD~1", full):
        with pytest.raises(UsageError, match="`git fetch --unshallow`"):
            resolve(shallow, revision)
    with checkout_worktree(shallow, "HEAD") as folder:
        assert (folder / "value").read_text() == "2"


def test_no_repository_and_no_git(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    (tmp_path / "plain").mkdir()
    with pytest.raises(UsageError, match=r"plain cannot be used as a git repository: not a git repository"):
        resolve(tmp_path / "plain", "HEAD")
    with pytest.raises(UsageError, match="is not a folder"):
        sweep(tmp_path / "absent")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="needs git"):
        resolve(repository, "HEAD")


def test_a_repository_without_commits(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="bad revision 'HEAD'"):
        resolve(new_repository(tmp_path / "empty"), "HEAD")


def test_the_harness_knows_its_own_checkout_or_says_that_it_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = new_repository(tmp_path / "repository")
    monkeypatch.setattr("harness.worktree.__file__", str(top / "harness" / "worktree.py"))
    assert own_repository() == top
    monkeypatch.setattr("harness.worktree.__file__", str(top / "deep" / "harness" / "worktree.py"))
    (top / "deep").mkdir()
    with pytest.raises(UsageError, match="measured from a clone of this project"):
        own_repository()


# Lists of commits --------------------------------------------------------------------------------------------------


def test_commits_are_listed_oldest_first_without_the_good_one(repository: Path) -> None:
    found = list_commits(repository, "HEAD~2", "HEAD")
    assert [entry.subject for entry in found] == ["number 1", "number 2"]
    assert found[-1].sha == resolve(repository, "HEAD") and found[-1].short == found[-1].sha[:9]


def test_a_merged_branch_counts_as_its_merge(repository: Path) -> None:
    git(repository, "checkout", "--quiet", "--force", "-b", "side", "HEAD~1")
    commit(repository, "side one", other="1")
    commit(repository, "side two", other="2")
    git(repository, "checkout", "--quiet", "main")
    git(repository, "merge", "--quiet", "--no-ff", "-m", "merge of side", "side")
    commit(repository, "after", value="3")
    subjects = [[c.subject for c in list_commits(repository, good, "HEAD")] for good in ("middle", "side~1", "HEAD~2")]
    assert subjects[0] == ["number 2", "merge of side", "after"]
    assert subjects[1] == ["merge of side", "after"], "the good commit came in by the merge"
    assert subjects[2] == ["merge of side", "after"]


def test_commits_that_do_not_follow_each_other_are_refused(repository: Path, tmp_path: Path) -> None:
    git(repository, "checkout", "--quiet", "--force", "-b", "side", "HEAD~1")
    commit(repository, "side", other="1")
    parted = git(repository, "rev-parse", "main~1")[:9]
    for good, bad, said in (
        ("HEAD", "side", "are the same commit"),
        ("main", "middle", "swap them"),
        ("main", "side", f"they parted at {parted}"),
    ):
        with pytest.raises(UsageError, match=said):
            list_commits(repository, good, bad)
