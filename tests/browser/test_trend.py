"""What is done in a figure of the page Trend: two points are compared, a box becomes a stretch in the address."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import expect

from tests.browser.walking import Visitor

PLACE = "/trend?filter=suite%3Dgate"

# What a click would be taken for: Plotly looks for the point under the mouse every 50 ms, and the label that is there
# may still be that of the point before.
_UNDER_THE_MOUSE = """(number) => {
  const found = document.querySelector(".figure .js-plotly-plot")._hoverdata;
  return found && found.length && found[0].pointNumber === number;
}"""


def click_point(visitor: Visitor, number: int) -> None:
    """Click a run of the first figure, once Plotly has seen the mouse arrive there."""
    figure = visitor.page.locator(".figure").first
    box = figure.locator(".points path.point").nth(number).bounding_box()
    assert box is not None
    visitor.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    visitor.page.wait_for_function(_UNDER_THE_MOUSE, arg=number)
    visitor.page.mouse.down()
    visitor.page.mouse.up()


def test_two_points_become_a_comparison_the_older_run_first(visitor: Visitor) -> None:
    visitor.go(PLACE)
    hint = visitor.page.locator("#trend-hint")
    click_point(visitor, 4)
    expect(hint).to_have_text(re.compile(r"Run \S+ is marked"))
    later = re.search(r"Run (\S+) is", hint.inner_text())
    click_point(visitor, 1)
    visitor.page.wait_for_url(re.compile("/compare"))
    sides = parse_qs(urlsplit(visitor.page.url).query)
    assert later is not None and sides["b"] == [later[1]] and sides["a"][0] < later[1]
    visitor.settle()


def test_a_box_becomes_a_stretch_of_runs_and_there_is_a_way_back(visitor: Visitor) -> None:
    visitor.go(PLACE)
    area = visitor.page.locator(".figure .nsewdrag").first.bounding_box()
    assert area is not None
    left, middle = area["x"] + 0.2 * area["width"], area["y"] + area["height"] / 2
    visitor.page.mouse.move(left, middle)
    visitor.page.mouse.down()
    visitor.page.mouse.move(left + 0.2 * area["width"], middle, steps=4)
    visitor.page.mouse.move(left + 0.4 * area["width"], middle, steps=4)
    visitor.page.mouse.up()
    visitor.page.wait_for_url(re.compile("first=.*last="))
    visitor.settle()
    visitor.page.get_by_role("link", name="Show all runs").click()
    visitor.page.wait_for_url(lambda url: "first" not in url)
    visitor.settle()


@pytest.mark.slow
def test_in_the_table_each_run_leads_to_its_comparison_with_the_one_before(visitor: Visitor) -> None:
    visitor.go(PLACE)
    visitor.page.locator(".figure-table summary").first.press("Enter")
    rows = visitor.page.locator(".figure-table").first.locator("tbody tr")
    before, run = (rows.nth(number).locator("th").inner_text() for number in (0, 1))
    rows.nth(1).get_by_role("link", name=run).press("Enter")
    visitor.page.wait_for_url(re.compile(f"/compare.a={before}&b={run}"))
    visitor.settle()
