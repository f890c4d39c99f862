"""What every figure promises: a plain, valid, deterministic dict with a caption and a table, whatever goes in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from reports.figures import Figure
from reports.figures.base import MAX_POINTS, safe, thin
from tests.example_figures import HOSTILE, examples, nothing

NAMES = sorted(examples())


def strings(value: Any) -> Iterator[str]:
    """Every text in a figure, but not its meta, which pages escape themselves."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key != "meta":
                yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


def check(figure: Figure) -> None:
    """Valid for Plotly and JSON, without a theme of its own, with a caption and a whole table."""
    import plotly.graph_objects as go

    go.Figure(figure)
    json.dumps(figure, allow_nan=False)
    layout = figure["layout"]
    assert "template" not in layout
    assert "paper_bgcolor" not in layout and "plot_bgcolor" not in layout
    assert "color" not in layout.get("font", {})
    meta = layout["meta"]
    assert meta["title"] and meta["summary"]
    assert all(len(row) == len(meta["columns"]) and all(isinstance(cell, str) for cell in row) for row in meta["rows"])
    for trace in figure["data"]:
        assert len(trace.get("x", ())) <= MAX_POINTS + 20  # the gaps between segments come on top
        assert "hovertemplate" not in trace and "texttemplate" not in trace  # they would read %{...} in our texts


@pytest.mark.parametrize("size", [1, 2, 5, 300, 5000])
def test_every_figure_is_valid_whatever_the_number_of_points(size: int) -> None:
    for name, figure in examples(size=size).items():
        assert figure["data"], name
        check(figure)


def test_the_same_data_give_the_same_bytes() -> None:
    assert json.dumps(examples()) == json.dumps(examples())


def test_a_figure_of_nothing_says_so() -> None:
    for name, figure in nothing().items():
        check(figure)
        assert figure["data"] == [], name
        assert figure["layout"]["meta"]["summary"] == "Nothing was measured that could be drawn here."
        assert figure["layout"]["annotations"][0]["text"] == "Nothing was measured that could be drawn here."


@pytest.mark.parametrize("name", NAMES)
def test_text_from_outside_is_shown_and_never_read_as_markup(name: str) -> None:
    figure = examples(name=HOSTILE)[name]
    check(figure)
    texts = list(strings(figure))
    assert any("&lt;img" in text for text in texts)
    assert not any("<img" in text or '<a href="javascript' in text for text in texts)
    assert not any("\n" in text or "\x00" in text for text in texts)
    meta = figure["layout"]["meta"]
    assert any("<img" in cell for cell in [*meta["columns"], *(cell for row in meta["rows"] for cell in row)])


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_speaks_chinese(name: str) -> None:
    english, chinese = examples("en")[name]["layout"]["meta"], examples("zh")[name]["layout"]["meta"]
    assert any("\u4e00" <= character <= "\u9fff" for character in chinese["summary"])
    assert chinese["columns"] != english["columns"] or name == "heat"
    assert len(chinese["rows"]) == len(english["rows"])


def test_thinning_keeps_both_ends_and_spreads_evenly() -> None:
    assert thin(3) == [0, 1, 2]
    kept = thin(10_001)
    assert (len(kept), kept[0], kept[-1]) == (MAX_POINTS, 0, 10_000)
    assert {b - a for a, b in pairwise(kept)} <= {5, 6}
    assert kept == sorted(set(kept))


def test_long_text_is_cut_in_its_middle() -> None:
    assert safe("decode(context=512) norm=fused", length=15) == "decode(…m=fused"
    assert safe("short", length=15) == "short"
    assert safe("a<b\tc") == "a&lt;b c"
