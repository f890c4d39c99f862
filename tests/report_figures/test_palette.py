"""Colours can be told apart from their backgrounds and never stand alone."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports import palette


@pytest.mark.parametrize("scheme", sorted(palette.SCHEMES))
def test_contrast_on_both_backgrounds(scheme: palette.SchemeName) -> None:
    looks = palette.SCHEMES[scheme]
    marks = (palette.BETTER, palette.WORSE, palette.NEUTRAL, palette.SERIES, *palette.ENTITY_COLOURS)
    assert all(palette.contrast(colour, looks.background) >= 3 for colour in marks)
    assert all(palette.contrast(colour, looks.background) >= 4.5 for colour in (looks.text, looks.muted))


def test_contrast_is_that_of_the_guidelines() -> None:
    assert palette.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert palette.contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_every_verdict_has_a_symbol_and_a_glyph_of_its_own() -> None:
    assert len({style.symbol for style in palette.VERDICT.values()}) == len(palette.VERDICT)
    assert len({style.glyph for style in palette.VERDICT.values()}) == len(palette.VERDICT)


def test_options_never_wear_the_colours_of_verdicts() -> None:
    assert not {palette.BETTER, palette.WORSE, palette.NEUTRAL} & set(palette.ENTITY_COLOURS)


@given(st.lists(st.text(min_size=1), unique=True, max_size=6))
def test_up_to_six_names_differ_in_colour_symbol_and_dash(names: list[str]) -> None:
    looks = palette.styles(names)
    assert set(names) <= set(looks)
    for one, other in itertools.combinations([looks[name] for name in names if name != "reference"], 2):
        assert one.colour != other.colour and one.symbol != other.symbol and one.dash != other.dash


def test_an_option_alone_looks_as_among_others_unless_its_colour_is_taken() -> None:
    alone = palette.styles(["norm=fused"])["norm=fused"]
    assert palette.styles(["norm=fused", "reference"])["norm=fused"] == alone
    assert palette.styles(["norm=fused"])["reference"] == palette.REFERENCE_STYLE


def test_more_than_six_names_differ_in_the_pair_of_colour_and_symbol() -> None:
    looks = palette.styles(f"option={k}" for k in range(12))
    assert len({(look.colour, look.symbol) for look in looks.values()}) == 13


def test_a_faint_colour_lets_the_background_through() -> None:
    assert palette.faint("#0072b2", 0.25) == "rgba(0,114,178,0.25)"
