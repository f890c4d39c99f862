"""The Overview: is anything wrong, gates, options against the reference, what wants attention, and the ways in."""

from __future__ import annotations

from pathlib import Path

import pytest

from dashboard.context import Context
from dashboard.pages.overview import State, layout
from harness.registry import load_all
from harness.store import Store
from tests.dashboard.page_text import commands, context_of, every, links, query_of, sentence, shown, tables
from tests.synthetic import Arm, store_run

REFERENCE = Path(__file__).resolve().parents[2] / "results" / "reference"
STEADY = [10.0, 10.1, 9.9, 10.0]
SLOWER = [9.0, 9.1, 8.9, 9.0]


@pytest.fixture(autouse=True)
def declared() -> None:
    load_all()


def test_the_first_line_counts_what_changed_since_the_baselines(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s", create=True)
    for values in (STEADY, SLOWER):
        store_run(store, Arm(timed={"tps": values}), machine_id="aaaa", cpu_model="A CPU")
    drawn = layout(context_of(store), State())
    assert sentence(drawn) == "A CPU (aaaa): 1 of 1 cases regressed and 0 improved against their baselines."
    text = shown(drawn)
    assert "lab: 1 regressed, most decode" in text
    href = next(href for words, href in links(drawn).items() if words.startswith("lab: 1 regressed"))
    assert query_of(href)["verdict"] == ["regressed"]


def test_machines_do_not_mix(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s", create=True)
    store_run(store, Arm(timed={"tps": STEADY}), machine_id="aaaa", cpu_model="A CPU")
    store_run(store, Arm(timed={"tps": SLOWER}), machine_id="bbbb", cpu_model="B CPU")
    assert sentence(layout(context_of(store), State())).startswith("B CPU (bbbb): no run has a baseline yet")
    assert sentence(layout(context_of(store), State(machine="aa"))).startswith(
        "A CPU (aaaa): no run has a baseline yet"
    )


def test_options_stand_against_the_reference_and_failures_are_cells(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s", create=True)
    run = store_run(
        store,
        Arm(timed={"tps": STEADY}),
        Arm("kv=prealloc", timed={"tps": [12.0, 12.1, 11.9, 12.0]}),
        Arm("norm=fused", status="failed", reason="it broke"),
    )
    drawn = layout(context_of(store), State())
    heat = next(rows for rows in tables(drawn) if "kv=prealloc" in rows[0])
    assert heat[1][heat[0].index("kv=prealloc")] == "▲ 1.20"
    assert heat[1][heat[0].index("norm=fused")] == "failed"
    assert query_of(links(drawn)["▲ 1.20"])["b"] == [f"{run.run_id}/kv=prealloc"]
    assert "cases that broke: 1, first" in shown(drawn)


def test_the_ways_in_and_the_missing_are_there_without_a_figure() -> None:
    drawn = layout(context_of(REFERENCE), State())
    text = shown(drawn)
    assert any(words.startswith("prealloc against cat") for words in links(drawn))
    assert "No gate was measured on this machine" in text
    assert any("gate --against HEAD~1" in command for command in commands(drawn))
    assert not any(type(part).__name__ in ("Graph", "AgGrid") for part in every(drawn))


def test_an_empty_store_says_what_to_run(tmp_path: Path) -> None:
    drawn = layout(context_of(Store.open(tmp_path / "s", create=True)), State())
    assert sentence(drawn) == "Nothing was measured yet."


def test_gates_stand_with_their_limit_and_what_they_can_detect(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s", create=True)
    for side, values in (("baseline", STEADY), ("candidate", STEADY)):
        arms = [Arm(variant, timed={"tps": values}, model="minimind2-small") for variant in ("reference",)]
        store_run(store, *arms, suite="gate", session="one", side=side, machine_id="aaaa")
    drawn = layout(context_of(store), State())
    rows = next(rows for rows in tables(drawn) if "limit" in rows[0])
    assert rows[1][rows[0].index("metric")] == "tps"
    assert rows[1][rows[0].index("limit")].endswith("%")
    assert "measured beside it" in shown(drawn)


def test_a_red_gate_stands_with_what_was_measured_again(tmp_path: Path) -> None:
    """The newest session holds only the red row, on fresh blocks: alone it is no gate."""
    store = Store.open(tmp_path / "s", create=True)
    for session, seed, second in (("one", 0, SLOWER), ("two", 1, STEADY)):
        for side, values in (("baseline", STEADY), ("candidate", second)):
            solo = {"kv_bytes": 8.0} if session == "one" else {}
            arm = Arm(timed={"tps": values}, solo=solo, model="minimind2-small")
            store_run(store, arm, suite="gate", session=session, side=side, seed=seed, machine_id="aaaa")
    rows = next(rows for rows in tables(layout(context_of(store), State())) if "limit" in rows[0])
    assert {row[rows[0].index("metric")] for row in rows[1:]} == {"tps", "kv_bytes"}
    assert "was red at first, not on fresh blocks" in str(rows)


def test_the_page_in_chinese() -> None:
    context = context_of(REFERENCE)
    text = shown(layout(Context(context.query, context.store, "zh"), State()))
    assert "总览" in text and "需要关注" in text and "一键对比" in text
