"""What the unit tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store; a file may have its own."""
    return Store.open(tmp_path / "results", create=True)
