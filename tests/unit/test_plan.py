"""Plans: designs, `--axis`, restrictions, and skips with their reasons."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import registry
from harness.core import Case, Design, Grid, ModelSource, Sampling, Suite, UsageError, Variant, Workload
from harness.execute import Request
from harness.plan import Plan, arms_of, make_plan, with_axes

CPU = frozenset({"cpu", "bf16", "compile", "pkg:torch", "pkg:transformers"})
AXES = {"kv": ("cat", "prealloc"), "norm": ("native", "fused"), "attn": ("gqa", "mha", "mqa")}


@pytest.fixture(autouse=True, scope="module")
def _declared() -> None:
    registry.load_all()


def grid(design: Design = "one_at_a_time", axes: dict[str, tuple[str, ...]] | None = None) -> Grid:
    return Grid(("tiny",), (Workload.of("decode"), Workload.of("perplexity")), AXES if axes is None else axes, design)


def texts(found: Grid) -> list[str]:
    return [str(arm) for arm in arms_of(found)]


def plan_of(*grids: Grid, monkeypatch: pytest.MonkeyPatch, **options: object) -> Plan:
    """A plan of a suite made of these grids."""
    suite = Suite("mine", "A suite.", {"cpu": grids}, ("tps", "ppl"), Sampling(blocks=3))
    monkeypatch.setitem(registry.SUITES, "mine", suite)
    return make_plan("mine", **{"device": "cpu", "capabilities": CPU, **options})  # type: ignore[arg-type]


# --- designs ---


def test_one_at_a_time_changes_one_axis_per_arm() -> None:
    assert texts(grid()) == ["reference", "kv=prealloc", "norm=fused", "attn=mha", "attn=mqa"]


def test_a_ladder_keeps_every_step() -> None:
    assert texts(grid("ladder")) == [
        "reference",
        "kv=prealloc",
        "kv=prealloc norm=fused",
        "attn=mha kv=prealloc norm=fused",
        "attn=mqa kv=prealloc norm=fused",
    ]


def test_a_product_has_every_point() -> None:
    found = texts(grid("product"))
    assert found[0] == "reference"
    assert len(found) == len(set(found)) == 2 * 2 * 3
    assert "attn=mqa kv=prealloc norm=fused" in found


def test_pairs_have_every_two_changes_and_never_three() -> None:
    found = arms_of(grid("pairs"))
    sizes = [len(arm.choices) for arm in found]
    assert sizes.count(0) == 1 and sizes.count(1) == 4 and sizes.count(2) == 1 + 2 + 2 and max(sizes) == 2


def test_the_base_of_a_grid_is_the_first_option_of_each_axis() -> None:
    found = grid(axes={"precision": ("bf16", "fp32"), "kv": ("cat", "prealloc")})
    assert texts(found) == ["precision=bf16", "reference", "kv=prealloc precision=bf16"]


def test_extra_arms_come_last_and_once() -> None:
    more = replace(grid(), extra=(Variant.parse("kv=prealloc norm=fused"), Variant.parse("kv=prealloc")))
    assert texts(more) == [*texts(grid()), "kv=prealloc norm=fused"]


OPTIONS = {
    "kv": ("cat", "prealloc"),
    "norm": ("native", "fused"),
    "attn": ("gqa", "mha", "mqa"),
    "threads": ("all", "1", "2", "3"),
}
GRIDS = st.fixed_dictionaries(
    {},
    optional={
        name: st.lists(st.sampled_from(options), min_size=1, unique=True).map(tuple)
        for name, options in OPTIONS.items()
    },
)


@settings(max_examples=60)
@given(GRIDS)
def test_laws_of_designs(axes: dict[str, tuple[str, ...]]) -> None:
    """The base comes first, no arm comes twice, every design lies in the product and has every single change."""
    base = registry.resolve_variant(Variant.of({name: options[0] for name, options in axes.items()}))
    found = {
        design: arms_of(grid(design, axes))
        for design in ("one_at_a_time", "pairs", "ladder", "product")  # type: ignore[arg-type]
    }
    for arms in found.values():
        assert arms[0] == base and len(set(arms)) == len(arms)
        assert set(arms) <= set(found["product"])
    assert set(found["one_at_a_time"]) <= set(found["pairs"])
    singles = 1 + sum(len(options) - 1 for options in axes.values())
    assert len(found["one_at_a_time"]) == len(found["ladder"]) == singles
    doubles = sum((len(a) - 1) * (len(b) - 1) for a, b in itertools.combinations(axes.values(), 2))
    assert len(found["pairs"]) == singles + doubles


# --- `--axis` ---


def test_an_asked_axis_narrows_the_grid_to_it() -> None:
    assert texts(with_axes(grid(), {"kv": ("prealloc",)})) == ["reference", "kv=prealloc"]
    assert texts(with_axes(grid(), {"attn": ("mha",)})) == ["reference", "attn=mha"]
    assert with_axes(grid(), {}) == grid()


def test_the_first_of_several_asked_options_is_the_baseline() -> None:
    assert texts(with_axes(grid(), {"kv": ("prealloc", "cat")})) == ["kv=prealloc", "reference"]
    assert texts(with_axes(grid(), {"attn": ("mqa", "mha")})) == ["attn=mqa", "attn=mha"]


def test_an_asked_axis_that_the_grid_lacks_is_added() -> None:
    found = with_axes(grid(), {"threads": ("1",), "kv": ("prealloc",)})
    assert texts(found) == ["reference", "threads=1", "kv=prealloc"]


def test_the_axes_that_are_not_asked_for_stay_at_the_grids_base() -> None:
    bf16 = grid(axes={"precision": ("bf16", "fp32"), "kv": ("cat", "prealloc")})
    assert texts(with_axes(bf16, {"kv": ("prealloc",)})) == ["precision=bf16", "kv=prealloc precision=bf16"]


def test_extra_arms_go_when_an_axis_is_asked_for() -> None:
    more = replace(grid(), extra=(Variant.parse("norm=fused"),))
    assert texts(with_axes(more, {"kv": ("prealloc",)})) == ["reference", "kv=prealloc"]


def test_unknown_names_of_axes_and_options_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown axis 'kb'"):
        with_axes(grid(), {"kb": ("prealloc",)})
    with pytest.raises(UsageError, match=r"unknown option of axis kv 'ring'\. Known: cat, int8, paged, prealloc"):
        with_axes(grid(), {"kv": ("ring",)})


# --- plans ---


def test_a_plan_has_every_case_of_every_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(grid(), replace(grid(axes={}), models=("tiny", "minimind-3")), monkeypatch=monkeypatch, seed=7)
    first, second = plan.groups
    assert (first.name, second.name) == ("mine-0", "mine-1")
    assert len(first.cases) == 2 * 5 and len(first.timed()) == 5
    assert first.baseline == first.arms[0] == Variant()
    assert [case.model for case in second.cases] == ["tiny", "minimind-3", "minimind-3"], "the same quality once"
    assert plan.sources == {name: ModelSource(name, seed=7) for name in ("tiny", "minimind-3")}
    assert plan.sampling.blocks == 3 and not plan.skips
    assert first.cases[0].workload == Workload.parse("decode(batch=1,context=128,new_tokens=32)"), "defaults filled in"


def test_what_cannot_run_is_skipped_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    axes = {"precision": ("fp32", "bf16"), "compile": ("off", "default"), "backend": ("torch", "transformers")}
    here = CPU - {"compile", "pkg:transformers"}
    plan = plan_of(grid(axes=axes), monkeypatch=monkeypatch, capabilities=here)
    reasons = {str(case.variant): plan.skips.get(case.case_id) for case in plan.groups[0].cases}
    assert reasons == {
        "reference": None,
        "precision=bf16": None,
        "compile=default": "compile=default needs compile, which this machine does not offer",
        "backend=transformers": "backend transformers needs the package transformers, which is not installed",
    }


def test_two_options_that_replace_the_same_part_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    fused = registry.OPTIONS["norm", "fused"]
    claiming = replace(registry.OPTIONS["attn", "mha"], claims=fused.claims)
    monkeypatch.setitem(registry.OPTIONS, ("attn", "mha"), claiming)
    both = grid("product", {"norm": ("native", "fused"), "attn": ("gqa", "mha")})
    plan = plan_of(both, monkeypatch=monkeypatch)
    skipped = {
        str(case.variant): plan.skips[case.case_id] for case in plan.groups[0].cases if case.case_id in plan.skips
    }
    assert skipped.keys() == {"attn=mha norm=fused"}
    assert "both replace RMSNorm" in skipped["attn=mha norm=fused"]


def test_a_bad_name_anywhere_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for changes, message in (
        ({"suite_name": "quickstar"}, "unknown suite 'quickstar'. Did you mean 'quickstart'"),
        ({"device": "tpu"}, "suite 'quickstart' has no cases for device 'tpu'. It has: cpu, cuda"),
        ({"models": ("minimind-4",)}, "unknown model 'minimind-4'. Did you mean 'minimind-3'"),
        ({"source": ModelSource("x", preset="tinny")}, "unknown model 'tinny'. Did you mean 'tiny'"),
        ({"asked": {"kv": ("ring",)}}, "unknown option of axis kv 'ring'"),
    ):
        options = {"suite_name": "quickstart", "device": "cpu", "capabilities": CPU, **changes}
        with pytest.raises(UsageError, match=message):
            make_plan(**options)  # type: ignore[arg-type]
    bad = Suite("bad", "x", {"cpu": (grid(),)}, ("tpz",))
    monkeypatch.setitem(registry.SUITES, "bad", bad)
    with pytest.raises(UsageError, match="unknown metric of suite bad 'tpz'"):
        make_plan("bad", device="cpu", capabilities=CPU)


def test_models_and_sources_replace_those_of_the_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    by_name = plan_of(grid(), monkeypatch=monkeypatch, models=("minimind2", "minimind-3"))
    assert set(by_name.sources) == {"minimind2", "minimind-3"}
    mine = ModelSource("mine", weights="/x/mine.pth")
    own = plan_of(grid(), monkeypatch=monkeypatch, source=mine)
    assert own.sources == {"mine": mine} and {case.model for case in own.groups[0].cases} == {"mine"}


def test_every_suite_can_be_planned_on_every_device_that_it_names() -> None:
    for name, suite in registry.SUITES.items():
        for device in suite.grids:
            plan = make_plan(name, device=device, capabilities=CPU - {"cpu"} | {device, "cxx"})
            assert plan.groups and all(group.cases for group in plan.groups), name
            for group in plan.groups:
                running = {case.variant for case in group.cases if case.case_id not in plan.skips}
                assert running, f"{name}: a group of which nothing runs on an ordinary machine"
                assert all(case.case_id not in plan.skips for case in group.cases if case.variant == group.baseline)


# --- restrictions ---


def test_a_restricted_plan_keeps_the_reference_and_the_quality(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(grid(), monkeypatch=monkeypatch)
    workload = registry.resolve_workload(Workload.of("decode"))
    wanted = Case(workload, "tiny", Variant.parse("norm=fused"))
    kept = plan.restricted([wanted.case_id]).groups[0]
    assert [str(arm) for arm in kept.arms] == ["reference", "norm=fused"]
    assert {(case.workload.kind, str(case.variant)) for case in kept.cases} == {
        (kind, arm) for kind in ("decode", "perplexity") for arm in ("reference", "norm=fused")
    }


def test_a_group_of_quality_alone_is_restricted_to_the_variants_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = replace(grid(), workloads=(Workload.of("decode"),), models=("minimind2-small",))
    quality = replace(grid(), workloads=(Workload.of("perplexity"),))
    plan = plan_of(timed, quality, monkeypatch=monkeypatch)
    wanted = Case(registry.resolve_workload(Workload.of("decode")), "minimind2-small", Variant.parse("attn=mqa"))
    kept = plan.restricted([wanted.case_id])
    assert [[str(case.variant) for case in group.cases] for group in kept.groups] == [["reference", "attn=mqa"]] * 2


def test_groups_without_a_wanted_case_go(monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(grid(), workloads=(Workload.of("prefill"),))
    plan = plan_of(grid(), other, monkeypatch=monkeypatch)
    assert [group.name for group in plan.restricted([other_case(plan)]).groups] == ["mine-1"]
    assert plan.restricted([]).groups == ()


def other_case(plan: Plan) -> str:
    return plan.groups[1].cases[0].case_id


# --- requests ---


def test_a_request_reads_back_what_it_writes_and_its_command_repeats_it() -> None:
    source = ModelSource("tiny", preset="tiny", data="/x/text.txt", seed=3)
    axes = {"kv": ("cat", "prealloc")}
    request = Request("kv_cache", axes=axes, blocks=2, seed=3, models=("tiny",), source=source, timeout_seconds=90)
    again = Request.from_json(request.to_json())
    assert again.source == source and {k: tuple(v) for k, v in again.axes.items()} == request.axes
    assert again.to_json() == request.to_json()
    words = request.command().split()
    assert words[:5] == ["python", "-m", "harness", "run", "kv_cache"]
    assert words.count("--model") == 1, "a second --model would be refused beside --data"
    for flag, value in (("axis", "kv=cat,prealloc"), ("data", "/x/text.txt"), ("blocks", "2"), ("timeout", "90")):
        assert words[words.index(f"--{flag}") + 1] == value
    assert "--budget" not in words


def test_blocks_and_timeouts_of_the_user_replace_the_suites() -> None:
    plan = Request("kv_cache", blocks=2, timeout_seconds=5.0).plan()
    assert (plan.sampling.blocks, plan.sampling.timeout_seconds) == (2, 5.0)
    assert plan.sampling.slice_seconds == registry.SUITES["kv_cache"].sampling.slice_seconds
    only = [case.case_id for case in plan.groups[0].timed() if str(case.variant) == "kv=prealloc"][:1]
    assert len(Request("kv_cache", only=only).plan().groups[0].timed()) == 2
