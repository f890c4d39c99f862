"""`harness profile`: traces and stacks of real cases beside the store, and a table of where their time goes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from harness.store import Store
from tests.commandline import finish, new_store, start

Call = Callable[..., tuple[int, str, str]]

DECLARED = """
from harness.core import Grid, Suite, Workload
from harness.registry import suite

SUITE = suite(Suite(
    name="profiled", doc="Two cases.", metrics=("tps", "ppl"),
    grids={"cpu": (Grid(("tiny",), (Workload.of("prefill", context=16), Workload.of("perplexity")),
                        {"kv": ("cat", "prealloc")}),)},
))
"""


def test_every_timed_case_gets_its_profile_and_a_row(tmp_path: Path) -> None:
    plugin = tmp_path / "declared.py"
    plugin.write_text(DECLARED)
    store = new_store(tmp_path / "results").path
    words = ["profile", "profiled", "--device", "cpu", "--plugin", str(plugin), "--store", str(store), "-o", "json"]
    code, out, err = finish(start(words, tmp_path))
    assert code == 0, err
    rows = json.loads(out)
    assert [(row["model"], row["variant"], row["status"]) for row in rows] == [
        ("tiny", "reference", "ok"), ("tiny", "kv=prealloc", "ok")]  # fmt: skip
    for row in rows:
        assert row["operations"][0]["share"] > 0 and row["peak_allocated"] > 0
        assert Path(row["trace"]).parent == store / "artifacts" / Store.open(store).find_run("latest").run_id
        assert row["said"]["trace"].endswith("iterations")
        assert row["collapsed"] is not None or "py-spy" in row["said"]["stacks"]
    run = Store.open(store).find_run("latest")
    assert (run.suite, run.status) == ("profile-profiled", "finished")
    assert run.command.startswith("python -m harness profile profiled --device cpu")
    code, out, err = finish(start(["show", "latest", "--store", str(store), "--plugin", str(plugin)], tmp_path))
    assert code == 0 and "profile-profiled" in out, err


def test_what_cannot_be_profiled_is_a_usage_error(call: Call, tmp_path: Path) -> None:
    code, _, err = call("profile", store=tmp_path / "s")
    assert code == 2 and "which suite? Known:" in err
    code, _, err = call("profile", "gat", "--device", "cpu", store=tmp_path / "s")
    assert code == 2 and "Did you mean 'gate'" in err
    code, _, err = call("profile", "gate", "--model", "nobody", "--device", "cpu", store=tmp_path / "s")
    assert code == 2 and "'nobody'" in err
    assert not (tmp_path / "s").exists()
