"""Pareto, Memory, Roofline and Coverage: their numbers against ones worked out by hand, on runs with known values."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from dashboard.pages import matrix, memory, pareto, roofline
from harness.core import UsageError
from harness.registry import load_all
from harness.schema import PeakRow, RunRow
from harness.store import Store
from tests.dashboard.page_text import commands, context_of, control, figures, links, query_of, sentence, shown, tables
from tests.synthetic import Arm, store_run

REFERENCE = Path(__file__).resolve().parents[2] / "results" / "reference"
MIB = 2**20


@pytest.fixture(autouse=True)
def declared() -> None:
    load_all()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path, create=True)


def column(table: list[list[str]], name: str) -> list[str]:
    """A table's column by its heading."""
    place = table[0].index(name)
    return [row[place] for row in table[1:]]


def batches(store: Store) -> RunRow:
    """Two variants at batch 1, 2 and 4; the second is faster throughout, except that a third is beaten by both."""
    arms = []
    for variant, factor in (("reference", 1.0), ("kv=prealloc", 0.8), ("norm=fused", 1.5)):
        for batch in (1, 2, 4):
            seconds = 0.010 * factor * (1 + 0.1 * (batch - 1))
            numbers = {"tpot": [seconds], "tps": [batch / seconds]}
            arms.append(Arm(variant, numbers, workload=f"decode(batch={batch})"))
    arms.append(Arm("kv=prealloc", solo={"kl": 0.02, "ppl": 12.5, "top1_agreement": 0.9}, workload="perplexity"))
    return store_run(store, *arms, machine_id="m1", command="python -m harness run lab")


def test_batches_give_curves_of_latency_against_throughput(store: Store) -> None:
    batches(store)
    page = pareto.layout(context_of(store), pareto.State())
    assert sentence(page) == "3 of 9 points are beaten by none in tpot and tps together: kv=prealloc."
    assert control(page, "x").value == "tpot"
    points = tables(page)[-1]
    assert column(points, "Beaten by none").count("yes") == 3
    assert column(points, "tpot")[0] == "10 ms"
    assert column(points, "Setting")[:3] == ["batch 1", "batch 2", "batch 4"]
    quality = dict(zip(column(points, "Variant"), column(points, "Quality"), strict=True))
    assert quality["kv=prealloc"] == "PPL 12.50, KL 0.02, top-1 90.0%"
    assert quality["reference"] == "not measured"
    assert "decode of tiny, context 128, new_tokens 32: medians over blocks" in shown(page)


def test_curves_are_read_at_a_point_and_compared_with_the_baseline(store: Store) -> None:
    batches(store)
    page = pareto.layout(context_of(store), pareto.State(at=0.0100))
    table = tables(page)[0]
    values = {row[0]: row[1:] for row in table[1:]}
    assert values["reference"] == ["100 tok/s", "+0.00%"]
    # at 10 ms the second curve lies between batch 2 (8.8 ms, 227.3) and batch 4 (10.4 ms, 384.6)
    between = 2 / 0.0088 + (4 / 0.0104 - 2 / 0.0088) * (0.0100 - 0.0088) / (0.0104 - 0.0088)
    assert values["kv=prealloc"][0] == f"{between:.0f} tok/s"
    assert values["norm=fused"] == ["–", "–"]


def test_without_a_place_the_curves_are_read_where_most_can_be(store: Store) -> None:
    batches(store)
    context = context_of(store)
    page = pareto.layout(context, pareto.State())
    assert "Read at tpot = 10 ms, on straight lines between points" in shown(page)
    scale = control(page, "at")
    assert (scale.min, scale.max, scale.value) == pytest.approx((0.008, 0.0195, 0.010))
    assert {row[0]: row[1] for row in tables(page)[0][1:]}["reference"] == "100 tok/s"
    for place in (-1.0, 1e9, 1e-9):  # beyond the scale: its end
        assert control(pareto.layout(context, pareto.State(at=place)), "at").value in (scale.min, scale.max)
    other = pareto.layout(context, pareto.State(against="nobody"))
    assert tables(other)[0][0][-1] == "against reference"


