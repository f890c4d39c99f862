"""Forests, bars and ladders: order, colour by verdict, limits, and bounds that are missing."""

from __future__ import annotations

import math

import pytest

from reports import palette
from reports.figures import Effect, Figure, LadderStep, Pair, Value, bars, forest, ladder
from reports.figures.rowed import MAX_ROWS
from tests.example_figures import effects


def labels(figure: Figure) -> list[str]:
    """The row labels from top to bottom."""
    notes = [note for note in figure["layout"]["annotations"] if note["xref"] == "paper" and note["x"] == 0]
    return [note["text"] for note in sorted(notes, key=lambda note: note["y"]) if note["yref"] == "y"]


def named(figure: Figure, start: str) -> Figure:
    """The trace whose name starts so."""
    return next(trace for trace in figure["data"] if trace["name"].startswith(start))


def test_a_forest_is_sorted_by_effect_and_every_verdict_has_its_look() -> None:
    figure = forest(effects(), limit=0.97)
    assert labels(figure) == ["faster", "spoiled", "open", "same", "base", "slower"]
    improved, regressed = named(figure, "improved"), named(figure, "regressed")
    assert (improved["marker"]["color"], improved["marker"]["symbol"]) == (palette.BETTER, "triangle-up")
    assert (regressed["marker"]["color"], regressed["marker"]["symbol"]) == (palette.WORSE, "triangle-down")
    assert improved["error_x"]["array"] == [pytest.approx(0.03)]
    assert named(figure, "equivalent")["marker"]["color"] == palette.NEUTRAL
    assert figure["layout"]["xaxis"]["type"] == "log"
    rules = [trace["x"][0] for trace in figure["data"] if trace["name"] == "rule"]
    assert rules == [1.0, 0.97]


def test_a_forest_sums_itself_up_in_a_sentence_and_a_table() -> None:
    meta = forest(effects(), limit=0.97)["layout"]["meta"]
    assert meta["summary"] == (
        "1 improved, 1 regressed, 1 equivalent, 1 inconclusive, 1 invalid; 5 in all. "
        "Largest change: faster +21.0% (1.210× [1.180, 1.240], improved). Dashed: the limit 0.97×."
    )
    assert meta["rows"][0] == ["faster", "1.210× [1.180, 1.240]", "+21.0%", "▲ improved", "a note"]


def test_a_long_label_takes_a_second_line_before_anything_of_it_is_cut() -> None:
    long = "minimind2-small: decode 32 @ 128 backend=onnxruntime kv=prealloc norm=fused sdpa=fused tps"
    found = labels(forest([Effect(long, 1.1, 1.0, 1.2, "improved", "higher"), *effects()]))
    assert "minimind2-small: decode 32 @ 128 backend=onnxruntime<br>kv=prealloc norm=fused sdpa=fused tps" in found
    longer = labels(forest([Effect("x" * 300, 1.1, 1.0, 1.2, "improved", "higher")]))[0]
    assert all(len(line) <= 52 for line in longer.split("<br>")) and "…" in longer


def test_where_lower_is_better_the_smallest_ratio_comes_first() -> None:
    pair = [Effect(name, ratio, None, None, "equivalent", "lower") for name, ratio in (("more", 1.1), ("less", 0.9))]
    figure = forest(pair)
    assert labels(figure) == ["less", "more"]
    assert any(note["text"].endswith("lower is better") for note in figure["layout"]["annotations"])


def test_open_intervals_run_to_the_edge_and_missing_ones_have_no_length() -> None:
    wild = [
        Effect("open", 1.1, 0.0, math.inf, "inconclusive", "higher"),
        Effect("bare", 1.2, None, math.nan, "inconclusive", "higher"),
        Effect("no ratio", math.nan, None, None, "invalid", "higher"),
    ]
    figure = forest(wild)
    error = named(figure, "inconclusive")["error_x"]
    assert error["array"][0] == 0 and error["arrayminus"][0] == 0  # "bare" has the larger ratio and comes first
    assert error["array"][1] > 0 and error["arrayminus"][1] > 0
    assert labels(figure)[-1] == "no ratio"
    assert figure["layout"]["meta"]["rows"][-1][1:3] == ["-", "-"]


def test_beyond_the_limit_of_rows_the_smallest_effects_stand_in_the_table_only() -> None:
    many = [Effect(f"case {k}", 1 + k / 1000, None, None, "equivalent", "higher") for k in range(MAX_ROWS + 5)]
    many.append(Effect("slower", 0.9995, None, None, "regressed", "higher"))
    figure = forest(many)
    assert len(labels(figure)) == MAX_ROWS
    assert "slower" in labels(figure) and "case 0" not in labels(figure)
    meta = figure["layout"]["meta"]
    assert len(meta["rows"]) == len(many)
    assert meta["summary"].endswith("6 more stand in the table.")


def test_bars_start_at_zero_and_show_both_values() -> None:
    pair = Pair("decode", Value("reference", 0.010, 0.0099, 0.0101, 8), Value("kv=prealloc", 0.008, None, None, 8))
    figure = bars([pair], unit="s")
    assert [trace["name"] for trace in figure["data"]] == ["reference", "kv=prealloc"]
    assert [trace["x"] for trace in figure["data"]] == [[10.0], [8.0]]
    assert figure["layout"]["xaxis"]["rangemode"] == "tozero"
    assert figure["layout"]["meta"]["rows"] == [["decode", "10.00 ms [9.90, 10.10]", "8 ms", "0.8×", "8 / 8"]]
    assert "10 ms against 8 ms (−20.0%)" in figure["layout"]["meta"]["summary"]


def test_bars_without_a_ratio_say_so() -> None:
    zero = Pair("decode", Value("a", 0.0, None, None, 8), Value("b", math.nan, None, None, 8))
    figure = bars([zero], unit="s")
    assert figure["layout"]["meta"]["summary"] == "Cases: 1; no ratio can be stated."
    assert figure["data"][1]["x"] == [None]


def test_a_ladder_climbs_from_step_to_step_and_colours_only_what_its_interval_shows() -> None:
    steps = [
        LadderStep("reference", 50, None, None, None),
        LadderStep("kv=prealloc", 60, 1.2, 1.1, 1.3),
        LadderStep("norm=fused", 61, 1.016, 0.99, 1.04),
        LadderStep("quant=int8", 55, 0.9, 0.88, 0.92),
    ]
    figure = ladder(steps, unit="tokens/s")
    (trace,) = figure["data"]
    assert trace["base"] == [0.0, 50, 60, 61] and trace["x"] == [50, 10, 1, -6]
    assert trace["marker"]["color"] == [palette.NEUTRAL, palette.BETTER, palette.NEUTRAL, palette.WORSE]
    texts = [note["text"] for note in figure["layout"]["annotations"]]
    assert "▲ 1.20× [1.10, 1.30]" in texts and "? 1.016× [0.990, 1.040]" in texts
    assert "+10.0% in all" in figure["layout"]["meta"]["summary"]
    lower = ladder(steps, unit="s", better="lower")["data"][0]
    assert lower["marker"]["color"][1] == palette.WORSE
