"""Stores for the tests of the dashboard's questions."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dashboard.query import Query
from harness.sample_store import write_sample_store
from harness.store import Store


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up compacted store with a run that goes on. Not to be changed."""
    folder = tmp_path_factory.mktemp("sample") / "store"
    write_sample_store(folder, samples=1)
    return folder


@pytest.fixture(scope="session")
def asked(sample: Path) -> Query:
    """Questions to it."""
    return Query(sample)


@pytest.fixture
def own(sample: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(sample, tmp_path / "store"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store.open(tmp_path / "results", create=True)
