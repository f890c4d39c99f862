"""What the browser does by itself: colours, the numbers of a figure as a table, what the grid says of its order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("playwright")

from playwright.sync_api import Request, expect

from tests.browser.walking import Visitor


def test_colours_change_without_a_word_to_the_server_and_go_along(visitor: Visitor) -> None:
    visitor.go("/trend?filter=suite%3Dgate")
    asked: list[str] = []

    def note(request: Request) -> None:
        asked.append(request.post_data or "")

    page = visitor.page
    shown = page.locator("html")
    page.on("request", note)
    visitor.switch_to("Dark")
    expect(shown).to_have_attribute("data-mantine-color-scheme", "dark")
    visitor.settle()
    page.remove_listener("request", note)
    assert [text for text in asked if text and "seen-pulse" not in text] == []
    assert page.url.endswith("scheme=dark")

    page.locator("#nav a").nth(1).click()  # was written when the page was not dark
    expect(page.locator("#runs-grid")).to_be_visible()
    assert page.url.endswith("/runs?scheme=dark")
    page.go_back()
    visitor.settle()
    expect(shown).to_have_attribute("data-mantine-color-scheme", "dark")
    page.go_back()
    expect(shown).to_have_attribute("data-mantine-color-scheme", "light")
    expect(page.locator("#top").get_by_role("radio", name="Auto")).to_be_checked()
    visitor.switch_to("Dark")
    visitor.switch_to("Auto")
    expect(shown).to_have_attribute("data-mantine-color-scheme", "light")
    assert "scheme" not in page.url


def test_the_numbers_of_a_figure_are_a_table_once_it_is_opened(visitor: Visitor, tmp_path: Path) -> None:
    visitor.go("/trend?filter=suite%3Dgate")
    figure = visitor.page.locator(".figure").first
    words = figure.locator("summary").inner_text()
    count = re.search(r"\((\d+) rows\)", words)
    assert count is not None
    saved = visitor.download(figure.get_by_role("button", name="CSV"), tmp_path)
    lines = saved.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + int(count[1])
    figure.locator("summary").press("Enter")
    expect(figure.get_by_role("row")).to_have_count(1 + int(count[1]))
    expect(figure.get_by_role("rowheader").first).to_be_visible()
    assert figure.get_by_role("columnheader").all_inner_texts() == lines[0].split(",")


def test_an_order_that_does_not_exist_is_told_and_the_address_left(visitor: Visitor) -> None:
    visitor.load("/runs?sort=nonsense")
    expect(visitor.page.locator("#page")).to_contain_text("nonsense")
    visitor.page.get_by_role("columnheader", name="Suite").click()
    visitor.page.wait_for_url(re.compile("sort=suite"))
    visitor.settle()
    expect(visitor.page.locator("#page")).not_to_contain_text("nonsense")
