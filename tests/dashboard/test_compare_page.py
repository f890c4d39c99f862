"""The Compare page: the numbers of `harness compare`, to the digit, and everything that must not be hidden."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dashboard.context import Context
from dashboard.pages import compare
from dashboard.pages.compare import State, export, layout
from dashboard.source import Source
from harness.cli import main
from harness.core import UsageError
from harness.registry import load_all
from harness.store import Store
from tests.dashboard.page_text import (
    context_of,
    control,
    every,
    figures,
    links,
    query_of,
    sentence,
    shown,
    tables,
)
from tests.synthetic import Arm, store_run

REFERENCE = Path(__file__).resolve().parents[2] / "results" / "reference"
PAIRS = [
    ("kv_cache/reference", "kv_cache/kv=prealloc"),  # interleaved
    ("engines~1", "engines"),  # two runs, not interleaved, some cases on one side only
    ("latest/reference", "latest/backend=onnxruntime"),  # an engine, one block
    ("quantization/quant=int8", "quantization/quant=int4"),
]


@pytest.fixture(autouse=True)
def declared() -> None:
    load_all()


@pytest.fixture(scope="module")
def context() -> Context:
    query, store = Source(REFERENCE).open()
    return Context(query, store, path="/compare")


def as_printed(a: str, b: str, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """What `harness compare A B -o json` prints."""
    main(["compare", a, b, "--store", str(REFERENCE), "-o", "json"])
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def table_of(component: Any, heading: str) -> list[list[str]]:
    """The rows of the table with this first heading, without the heading."""
    return next(rows[1:] for rows in tables(component) if rows[0][0] == heading)


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_the_export_is_what_harness_compare_prints(
    a: str, b: str, context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = as_printed(a, b, capsys)
    assert len(printed) > 1
    assert json.loads(export(context, State(a=a, b=b), "json")) == printed


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_every_verdict_and_interval_on_the_page_is_that_of_harness_compare(
    a: str, b: str, context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = as_printed(a, b, capsys)
    metrics = tuple(sorted({record["metric"] for record in printed}))
    drawn = layout(context, State(a=a, b=b, metric=metrics, rows="all", sort="plan"))
    rows = table_of(drawn, "Case")
    exact = [part.title for part in every(drawn) if getattr(part, "className", "") == "exact"]
    assert len(rows) == len(exact) == len(printed)
    for row, title, record in zip(rows, exact, printed, strict=True):
        assert row[1] == record["metric"]
        assert row[5].split()[1] == record["verdict"]
        assert title.split(" [")[0] == repr(record["ratio"])
        if record["low"] is not None:
            high = record["high"] if record["high"] is not None else float("inf")  # JSON has no infinity
            assert title == f"{record['ratio']!r} [{record['low']!r}, {high!r}]"
            assert row[4].startswith(f"{record['ratio']:.3f} [")


def test_the_first_line_says_the_verdict_and_the_counts_are_filters(context: Context) -> None:
    drawn = layout(context, State(b="kv_cache"))
    assert sentence(drawn).startswith(
        "5 of 18 cases regressed (most: minimind2-small: decode 16 @ 512 kv=int8 tps -13.8%"
    )
    found = links(drawn)
    assert query_of(found["5regressed"]) == {"b": ["kv_cache"], "verdict": ["regressed"]}
    only = layout(context, State(b="kv_cache", verdict="regressed"))
    assert [row[5] for row in table_of(only, "Case")] == ["▼ regressed"] * 5
    assert query_of(links(only)["5regressed"]) == {"b": ["kv_cache"]}  # a second click shows all again


def test_quality_stands_beside_every_speed_up(context: Context) -> None:
    drawn = layout(context, State(a="quantization/reference", b="quantization/quant=int4"))
    rows = table_of(drawn, "Case")
    assert rows and all("KL 0.0" in row[6] and "top-1" in row[6] for row in rows)


def test_no_significant_row_is_hidden_and_what_is_hidden_is_counted(tmp_path: Path) -> None:
    arms = [Arm(workload=f"decode(context={n})", timed={"tps": [10.0, 10.1, 9.9, 10.0]}) for n in range(1, 41)]
    faster = [
        Arm(
            "kv=prealloc",
            workload=f"decode(context={n})",
            timed={"tps": [12.0, 12.1, 11.9, 12.0] if n == 7 else [10.0, 10.1, 9.9, 10.0]},
        )
        for n in range(1, 41)
    ]
    store = Store.open(tmp_path / "s", create=True)
    store_run(store, *arms, *faster)
    drawn = layout(context_of(store), State(b="latest"))
    rows = table_of(drawn, "Case")
    assert [row[5] for row in rows] == ["▲ improved"]
    assert "39 comparisons without a significant change are hidden." in shown(drawn)
    every_row = layout(context_of(store), State(b="latest", rows="all"))
    assert len(table_of(every_row, "Case")) == 40


def test_failures_and_cases_without_a_counterpart_are_there_with_their_reason(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s", create=True)
    blocks = {"tps": [10.0, 10.1, 9.9]}
    store_run(store, Arm(timed=blocks), Arm("kv=paged", timed=blocks), Arm("norm=fused", timed=blocks))
    store_run(
        store,
        Arm(timed=blocks),
        Arm("kv=prealloc", status="skipped", reason="needs cuda"),
        Arm("norm=fused", status="oom", reason="12 GiB asked, 8 there"),
    )
    drawn = layout(context_of(store), State(a="latest~1", b="latest"))
    text = shown(drawn)
    assert "norm=fused: oom: 12 GiB asked, 8 there" in text
    assert "Only in A (1)" in text and "kv=paged" in text
    assert "Only in B (1)" in text and "needs cuda" in text
    assert "not interleaved" in text  # two runs: said before the ratios


def test_machines_that_differ_are_said_before_any_number(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s", create=True)
    for machine in ("aaaa", "bbbb"):
        store_run(
            store, Arm(timed={"tps": [10.0, 10.1]}), machine_id=machine, cpu_model=f"CPU {machine}", git_sha=machine
        )
    drawn = layout(context_of(store), State(a="latest~1", b="latest"))
    text = shown(drawn)
    assert "The two sides come from different machines." in text
    assert text.index("different machines") < text.index("tok/s")
    assert "More than one thing differs between A and B" in text


def test_a_row_opens_its_samples_and_closing_goes_back(context: Context) -> None:
    drawn = layout(context, State(a="kv_cache/reference", b="kv_cache/kv=prealloc"))
    row = next(part for part in every(drawn) if getattr(part, "className", "") == "row-link")
    state = query_of(row.href)
    opened = layout(context, State(a=state["a"][0], b=state["b"][0], case=state["case"][0], on=state["on"][0]))
    drawer = control(opened, "case,on")
    assert drawer.opened is True
    assert {"samples-in-order", "samples-distribution"} <= set(figures(drawer))
    assert "Block by block" in shown(drawer)
    assert "python -m harness run kv_cache" in shown(drawer)
    strip = figures(drawer)["samples-in-order"]
    assert any("warm" in str(trace.get("name", "")) for trace in strip["data"])


def test_a_case_that_is_not_there_is_said(context: Context) -> None:
    drawn = layout(context, State(b="kv_cache", case="000000000000"))
    assert "The case 000000000000 is not part of this comparison." in shown(drawn)


def test_the_way_in_lists_axes_with_one_click_to_each_measured_pair(context: Context) -> None:
    drawn = layout(context, State())
    text = shown(drawn)
    for axis in ("norm", "kv", "precision", "attn", "quant", "compile"):
        assert axis in text
    found = links(drawn)
    pair = next(href for words, href in found.items() if words.startswith("int4 against int8"))
    query = query_of(pair)
    assert query["a"][0].endswith("/quant=int8") and query["b"][0].endswith("/quant=int4")
    compared = layout(context, State(a=query["a"][0], b=query["b"][0]))
    assert len(table_of(compared, "Case")) >= 2
    assert any(words.startswith("prealloc against cat") for words in found)
    assert "not measured yet" in text  # attn, with the command
    assert any(
        "run " in getattr(part, "children", "") for part in every(drawn) if getattr(part, "className", "") == "command"
    )


def test_markdown_holds_verdict_rows_and_command(context: Context) -> None:
    text = export(context, State(b="kv_cache", verdict="improved"), "md")
    assert "| minimind2-small | decode 16 @ 1000 |" in text
    assert "▲ improved" in text and "▼ regressed" not in text
    assert "`python -m harness show" in text


def test_csv_has_the_rows_in_sight(context: Context) -> None:
    rows = list(csv.DictReader(io.StringIO(export(context, State(b="kv_cache", verdict="regressed"), "csv"))))
    assert [row["verdict"] for row in rows] == ["regressed"] * 5


@pytest.mark.parametrize(
    "text", ["nonsense", "'; DROP TABLE runs; --", "../../etc/passwd", "latest/nonsense=1", "a" * 2000]
)
def test_a_side_that_is_not_known_is_refused_in_words(text: str, context: Context) -> None:
    drawn = layout(context, State(b=text))
    assert sentence(drawn) == "Compare cannot show this."
    assert control(drawn, "b").value == text  # to be mended where it stands
    with pytest.raises(UsageError):
        export(context, State(b=text), "md")


def test_hostile_text_from_the_store_stays_text(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s", create=True)
    hostile = "<script>alert(1)</script>"
    store_run(
        store,
        Arm(timed={"tps": [10.0, 10.1]}),
        Arm("kv=prealloc", status="failed", reason=hostile),
        command=f"run {hostile}",
        cpu_model=hostile,
    )
    drawn = layout(context_of(store), State(b="latest"))
    assert hostile in shown(drawn)  # as a text node: no component here takes HTML
    assert not any("dangerously" in str(vars(part)) for part in every(drawn) if not isinstance(part, str | int | float))


def test_a_run_that_is_deleted_meanwhile_is_said(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s", create=True)
    run = store_run(store, Arm(timed={"tps": [10.0, 10.0]}), Arm("kv=prealloc", timed={"tps": [11.0, 11.0]}))
    store_run(store, Arm(timed={"tps": [10.0, 10.1]}))
    source = Source(tmp_path / "s")
    assert "decode" in shown(layout(Context(*source.open()), State(b=run.run_id)))
    shutil.rmtree(tmp_path / "s" / "inbox" / run.run_id)
    (tmp_path / "s" / "runs" / f"{run.run_id}.parquet").unlink()
    assert f"no run '{run.run_id}'" in shown(layout(Context(*source.open()), State(b=run.run_id, metric=("tps",))))


def test_an_empty_store_says_what_to_run(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s", create=True)
    drawn = layout(context_of(store), State(b="latest"))
    assert "it holds no run" in shown(drawn)
    assert "python -m harness run quickstart --store" in shown(drawn)


def test_the_margin_of_the_address_is_the_margin_of_the_verdicts(context: Context) -> None:
    wide = layout(context, State(a="kv_cache/reference", b="kv_cache/kv=int8", margin=30.0, rows="all"))
    assert {row[5] for row in table_of(wide, "Case") if row[1] == "tps"} == {"= equivalent"}
    assert "--margin 0.3" in shown(wide)


def test_the_page_in_chinese(context: Context) -> None:
    chinese = Context(context.query, context.store, "zh", path="/compare")
    text = shown(layout(chinese, State(b="kv_cache")))
    assert "退化" in text and "改善" in text and "对比" in text
    assert compare.TITLE not in text.splitlines()


def test_one_side_alone_may_be_named_in_every_way(context: Context) -> None:
    machine = context.results.runs()[-1].machine_id
    alone = layout(context, State(b=f"machine:{machine}@kv_cache"))
    assert sentence(alone) == sentence(layout(context, State(b="kv_cache")))


def test_a_row_has_its_past_as_a_picture_or_else_its_blocks(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s", create=True)
    for level in (10.0, 11.0, 12.0):
        store_run(store, Arm(timed={"tps": [level, level * 1.01]}), machine_id="m1")
    store_run(store, Arm(timed={"tps": [90.0, 91.0]}), machine_id="m2")
    context = context_of(store)

    def picture(a: str, b: str) -> str:
        drawn = layout(context, State(a=a, b=b))
        return str(next(part.alt for part in every(drawn) if getattr(part, "className", "") == "spark"))

    assert picture("latest~2", "latest~1") == "history of 3 runs"  # neither the later run nor the other machine
    assert picture("latest~3", "latest~2") == "history of 2 runs"
    assert picture("latest~1", "latest") == "2 blocks of this run"
