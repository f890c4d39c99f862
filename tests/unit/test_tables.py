"""One table, four formats: the same rows for people and for programs."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from harness import registry
from harness.compare import compare_within, measured_cases
from harness.store import Store
from harness.tables import FORMATS, Column, Table, comparison_table, quantity, render, run_table, to_json
from tests.synthetic import Arm, store_run

registry.load_all()

TEXT = {"data_fingerprint": "f"}
ARMS = (
    Arm(
        timed={"tps": (100.0, 102.0, 101.0)},
        solo={"peak_bytes": 3 * 2**20, "kv_bytes": 2048.0},
        facts={"trained": True, "outputs": "aa"},
    ),
    Arm(
        "kv=prealloc",
        timed={"tps": (200.0, 204.0, 202.0)},
        solo={"peak_bytes": 2 * 2**20, "kv_bytes": 2048.0},
        facts={"trained": True, "outputs": "aa"},
    ),
    Arm("norm=fused", timed={"tps": (50.0, 51.0, 50.5)}, facts={"trained": True, "outputs": "bb"}),
    Arm("attn=mqa", status="oom", reason="7 GiB wanted"),
    Arm(workload="perplexity", solo={"ppl": 12.5, "kl": 0.0, "top1_agreement": 1.0}, facts=TEXT),
    Arm("kv=prealloc", workload="perplexity", solo={"ppl": 12.75, "kl": 0.015, "top1_agreement": 0.98}, facts=TEXT),
)


def table_of(store: Store, *arms: Arm) -> Table:
    run = store_run(store, *arms)
    cases = measured_cases(store, run.run_id)
    return run_table(cases, compare_within(cases), "lab", ["a note"])


def bodies(table: Table) -> list[dict[str, str]]:
    """The rows of cases, heading -> cell; what stands over the cases of a place is left out."""
    names = [column.name for column in table.columns]
    return [dict(zip(names, map(str.strip, row), strict=True)) for row in table.rows if any(row[1:])]


def cells(table: Table) -> dict[str, dict[str, str]]:
    """Variant -> heading -> cell."""
    return {row["variant"]: row for row in bodies(table)}


# --- the table of a run ---


def test_the_table_of_a_run_to_the_letter(store: Store) -> None:
    table = table_of(store, *ARMS)
    assert [row[0] for row in table.rows] == [
        "tiny: decode 32 @ 128",
        "  reference",
        "  kv=prealloc",
        "  norm=fused",
        "  attn=mqa",
    ]
    found = cells(table)
    assert list(found["reference"].values()) == [
        "reference",
        "101 tok/s",
        "1",
        "(reference)",
        "",
        "",
        "3.0 MiB",
        "2.0 KiB",
        "12.50",
        "0",
        "100.0%",
        "",
    ]
    assert list(found["kv=prealloc"].values()) == [
        "kv=prealloc",
        "202 tok/s",
        "2.000 [2.000, 2.000]",
        "▲ improved",
        "1.0%",
        "1.0%",
        "2.0 MiB",
        "2.0 KiB",
        "12.75",
        "0.015",
        "98.0%",
        "same",
    ]
    fused = found["norm=fused"]
    assert (fused["verdict"], fused["output"], fused["peak memory"], fused["PPL"]) == (
        "▼ regressed",
        "differs",
        "-",
        "-",
    )
    assert found["attn=mqa"]["verdict"] == "oom" and found["attn=mqa"]["value"] == ""


def test_quality_stands_beside_the_speed_and_bad_cases_in_the_notes(store: Store) -> None:
    table = table_of(store, *ARMS)
    assert len(bodies(table)) == 4, "no rows of their own for the perplexities"
    assert table.notes[0] == "oom: decode 32 @ 128 attn=mqa: 7 GiB wanted" and table.notes[-1] == "a note"
    assert [record["same_output"] for record in table.records] == [True, True, False, None]
    assert table.records[0]["data_fingerprint"] == "f"


def test_quality_without_a_timed_case_has_its_own_row(store: Store) -> None:
    """Suites may measure speed on a big model and quality on the trained one."""
    table = table_of(store, *(Arm(**{**fields(arm), "model": "minimind2"}) for arm in ARMS[:2]), *ARMS[4:])
    assert [(record["model"], record["workload"].split("(")[0]) for record in table.records] == [
        ("minimind2", "decode"),
        ("minimind2", "decode"),
        ("tiny", "perplexity"),
        ("tiny", "perplexity"),
    ]
    last = bodies(table)[-1]
    assert (last["value"], last["ratio [95%]"], last["verdict"]) == ("12.75", "1.020", "▼ regressed")


def fields(arm: Arm) -> dict[str, Any]:
    return {name: getattr(arm, name) for name in Arm.__dataclass_fields__}


def test_the_perplexity_of_random_weights_is_not_shown(store: Store) -> None:
    random = [Arm(**{**fields(arm), "facts": {**arm.facts, "trained": False}}) for arm in ARMS]
    assert cells(table_of(store, *random))["kv=prealloc"]["PPL"] == "-"


def test_quality_of_the_trained_model_stands_in_brackets_beside_the_other(store: Store) -> None:
    big = [Arm(**{**fields(arm), "model": "minimind2", "facts": {"trained": False}}) for arm in ARMS[:2]]
    trained = [Arm(**{**fields(arm), "facts": {"trained": True}}) for arm in ARMS[4:]]
    table = table_of(store, *big, *trained)
    found = next(row for row in bodies(table) if row["variant"] == "kv=prealloc")
    assert (found["PPL"], found["KL"], found["top-1"]) == ("(12.75)", "(0.015)", "(98.0%)")
    assert "quality in brackets: of the same variant of tiny, which is trained" in table.notes
    assert [record["quality_model"] for record in table.records[:2]] == ["tiny", "tiny"]
    untrained = table_of(store, *big, *ARMS[4:])
    assert {row["KL"] for row in bodies(untrained)[:2]} == {"-"}, "never borrowed from random weights"


def test_a_column_stands_there_only_where_something_was_recorded_for_it(store: Store) -> None:
    assert "on disk" not in cells(table_of(store, *ARMS))["reference"]
    smaller = Arm(**{**fields(ARMS[1]), "solo": {**ARMS[1].solo, "disk_bytes": 2.0**20}})
    found = cells(table_of(store, ARMS[0], smaller, *ARMS[2:]))
    assert (found["kv=prealloc"]["on disk"], found["reference"]["on disk"]) == ("1.0 MiB", "-")
    assert found["attn=mqa"]["on disk"] == ""


def test_a_reason_that_many_cases_share_is_told_once(store: Store) -> None:
    broken = [Arm(name, status="failed", reason="no such file") for name in ("kv=prealloc", "norm=fused", "attn=mqa")]
    table = table_of(store, ARMS[0], *broken)
    assert table.notes[:-1] == ["failed: decode 32 @ 128 kv=prealloc and 2 more: no such file"]


def test_a_disturbed_reference_leaves_no_second_reference(store: Store) -> None:
    """The candidate's row says that there is no verdict; it must not look like the reference."""
    spoilt = Arm(**{**fields(ARMS[0]), "invalid": dict.fromkeys(range(3), "busy neighbour")})
    found = cells(table_of(store, spoilt, ARMS[1]))
    assert (found["reference"]["value"], found["reference"]["verdict"]) == ("-", "(reference)")
    assert found["kv=prealloc"]["verdict"] == "✗ invalid"
    other = Arm(**{**fields(ARMS[1]), "invalid": dict.fromkeys(range(3), "busy neighbour")})
    found = cells(table_of(store, ARMS[0], other))
    assert (found["kv=prealloc"]["value"], found["kv=prealloc"]["verdict"]) == ("-", "✗ invalid")