def test_variants_are_drawn_by_name(store: Store) -> None:
    batches(store)
    page = pareto.layout(context_of(store), pareto.State(variants=("norm=fused",)))
    (drawn,) = figures(page).values()
    assert {row[0] for row in drawn["layout"]["meta"]["rows"]} == {"norm=fused"}
    assert "2 more variants are in the table" in shown(page)


def test_single_points_are_named_by_their_variant_and_keep_their_setting(store: Store) -> None:
    arms = [
        Arm("reference", {"tps": [5.0]}, {"peak_bytes": 2e8}, workload="decode(new_tokens=16)"),
        Arm("quant=int8", {"tps": [9.0]}, {"peak_bytes": 1e8}, workload="decode(new_tokens=32)"),
    ]
    store_run(store, *arms, machine_id="m1")
    page = pareto.layout(context_of(store), pareto.State())
    (drawn,) = figures(page).values()
    assert [row[:2] for row in drawn["layout"]["meta"]["rows"]] == [["reference", ""], ["quant=int8", ""]]
    assert column(tables(page)[-1], "Setting") == ["new_tokens 16", "new_tokens 32"]


def test_quality_may_stand_on_an_axis() -> None:
    page = pareto.layout(context_of(REFERENCE), pareto.State(x="tps", y="kl"))
    assert "in tps and kl together" in sentence(page)


def cached(store: Store) -> RunRow:
    """One variant at three depths: 4 bytes a parameter, 1 KiB of cache a position, a peak 8 MiB above both."""
    arms = []
    for context in (128, 512, 1024):
        cache = 1024.0 * (context + 32)
        peak = 40 * MIB + cache + 8 * MIB
        arms.append(
            Arm(timed={"tps": [5.0, 5.0]}, solo={"peak_bytes": peak, "kv_bytes": cache, "disk_bytes": 40.0 * MIB},
                workload=f"decode(context={context})")
        )  # fmt: skip
    return store_run(store, *arms, machine_id="m1", device="cpu", ram_bytes=2**34, command="again")


def test_memory_adds_up_and_says_how_far_it_goes(store: Store) -> None:
    cached(store)
    page = memory.layout(context_of(store), memory.State())
    cache = 1024 * (1024 + 32)
    peak = 48 * MIB + cache
    room = 1024 + (2**34 - peak) / 1024
    assert sentence(page) == (
        "tiny: decode 32 @ 1024, reference: 49.0 MiB at its peak: weights 40.0 MiB, cache 1.0 MiB, and 8.0 MiB of "
        "something else. By memory alone this machine would hold a context of about "
        f"{float(f'{room:.3g}'):,.0f} tokens."
    )
    (drawn,) = figures(page).values()
    assert len(drawn["layout"]["meta"]["rows"]) == 3
    row = tables(page)[0][1]
    assert row[:7] == ["reference", "1,024", "40.0 MiB", "1.0 MiB", "1.0 KiB", "49.0 MiB", "8.0 MiB"]
    assert commands(page) == ["again", f"python -m harness profile quickstart --store {store.path}"]


def test_the_allocator_of_the_deepest_case_that_has_a_trace_is_drawn(store: Store) -> None:
    run = cached(store)
    case_id = Arm(workload="decode(context=512)").case().case_id
    folder = store.path / "artifacts" / run.run_id
    folder.mkdir(parents=True)
    counts = {"Bytes": 512, "Addr": 1, "Total Allocated": 512, "Total Reserved": 0, "Device Type": 0, "Device Id": -1}
    events = [{"ph": "X", "name": "aten::cat", "ts": 0, "dur": 9, "pid": 1, "tid": 1},
              {"ph": "i", "name": "[memory]", "ts": 5, "pid": 1, "tid": 1, "args": counts}]  # fmt: skip
    (folder / f"{case_id}.trace.json").write_text(json.dumps(events))
    page = memory.layout(context_of(store), memory.State())
    drawn = figures(page)["allocator-0"]["layout"]["meta"]
    assert drawn["title"] == "Allocator of CPU"
    assert drawn["rows"] == [["aten::cat", "0.5 KiB", "100.0%", "1"]]
    assert f"tiny: decode 32 @ 512, reference, from the trace of run {run.run_id}." in shown(page)
    assert query_of(links(page)["its profile"]) == {"run": [run.run_id], "case": [case_id]}
    (folder / f"{case_id}.trace.json").write_text("{")
    assert "is not JSON" in shown(memory.layout(context_of(store), memory.State()))


