"""Exports in other engines' formats: made once, verified once, and verified again when anything has changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from harness.backends import _exported
from harness.core import CaseFailed


@pytest.fixture
def exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that exports are kept in."""
    monkeypatch.setattr(_exported, "export_folder", lambda: tmp_path / "exports")
    return tmp_path / "exports"


class Comparison:
    """Counts how often it is asked; refuses a file that does not say `good`."""

    def __init__(self, file: Path) -> None:
        self.file, self.asked = file, 0

    def __call__(self) -> dict[str, float]:
        self.asked += 1
        if self.file.read_text() != "good":
            raise CaseFailed("not the model", status="wrong")
        return {"max_difference": 1e-6}


@pytest.fixture(params=["file", "folder"])
def comparison(request: pytest.FixtureRequest, exports: Path) -> Comparison:
    def make(path: Path) -> None:
        if request.param == "folder":
            path.mkdir()
        (path / "weights" if request.param == "folder" else path).write_text("good")

    path = _exported.exported("kind", "name", make)
    return Comparison(path / "weights" if request.param == "folder" else path)


def verified(exports: Path, comparison: Comparison, engine: str = "engine 1.0") -> dict[str, float]:
    return _exported.verified(exports / "kind" / "name", engine, comparison)


def test_the_same_bytes_and_engine_are_compared_once(exports: Path, comparison: Comparison) -> None:
    found = [verified(exports, comparison) for _ in range(3)]
    assert found == [{"max_difference": 1e-6}] * 3 and comparison.asked == 1
    os.utime(comparison.file)  # a newer time is no other content
    verified(exports, comparison)
    assert comparison.asked == 1


def test_another_version_of_the_engine_compares_again(exports: Path, comparison: Comparison) -> None:
    for engine in ("engine 1.0", "engine 1.1", "engine 1.0", "engine 1.1"):
        verified(exports, comparison, engine)
    assert comparison.asked == 2


def test_a_changed_file_is_compared_again_and_refused(exports: Path, comparison: Comparison) -> None:
    verified(exports, comparison)
    stat = comparison.file.stat()
    comparison.file.write_text("evil")  # as many bytes, and the old time: only the content tells
    os.utime(comparison.file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    for asked in (2, 3):  # a refusal leaves no stamp
        with pytest.raises(CaseFailed, match="not the model"):
            verified(exports, comparison)
        assert comparison.asked == asked
    comparison.file.write_text("good")
    verified(exports, comparison)
    assert comparison.asked == 4


@pytest.mark.parametrize("comparison", ["folder"], indirect=True)
def test_a_file_more_in_the_folder_is_a_change(exports: Path, comparison: Comparison) -> None:
    folder = exports / "kind" / "name"
    verified(exports, comparison)
    (folder / "more").write_text("")
    verified(exports, comparison)
    assert comparison.asked == 2


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"found": {}}', '{"found": 1, "content": "x"}'])
def test_a_damaged_stamp_is_none(exports: Path, comparison: Comparison, text: str) -> None:
    verified(exports, comparison)
    (stamp,) = (exports / "kind").glob(".verified-*")
    stamp.write_text(text)
    assert verified(exports, comparison) == {"max_difference": 1e-6} and comparison.asked == 2


def test_a_stamp_goes_with_its_export(exports: Path, comparison: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    verified(exports, comparison)
    monkeypatch.setattr(_exported, "KEPT", 1)
    os.utime(exports / "kind" / "name", (0, 0))
    _exported.exported("kind", "newer", lambda path: path.write_text("x"))
    assert [entry.name for entry in (exports / "kind").iterdir()] == ["newer"]


def test_distance_is_that_of_the_definition() -> None:
    other = torch.log(torch.tensor([[[0.5, 0.25, 0.25]]]))
    own = torch.log(torch.tensor([[[0.25, 0.5, 0.25]]])) + 3.0
    found = _exported.distance(own, other)
    assert found["kl"] == pytest.approx(
        0.5 * torch.log(torch.tensor(2.0)).item() - 0.25 * torch.log(torch.tensor(2.0)).item()
    )
    assert found["max_difference"] == pytest.approx(3.0 + torch.log(torch.tensor(2.0)).item())
    assert _exported.distance(other, other) == {"max_difference": 0.0, "kl": 0.0}
    broken = _exported.distance(other + float("nan"), other)
    assert broken["kl"] != broken["kl"] and broken["max_difference"] != broken["max_difference"]
