"""Bad words, damaged files and stores that cannot be written: a clear message, its exit code, and nothing lost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.store import Store
from tests.commandline import new_store

Call = Callable[..., tuple[int, str, str]]


# --- damaged stores ---


def test_damaged_truncated_and_foreign_files_are_named_and_passed_over(untouched: Path, call: Call) -> None:
    store = Store.open(untouched)
    slow, faults = (store.find_run(name).run_id for name in ("fake_slow", "fake_faults"))
    truncated = untouched / "inbox" / faults / "samples.parquet"
    truncated.write_bytes(truncated.read_bytes()[:-100])
    garbage = untouched / "runs" / "20200101T000000-aaaaaa.parquet"
    garbage.write_bytes(b"not Parquet at all")
    foreign = untouched / "inbox" / slow / "samples-000099.parquet"
    pq.write_table(pa.table({"x": [1]}), foreign)
    code, out, err = call("show", "fake_slow", "-o", "json", store=untouched)
    assert code == 0 and json.loads(out)["rows"][0]["status"] == "ok"
    assert f"passed over {foreign}: is a foreign Parquet file" in err and str(garbage) in err
    code, _, err = call("show", "fake_faults", store=untouched)
    assert code == 3 and str(truncated) in err and "Traceback" not in err
    code, out, _ = call("store", "check", "-o", "json", store=untouched)
    assert code == 3 and {Path(row["file"]) for row in json.loads(out)} == {truncated, garbage, foreign}


# --- bad input: exit 2, the bad value and the known ones; exit 3 for stores ---


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("run", "fake_slo"), ["'fake_slo'", "Did you mean 'fake_slow'", "quickstart"]),
        (("run",), ["which suite?", "quickstart"]),
        (("run", "fake_slow", "--axis", "fakr=slow"), ["'fakr'", "fake", "kv"]),
        (("run", "fake_slow", "--axis", "fake=fast"), ["'fast'", "slow", "oom"]),
        (("run", "fake_slow", "--axis", "fake"), ["'fake'", "axis=option"]),
        (("run", "fake_slow", "--axis", "fake=slow,,plain"), ["axis=option"]),
        (("run", "fake_slow", "--device", "tpu"), ["'tpu'", "cpu, cuda"]),
        (("run", "fake_slow", "--model", "minimind-4"), ["'minimind-4'", "minimind-3", "tiny"]),
        (("run", "fake_slow", "--blocks", "0"), ["'0'", "at least 1"]),
        (("run", "fake_slow", "--blocks", "²"), ["'²'", "at least 1"]),
        (("run", "fake_slow", "--budget", "soon"), ["'soon'", "90s"]),
        (("run", "fake_slow", "--weights", "no.pth"), ["--weights", "'no.pth'", "does not exist"]),
        (("run", "fake_slow", "--data", "no.txt"), ["--data", "--weights"]),
        (("run", "--resume", "19990101"), ["'19990101'", "fake_slow"]),
        (("run", "--resume", "fake_slow"), ["finished", "nothing to resume"]),
        (("run", "fake_slow", "-o", "yaml"), ["'yaml'", "json"]),
        (("show", "yesterday"), ["'yesterday'", "fake_slow"]),
        (("compare", "latest", "yesterday"), ["'yesterday'", "fake_faults"]),
        (("compare", "latest", "latest/kv=ring"), ["'ring'", "prealloc"]),
        (("compare", "latest", "latest/kv=prealloc"), ["'kv=prealloc'", "backend=fake fake=oom"]),
        (("compare", "latest", "latest", "--metric", "tpz"), ["'tpz'", "tpot", "tps"]),
        (("export", "latest", "--table", "sample"), ["'sample'", "samples", "telemetry"]),
        (("export", "latest", "--to", "x.xlsx"), ["'x.xlsx'", ".csv", ".parquet"]),
        (("export", "latest", "--to", "/no/such/folder/x.csv"), ["/no/such/folder/x.csv"]),
        (("export", "latest", "--to", "/no/such/folder/x.parquet"), ["/no/such/folder/x.parquet"]),
        (("list", "suite"), ["'suite'", "suites", "axes"]),
        (("store", "burn"), ["'burn'", "compact", "check"]),
        (("measure",), ["'measure'", "run", "show"]),
        (("show", "--plugin", "no_such_module"), ["'no_such_module'"]),
        (("list", "--plugin", "no_such_file.py"), ["'no_such_file.py'", "not a file"]),
    ],
)
def test_bad_words_exit_2_and_name_what_is_known(
    words: tuple[str, ...], named: list[str], measured: SimpleNamespace, call: Call, no_worker: None
) -> None:
    if words[0] == "show" and "--plugin" in words:
        words = ("show", "latest", *words[1:])
    code, out, err = call(*words, store=measured.path)
    assert (code, out) == (2, ""), err
    assert all(word in err for word in named), err
    assert "Traceback" not in err and len(err.splitlines()) <= 2


def test_stores_that_cannot_be_written_exit_3_before_anything_is_measured(
    tmp_path: Path, call: Call, no_worker: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    for path in (file, file / "below"):
        code, out, err = call("run", "fake_slow", store=path)
        assert (code, out) == (3, "") and str(file) in err and "--store" in err, err
        assert "Traceback" not in err
    full = new_store(tmp_path / "full")
    found = os.statvfs(full.path)
    monkeypatch.setattr("harness.store.os.statvfs", lambda path: SimpleNamespace(f_bavail=1, f_frsize=found.f_frsize))
    code, out, err = call("run", "fake_slow", store=full.path)
    assert (code, out) == (3, "") and "bytes free" in err and str(full.path) in err
    assert full.runs() == []


def test_a_store_that_cannot_be_written_to_exits_3(
    tmp_path: Path, call: Call, no_worker: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a read-only disk; these tests may run as root, to whom nothing is read-only."""
    store = new_store(tmp_path / "results")

    def refused(path: Any, *_: Any, **__: Any) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("harness.catalog.os.open", refused)
        code, out, err = call("run", "fake_slow", store=store.path)
    assert (code, out) == (3, "") and str(store.path) in err and "Permission denied" in err, err
    assert store.runs() == []


def test_reading_what_is_not_a_store_exits_3(tmp_path: Path, call: Call) -> None:
    (tmp_path / "file").write_text("x")
    for name in ("none", "file", "."):
        for words in (
            ("show",),
            ("compare", "a", "b"),
            ("export", "latest"),
            ("store", "check"),
            ("run", "--resume", "a"),
        ):
            code, out, err = call(*words, store=tmp_path / name)
            assert (code, out) == (3, "") and "--store" in err, (name, words, err)