def test_a_rest_that_grows_is_stacked_and_shortens_the_reach(store: Store) -> None:
    arms = []
    for context in (128, 512, 1024):
        cache, rest = 1024.0 * (context + 32), 8 * MIB + 3072.0 * context
        solo = {"peak_bytes": 40 * MIB + cache + rest, "kv_bytes": cache, "disk_bytes": 40.0 * MIB}
        arms.append(Arm(timed={"tps": [5.0, 5.0]}, solo=solo, workload=f"decode(context={context})"))
    store_run(store, *arms, machine_id="m1", device="cpu", ram_bytes=2**30)
    page = memory.layout(context_of(store), memory.State())
    (drawn,) = figures(page).values()
    meta = drawn["layout"]["meta"]
    assert meta["columns"][3] == "activations and the rest"
    assert all(row[6].endswith("0.00%)") for row in meta["rows"])
    room = 1024 + (2**30 - (48 * MIB + 1024 * 1056 + 3072 * 1024)) / 4096  # 1 KiB of cache and 3 of the rest a token
    assert sentence(page).endswith(f"hold a context of about {float(f'{room:.3g}'):,.0f} tokens.")
    assert "No trace of these cases has the allocator's events." in shown(page)


def test_a_cache_that_was_not_recorded_is_not_nothing(store: Store) -> None:
    arm = Arm(timed={"tps": [5.0, 5.0]}, solo={"peak_bytes": 1e8, "disk_bytes": 5e7})
    store_run(store, arm, machine_id="m1", device="cpu", ram_bytes=2**34)
    page = memory.layout(context_of(store), memory.State())
    assert "its weights or its cache were not recorded" in sentence(page)
    assert figures(page) == {}
    assert tables(page)[0][1][3:5] == ["–", "–"]


def test_along_a_parameter_that_no_case_has_names_a_command(store: Store) -> None:
    arm = Arm(timed={"train_tps": [5.0, 5.0]}, solo={"peak_bytes": 1e8}, workload="train_step")
    store_run(store, arm, machine_id="m1")
    page = memory.layout(context_of(store), memory.State())
    assert "no measured peak" in sentence(page)
    assert commands(page) == [f"python -m harness run kv_cache --store {store.path}"]


def bounded(store: Store, *, calibrated: bool = True) -> RunRow:
    """A decode that moves 1 GB a second at 0.5 FLOP/B, and a prefill of 50 GFLOP/s at 100 FLOP/B."""
    if calibrated:
        peaks = [
            PeakRow("read", 2e9, "B/s", "fp32", 416_000_000, 2),
            PeakRow("read", 8e9, "B/s", "fp32", 14_000_000, 2),
            PeakRow("matmul", 100e9, "FLOP/s", "fp32", 6_000_000, 2),
        ]
        store.save_calibration("f00d", peaks)
    facts = {"compute_dtype": "fp32", "disk_bytes": 400_000_000}
    arms = [
        Arm(timed={"step_time": [1.0, 1.0], "mbu": [0.5, 0.5]}, facts={**facts, "work": [32, 5e8, 1e9]}),
        Arm(timed={"step_time": [2.0, 2.0]}, facts={**facts, "work": [512, 1e11, 1e9]}, workload="prefill"),
        Arm("norm=fused", timed={"step_time": [1.0, 1.0]}, facts={"work": None}),
    ]
    return store_run(store, *arms, machine_id="m1", fingerprint="f00d", device="cpu", command="again")


