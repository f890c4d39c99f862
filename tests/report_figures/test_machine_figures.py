"""Roofline, memory, grid, icicle and timeline: the numbers behind the pictures."""

from __future__ import annotations

import pytest

from reports import palette
from reports.figures import (
    Ceiling,
    Cell,
    Frame,
    MemoryPoint,
    RoofPoint,
    Span,
    heat,
    icicle,
    memory,
    roof_of,
    roofline,
    timeline,
)
from reports.figures.profile import MAX_NODES, MAX_SPANS

DRAM, L2 = Ceiling("DRAM", "bandwidth", 2e10, "measured"), Ceiling("L2", "bandwidth", 1e11, "measured")
FLOAT, HALF = Ceiling("f32", "compute", 2e11, "measured"), Ceiling("bf16", "compute", 8e11, "data sheet")


def test_the_roof_is_the_lower_of_memory_and_arithmetic() -> None:
    decode, prefill = RoofPoint("decode", 0.5, 8e9, "", ("DRAM", "f32")), RoofPoint("prefill", 90, 1e11, "")
    assert roof_of(decode, [DRAM, L2, FLOAT, HALF]) == (1e10, DRAM)
    assert roof_of(prefill, [DRAM, L2, FLOAT, HALF]) == (8e11, HALF)
    assert roof_of(RoofPoint("x", 90, 1e11, "", ("DRAM", "f32")), [DRAM, FLOAT, HALF]) == (2e11, FLOAT)
    assert roof_of(prefill, []) is None and roof_of(RoofPoint("x", 1, 1, "", ("other",)), [DRAM]) is None


def test_a_roofline_tells_how_much_of_its_roof_each_point_has() -> None:
    points = [RoofPoint("decode", 0.5, 8e9, "analytic", ("DRAM", "f32")), RoofPoint("idle", 0.0, 0.0, "none")]
    figure = roofline([DRAM, FLOAT], points)
    assert figure["layout"]["xaxis"]["type"] == figure["layout"]["yaxis"]["type"] == "log"
    dram, flat, measured = figure["data"]
    assert dram["x"][1] == pytest.approx(10) and dram["y"][1] == pytest.approx(200)  # GFLOP/s at the ridge
    assert flat["x"][0] == pytest.approx(10) and flat["y"] == [200, 200]
    assert measured["y"] == [8.0]
    meta = figure["layout"]["meta"]
    assert meta["rows"][0] == ["decode", "0.5", "8 GFLOP/s", "80.0%", "DRAM", "analytic"]
    assert [row[0] for row in meta["rows"]] == ["decode", "idle", "DRAM", "f32"]
    assert "80.0% of their roof (decode)" in meta["summary"]


def test_points_without_ceilings_are_drawn_and_nothing_is_claimed() -> None:
    meta = roofline([], [RoofPoint("decode", 0.5, 8e9, "")])["layout"]["meta"]
    assert meta["summary"] == "1 points and 0 ceilings; no share of a roof can be stated."


def test_memory_is_stacked_and_its_residuals_are_told() -> None:
    mib = 2**20
    points = [MemoryPoint(100, 100 * mib, 10 * mib, 5 * mib, 120 * mib), MemoryPoint(50, 100 * mib, 5 * mib, 0, None)]
    figure = memory(points, x_label="context", limit=200 * mib)
    weights, cache, activations, peak = figure["data"]
    assert weights["x"] == [50, 100] and weights["y"] == [100, 100]
    assert cache["y"] == [105, 110] and activations["y"] == [105, 115]
    assert (weights["fill"], cache["fill"]) == ("tozeroy", "tonexty")
    assert len({trace["fillpattern"]["shape"] for trace in (weights, cache, activations)}) == 3
    assert peak["x"] == [100] and peak["error_y"]["arrayminus"] == [5]
    meta = figure["layout"]["meta"]
    assert meta["rows"][1] == ["100", "100.0 MiB", "10.0 MiB", "5.0 MiB", "115.0 MiB", "120.0 MiB", "+5.0 MiB (+4.3%)"]
    assert meta["summary"].endswith("By the prediction the limit of 200.0 MiB is reached at 525.")
    assert [shape["y0"] for shape in figure["layout"]["shapes"]] == [200]


