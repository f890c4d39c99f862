"""Trend: a step in a history is found, named, bracketed by commits, and settled by a remark; a break is no step."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

from dashboard.pages import trend
from harness.registry import load_all
from harness.schema import RunRow
from harness.store import Store
from tests.dashboard.page_text import commands, context_of, figures, links, query_of, sentence, shown, tables
from tests.synthetic import Arm, store_run

RUNS = 16
STEP = 9  # the first run that is slower


@pytest.fixture(autouse=True)
def declared() -> None:
    load_all()


def history(path: Path, *, slower: float = 0.9, torch_before: str = "2.13", arms: int = 1) -> list[RunRow]:
    """Runs of one machine whose cases lose a tenth of their speed at STEP; torch may change there too."""
    store = Store.open(path, create=True)
    found = []
    for number in range(RUNS):
        level = 100.0 * (1 + 0.002 * ((7 * number) % 5 - 2)) * (slower if number >= STEP else 1.0)
        cases = [
            Arm(timed={"tps": [level * 0.99, level, level * 1.01]}, workload=f"decode(context={64 * (place + 1)})")
            for place in range(arms)
        ]
        run = store_run(
            store, *cases, suite="gate", machine_id="m1", git_sha=f"{number:08x}" + "0" * 32, command="again",
            torch="2.13" if number >= STEP else torch_before,
        )  # fmt: skip
        found.append(run)
    return found


def test_a_step_is_said_in_words_with_its_size_and_commit(tmp_path: Path) -> None:
    history(tmp_path)
    page = trend.layout(context_of(tmp_path), trend.State())
    text = sentence(page)
    assert text.startswith("tps: 1 of 1 series changed their level; the largest change is -10.0% [")
    assert text.endswith("in tiny: decode 32 @ 64, reference, at commit 00000009.")


def test_its_row_has_ratio_place_and_status_and_leads_to_compare(tmp_path: Path) -> None:
    runs = history(tmp_path)
    page = trend.layout(context_of(tmp_path), trend.State())
    row = tables(page)[0][1]
    assert row[0] == "1"
    assert row[1] == "tiny: decode 32 @ 64, reference"
    assert row[3].startswith("0.900 [0.8")
    assert row[3].endswith("-10.0%")
    assert row[4] == "00000008..00000009"
    assert row[5] == "new"
    compared = query_of(links(page)["00000008..00000009"])
    assert compared == {"a": [runs[STEP - 1].run_id], "b": [runs[STEP].run_id]}


def test_the_figure_has_every_run_and_the_numbered_step(tmp_path: Path) -> None:
    history(tmp_path)
    (drawn,) = figures(trend.layout(context_of(tmp_path), trend.State())).values()
    meta = drawn["layout"]["meta"]
    assert len(meta["rows"]) == RUNS
    assert meta["title"] == "tps: tiny: decode 32 @ 64, reference"


def test_a_remark_explains_the_change_that_it_falls_on(tmp_path: Path) -> None:
    runs = history(tmp_path)
    before = runs[STEP - 1].started_at
    assert before is not None
    remark = {
        "time": (before + timedelta(microseconds=1)).isoformat(), "author": "ada", "text": "new <driver>",
        "case": "*decode*", "status": "explained",
    }  # fmt: skip
    (tmp_path / "annotations.jsonl").write_text(json.dumps(remark) + "\n")
    page = trend.layout(context_of(tmp_path), trend.State())
    assert tables(page)[0][1][5] == "explained: new <driver> (ada)"
    assert "new <driver>" in shown(page)


def test_lines_that_are_no_remarks_are_named_and_the_rest_is_used(tmp_path: Path) -> None:
    history(tmp_path)
    good = '{"time": "2026-01-01", "text": "moved house"}'
    bad = ["nonsense", "[]", '{"time": 3, "text": "x"}', '{"time": "yesterday", "text": "x"}', "[" * 100_000]
    (tmp_path / "annotations.jsonl").write_text("\n".join([*bad, good]))
    text = shown(trend.layout(context_of(tmp_path), trend.State()))
    assert [f"annotations.jsonl line {number}:" in text for number in range(1, 7)] == [True] * 5 + [False]
    assert "moved house" in text


def test_an_annotations_file_beyond_all_measure_is_not_read(tmp_path: Path) -> None:
    history(tmp_path)
    (tmp_path / "annotations.jsonl").write_bytes(b"x" * 1_000_001)
    assert "annotations.jsonl is larger than 1,000,000 bytes" in shown(
        trend.layout(context_of(tmp_path), trend.State())
    )


def test_no_level_goes_across_a_change_of_torch(tmp_path: Path) -> None:
    history(tmp_path, torch_before="2.11")
    page = trend.layout(context_of(tmp_path), trend.State())
    assert sentence(page) == "tps: none of 1 series changed its level in the last 16 runs."
    assert "torch 2.11 → 2.13" in tables(page)[-1][1]


def test_few_runs_say_how_many_it_takes(tmp_path: Path) -> None:
    store_run(Store.open(tmp_path, create=True), Arm(timed={"tps": [1.0, 1.1]}), machine_id="m1")
    expected = "Too few runs to see a change of level in tps: it takes 6 of a series, the longest of 1 has 1."
    assert sentence(trend.layout(context_of(tmp_path), trend.State())) == expected


def test_four_figures_at_a_time_and_links_to_the_others(tmp_path: Path) -> None:
    history(tmp_path, arms=6)
    context = context_of(tmp_path)
    page = trend.layout(context, trend.State())
    assert len(figures(page)) == 4
    assert query_of(links(page)["2"]) == {"part": ["2"]}
    assert len(figures(trend.layout(context, trend.State(part=2)))) == 2
    assert len(figures(trend.layout(context, trend.State(part=99)))) == 2
    assert sentence(page).startswith("tps: 6 of 6 series changed their level")


def test_the_filter_chooses_the_cases(tmp_path: Path) -> None:
    history(tmp_path, arms=3)
    page = trend.layout(context_of(tmp_path), trend.State(filter="context>=128 context<192"))
    assert [row[0] for row in tables(page)[-1][1:]] == ["tiny: decode 32 @ 128, reference"]


def test_a_metric_that_nobody_measured_names_a_command(tmp_path: Path) -> None:
    history(tmp_path)
    page = trend.layout(context_of(tmp_path), trend.State(metric="ppl"))
    assert sentence(page) == "No run of this machine has ppl for what the filter lets through."
    assert commands(page) == [f"python -m harness run quickstart --store {tmp_path}"]


def test_machines_never_mix(tmp_path: Path) -> None:
    history(tmp_path)
    store_run(Store.open(tmp_path), Arm(timed={"tps": [900.0, 901.0]}), machine_id="m2", suite="gate")
    context = context_of(tmp_path)
    assert [row[1] for row in tables(trend.layout(context, trend.State()))[-1][1:]] == ["1"]
    assert [row[1] for row in tables(trend.layout(context, trend.State(machine="m1")))[-1][1:]] == ["16"]


def test_the_gate_of_the_suite_is_a_limit_below_the_newest_level(tmp_path: Path) -> None:
    history(tmp_path)
    page = trend.layout(context_of(tmp_path), trend.State())
    (drawn,) = figures(page).values()
    notes = [note["text"] for note in drawn["layout"]["annotations"]]
    assert "limit 87.3 tok/s" in notes  # 3% below 90, not below the 100 from before the step
    series = tables(page)[-1]
    assert dict(zip(series[0], series[1], strict=True))["Limit"] == "87.3 tok/s"


def test_no_gate_no_limit(tmp_path: Path) -> None:
    store = Store.open(tmp_path, create=True)
    for level in (100.0, 101.0):
        store_run(store, Arm(timed={"tps": [level, level]}), suite="lab", machine_id="m1")
    series = tables(trend.layout(context_of(tmp_path), trend.State()))[-1]
    assert dict(zip(series[0], series[1], strict=True))["Limit"] == "–"


def test_a_stretch_of_runs_from_the_address_is_what_the_figure_shows(tmp_path: Path) -> None:
    runs = history(tmp_path)
    context = context_of(tmp_path)
    page = trend.layout(context, trend.State(first=runs[2].run_id, last=runs[6].run_id))
    (drawn,) = figures(page).values()
    assert drawn["layout"]["xaxis"]["range"] == [1.5, 6.5]
    assert len(drawn["layout"]["meta"]["rows"]) == RUNS
    assert sentence(page).startswith("tps: 1 of 1 series changed their level")
    assert query_of(links(page)["Show all runs"]) == {}
    nowhere = trend.layout(context, trend.State(first="nobody", last=runs[6].run_id))
    assert figures(nowhere) == figures(trend.layout(context, trend.State()))


def test_the_runs_that_the_filter_names_are_the_history(tmp_path: Path) -> None:
    runs = history(tmp_path)
    named = ",".join(run.run_id for run in runs[:3])
    page = trend.layout(context_of(tmp_path), trend.State(filter=f"run={named}"))
    assert [row[1] for row in tables(page)[-1][1:]] == ["3"]


def test_the_page_says_how_two_runs_are_compared(tmp_path: Path) -> None:
    history(tmp_path)
    assert "Click two runs to compare them, or draw a box to see only some." in shown(
        trend.layout(context_of(tmp_path), trend.State())
    )