def test_a_roof_is_what_holds_for_the_size_of_the_weights(store: Store) -> None:
    bounded(store)
    page = roofline.layout(context_of(store), roofline.State())
    assert sentence(page) == (
        "decode 32 @ 128, reference comes nearest to its roof: 50% of read 416 MB. "
        "Memory bounds 1 of 2 cases, arithmetic the others."
    )
    table = tables(page)[0]
    assert column(table, "FLOP/B") == ["0.5", "100"]
    assert column(table, "Of its roof") == ["50%", "50%"]
    assert column(table, "Bound by") == ["read 416 MB", "matmul fp32"]
    assert column(table, "MBU") == ["50.0%", "–"]
    assert column(table, "Bandwidth") == ["1 GB/s", "0.5 GB/s"]


def test_peaks_that_nobody_measured_name_the_command(store: Store) -> None:
    run = bounded(store, calibrated=False)
    page = roofline.layout(context_of(store), roofline.State())
    assert sentence(page) == f"The peaks of this machine, in the state of run {run.run_id}, were not measured."
    assert commands(page)[0] == f"python -m harness calibrate --device cpu --store {store.path}"
    assert figures(page) == {}
    assert column(tables(page)[0], "Bandwidth") == ["1 GB/s", "0.5 GB/s"]


def test_the_peaks_on_the_page_are_those_of_the_store() -> None:
    page = roofline.layout(context_of(REFERENCE), roofline.State(run="20261122T072827"))
    table = tables(page)[0]
    shares = [float(cell.rstrip("%")) for cell in column(table, "Of its roof")]
    assert all(0 < share < 200 for share in shares)
    assert any(bound.startswith("read") for bound in column(table, "Bound by"))


def test_a_run_of_another_machine_is_refused() -> None:
    with pytest.raises(UsageError, match="no run 'nowhere' on machine 5cef0b44"):
        roofline.layout(context_of(REFERENCE), roofline.State(run="nowhere"))


def tried(store: Store) -> None:
    arms = [
        Arm("reference", {"tps": [1.0, 1.0]}),
        Arm("quant=int8", {"tps": [1.0, 1.0]}),
        Arm("kv=prealloc", status="failed", reason="ValueError: <b>no</b>"),
        Arm("kv=prealloc quant=int8", status="skipped", reason="quant=int8 needs avx512"),
        Arm("kv=int8", status="wrong", reason="no cache of int8 ran"),
    ]
    store_run(store, *arms, machine_id="m1")


def test_coverage_counts_every_combination(store: Store) -> None:
    tried(store)
    page = matrix.layout(context_of(store), matrix.State(rows="kv", columns="quant"))
    assert sentence(page) == (
        "kv × quant, 6 combinations: 2 measured (with a failed case in 0 of them), 2 failed or wrong, 1 skipped with a "
        "reason, 1 never run."
    )
    pivot, reasons = tables(page)
    assert pivot[0] == ["kv \\ quant", "int8", "none"]
    cells = {row[0]: row[1:] for row in pivot[1:]}
    assert cells == {"cat": ["✓ 1", "✓ 1"], "int8": ["", "≠ 1"], "prealloc": ["− 1", "✗ 1"]}
    assert ["ValueError: <b>no</b>", "1", "kv=prealloc quant=none"] in reasons


def test_a_cell_leads_to_the_runs_that_have_it(store: Store) -> None:
    tried(store)
    page = matrix.layout(context_of(store), matrix.State(rows="kv", columns="quant", filter="model=tiny"))
    assert query_of(links(page)["✗ 1"]) == {"filter": ["model=tiny kv=prealloc quant=none"]}


def test_a_combination_that_was_never_run_says_so(store: Store) -> None:
    tried(store)
    state = matrix.State(rows="kv", columns="quant", filter="kv=int8 quant=int8")
    assert sentence(matrix.layout(context_of(store), state)) == (
        "No case matches the filter: this combination was never run."
    )


def test_coverage_of_something_that_is_no_axis_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown axis of a matrix 'wheels'"):
        matrix.layout(context_of(REFERENCE), matrix.State(rows="wheels"))


def test_the_reference_results_are_covered_as_they_are() -> None:
    page = matrix.layout(context_of(REFERENCE), matrix.State(rows="backend", columns="model"))
    assert math.prod(len(axis) for axis in (tables(page)[0][1:], tables(page)[0][0][1:])) > 6
    assert any("vllm" in row[0] for row in tables(page)[1])