def test_a_limit_far_above_is_told_and_not_drawn() -> None:
    points = [MemoryPoint(x, 1e8, x * 1e4, 0, None) for x in (100.0, 200.0)]
    layout = memory(points, x_label="context", limit=1e10)["layout"]
    assert layout["shapes"] == [] and "is reached at 990,000" in layout["meta"]["summary"]


def test_cells_are_coloured_by_ratio_hatched_when_failed_and_blank_when_not_measured() -> None:
    cells = {
        ("decode", "a"): Cell("1.20×", 1.2, "improved", "/compare?a=1&b=2"),
        ("decode", "b"): Cell("", None, "oom", "javascript:alert(1)"),
        ("prefill", "a"): Cell("skipped", None, "skipped", "//elsewhere.example"),
        ("nowhere", "a"): Cell("1", 1.0, "ok"),
    }
    figure = heat(["decode", "prefill"], ["a", "b"], cells, title="Options")
    colours, hatch, texts = figure["data"]
    assert colours["z"][0][0] > 0 and colours["z"][0][1] == 0 and colours["z"][1][1] is None
    assert set(hatch["x"]) - {None} and all(x is None or x > 0.5 for x in hatch["x"])
    assert texts["text"] == [
        '<a href="/compare?a=1&amp;b=2" target="_self" style="color:inherit">▲ 1.20×</a>',
        "✗ oom",
        "– skipped",
    ]
    assert texts["customdata"] == ["/compare?a=1&b=2", "", ""]
    meta = figure["layout"]["meta"]
    assert meta["rows"] == [["decode", "▲ 1.20×", "✗ oom"], ["prefill", "– skipped", ""]]
    assert "3 cells measured or tried, 1 blank, 1 skipped, 1 failed" in meta["summary"]
    assert meta["summary"].endswith("1 cells belong to no row or column.")
    assert meta["min_width"] > 150


def test_an_icicle_adds_up_to_its_root() -> None:
    frames = [Frame(("step", "attention"), 1.0), Frame(("step", "mlp"), 2.0), Frame(("step",), 0.5), Frame((), 0.5)]
    (trace,) = icicle(frames)["data"]
    shares = {label: value / 1e9 for label, value in zip(trace["labels"], trace["values"], strict=True)}
    assert shares == {"all": 1.0, "step": 3.5 / 4, "mlp": 2 / 4, "attention": 1 / 4}
    parents = dict(zip(trace["labels"], trace["parents"], strict=True))
    names = dict(zip(trace["ids"], trace["labels"], strict=True))
    assert names[parents["mlp"]] == "step" and parents["all"] == ""


def test_no_children_outweigh_their_parent_not_even_by_the_last_digit() -> None:
    frames = [Frame((f"f{k % 7}", f"g{k % 31}", f"h{k}"), 0.1 * (k % 13 + 1) / 3) for k in range(500)]
    (trace,) = icicle(frames)["data"]
    sums: dict[str, int] = {}
    for parent, value in zip(trace["parents"], trace["values"], strict=True):
        sums[parent] = sums.get(parent, 0) + value
    values = dict(zip(trace["ids"], trace["values"], strict=True))
    assert all(isinstance(value, int) for value in trace["values"])
    assert all(sums[parent] <= values[parent] for parent in sums if parent)


def test_an_icicle_is_pruned_to_the_largest_frames_with_all_their_parents() -> None:
    frames = [Frame((f"f{k % 40}", f"g{k}", "leaf"), 1.0 + k) for k in range(3000)]
    figure = icicle(frames)
    (trace,) = figure["data"]
    assert len(trace["ids"]) == MAX_NODES
    assert set(trace["parents"]) <= {*trace["ids"], ""}
    assert "smaller frames are not drawn" in figure["layout"]["meta"]["summary"]


