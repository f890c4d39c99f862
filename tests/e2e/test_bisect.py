"""`harness bisect` on a repository of its own: commits of a scripted backend, one of which is slower."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.commandline import new_store
from tests.scratch_repository import bisect_words, copy_of_this, finish_there, git, plant, start_there, state_of

Answer = tuple[int, str, str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Good, two harmless commits, one that does not run, one 8% slower, two more; and a branch that ends broken."""
    folder = tmp_path_factory.mktemp("bisect")
    repository = copy_of_this(folder / "repository")
    names = [plant(repository, f"harmless {number}", 1.0) for number in (1, 2)]
    names.append(plant(repository, "does not run", None))
    names += [plant(repository, subject, 1.08) for subject in ("eight percent", "after it", "the last")]
    git(repository, "checkout", "--quiet", "-b", "broken", "main~1")
    plant(repository, "broken", None)
    git(repository, "checkout", "--quiet", "main")
    return SimpleNamespace(path=repository, folder=folder, commits=names, store=new_store(folder / "results"))


def ask(made: SimpleNamespace, *words: str) -> Answer:
    return finish_there(start_there(made.path, bisect_words(made.store.path, *words), made.folder))


@pytest.mark.slow
def test_it_finds_the_commit_past_one_that_does_not_run(made: SimpleNamespace) -> None:
    before = state_of(made.path)
    code, out, err = ask(made, "--good", "main~6", "--metric", "tpot", "-o", "json")
    assert code == 4, err
    document = json.loads(out)
    assert document["outcome"] == "range" and document["culprit"] is None
    assert [suspect["subject"] for suspect in document["suspects"]] == ["does not run", "eight percent"]
    assert "about 4 steps" in err.splitlines()[0] and "step 1 of about 4: " in err
    decisions = {step["subject"]: step["decision"] for step in document["steps"]}
    assert decisions["the last"] == "bad" and decisions["does not run"] == "skipped"
    (skipped,) = [step for step in document["steps"] if step["decision"] == "skipped"]
    assert "RuntimeError" in skipped["reason"]
    for step in document["steps"]:
        a, b = (made.store.find_run(step["runs"][side]) for side in ("baseline", "candidate"))
        assert (a.git_sha, b.git_sha) == (document["good"]["sha"], step["sha"]) and a.session == b.session != ""
        assert (a.status, a.git_dirty, b.git_dirty) == ("finished", False, False)
        assert a.command == b.command and b.command.startswith("python -m harness bisect ")
        assert f"--good {a.git_sha[:9]} --bad {b.git_sha[:9]}" in b.command
    first = document["steps"][0]["judgements"][0]
    assert first["ratio"] == pytest.approx(1.08, rel=1e-3) and first["num_blocks"] == 3
    assert state_of(made.path) == before and not made.store.check()

    repeated = document["command"].split()
    assert repeated[repeated.index("--good") + 1] == document["good"]["sha"][:9]


@pytest.mark.slow
def test_it_names_the_one_commit_and_what_repeats_the_step(made: SimpleNamespace) -> None:
    code, out, err = ask(made, "--good", "main~3", "--bad", "main~2")
    assert code == 3 and "at the good commit failed: RuntimeError" in out, err
    plant(made.path, "slower again", 1.2)
    code, out, err = ask(made, "--good", "main~2", "--effect", "0.05")
    assert code == 0, out + err
    sha = git(made.path, "rev-parse", "HEAD")
    assert f"first bad commit: {sha} slower again" in out.replace("\n", " ").replace("  ", " ")
    assert f"--good {sha[:9]}~1 --bad {sha[:9]} --metric" in out
    git(made.path, "reset", "--quiet", "--hard", "HEAD~1")


@pytest.mark.slow
def test_no_difference_and_nothing_measured_are_said_with_figures(made: SimpleNamespace) -> None:
    code, out, err = ask(made, "--good", "main~6", "--bad", "main~4", "-o", "json")
    document = json.loads(out)
    assert (code, document["outcome"], document["suspects"]) == (4, "not worse", []), err
    assert "is not worse than" in document["said"] and document["followed"] is None
    assert [found["ratio"] for found in document["steps"][0]["judgements"]] == [1.0]
    code, out, err = ask(made, "--good", "main~6", "--bad", "broken")
    assert code == 3 and "nothing could be measured" in out and "RuntimeError" in out, err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--good", "maim"), "'maim' is not a commit"),
        (("--good", "main", "--bad", "main~1"), "swap them"),
        (("--good", "main~1", "--metric", "tpto"), "Did you mean 'tpot'"),
        (("--good", "main~1", "--metric", "ttft"), "unknown metric of suite fake_slow 'ttft'"),
        (("--good", "main~1", "--effect", "3"), "0.03 for 3%"),
        (("--good", "main~1", "--blocks", "2"), "at least 3 blocks"),
        (("--good", "main~1", "--model", "tinny"), "Did you mean 'tiny'"),
        ((), "--good"),
    ],
)
def test_a_wrong_word_ends_at_once_and_makes_nothing(words: tuple[str, ...], said: str, made: SimpleNamespace) -> None:
    before, runs = state_of(made.path), len(made.store.runs())
    code, out, err = ask(made, *words)
    assert (code, out) == (2, "") and said in err
    assert state_of(made.path) == before and len(made.store.runs()) == runs


def test_outside_a_clone_there_is_nothing_to_search(made: SimpleNamespace, tmp_path: Path) -> None:
    (made.path / ".git").rename(tmp_path / "hidden")
    try:
        code, _, err = ask(made, "--good", "main~1")
    finally:
        (tmp_path / "hidden").rename(made.path / ".git")
    assert code == 2 and "cannot be used as a git repository: not a git repository" in err