def test_a_failed_quality_case_is_a_row(store: Store) -> None:
    bad = Arm("attn=mqa", workload="perplexity", status="wrong", reason="not finite")
    table = table_of(store, *ARMS, bad)
    assert [row["verdict"] for row in bodies(table)].count("wrong") == 1
    assert any(note.startswith("wrong: perplexity") for note in table.notes)


def test_an_empty_run_has_an_empty_table(store: Store) -> None:
    table = table_of(store)
    assert table.rows == [] and json.loads(render(table, "json")) == []
    for fmt in FORMATS:
        assert render(table, fmt).endswith("\n") or fmt == "csv"


# --- formats ---


@pytest.mark.parametrize("fmt", ["table", "md"])
def test_people_see_every_cell(store: Store, fmt: Any) -> None:
    table = table_of(store, *ARMS)
    text = render(table, fmt)
    for row in table.rows:
        assert any(all(cell in line for cell in row if cell) for line in text.splitlines()), row
    assert "a note" in text and "lab" in text and text.endswith("\n")


def test_json_holds_the_records_and_nothing_that_json_cannot_say(store: Store) -> None:
    table = table_of(store, *ARMS)
    records = json.loads(render(table, "json"))
    assert [record["variant"] for record in records] == [row["variant"] for row in bodies(table)]
    assert records[1]["metrics"]["tps"] == {"value": 202.0, "unit": "tokens/s"}
    assert records[1]["comparison"]["ratio"] == pytest.approx(2.0)
    assert records[3]["status"] == "oom" and records[3]["comparison"]["verdict"] == "invalid"
    odd = to_json({"a": math.nan, "b": [math.inf, (-math.inf, 1.5)], 3: {"c": "Fünf 五"}, "path": Path("/x")})
    assert json.loads(odd) == {"a": None, "b": [None, [None, 1.5]], "3": {"c": "Fünf 五"}, "path": "/x"}
    assert "五" in odd


