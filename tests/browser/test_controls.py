"""What all pages share: keys, links that carry language and colours, pickers that never press themselves."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Known
from tests.browser.walking import NARROW, Visitor

KEYS = {
    "o": "Overview", "r": "Runs", "c": "Compare", "t": "Trend", "p": "Pareto", "f": "Roofline", "m": "Memory",
    "l": "Profile", "n": "Noise", "x": "Coverage", "h": "Help",
}  # fmt: skip


@pytest.mark.slow
def test_two_keys_go_to_every_page(visitor: Visitor) -> None:
    visitor.go("/help")
    for key, title in KEYS.items():
        visitor.page.keyboard.press("g")
        visitor.page.keyboard.press(key)
        expect(visitor.page.locator("#page-title")).to_have_text(title)
        expect(visitor.page.locator("#page-title")).to_be_focused()
        expect(visitor.page.locator('#nav [aria-current="page"]')).to_have_text(title)


@pytest.mark.slow
def test_the_list_of_keys_opens_and_closes(visitor: Visitor) -> None:
    visitor.go("/help")
    visitor.page.keyboard.press("?")
    expect(visitor.page.locator("#keys")).to_be_visible()
    expect(visitor.page.locator("#keys")).to_contain_text("next, previous row")
    visitor.page.keyboard.press("Escape")
    expect(visitor.page.locator("#keys")).to_be_hidden()


def test_the_first_stop_of_the_tabulator_skips_to_the_page(visitor: Visitor) -> None:
    visitor.load("/help")
    visitor.page.keyboard.press("Tab")
    expect(visitor.page.locator("#skip")).to_be_focused()
    expect(visitor.page.locator("#skip")).to_have_text("Skip to the page")
    visitor.page.keyboard.press("Enter")
    assert visitor.page.evaluate("document.activeElement.id") == "page"


def test_keys_walk_along_the_rows_of_a_comparison(visitor: Visitor, known: Known) -> None:
    visitor.go(f"/compare?a={known.baseline}&b={known.candidate}&rows=all")
    for key in "jjk":
        visitor.page.keyboard.press(key)
    expect(visitor.page.locator("#comparisons .row-link").first).to_be_focused()
    visitor.page.keyboard.press("Enter")
    expect(visitor.page.get_by_role("dialog")).to_be_visible()


@pytest.mark.slow
def test_language_and_colours_go_along_with_every_link(visitor: Visitor) -> None:
    visitor.go("/compare?lang=zh&scheme=dark")
    visitor.page.locator(".pair a").first.click()
    expect(visitor.page.locator("#comparisons")).to_be_visible()
    assert "lang=zh" in visitor.page.url and "scheme=dark" in visitor.page.url
    visitor.page.locator("#nav a").nth(1).click()
    expect(visitor.page.locator("#runs-grid")).to_be_visible()
    assert "lang=zh" in visitor.page.url and "scheme=dark" in visitor.page.url


def test_colours_follow_the_system_unless_chosen(visitor: Visitor) -> None:
    def ground() -> str:
        found: str = visitor.page.evaluate("getComputedStyle(document.body).backgroundColor")
        return found

    try:
        visitor.page.emulate_media(color_scheme="dark")
        visitor.go("/help")
        dark = ground()
        visitor.page.emulate_media(color_scheme="light")
        expect(visitor.page.locator("html")).to_have_attribute("data-mantine-color-scheme", "light")
        assert ground() != dark
        visitor.switch_to("Dark")
        expect(visitor.page.locator("html")).to_have_attribute("data-mantine-color-scheme", "dark")
        assert ground() == dark
    finally:
        visitor.page.emulate_media(color_scheme="null")


def test_the_link_of_a_page_can_be_copied(visitor: Visitor) -> None:
    visitor.go("/trend?filter=suite%3Dgate&lang=en")
    visitor.page.get_by_role("button", name="Copy link").click()
    expect(visitor.page.locator("#live")).to_have_text("Copied.")
    assert visitor.page.evaluate("navigator.clipboard.readText()") == visitor.page.url


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "label", "option", "wanted"),
    [
        ("/trend?filter=suite%3Dgate", "Metric", "ttft", r"metric=ttft"),
        ("/pareto?filter=suite%3Dkv_cache", "Up", "kv_bytes", r"y=kv_bytes"),
        ("/memory", "Variant", "kv=prealloc", r"variant=kv=prealloc"),
        ("/matrix", "Rows", "kv", r"rows=kv"),
        ("/noise", "Metric", "ttft", r"metric=ttft"),
        ("/roofline", "Workload", "decode", r"workload=decode"),
    ],
)
def test_a_picker_is_one_step_forward_and_one_step_back(
    visitor: Visitor, place: str, label: str, option: str, wanted: str
) -> None:
    visitor.go("/help")
    visitor.go(place)
    before = visitor.sentence()
    visitor.choose(label, option)
    visitor.page.wait_for_url(re.compile(wanted))
    visitor.settle()
    expect(visitor.page.locator("#page").get_by_label(label, exact=True).first).to_have_value(option)
    visitor.page.go_back()
    visitor.page.wait_for_url(lambda address: not re.search(wanted, address))
    visitor.settle()
    expect(visitor.page.locator("#page-sentence")).to_have_text(before)
    visitor.page.go_back()
    expect(visitor.page.locator("#page-title")).to_have_text("Help")


@pytest.mark.slow
def test_a_page_that_was_only_opened_keeps_its_address(visitor: Visitor) -> None:
    """A picker shows what the page chose; nobody pressed it."""
    for place in ("/trend?filter=suite=gate", "/pareto", "/memory", "/matrix", "/noise", "/roofline", "/"):
        visitor.go(place)
        visitor.switch_to("Dark")
        expect(visitor.page.locator("html")).to_have_attribute("data-mantine-color-scheme", "dark")
        visitor.settle()
        assert visitor.page.url.replace("&", "?") == f"{visitor.address}{place}?scheme=dark".replace("&", "?")


@pytest.mark.slow
def test_a_trend_turns_its_pages_and_a_case_leads_on(visitor: Visitor) -> None:
    visitor.go("/trend")
    visitor.page.get_by_role("navigation", name=re.compile("Figures 1 of")).get_by_role("link", name="2").click()
    visitor.page.wait_for_url(re.compile("part=2"))
    visitor.settle()
    visitor.page.locator("#page section table a").first.click()
    expect(visitor.page).to_have_url(re.compile("/case"))
    expect(visitor.page.get_by_role("heading", name="How it stands on each machine")).to_be_visible()


@pytest.mark.slow
def test_a_cell_of_the_coverage_leads_to_its_runs(visitor: Visitor) -> None:
    visitor.go("/matrix?rows=kv&columns=sdpa")
    cell = visitor.page.locator("#coverage .coverage-ok a").first
    assert "✓" in cell.inner_text()
    cell.click()
    expect(visitor.page.locator("#page-title")).to_have_text("Runs")
    expect(visitor.page.get_by_label("Filter", exact=True)).to_have_value(re.compile(r"kv=\w+ sdpa=\w+"))


def test_a_narrow_window_has_its_navigation_on_demand(visitor: Visitor) -> None:
    visitor.page.set_viewport_size({"width": NARROW[0], "height": NARROW[1]})
    visitor.go("/help")
    expect(visitor.page.locator("#nav")).to_be_hidden()
    button = visitor.page.get_by_role("button", name="Pages")
    button.click()
    expect(button).to_have_attribute("aria-expanded", "true")
    visitor.page.locator("#nav").get_by_role("link", name="Runs").click()
    expect(visitor.page.locator("#page-title")).to_have_text("Runs")
    expect(visitor.page.locator("#nav")).to_be_hidden()
    assert visitor.too_wide() == []


def test_on_paper_the_controls_are_gone_and_the_figures_are_there(visitor: Visitor, known: Known) -> None:
    visitor.go(f"/compare?a={known.baseline}&b={known.candidate}&rows=all")
    try:
        visitor.page.emulate_media(media="print")
        expect(visitor.page.locator("#nav")).to_be_hidden()
        expect(visitor.page.locator("#page .controls").first).to_be_hidden()
        expect(visitor.page.locator("#comparisons")).to_be_visible()
        expect(visitor.page.locator("#figure-forest .main-svg").first).to_be_visible()
    finally:
        visitor.page.emulate_media(media="null")
