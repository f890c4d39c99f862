"""Names for runs, and what the text of a baseline means."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from harness import registry
from harness.baselines import FILE_NAME, list_baselines, parse_baseline, prune_baselines, set_baseline
from harness.core import UsageError
from harness.schema import RunRow
from harness.store import Store
from tests.synthetic import Arm, store_run

registry.load_all()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two empty commits and a branch."""
    folder = tmp_path_factory.mktemp("repository")
    git = ["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for words in (
        ["init", "-q", "-b", "main"],
        ["commit", "-q", "--allow-empty", "-m", "one"],
        ["commit", "-q", "--allow-empty", "-m", "two"],
        ["branch", "lab"],
    ):
        subprocess.run([*git, *words], check=True)
    return folder


def run_of(store: Store, **fields: str) -> RunRow:
    return store_run(store, Arm(timed={"tps": [1.0, 2.0]}), **fields)


def delete(store: Store, run: RunRow) -> None:
    (store.path / "runs" / f"{run.run_id}.parquet").unlink()


# --- names ---


def test_a_name_outlives_the_process_and_can_move(store: Store) -> None:
    first, second = run_of(store, git_sha="abc"), run_of(store)
    set_baseline(store, "release-1", first)
    set_baseline(store, "other", first)
    set_baseline(store, "release-1", second)
    found = list_baselines(Store.open(store.path))
    assert [(named.name, named.run_id) for named in found] == [("other", first.run_id), ("release-1", second.run_id)]
    assert found[0].git_sha == "abc" and found[0].suite == "lab" and found[0].set_at


@pytest.mark.parametrize("name", ["", "-x", "a b", "kv=cat", "a/b", "commit:x", "x" * 65, "../x", "a\n"])
def test_names_that_could_mean_something_else_are_refused(store: Store, name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a baseline"):
        set_baseline(store, name, run_of(store))
    assert not (store.path / FILE_NAME).exists()


def test_an_unfinished_run_is_no_baseline(store: Store) -> None:
    run = store.begin(RunRow(suite="lab")).run
    with pytest.raises(UsageError, match="is running"):
        set_baseline(store, "x", run)
    with pytest.raises(UsageError, match="is running"):
        parse_baseline(f"run:{run.run_id}", store, None)


def test_prune_drops_names_without_a_run_and_old_ones(store: Store) -> None:
    assert prune_baselines(store) == []
    assert not (store.path / FILE_NAME).exists()
    gone, kept = run_of(store), run_of(store)
    for number, run in enumerate((gone, kept, kept, kept)):
        set_baseline(store, f"n{number}", run)
    delete(store, gone)
    assert [named.name for named in prune_baselines(store)] == ["n0"]
    assert [named.name for named in prune_baselines(store, keep=2)] == ["n1"]
    assert [named.name for named in list_baselines(store)] == ["n2", "n3"]
    assert prune_baselines(store, keep=5) == []


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"format": 2, "baselines": []}', '{"format": 1, "baselines": [3]}', "\x00\x01"]
)
def test_a_damaged_file_is_named_and_kept_aside(store: Store, text: str) -> None:
    (store.path / FILE_NAME).write_text(text)
    assert list_baselines(store) == []
    (problem,) = store.problems
    assert problem.path.name == FILE_NAME and "not a file of baselines" in problem.reason
    set_baseline(store, "new", run_of(store))
    assert [named.name for named in list_baselines(store)] == ["new"]
    assert (store.path / "baselines-damaged.json").read_text() == text


# --- what a text means ---


def test_each_prefix_means_its_kind(store: Store, repository: Path) -> None:
    run = run_of(store)
    set_baseline(store, "v1", run)
    tag, stored = parse_baseline("tag:v1", store, repository), parse_baseline("run:latest", store, repository)
    assert (tag.kind, stored.kind) == ("tag", "run")
    assert tag.run is not None and stored.run is not None and tag.run.run_id == stored.run.run_id == run.run_id
    variant = parse_baseline("variant:sdpa=fused,kv=prealloc", store, repository)
    assert variant.canonical == "variant:kv=prealloc,sdpa=fused" and str(variant) == "variant kv=prealloc sdpa=fused"
    reference = parse_baseline("reference", store, repository)
    assert parse_baseline(reference.canonical, store, repository).variant == reference.variant
    commit = parse_baseline("commit:HEAD~1", store, repository)
    assert len(commit.commit) == 40 and str(commit) == f"commit {commit.commit[:9]} (HEAD~1)"
    assert parse_baseline(commit.canonical, store, repository).commit == commit.commit
    assert parse_baseline(tag.canonical, store, repository).run == tag.run


def test_without_a_prefix_the_first_that_fits_is_meant(store: Store, repository: Path) -> None:
    run = run_of(store)
    assert parse_baseline("main", store, repository).kind == "commit"
    set_baseline(store, "main", run)
    assert parse_baseline("main", store, repository).kind == "tag"
    assert parse_baseline("kv=prealloc", store, repository).kind == "variant"
    assert parse_baseline("reference", store, repository).kind == "variant"
    assert parse_baseline("latest", store, repository).kind == "run"
    assert parse_baseline(run.run_id[:-1], store, repository).kind == "run"
    assert parse_baseline("HEAD~1", store, repository).kind == "commit"


def test_a_text_that_is_a_run_and_a_commit_is_refused(store: Store, repository: Path) -> None:
    run = run_of(store)
    with pytest.raises(UsageError, match=rf"'lab' may be .*{run.run_id}.*commit:lab"):
        parse_baseline("lab", store, repository)
    assert parse_baseline("commit:lab", store, repository).kind == "commit"


def test_a_text_that_means_nothing_lists_what_was_tried(store: Store, repository: Path) -> None:
    with pytest.raises(UsageError) as caught:
        parse_baseline("nowhere", store, repository)
    for word in ("'nowhere'", "baseline list", "axis=option", "no run 'nowhere'", "not a commit"):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tag:nope", "Known: v1"),
        ("tag:", "names no tag"),
        ("variant:kv=nope", "nope"),
        ("variant:kvv=cat", "Did you mean 'kv'"),
        ("run:nope", "no run 'nope'"),
        ("commit:nope", "'nope' is not a commit"),
    ],
)
def test_a_bad_name_of_a_kind_is_named(store: Store, repository: Path, text: str, said: str) -> None:
    set_baseline(store, "v1", run_of(store))
    with pytest.raises(UsageError, match=said):
        parse_baseline(text, store, repository)


def test_a_name_whose_run_is_gone_is_said_to_be_so(store: Store, repository: Path) -> None:
    run = run_of(store)
    set_baseline(store, "v1", replace(run))
    delete(store, run)
    with pytest.raises(UsageError, match=rf"'v1' is run {run.run_id}, which is no longer in store"):
        parse_baseline("v1", store, repository)