def test_csv_has_a_column_per_number(store: Store) -> None:
    table = table_of(store, *ARMS)
    rows = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    assert [row["variant"] for row in rows] == [row["variant"] for row in bodies(table)]
    assert float(rows[1]["metrics.tps.value"]) == 202.0 and rows[1]["metrics.tps.unit"] == "tokens/s"
    assert float(rows[1]["comparison.ratio"]) == pytest.approx(2.0)
    assert rows[3]["metrics.tps.value"] == "" and rows[3]["reason"] == "7 GiB wanted"
    assert not any("{" in value for row in rows for value in row.values())


def test_markdown_survives_bars_and_line_ends() -> None:
    table = Table("t", [Column("a"), Column("b", right=True)], [("x|y", "1\n2")], [])
    assert render(table, "md") == "**t**\n\n| a | b |\n|---|---:|\n| x\\|y | 1<br>2 |\n"


def test_terminal_markup_in_a_name_is_text() -> None:
    table = Table("[bold]t", [Column("a")], [("[red]x[/red]",)], [], ["[/] note"])
    text = render(table, "table")
    assert "[red]x[/red]" in text and "[bold]t" in text and "[/] note" in text


def test_all_formats_tell_the_same_comparisons(store: Store) -> None:
    run = store_run(store, *ARMS)
    found = compare_within(measured_cases(store, run.run_id))
    table = comparison_table(found, "t", [])
    assert len(table.rows) == len(table.records) == len(found) == 3 + 1 + 1 + 3
    records = json.loads(render(table, "json"))
    rows = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    marked = [line for line in render(table, "md").splitlines() if line.startswith("| tiny")]
    for comparison, record, row, line in zip(found, records, rows, marked, strict=True):
        for said in (record, row):
            assert (said["metric"], said["verdict"]) == (comparison.metric, comparison.verdict)
        assert f"| {comparison.metric} |" in line and comparison.verdict in line
        assert f"{comparison.candidate.variant} against reference" in line


# --- numbers for people ---


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (None, "s", "-"),
        (math.nan, "s", "-"),
        (math.inf, "bytes", "-"),
        (1536.0, "bytes", "1.5 KiB"),
        (3 * 2**30, "bytes", "3,072.0 MiB"),
        (0.0123456, "s", "12.35 ms"),
        (1.5, "s", "1.500 s"),
        (99.96, "tokens/s", "100.0 tok/s"),
        (12345.6, "tokens/s", "12,346 tok/s"),
        (0.1234, "ratio", "12.3%"),
        (12.3456, "perplexity", "12.35"),
    ],
)
def test_quantities(value: float | None, unit: str, expected: str) -> None:
    assert quantity(value, unit) == expected
