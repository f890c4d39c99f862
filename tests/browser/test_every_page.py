"""Every page: what stands first, that it is drawn, that everybody can use it.

By default once each, at 1280 pixels; in full (slow) in both schemes and languages and at 390 pixels, with pictures.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import expect

from reports.language import Language, say
from tests.browser.conftest import Known
from tests.browser.walking import NARROW, WIDE, Visitor, accessibility_faults

CHINESE = re.compile(r"[\u4e00-\u9fff]")
# Never for people: a template that was not filled in, a value of the language underneath, what went wrong inside.
UNFIT = re.compile(r"\{[a-z_]+\}|[=:(] ?None\b|\bnan\b|\bundefined\b|\[object |Traceback|A fault of the dashboard")


@dataclass(frozen=True)
class Place:
    """A page in a state with something to see: its heading, what its sentence says, how many figures it draws."""

    name: str
    address: str
    title: str
    says: str
    figures: int = 0


PLACES = (
    Place("overview", "/", "Overview", r"\w+"),
    Place("runs", "/runs", "Runs", r"^\d+ runs; 3 machines in the store"),
    Place("compare-way-in", "/compare", "Compare", r"Choose a pair of options"),
    Place("compare", "/compare?a={baseline}&b={candidate}&rows=all", "Compare", r"\d+", figures=1),
    Place("compare-run", "/compare?b={swept}", "Compare", r"\d+", figures=1),
    Place("compare-samples", "/compare?a={baseline}&b={candidate}&case={case}&on=tps", "Compare", r"\d+", figures=3),
    Place("trend", "/trend?filter=suite=gate", "Trend", r"series", figures=4),
    Place("pareto", "/pareto?run={swept}", "Pareto", r"of \d+ points are beaten by none in", figures=1),
    Place("memory", "/memory?machine={machine}", "Memory", r"MiB at its peak: weights", figures=1),
    Place("allocator", "/memory?run={swept}", "Memory", r"MiB at its peak", figures=2),
    Place("coverage", "/matrix", "Coverage", r"\d+ combinations: \d+ measured"),
    Place("noise", "/noise", "Noise", r"\d"),
    Place("roofline", "/roofline?machine={machine}", "Roofline", r"\w+", figures=1),
    Place(
        "profile", "/profile?run={candidate}&case={case}&against={other_case}&find=mm", "Profile", r"% of", figures=2
    ),
    Place("case", "/case?case={case}&machine={machine}", "Case", r"^tps .* in run", figures=2),
    Place("cases", "/case?filter=suite=gate", "Case", r"^\d+ cases in the newest run"),
    Place("help", "/help?term=interval", "Help", r"words have 'interval' in them"),
    Place("method", "/help?part=method", "Help", r"How a verdict is reached"),
)
SECONDS = (
    "compare-way-in",
    "compare",
    "compare-run",
    "cases",
    "method",
)  # another state of a page that is there already
NAMED = pytest.mark.parametrize("place", PLACES, ids=[place.name for place in PLACES])
EACH_ONCE = pytest.mark.parametrize(
    "place",
    [pytest.param(p, id=p.name, marks=[pytest.mark.slow] if p.name in SECONDS else []) for p in PLACES],
)


def _with(address: str, known: Known) -> str:
    return address.format(**{name: getattr(known, name) for name in known.__dataclass_fields__})


def _also(address: str, language: Language, scheme: str) -> str:
    more = "&".join([*(["lang=zh"] if language == "zh" else []), f"scheme={scheme}"])
    return f"{address}{'&' if '?' in address else '?'}{more}"


def _check(visitor: Visitor, place: Place, language: Language) -> None:
    """What holds for the page in either language."""
    title = visitor.title()
    if place.name != "case":  # its heading is the case's own name
        assert title == say(language, place.title)
    expect(visitor.page).to_have_title(re.compile("^" + say(language, place.title)))
    assert visitor.page.locator("html").get_attribute("lang") == {"en": "en", "zh": "zh-Hans"}[language]
    if language == "en":
        assert re.search(place.says, visitor.sentence()), visitor.sentence()
    else:
        assert CHINESE.search(visitor.sentence()), f"not in Chinese: {visitor.sentence()}"
        assert CHINESE.search(visitor.page.locator("#nav").inner_text())
    expect(visitor.page.locator("#stamp")).to_contain_text({"en": "complete as of", "zh": "数据截至"}[language])
    expect(visitor.page.locator("#running")).to_contain_text({"en": "is running since", "zh": "起运行中"}[language])
    text = visitor.text()
    assert not UNFIT.search(text), UNFIT.findall(text)
    assert re.search({"en": "store is synthetic", "zh": "合成"}[language], text)
    assert visitor.too_wide() == []


@EACH_ONCE
def test_a_page_says_what_there_is(place: Place, visitor: Visitor, known: Known) -> None:
    visitor.go(_with(place.address, known))
    _check(visitor, place, "en")
    assert visitor.mount_all() >= place.figures
    for figure in visitor.page.locator("#page figure").all():
        assert len(figure.locator("figcaption").inner_text()) > 20
        figure.locator("details").evaluate("(part) => { part.open = true; }")  # a drawer may cover it
        expect(figure.locator("details tbody tr").first).to_be_visible()
    assert accessibility_faults(visitor.page, first_rows=3) == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@NAMED
def test_every_page_on_every_screen(
    place: Place,
    scheme: str,
    language: Language,
    width: tuple[int, int],
    visitor: Visitor,
    known: Known,
    pictures: Path,
) -> None:
    """The whole product, with a picture of each, for a person to look at."""
    visitor.page.set_viewport_size({"width": width[0], "height": width[1]})
    visitor.go(_also(_with(place.address, known), language, scheme))
    assert visitor.mount_all() >= place.figures
    visitor.page.screenshot(path=pictures / f"{place.name}-{width[0]}-{scheme}-{language}.png", full_page=True)
    _check(visitor, place, language)
    assert accessibility_faults(visitor.page) == []
