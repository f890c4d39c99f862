"""What the numerics tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from harness.backends import _torch


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Models this small are slower on two threads, and far slower beside a busy neighbour: here `all` is one."""
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_torch, "usable_cpus", lambda: {0})
        yield
    torch.set_num_threads(before)
