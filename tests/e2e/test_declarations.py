"""Adding a variant, a suite, a metric or an engine is one declaration each: the documents' own examples, run."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commandline import ROOT, finish, new_store, start


def example(name: str, document: str = "README.md") -> str:
    """The Python block that stands in a document right under its marker."""
    pattern = rf"<!-- example: {name} -->\s*```python\n(.*?)```"
    found = re.findall(pattern, (ROOT / document).read_text(encoding="utf-8"), re.DOTALL)
    assert len(found) == 1, f"{document} needs one python block marked <!-- example: {name} -->, it has {len(found)}"
    return str(found[0])


SNIPPET_VARIANT, SNIPPET_SUITE, SNIPPET_METRIC = (example(name) for name in ("variant", "suite", "metric"))
SNIPPET_ENGINE = example("engine", "docs/adding.md")
SNIPPETS = {"variant": SNIPPET_VARIANT, "suite": SNIPPET_SUITE, "metric": SNIPPET_METRIC, "engine": SNIPPET_ENGINE}


@pytest.mark.parametrize("snippet", SNIPPETS.values(), ids=SNIPPETS)
def test_an_example_is_under_30_lines_and_complete_in_itself(snippet: str) -> None:
    lines = snippet.strip().splitlines()
    assert len([line for line in lines if line]) < 30
    compile(snippet, "example", "exec")
    assert re.search(r"^from harness\.", snippet, re.MULTILINE), "imports what it uses"


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One temporary module with all of them, as a user would write it."""
    path = tmp_path_factory.mktemp("plugin") / "my_module.py"
    less = SNIPPET_SUITE.replace('of("perplexity")', 'of("perplexity", batch=2, length=64, prefill=48)')  # seconds
    path.write_text("\n\n".join((SNIPPET_VARIANT, less, SNIPPET_METRIC, SNIPPET_ENGINE)), encoding="utf-8")
    return path


@pytest.fixture
def one_cpu() -> Iterator[None]:
    """What is started from here has one CPU: two threads beside a busy neighbour take 25 times as long."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    yield
    os.sched_setaffinity(0, before)


def names() -> dict[str, str]:
    """What the examples declare."""
    variant = re.search(r'@option\(\s*"(\w+)",\s*"(\w+)"', SNIPPET_VARIANT)
    suite = re.search(r'name="(\w+)"', SNIPPET_SUITE)
    metric = re.search(r'@metric\(\s*"(\w+)"', SNIPPET_METRIC)
    assert variant and suite and metric
    return {"axis": variant[1], "option": variant[2], "suite": suite[1], "metric": metric[1]}


def run(*words: str, module: Path, store: Path) -> Any:
    """The JSON that a command prints."""
    options = ["--store", str(store), "--plugin", str(module), "-o", "json"]
    code, out, err = finish(start([*words, *options], store.parent), 300)
    assert code == 0, err
    return json.loads(out)


def test_the_list_shows_all_three(module: Path, tmp_path: Path) -> None:
    declared = names()
    listed = {(row["kind"], row["name"]): row["doc"] for row in run("list", module=module, store=tmp_path / "none")}
    assert ("suites", declared["suite"]) in listed
    (axis,) = [doc for (kind, name), doc in listed.items() if (kind, name) == ("axes", declared["axis"])]
    assert re.search(rf"Options: .*\b{declared['option']}\b", axis)
    assert any(kind == "metrics" and name.startswith(f"{declared['metric']} [") for kind, name in listed)


def test_the_suite_measures_the_option_with_the_metric(module: Path, tmp_path: Path, one_cpu: None) -> None:
    """On the real engine and the trained tiny model: speed, quality, and proof that the option ran."""
    declared = names()
    store = new_store(tmp_path / "results")
    words = ("run", declared["suite"], "--device", "cpu", "--blocks", "1")
    document = run(*words, module=module, store=store.path)
    mine = f"{declared['axis']}={declared['option']}"
    rows = {row["variant"]: row for row in document["rows"] if row["workload"].startswith("decode")}
    assert rows.keys() >= {"reference", mine}
    for variant in ("reference", mine):
        row = rows[variant]
        assert row["status"] in ("ok", "not_steady"), row["reason"]
        assert row["metrics"]["peak_bytes"]["value"] > 0
    assert 0 <= rows[mine]["metrics"]["kl"]["value"] < 1e-6 and rows[mine]["same_output"] is True
    compared = {(found["variant"], found["metric"]) for found in document["comparisons"]}
    assert (mine, declared["metric"]) in compared or rows[mine]["num_blocks"] == 0
    run_id = document["run"]["run_id"]
    samples = store.samples(run_id, metric=declared["metric"]).to_pylist()
    assert {row["case_id"] for row in samples} >= {rows[variant]["case_id"] for variant in ("reference", mine)}
    assert all(row["value"] > 0 and row["unit"] for row in samples)
    facts = json.loads(next(row["facts"] for row in store.cases(run_id).to_pylist() if row["variant"] == mine))
    assert facts["operations"] and facts["modules"]


@pytest.mark.slow
def test_the_engine_measures_the_suite_and_gives_the_same_tokens(module: Path, tmp_path: Path, one_cpu: None) -> None:
    """Without a cache: the same greedy text and quality, no bytes of cache, and far more work for it."""
    words = ("run", names()["suite"], "--axis", "backend=torch,no_cache", "--device", "cpu", "--blocks", "1")
    document = run(*words, module=module, store=tmp_path / "results")
    (row,) = [row for row in document["rows"] if row["variant"] == "backend=no_cache"]
    assert row["status"] in ("ok", "not_steady"), row["reason"]
    assert row["same_output"] is True and 0 <= row["metrics"]["kl"]["value"] < 1e-6
