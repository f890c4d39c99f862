"""What the engines' tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from harness.backends import _exported, _torch


@pytest.fixture(scope="module")
def quiet_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One thread, and exports in a folder of the test's own."""
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        for module in (_torch, _exported):
            patch.setattr(module, "usable_cpus", lambda: {0})
        folder = tmp_path_factory.mktemp("exports") / "of_this_user"
        patch.setattr(_exported, "export_folder", lambda: folder)
        yield
    torch.set_num_threads(before)
