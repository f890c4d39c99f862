"""The Runs page: rows on demand, filters and order from the address, and the way to a comparison."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from dashboard.context import Context
from dashboard.pages.runs import GRID, State, answer, condition, export, layout
from dashboard.source import Source
from harness.core import UsageError
from harness.registry import load_all
from harness.store import Store
from tests.dashboard.page_text import commands, context_of, control, every, links, sentence, shown
from tests.synthetic import Arm, store_run

REFERENCE = Path(__file__).resolve().parents[2] / "results" / "reference"


@pytest.fixture(autouse=True)
def declared() -> None:
    load_all()


@pytest.fixture(scope="module")
def source() -> Source:
    return Source(REFERENCE)


def request(first: int = 0, last: int = 100, **sort: str) -> dict[str, object]:
    """What the grid sends."""
    return {"startRow": first, "endRow": last, "sortModel": [sort] if sort else []}


def test_the_grid_gets_the_stretch_it_asks_for_and_the_number_of_all(source: Source) -> None:
    found = answer(source, request(2, 5), "")
    assert found["rowCount"] == 7
    assert len(found["rowData"]) == 3
    assert found["rowData"][0]["suite"] == "norm"
    assert found["rowData"][0]["href"].startswith("/compare?b=20261122T0936")


def test_the_order_is_made_by_the_database(source: Source) -> None:
    rows = answer(source, request(colId="num_ok", sort="desc"), "")["rowData"]
    counts = [row["num_ok"] for row in rows]
    assert counts == sorted(counts, reverse=True) and counts[0] == 56
    assert [row["num_ok"] for row in answer(source, request(), "?sort=num_ok&order=asc")["rowData"]] == counts[::-1]


def test_pickers_and_the_box_narrow_the_rows_together(source: Source) -> None:
    assert answer(source, request(), "?suite=engines")["rowCount"] == 2
    assert answer(source, request(), "?suite=engines&filter=kv=int8")["rowCount"] < 2
    assert answer(source, request(), "?filter=nonsense")["rowCount"] == 0


def test_hostile_requests_of_a_grid_are_answered_with_rows_or_nothing(source: Source) -> None:
    assert answer(source, {"startRow": -5, "endRow": 10**9}, "")["rowCount"] == 7
    assert answer(source, request(colId="1; DROP TABLE runs", sort="desc"), "")["rowData"] == []
    assert answer(source, {"sortModel": [{}], "startRow": None}, "?machine=';--")["rowData"] == []


def test_a_baseline_gives_mean_ratios_with_their_interval(source: Source) -> None:
    runs = [row["run_id"] for row in answer(source, request(), "?suite=engines")["rowData"]]
    rows = answer(source, request(), f"?suite=engines&baseline={runs[1]}")["rowData"]
    assert rows[1]["geomean"].startswith("1.000")
    assert "[" in rows[0]["geomean"] or rows[0]["geomean"] != "–"


def test_the_page_says_how_many_and_links_nothing_before_two_are_ticked() -> None:
    drawn = layout(context_of(REFERENCE), State())
    assert sentence(drawn) == "7 runs; one machine in the store. Choose two to compare them."
    compare = next(part for part in every(drawn) if getattr(part, "id", None) == "runs-compare")
    assert compare.className == "gone"
    assert any(getattr(part, "id", None) == GRID for part in every(drawn))
    assert not any(type(part).__name__ == "Graph" for part in every(drawn))
    assert control(drawn, "suite").data[0]["value"] == "compile"


def test_several_ticked_runs_have_a_trend_and_a_pareto_to_go_to() -> None:
    drawn = layout(context_of(REFERENCE), State())
    found = {part.id: part for part in every(drawn) if str(getattr(part, "id", "")).startswith("runs-")}
    assert shown(found["runs-trend"]) == "Trend of these" and shown(found["runs-pareto"]) == "Pareto of these"
    assert found["runs-words"].data["most"] == 60
    named = ",".join(f"20261122T{number:06}-abcdef" for number in range(60))
    assert condition(context_of(REFERENCE).query, State(filter=f"run={named}"))  # as many as may be ticked can be read


def test_artifacts_are_counted_and_lead_to_the_profiles(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s", create=True)
    bare, rich = (store_run(store, Arm(timed={"tps": [1.0, 1.0]})) for _ in range(2))
    folder = tmp_path / "s" / "artifacts" / rich.run_id
    folder.mkdir(parents=True)
    for name in ("aa.collapsed", "aa.trace.json", "bb.collapsed"):
        (folder / name).write_text("main 1\n")
    rows = {row["run_id"]: row for row in answer(Source(tmp_path / "s"), request(), "")["rowData"]}
    assert (rows[rich.run_id]["artifacts"], rows[rich.run_id]["profile"]) == ("2", f"/profile?run={rich.run_id}")
    assert (rows[bare.run_id]["artifacts"], rows[bare.run_id]["profile"]) == ("–", "")


def test_the_csv_is_the_filtered_set_in_full_digits() -> None:
    rows = list(csv.DictReader(io.StringIO(export(context_of(REFERENCE), State(suite="engines"), "csv"))))
    assert [row["suite"] for row in rows] == ["engines", "engines"]
    assert rows[0]["started_at"].startswith("2026-11-22T09:57")
    assert rows[0]["command"].startswith("python -m harness run engines")


def test_a_filter_that_matches_nothing_offers_all_again() -> None:
    drawn = layout(context_of(REFERENCE), State(suite="norm", filter="model=nobody"))
    assert "None of the 7 runs matches" in shown(drawn)
    assert links(drawn)["Show all 7 runs"] == "/runs"
    assert not any(getattr(part, "id", None) == GRID for part in every(drawn))


def test_a_filter_that_cannot_be_read_is_refused_in_words() -> None:
    with pytest.raises(UsageError):
        layout(context_of(REFERENCE), State(filter="norm~triton"))


def test_an_empty_store_says_what_to_run(tmp_path: Path) -> None:
    drawn = layout(context_of(Store.open(tmp_path / "s", create=True)), State())
    assert sentence(drawn) == "Nothing was measured yet."
    assert commands(drawn) == [f"python -m harness run quickstart --store {tmp_path / 's'}"]


def test_formulas_from_the_store_are_marked_as_text_in_the_csv(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s", create=True)
    store_run(store, Arm(timed={"tps": [1.0, 1.0]}), cpu_model='=HYPERLINK("http://x")')
    rows = list(csv.DictReader(io.StringIO(export(context_of(store), State(), "csv"))))
    assert rows[0]["cpu_model"] == '\'=HYPERLINK("http://x")'


def test_a_run_that_goes_away_leaves_the_rest(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s", create=True)
    gone = store_run(store, Arm(timed={"tps": [1.0, 1.0]}))
    store_run(store, Arm(timed={"tps": [2.0, 2.0]}))
    source = Source(tmp_path / "s")
    assert answer(source, request(), "")["rowCount"] == 2
    (tmp_path / "s" / "runs" / f"{gone.run_id}.parquet").unlink()
    assert answer(source, request(), "")["rowCount"] == 1


def test_the_page_in_chinese() -> None:
    context = context_of(REFERENCE)
    drawn = layout(Context(context.query, context.store, "zh"), State())
    assert sentence(drawn) == "7 次运行；结果库中有一台机器。勾选两次运行即可对比。"
