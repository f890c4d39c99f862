"""The list of runs: filter, pickers, order, ticking two, files, keys; all of it kept by the address."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Known
from tests.browser.walking import Visitor


def _filter(visitor: Visitor, text: str) -> None:
    box = visitor.page.get_by_label("Filter", exact=True)
    box.fill(text)
    box.press("Enter")


@pytest.mark.slow
def test_the_filter_box_takes_the_words_of_the_command_line(visitor: Visitor, known: Known) -> None:
    visitor.go("/runs")
    assert visitor.sentence().startswith(f"{known.num_runs} runs; 3 machines in the store")
    _filter(visitor, "suite=gate run_status=finished")
    expect(visitor.page.locator("#page-sentence")).to_have_text(re.compile(rf"^\d+ of {known.num_runs} runs"))
    visitor.settle()
    assert set(visitor.grid("suite")) == {"gate"} and set(visitor.grid("status")) == {"finished"}
    assert "filter=suite=gate+run_status=finished" in visitor.page.url
    _filter(visitor, "status=failed")  # of a case: runs that have one
    expect(visitor.page.locator("#runs-grid .ag-row [col-id=suite]").first).not_to_have_text("gate")


@pytest.mark.slow
def test_a_filter_that_matches_nothing_says_so_and_leads_back(visitor: Visitor, known: Known) -> None:
    visitor.go("/runs?filter=suite%3Dnowhere")
    assert f"None of the {known.num_runs} runs matches: suite=nowhere" in visitor.text()
    visitor.page.get_by_role("link", name=f"Show all {known.num_runs} runs").click()
    expect(visitor.page.locator("#page-sentence")).to_have_text(re.compile(rf"^{known.num_runs} runs;"))


@pytest.mark.slow
def test_a_filter_that_cannot_be_read_says_what_is_allowed(visitor: Visitor) -> None:
    visitor.go("/runs")
    _filter(visitor, "norn=triton")
    alert = visitor.page.get_by_role("alert")
    expect(alert).to_contain_text("'norn'")
    expect(alert).to_contain_text("norm")
    visitor.page.get_by_role("link", name="Show the page without these settings").click()
    expect(visitor.page.locator("#runs-grid")).to_be_visible()


def test_pickers_go_into_the_address_and_back_takes_one_step(visitor: Visitor) -> None:
    visitor.go("/")
    visitor.go("/runs")
    visitor.choose("Suite", "norm")
    visitor.page.wait_for_url(re.compile("suite=norm"))
    expect(visitor.page.locator("#page-sentence")).to_contain_text(" of ")
    visitor.page.go_back()
    visitor.page.wait_for_url(re.compile(r"/runs$"))
    expect(visitor.page.locator("#page-sentence")).not_to_contain_text(" of ")
    visitor.page.go_forward()
    visitor.page.wait_for_url(re.compile(r"/runs\?suite=norm$"))
    expect(visitor.page.locator("#page").get_by_label("Suite", exact=True).first).to_have_value("norm")
    visitor.settle()
    assert set(visitor.grid("suite")) == {"norm"}


@pytest.mark.slow
def test_headings_sort_and_the_order_is_in_the_address(visitor: Visitor) -> None:
    visitor.go("/runs?filter=suite%3Dgate,kv_cache")
    visitor.page.locator('#runs-grid .ag-header-cell[col-id="num_ok"]').click()
    visitor.page.wait_for_url(re.compile(r"sort=num_ok"))
    visitor.settle()
    expect(visitor.page.locator('#runs-grid .ag-row[row-index="0"] [col-id="suite"]')).to_have_text("kv_cache")
    counts = [int(text) for text in visitor.grid("num_ok")]
    assert counts == sorted(counts, reverse=True) and len(set(counts)) > 1
    visitor.page.reload()
    visitor.settle()
    assert [int(text) for text in visitor.grid("num_ok")] == counts


@pytest.mark.slow
def test_a_baseline_gives_mean_ratios_with_their_intervals(visitor: Visitor, known: Known) -> None:
    visitor.go(f"/runs?baseline={known.baseline}&filter=suite%3Dgate")
    expect(visitor.page.locator('#runs-grid .ag-row [col-id="geomean"]').first).to_have_text(
        re.compile(r"^(\D )?\d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\]$|^–$")
    )
    assert any(re.search(r"\d\.\d{3} \[", text) for text in visitor.grid("geomean"))


def test_two_ticked_runs_become_a_comparison_the_older_one_as_a(visitor: Visitor) -> None:
    visitor.go("/runs?filter=suite%3Dgate")
    hint, link = visitor.page.locator("#runs-hint"), visitor.page.locator("#runs-compare")
    expect(hint).to_have_text("Tick two runs to compare them.")
    expect(link).to_be_hidden()
    boxes = visitor.page.locator("#runs-grid .ag-selection-checkbox input")
    boxes.nth(0).check()
    expect(hint).to_contain_text("One run is ticked")
    boxes.nth(2).check()
    expect(hint).to_contain_text("The older one becomes A")
    newer, older = visitor.grid("started_at")[0], visitor.grid("started_at")[2]
    boxes.nth(1).check()
    expect(hint).to_contain_text("3 runs are ticked")
    expect(link).to_be_hidden()
    boxes.nth(1).uncheck()
    link.click()
    expect(visitor.page.locator("#page-title")).to_have_text("Compare")
    sides = visitor.page.locator("#page table").first.locator("tbody tr")
    expect(sides.nth(0)).to_contain_text(older)
    expect(sides.nth(1)).to_contain_text(newer)


@pytest.mark.slow
def test_the_csv_has_every_run_that_matches_not_only_those_in_sight(visitor: Visitor, tmp_path: Path) -> None:
    visitor.go("/runs?filter=suite%3Dgate&sort=num_ok&order=asc")
    count = int(visitor.sentence().split()[0])
    path = visitor.download(visitor.page.get_by_role("link", name="CSV of all that match"), tmp_path)
    assert path.name == "runs.csv"
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    assert len(rows) == count > len(visitor.grid("suite")) - 1
    assert {row["suite"] for row in rows} == {"gate"}
    assert rows[0]["command"].startswith("python -m harness run gate")
    assert [int(row["num_ok"]) for row in rows] == sorted(int(row["num_ok"]) for row in rows)


@pytest.mark.slow
def test_a_run_opens_from_its_time_and_its_command_can_be_copied(visitor: Visitor) -> None:
    visitor.go("/runs?filter=suite%3Dkv_cache")
    cells = visitor.page.locator("#runs-grid .ag-center-cols-viewport")
    cells.evaluate("(grid) => { grid.scrollLeft = 10000; }")
    visitor.page.locator("#runs-grid .ag-row [col-id=command] button").first.click()
    expect(visitor.page.locator("#live")).to_have_text("Copied.")
    assert visitor.page.evaluate("navigator.clipboard.readText()").startswith("python -m harness run kv_cache")
    cells.evaluate("(grid) => { grid.scrollLeft = 0; }")
    visitor.page.locator("#runs-grid .ag-row [col-id=started_at] a").first.click()
    expect(visitor.page.locator("#page-title")).to_have_text("Compare")
    expect(visitor.page.locator("#comparisons")).to_be_visible()


@pytest.mark.slow
def test_several_ticked_runs_lead_to_their_trend(visitor: Visitor) -> None:
    visitor.go("/runs?filter=suite%3Dgate")
    boxes = visitor.page.locator("#runs-grid .ag-row .ag-checkbox-input")
    for number in range(3):
        boxes.nth(number).click()
    expect(visitor.page.locator("#runs-hint")).to_contain_text("3 runs are ticked")
    visitor.page.get_by_role("link", name="Trend of these").click()
    visitor.page.wait_for_url(re.compile(r"/trend\?filter=run(=|%3D)"))
    visitor.settle()


def test_keys_move_through_the_rows_and_choose(visitor: Visitor) -> None:
    visitor.go("/runs?filter=suite%3Dgate")
    keyboard = visitor.page.keyboard
    for key in "jjx":
        keyboard.press(key)
    expect(visitor.page.locator("#runs-hint")).to_contain_text("One run is ticked")
    expect(visitor.page.locator('#runs-grid .ag-row[row-index="1"]').first).to_have_class(re.compile("selected"))
    for key in "kx":
        keyboard.press(key)
    expect(visitor.page.locator("#runs-hint")).to_contain_text("The older one becomes A")
    keyboard.press("/")
    expect(visitor.page.get_by_label("Filter", exact=True)).to_be_focused()
    keyboard.type("j")  # typing is no command
    expect(visitor.page.get_by_label("Filter", exact=True)).to_have_value("j")