def test_what_is_looked_for_is_outlined_and_its_share_counts_once() -> None:
    frames = [Frame(("step", "MatMul", "matmul_inner"), 2.0), Frame(("step", "norm"), 1.0), Frame(("matmul",), 1.0)]
    plain, found = icicle(frames), icicle(frames, find="matmul")
    trace = found["data"][0]
    widths = dict(zip(trace["labels"], trace["marker"]["line"]["width"], strict=True))
    assert widths == {"all": 1, "step": 1, "norm": 1, "MatMul": 4, "matmul_inner": 4, "matmul": 4}
    assert found["layout"]["meta"]["summary"].startswith(
        "3 frames have 'matmul' in their name: 75.0% of the time is in them."
    )
    assert [row[0] for row in found["layout"]["meta"]["rows"]][-2:] == ["step", "norm"]
    nothing = icicle(frames, find="softmax")
    assert nothing["data"] == plain["data"]
    assert "0 frames have 'softmax' in their name: 0.0%" in nothing["layout"]["meta"]["summary"]


def test_a_differential_icicle_is_coloured_by_share() -> None:
    now = [Frame(("step", "attention"), 3.0), Frame(("step", "mlp"), 1.0)]
    before = [Frame(("step", "attention"), 2.0), Frame(("step", "mlp"), 1.0), Frame(("step", "gone"), 1.0)]
    figure = icicle(now, other=before)
    trace = figure["data"][0]
    colours = dict(zip(trace["labels"], trace["marker"]["colors"], strict=True))
    assert colours["attention"] == "#b04a00"  # from half of the whole to three quarters
    assert colours["mlp"] in ("#4f6272", "#5b6f80")  # a quarter in both
    meta = figure["layout"]["meta"]
    assert meta["rows"][0] == ["attention", "75.0%", "50.0%", "+25.0", "step"]
    assert meta["rows"][-1] == ["gone", "-", "25.0%", "−25.0", "step"]
    assert "1 frames stand only in the other" in meta["summary"]


def test_white_text_reads_on_every_frame() -> None:
    now = [Frame((f"f{k}",), 1.0 + k) for k in range(6)]
    trace = icicle(now, other=list(reversed([Frame((f"f{k}",), 6.0 - k) for k in range(6)])))["data"][0]
    assert all(palette.contrast("#ffffff", colour) >= 4.5 for colour in trace["marker"]["colors"])


def test_a_timeline_totals_the_gaps_of_each_lane() -> None:
    spans = [
        Span("GPU", "gemm", 1.0, 2.0),
        Span("GPU", "gemm", 1.5, 2.5),  # overlaps: busy only once
        Span("CPU", "launch", 1.0, 5.0),
        Span("CPU", "empty", 3.0, 3.0),
    ]
    figure = timeline(spans)
    layout = figure["layout"]
    texts = [note["text"] for note in layout["annotations"]]
    assert "idle 2.500 s (62.5%)" in texts and "idle 0 ms (0.0%)" in texts
    assert layout["meta"]["rows"] == [
        ["CPU", "launch", "1", "4.000 s", "100.0%"],
        ["GPU", "gemm", "2", "2.000 s", "50.0%"],
    ]
    assert "GPU is idle for 2.500 s (62.5%)" in layout["meta"]["summary"]
    assert layout["meta"]["summary"].endswith("1 shorter or empty spans are not drawn.")
    gemm = next(trace for trace in figure["data"] if trace["name"] == "gemm")
    assert (gemm["base"], gemm["x"]) == ([0.0, 0.5], [1.0, 1.0])


def test_a_timeline_keeps_the_longest_spans() -> None:
    spans = [Span("GPU", f"k{k % 9}", k, k + 0.1 + k / 1e5) for k in range(3000)]
    figure = timeline(spans)
    assert sum(len(trace["x"]) for trace in figure["data"]) == MAX_SPANS
    assert len(figure["data"]) == 5  # four names and the rest
    assert "1000 shorter or empty spans" in figure["layout"]["meta"]["summary"]
