"""What every form of a report promises: escaped text, pictures, no network, no scripts, and a bounded length."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from harness.store import Store
from harness.tables import to_json
from reports.document import to_data
from reports.html import to_html
from reports.kinds import KINDS, build
from reports.language import Language
from reports.markdown import picture_files, to_markdown
from reports.sources import Request
from tests.report_kinds.reference import AB, HOSTILE, ROUTE, STORE, hostile_store, page, real
from tests.synthetic import Arm, store_run

MOST_LINES = 60


class _Page(HTMLParser):
    """Tags, attributes and text of a page; complains of tags that do not nest."""

    VOID = frozenset({"meta", "br", "img", "link", "hr", "input", "path", "use", "rect", "line", "circle", "stop"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.mark.parametrize(
    ("kind", "language"),
    [(kind, "en") for kind in KINDS] + [(kind, "zh") for kind in KINDS if kind not in ("final", "quantization")],
)
def test_a_page_is_whole_and_needs_nothing_from_outside(kind: str, language: Language) -> None:
    text = page(kind, language)
    found = _Page(text)
    assert found.open == []
    assert not [tag for tag, _ in found.tags if tag in ("script", "iframe", "object", "embed", "link", "base", "form")]
    for tag, attributes in found.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            assert attributes.get(name, "#").startswith("#"), (tag, attributes)
    assert "@import" not in text
    assert not re.search(r"url\(\s*['\"]?(?!#)", text)
    assert {"lang": "en" if language == "en" else "zh-Hans"} in [
        attributes for tag, attributes in found.tags if tag == "html"
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_has_headings_captions_and_tables_for_every_picture(kind: str) -> None:
    document = real(kind)
    found = _Page(page(kind))
    tags = [tag for tag, _ in found.tags]
    assert tags.count("h1") == 1
    assert tags.count("h2") == len(document.sections)
    assert tags.count("figcaption") == len(document.pictures)
    assert tags.count("svg") == 2 * len(document.pictures)  # light and dark
    text = " ".join(found.text)
    for picture in document.pictures:
        assert picture.caption in text


@pytest.mark.parametrize("kind", KINDS)
def test_markdown_shows_its_pictures(kind: str) -> None:
    document = real(kind)
    text, files = to_markdown(document, pictures=kind), picture_files(document, kind)
    named = re.findall(r'(?:srcset|src)="([^"]+)"', text)
    assert sorted(named) == sorted(files)
    assert all(re.fullmatch(r"[a-z_\-]+\.svg", name) for name in named)
    for drawn in files.values():
        assert ET.fromstring(drawn).tag.endswith("svg")


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_says_the_same(kind: str) -> None:
    document = real(kind)
    data = json.loads(to_json(to_data(document)))
    assert data["verdict"] == document.sentence
    assert [section["title"] for section in data["sections"]] == [section.title for section in document.sections]
    assert [run["run_id"] for run in data["runs"]] == [run.run_id for run in document.runs]
    figures = [block for section in data["sections"] for block in section["blocks"] if block["type"] == "figure"]
    assert len(figures) == len(document.pictures)


@pytest.mark.parametrize("suite", ["engines", "ladder", "kv_cache", "norm", "compile", "quantization"])
def test_the_report_of_a_run_is_short(suite: str) -> None:
    assert len(to_markdown(real("run", "en", suite), pictures="run").splitlines()) <= MOST_LINES


@pytest.mark.parametrize("sides", [("engines~1", "engines"), ("ladder", "ladder"), ("norm", "compile")])
def test_the_report_of_a_comparison_is_short(sides: tuple[str, str]) -> None:
    assert len(to_markdown(real("comparison", "en", *sides), pictures="comparison").splitlines()) <= MOST_LINES


@pytest.fixture
def large(tmp_path: Path) -> Store:
    """200 cases: many that changed, and as many reasons as cases that failed."""
    store = Store.open(tmp_path / "large", create=True)
    arms = [Arm(timed={"tps": [100.0, 101.0, 102.0]}, workload="decode(context=1)")]
    for number in range(1, 200):
        if number % 10 == 0:
            arms.append(Arm(f"kv=k{number}", status="failed", reason=f"reason {number}", workload="decode(context=1)"))
        else:
            values = [100.0 + number, 101.0 + number, 102.0 + number]
            arms.append(Arm(f"kv=k{number}", timed={"tps": values}, workload="decode(context=1)"))
    store_run(store, *arms, suite="lab", machine_id="m", command="python -m harness run lab")
    return store


def test_a_large_run_stays_short_and_hides_nothing_silently(large: Store) -> None:
    document = build(large, "run", Request())
    text = to_markdown(document, pictures="run")
    assert len(text.splitlines()) <= MOST_LINES
    assert "Rows more in the HTML report: " in text
    assert "reasons more: 15" in text
    page = to_html(document)
    assert all(f"reason {number}" in page for number in range(10, 200, 10))


@pytest.fixture
def hostile(tmp_path: Path) -> Store:
    return hostile_store(tmp_path / "hostile")


@pytest.mark.parametrize("kind", ["run", "comparison", *ROUTE])
def test_text_from_the_store_is_escaped(kind: str, hostile: Store) -> None:
    refs = ("latest/reference", "latest/kv=prealloc") if kind == "comparison" else ()
    document = build(hostile, kind, Request(refs))
    page = to_html(document)
    found = _Page(page)
    assert "script" not in [tag for tag, _ in found.tags]
    assert not [attributes for _, attributes in found.tags if "onerror" in attributes]
    assert "<script" not in page
    text = to_markdown(document, pictures=kind)
    outside = re.sub(r"(?ms)^(`{3,})\w*\n.*?^\1$", "", text)  # what stands in a fence is shown as it is
    outside = re.sub(r"(`+) ?.*?\1", "", outside)
    assert "<script" not in outside
    assert "<img src=x" not in outside
    assert "![p](http" not in outside
    for drawn in picture_files(document, kind).values():
        assert "<script" not in drawn


def test_a_hostile_reason_is_shown_as_it_is(hostile: Store) -> None:
    found = _Page(to_html(build(hostile, "run", Request())))
    assert HOSTILE in " ".join(found.text)


def test_a_synthetic_store_says_so_in_every_form(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "made-up", create=True)
    run = store_run(store, Arm(timed={"tps": [1.0, 1.1]}), command="python -m harness run lab", machine_id="m")
    store.save_run(replace(store.find_run(run.run_id), host="synthetic"))
    document = build(store, "run", Request())
    note = "Synthetic data: made up by"
    assert note in to_markdown(document)
    assert note in to_html(document)
    assert to_data(document)["synthetic"] is True


def test_damaged_files_are_named(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "damaged", create=True)
    store_run(store, Arm(timed={"tps": [1.0, 1.1]}), command="c", machine_id="m")
    (store.path / "runs" / "20200101T000000-abcdef.parquet").write_bytes(b"not parquet")
    document = build(Store.open(store.path), "run", Request())
    assert any("20200101T000000-abcdef.parquet" in problem for problem in document.problems)
    assert "20200101T000000-abcdef" in to_html(document)
    assert "20200101T000000-abcdef" in to_markdown(document)


def test_the_same_store_gives_the_same_bytes() -> None:
    again = build(Store.open(STORE), "comparison", Request(AB))
    assert page("comparison") == to_html(again)
    assert to_markdown(real("comparison")) == to_markdown(again)
