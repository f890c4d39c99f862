"""Figures as SVG: whole, deterministic, readable in both schemes, harmless, and without anything of the page's own."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from reports import palette
from reports.drawing import to_svg
from reports.figures import Effect, forest, heat
from tests.example_figures import HOSTILE, effects, examples, nothing

SPACE = "{http://www.w3.org/2000/svg}"
NAMES = sorted(examples())


def texts(svg: str) -> list[str]:
    """Everything that stands in the picture."""
    return ["".join(element.itertext()) for element in ElementTree.fromstring(svg).iter(f"{SPACE}text")]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_figure_is_drawn_in_both_schemes(name: str, scheme: palette.SchemeName) -> None:
    svg = to_svg(examples()[name], scheme=scheme)
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SPACE}svg" and root.attrib["role"] == "img"
    assert root.find(f"{SPACE}title") is not None
    assert root.find(f"{SPACE}desc").text == examples()[name]["layout"]["meta"]["summary"]  # type: ignore[union-attr]
    assert texts(svg)
    assert palette.SCHEMES[scheme].background in svg


def test_the_same_figure_gives_the_same_bytes() -> None:
    assert to_svg(examples()["trend"]) == to_svg(examples()["trend"])


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_of_one_point_is_drawn_too(name: str) -> None:
    assert texts(to_svg(examples(size=1)[name], width=390))


def test_a_figure_of_nothing_is_drawn_with_its_sentence() -> None:
    for figure in nothing().values():
        assert texts(to_svg(figure)) == ["Nothing was measured that could be drawn here."]


@pytest.mark.parametrize("name", NAMES)
def test_text_from_outside_stays_text(name: str) -> None:
    svg = to_svg(examples(name=HOSTILE)[name])
    assert "<img" not in svg and "<a " not in svg and "<script" not in svg
    assert "<style" not in svg and " style=" not in svg and "<metadata" not in svg and "<!--" not in svg
    ElementTree.fromstring(svg)


def test_mathematics_is_not_read_into_names() -> None:
    figure = forest([Effect("$x_1$ costs 5$", 1.1, 1.0, 1.2, "improved", "higher")])
    assert "$x_1$ costs 5$" in texts(to_svg(figure))


def test_chinese_stays_text() -> None:
    svg = to_svg(forest(effects("解码"), language="zh"))
    assert "解码faster" in texts(svg) and any("改善" in text for text in texts(svg))


def test_labels_numbers_and_legend_stand_in_the_picture() -> None:
    found = texts(to_svg(forest(effects(), limit=0.97)))
    assert {
        "faster",
        "1.210× [1.180, 1.240]",
        "improved (1)",
        "1×",
        "ratio to the baseline (log), higher is better",
    } <= (set(found))


def test_the_size_is_what_was_asked_for_unless_the_texts_need_more() -> None:
    root = ElementTree.fromstring(to_svg(examples()["strip"], width=390, height=250))
    assert (root.attrib["width"], root.attrib["height"], root.attrib["viewBox"]) == ("390", "250", "0 0 390 250")
    wide = heat(["decode"], [f"kv={k}" for k in range(12)], {}, title="Options")
    assert int(ElementTree.fromstring(to_svg(wide, width=390)).attrib["width"]) == wide["layout"]["meta"]["min_width"]


def test_two_figures_of_one_page_share_no_ids() -> None:
    ids = [set(re.findall(r'\bid="([^"]+)"', to_svg(examples()[name]))) for name in ("trend", "forest")]
    assert ids[0] and not ids[0] & ids[1]


def test_every_reference_within_the_picture_leads_somewhere() -> None:
    for name, figure in examples().items():
        svg = to_svg(figure)
        ids = set(re.findall(r'\bid="([^"]+)"', svg))
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg)) <= ids, name


def test_a_kind_of_trace_that_is_unknown_is_named() -> None:
    figure = examples()["strip"]
    figure["data"][0]["type"] = "violin"
    with pytest.raises(ValueError, match=r"'violin' cannot be drawn\. Known: bar, heatmap, icicle, scatter"):
        to_svg(figure)
