"""Declarations: what may be declared, how names are resolved, and why a variant cannot run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import registry
from harness.core import Grid, HarnessError, Suite, UsageError, Variant, Workload
from harness.registry import Backend, option, resolve_variant, resolve_workload, why_unsupported

TABLES = (
    registry.AXES,
    registry.OPTIONS,
    registry.WORKLOADS,
    registry.METRICS,
    registry.BACKENDS,
    registry.SUITES,
)
HERE = frozenset({"cpu", "pkg:torch"})


def nothing(build: Any, value: str) -> None:
    """Does nothing."""


@pytest.fixture(autouse=True)
def declarations() -> Iterator[None]:
    """Whatever a test declares is gone after it."""
    registry.load_all()
    kept: list[dict[Any, Any]] = [dict(table) for table in TABLES]
    yield
    for table, before in zip(TABLES, kept, strict=True):
        table.clear()
        table.update(before)  # type: ignore[arg-type]


@pytest.fixture
def axis() -> str:
    """An axis `part` with reference `old` and the option `new`."""
    registry.axis("part", reference="old", doc="A part.")
    option("part", "new", stage="module", claims=("Part",))(nothing)
    return "part"


def suite(name: str = "mine") -> Suite:
    return Suite(name, "A suite.", {"cpu": (Grid(("tiny",), (Workload.of("decode"),)),)}, ("tps",))


# --- what may be declared ---


def test_a_second_declaration_of_a_name_is_an_error(axis: str) -> None:
    kinds = {
        "axis": lambda: registry.axis(axis, reference="x", doc="x"),
        "option": lambda: option(axis, "new", stage="module")(nothing),
        "workload": lambda: registry.workload("decode", defaults={}, label="", headline="tps", doc="x"),
        "metric": lambda: registry.metric("tps", unit="1", better="higher")(compute),
        "backend": lambda: registry.backend(registry.BACKENDS["torch"]),
        "suite": lambda: registry.suite(suite("quickstart")),
    }
    for kind, declare in kinds.items():
        with pytest.raises(HarnessError, match=rf"^{kind} .*declared twice"):
            declare()


def compute(record: Any) -> None:
    """A docstring of
    two lines.

    And of a second paragraph.
    """


def test_the_first_paragraph_of_the_docstring_is_what_users_see() -> None:
    registry.metric("mine", unit="1", better="neither")(compute)
    assert registry.METRICS["mine"].doc == "A docstring of two lines."


def test_a_declaration_needs_a_docstring_and_a_known_stage(axis: str) -> None:
    with pytest.raises(HarnessError, match="needs a docstring"):
        option(axis, "mute", stage="module")(lambda build, value: None)
    with pytest.raises(HarnessError, match=r"part=odd: stage 'soon' is not one of backend, config, module"):
        option(axis, "odd", stage="soon")  # type: ignore[arg-type]


def test_every_builtin_declaration_is_complete() -> None:
    """What `harness list` shows, and that suites name only what exists."""
    reference = {"norm": "native", "kv": "cat", "precision": "fp32", "attn": "gqa", "sdpa": "upstream"}
    reference |= {"compile": "off", "backend": "torch", "threads": "all"}
    assert {name: registry.AXES[name].reference for name in reference} == reference
    for (axis_name, _), declared in registry.OPTIONS.items():
        assert axis_name in registry.AXES and declared.doc
        if declared.numerics.kind == "close":
            assert declared.numerics.tolerance.keys() >= {"fp32", "bf16"}, declared
    for kind in registry.WORKLOADS.values():
        assert kind.headline in registry.METRICS and kind.label.format(**kind.defaults)
    wanted = {"quickstart", "kv_cache", "norm", "precision", "attention", "long_context", "train_step", "overhead"}
    assert registry.SUITES.keys() >= wanted
    for found in registry.SUITES.values():
        assert set(found.metrics) <= registry.METRICS.keys()


# --- names ---


def test_names_are_checked_and_the_known_ones_listed() -> None:
    cases = {
        "norms=fused": r"unknown axis 'norms'. Did you mean 'norm'\? Known: attn, backend",
        "kv=preallok": r"unknown option of axis kv 'preallok'. Did you mean 'prealloc'\? Known: cat, int8",
        "backend=tensorflow": r"unknown option of axis backend 'tensorflow'. .*torch",
        "threads=0": r"unknown option of axis threads '0'. Known: <N>, all",
        "threads=N": r"unknown option of axis threads 'N'.* Known: <N>, all",
    }
    for text, message in cases.items():
        with pytest.raises(UsageError, match=message):
            resolve_variant(Variant.parse(text))
    with pytest.raises(UsageError, match="Known: <N>, all"):
        resolve_variant(Variant.of({"threads": "<N>"}))


def test_resolving_drops_reference_options() -> None:
    assert resolve_variant(Variant.parse("kv=cat norm=fused backend=torch threads=all")) == Variant.parse("norm=fused")
    assert str(resolve_variant(Variant.parse("kv=cat"))) == "reference"


CHOICES = st.fixed_dictionaries(
    {},
    optional={
        "kv": st.sampled_from(("cat", "prealloc")),
        "norm": st.sampled_from(("native", "fused")),
        "threads": st.sampled_from(("all", "1", "2")),
        "attn": st.sampled_from(("gqa", "mha", "mqa")),
    },
)


@settings(max_examples=50)
@given(CHOICES)
def test_resolving_twice_changes_nothing_more(choices: dict[str, str]) -> None:
    once = resolve_variant(Variant.of(choices))
    assert resolve_variant(once) == once
    assert not any(registry.AXES[name].reference == value for name, value in once.choices)
    assert dict(once.choices).items() <= choices.items()


def test_a_family_takes_whatever_its_pattern_takes() -> None:
    for number in ("1", "2", "64", "9999"):
        declared = registry.find_option("threads", number)
        assert declared is registry.OPTIONS["threads", "N"]
        assert registry.options_of(Variant.of({"threads": number})) == [(declared, number)]
    for bad in ("00", "-1", "10000", "2x"):
        with pytest.raises(UsageError):
            registry.find_option("threads", bad)
    assert registry.option_names("threads") == ["<N>"]
    assert registry.find_option("threads", "all") is None


def test_options_come_in_stage_order_whatever_the_order_written() -> None:
    text = "threads=2 precision=bf16 norm=fused attn=mqa kv=prealloc"
    stages = [declared.stage for declared, _ in registry.options_of(Variant.parse(text))]
    assert stages == ["config", "module", "cast", "runtime", "runtime"]


def test_a_workload_takes_its_defaults_and_refuses_the_unknown() -> None:
    assert str(resolve_workload(Workload.parse("decode(context=8)"))) == "decode(batch=1,context=8,new_tokens=32)"
    with pytest.raises(UsageError, match=r"unknown workload 'decide'\. Did you mean 'decode'"):
        resolve_workload(Workload.of("decide"))
    with pytest.raises(UsageError, match=r"parameter of workload decode 'contxt'.* Known: batch, context, new_tokens"):
        resolve_workload(Workload.of("decode", contxt=8))
    with pytest.raises(UsageError, match="parameter batch of workload decode must be at least 1, not 0"):
        resolve_workload(Workload.of("decode", batch=0))
    assert registry.workload_label(resolve_workload(Workload.of("decode", context=8))) == "decode 32 @ 8"
    assert registry.workload_label(Workload.of("decode", context=8, new_tokens=4, batch=2)) == "decode 4 @ 8 (batch 2)"


# --- why a variant cannot run ---


def test_a_variant_that_can_run_has_no_reason_not_to() -> None:
    for text in ("reference", "kv=prealloc norm=fused precision=bf16", "threads=2"):
        assert why_unsupported(Variant.parse(text), HERE) is None


def test_missing_capabilities_are_named(axis: str) -> None:
    option(axis, "fast", stage="module", needs=("cuda", "sm90"))(nothing)
    assert why_unsupported(Variant.parse("part=fast"), HERE | {"cuda"}) == (
        "part=fast needs sm90, which this machine does not offer"
    )
    assert why_unsupported(Variant.parse("part=fast"), HERE | {"cuda", "sm90"}) is None
    assert "needs cuda, sm90" in str(why_unsupported(Variant.parse("part=fast"), HERE))


def test_requires_and_excludes_are_honoured(axis: str) -> None:
    option(axis, "needy", stage="module", requires=("kv=prealloc",))(nothing)
    option(axis, "proud", stage="module", excludes=("norm=fused",))(nothing)
    option(axis, "plain", stage="module", requires=("kv=cat",))(nothing)
    assert why_unsupported(Variant.parse("part=needy"), HERE) == "part=needy requires kv=prealloc"
    assert why_unsupported(Variant.parse("part=needy kv=prealloc"), HERE) is None
    assert why_unsupported(Variant.parse("part=proud norm=fused"), HERE) == "part=proud excludes norm=fused"
    assert why_unsupported(Variant.parse("part=proud"), HERE) is None
    assert why_unsupported(Variant.parse("part=plain"), HERE) is None, "a required reference option is chosen unsaid"
    assert why_unsupported(Variant.parse("part=plain kv=prealloc"), HERE) == "part=plain requires kv=cat"


def test_two_claims_on_one_part_name_both(axis: str) -> None:
    option(axis, "norms", stage="module", claims=("RMSNorm", "Other"))(nothing)
    reason = why_unsupported(Variant.parse("part=norms norm=fused"), HERE)
    assert reason is not None and "RMSNorm" in reason and "part=norms" in reason and "norm=fused" in reason
    assert why_unsupported(Variant.parse("part=new norm=fused"), HERE) is None


def test_a_backend_offers_only_what_it_declares(axis: str) -> None:
    registry.backend(Backend("other", None, None, "Another.", frozenset({"kv", "precision"})))  # type: ignore[arg-type]
    assert why_unsupported(Variant.parse("backend=other part=new"), HERE) == (
        "backend other does not offer axis part (part=new)"
    )
    assert why_unsupported(Variant.parse("backend=other kv=prealloc"), HERE) == (
        "backend other does not offer kv=prealloc"
    )
    assert why_unsupported(Variant.parse("backend=other"), HERE) is None
    assert why_unsupported(Variant.parse("backend=transformers kv=prealloc"), HERE | {"pkg:transformers"}) is not None


def test_a_backend_without_its_package_is_a_reason_not_a_crash() -> None:
    reason = why_unsupported(Variant.parse("backend=transformers"), HERE)
    assert reason == "backend transformers needs the package transformers, which is not installed"


# --- loading ---


def test_plugins_are_files_or_modules_and_load_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "from harness.core import Grid, Suite, Workload\nSUITE = Suite({name!r}, 'Mine.', {{}}, ())\n"
    (tmp_path / "as_file.py").write_text(text.format(name="as_file"))
    (tmp_path / "as_module.py").write_text(text.format(name="as_module"))
    monkeypatch.syspath_prepend(tmp_path)
    plugins = (str(tmp_path / "as_file.py"), "as_module")
    registry.load_all(plugins)
    registry.load_all(plugins)
    assert {"as_file", "as_module"} <= registry.SUITES.keys()
    monkeypatch.delitem(sys.modules, "as_module")


def test_a_plugin_may_register_its_suite_itself(tmp_path: Path) -> None:
    path = tmp_path / "both_ways.py"
    path.write_text(
        "from harness import registry\nfrom harness.core import Suite\n"
        "SUITE = registry.suite(Suite('both', 'x', {}, ()))\n"
    )
    registry.load_all((str(path),))
    assert "both" in registry.SUITES


def test_a_plugin_that_is_not_there_or_takes_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"plugin 'no/such\.py' is not a file"):
        registry.load_all(("no/such.py",))
    with pytest.raises(UsageError, match="plugin 'no_such_module' cannot be loaded"):
        registry.load_all(("no_such_module",))
    path = tmp_path / "thief.py"
    path.write_text("from harness.core import Suite\nSUITE = Suite('quickstart', 'x', {}, ())\n")
    with pytest.raises(HarnessError, match="suite 'quickstart' is declared twice"):
        registry.load_all((str(path),))
