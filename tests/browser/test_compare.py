"""Compare as a person uses it: one click to a pair, verdicts as filters, samples behind a row, files to take along."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Known
from tests.browser.walking import Visitor


@pytest.fixture
def compare(known: Known) -> str:
    """The address of the two sides of a gate, every row shown."""
    return f"/compare?a={known.baseline}&b={known.candidate}&rows=all"


def test_one_click_leads_to_a_pair_of_options(visitor: Visitor) -> None:
    visitor.go("/compare")
    pair = visitor.page.locator(".pair a", has_text="prealloc against cat").first
    cases = pair.inner_text().splitlines()[-1]
    pair.click()
    expect(visitor.page.locator("#comparisons")).to_be_visible()
    assert re.search(r"a=\S+/\S+&b=\S+kv=prealloc", visitor.page.url)
    assert len(visitor.rows("comparisons")) >= int(re.search(r"\d+", cases)[0])
    assert all("kv=prealloc" in row[0] for row in visitor.rows("comparisons"))
    visitor.page.go_back()
    expect(visitor.page.locator(".pair a").first).to_be_visible()


@pytest.mark.slow
def test_two_sides_are_written_or_chosen_and_swapped(visitor: Visitor) -> None:
    visitor.go("/compare")
    boxes = visitor.page.locator("#page")
    box = boxes.get_by_label("B, the candidate")
    box.fill("tag:release-2")
    box.press("Tab")
    visitor.page.wait_for_url(re.compile("b=tag:release-2"))
    expect(visitor.page.locator("#comparisons")).to_be_visible()
    box = boxes.get_by_label("A, the baseline")
    box.fill("tag:rel")
    visitor.page.get_by_role("option", name="tag:release-1").click()
    box.press("Tab")
    visitor.page.wait_for_url(re.compile("a=tag:release-1"))
    visitor.page.get_by_role("link", name="⇄").click()
    visitor.page.wait_for_url(re.compile("a=tag:release-2&b=tag:release-1"))


@pytest.mark.slow
def test_the_numbers_are_those_of_the_command_line(
    visitor: Visitor, known: Known, compare: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "harness", "compare", known.baseline, known.candidate, "-o", "json"]
    ran = subprocess.run([*command, "--store", str(known.path)], capture_output=True, text=True, check=False)
    told = json.loads(ran.stdout)
    visitor.go(compare)
    path = visitor.download(visitor.page.get_by_role("link", name="JSON"), tmp_path)
    assert json.loads(path.read_text(encoding="utf-8")) == told
    rows = told if isinstance(told, list) else told["rows"]
    ratios = {f"{row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" for row in rows if row.get("low")}
    shown = {re.match(r"[\d.]+ \[[\d., ]+\]", row[4]) for row in visitor.rows("comparisons")}
    assert {found[0] for found in shown if found} <= ratios


@pytest.mark.slow
def test_counts_are_filters_and_nothing_is_hidden_silently(visitor: Visitor, compare: str) -> None:
    visitor.go(compare.replace("rows=all", "rows=significant"))
    hidden = visitor.page.get_by_text(re.compile(r"^\d+ comparisons without a significant change are hidden"))
    number = int(hidden.inner_text().split()[0])
    visitor.page.get_by_role("link", name="Show all", exact=True).click()
    expect(hidden).to_have_count(0)
    expect(visitor.page.locator("#comparisons .verdict", has_text="inconclusive").first).to_be_visible()
    everything = visitor.rows("comparisons")
    assert len(everything) >= number > 0
    inconclusive = visitor.page.locator(".counts a", has_text="inconclusive")
    count = int(inconclusive.locator("strong").inner_text())
    assert count == sum("inconclusive" in " ".join(row) for row in everything) > 0
    inconclusive.click()
    visitor.page.wait_for_url(re.compile("verdict=inconclusive"))
    expect(visitor.page.locator("#comparisons tbody tr")).to_have_count(count)
    visitor.page.locator(".counts a.here").click()
    expect(visitor.page.locator("#comparisons tbody tr")).to_have_count(len(everything))


@pytest.mark.slow
def test_the_order_of_rows_can_be_chosen(visitor: Visitor, compare: str) -> None:
    visitor.go(compare)
    ratios = visitor.page.locator("#comparisons .ratio")
    visitor.choose("Metrics (none: the first of each case)", "tps")
    visitor.page.wait_for_url(re.compile("metric=tps"))
    visitor.settle()
    visitor.choose("Order", "worst first")
    visitor.page.wait_for_url(re.compile("sort=worst"))
    visitor.settle()
    values = [float(text.split()[0]) for text in ratios.all_inner_texts()]
    assert values == sorted(values) and len(set(values)) > 1  # of tps more is better
    visitor.choose("Order", "best first")
    expect(ratios.first).to_contain_text(f"{values[-1]:.3f}")


@pytest.mark.slow
def test_a_row_opens_its_samples_in_a_drawer_that_the_address_holds_open(visitor: Visitor, compare: str) -> None:
    visitor.go(compare)
    visitor.page.locator("#comparisons .row-link").first.click()
    drawer = visitor.page.get_by_role("dialog")
    expect(drawer).to_be_visible()
    expect(drawer.get_by_role("heading", level=2).first).to_contain_text(":")
    expect(drawer.locator(".js-plotly-plot .main-svg").first).to_be_visible()
    for words in ("Numbers", "How compared", "Margin", "Block by block", "Environment"):
        expect(drawer.get_by_text(words, exact=False).first).to_be_visible()
    assert "case=" in visitor.page.url
    visitor.page.reload()
    expect(drawer).to_be_visible()
    visitor.page.keyboard.press("Escape")
    expect(drawer).to_be_hidden()
    expect(visitor.page).not_to_have_url(re.compile("case="))
    visitor.page.go_back()
    expect(drawer).to_be_visible()
    drawer.get_by_role("button", name="Close").first.click()
    expect(drawer).to_be_hidden()


@pytest.mark.slow
def test_files_to_take_along(visitor: Visitor, compare: str, tmp_path: Path) -> None:
    visitor.go(compare)
    rows = visitor.rows("comparisons")
    markdown = visitor.download(visitor.page.get_by_role("link", name="Markdown"), tmp_path)
    text = markdown.read_text(encoding="utf-8")
    assert markdown.name == "compare.md" and visitor.sentence() in text and "harness compare" in text
    assert sum(line.startswith("| ") for line in text.splitlines()) >= len(rows)
    table = visitor.download(visitor.page.get_by_role("link", name="CSV", exact=True), tmp_path)
    assert len(list(csv.reader(table.read_text(encoding="utf-8").splitlines()))) >= len(rows) + 1


@pytest.mark.slow
def test_a_figure_saves_as_picture_and_as_numbers(visitor: Visitor, compare: str, tmp_path: Path) -> None:
    visitor.go(compare)
    figure = visitor.page.locator("#figure-forest")
    numbers = visitor.download(figure.get_by_role("button", name="Save the numbers as CSV"), tmp_path)
    figure.locator("summary").click()
    held = figure.locator("details tbody tr").count()
    assert len(list(csv.reader(numbers.read_text(encoding="utf-8").splitlines()))) == held + 1 > 2
    picture = visitor.download(figure.get_by_role("button", name="Save as SVG"), tmp_path)
    assert "<svg" in picture.read_text(encoding="utf-8")
    raster = visitor.download(figure.get_by_role("button", name="Save as PNG"), tmp_path)
    assert raster.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_numbers_behind_a_figure_are_one_keystroke_away(visitor: Visitor, compare: str) -> None:
    visitor.go(compare)
    summary = visitor.page.locator("#figure-forest summary")
    expect(visitor.page.locator("#figure-forest details table")).to_be_hidden()
    summary.focus()
    visitor.page.keyboard.press("Enter")
    expect(visitor.page.locator("#figure-forest details table")).to_be_visible()


@pytest.mark.slow
def test_sides_that_differ_in_more_than_one_thing_are_warned_about(visitor: Visitor) -> None:
    visitor.go("/compare?a=tag:release-1&b=tag:release-2")
    expect(visitor.page.locator(".notice-warning").nth(1)).to_be_visible()
    assert "What differs between A and B" in visitor.text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "named"),
    [
        ("nowhere", "nowhere"),
        ("commit:ffffffff", "ffffffff"),
        ("tag:nothing", "nothing"),
        ("latest/norm=nonsense", "nonsense"),
    ],
)
def test_a_side_that_is_not_there_says_what_is(visitor: Visitor, side: str, named: str) -> None:
    visitor.go(f"/compare?a={side}&b=latest")
    expect(visitor.page.get_by_role("alert")).to_contain_text(named)
    assert visitor.sentence() == "Compare cannot show this."
