"""The nouns: how variants, workloads and cases are written, read and told apart."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.core import (
    REFERENCE,
    Case,
    CaseFailed,
    Grid,
    HarnessError,
    Iteration,
    StoreError,
    Unsupported,
    UsageError,
    Variant,
    Workload,
    one_of,
    parse_pair,
)

few = settings(max_examples=50)
AXIS = st.builds(str.__add__, st.sampled_from("akz"), st.text("az09_", max_size=3))
OPTION = st.builds(str.__add__, st.sampled_from("aZ07"), st.text("aZ09_.-", max_size=3))
VARIANTS = st.dictionaries(AXIS, OPTION, max_size=4).map(Variant.of)
WORKLOADS = st.builds(lambda kind, params: Workload.of(kind, **params), AXIS, st.dictionaries(AXIS, st.integers(0)))


@few
@given(VARIANTS)
def test_a_variant_reads_back_what_it_writes(variant: Variant) -> None:
    assert Variant.parse(str(variant)) == variant
    assert Variant.parse(str(variant).replace(" ", ",")) == variant


@few
@given(VARIANTS, st.randoms())
def test_the_order_of_choices_does_not_matter(variant: Variant, random: object) -> None:
    words = str(variant).split()
    random.shuffle(words)  # type: ignore[attr-defined]
    again = Variant.parse("  ".join(words))
    assert again == variant and hash(again) == hash(variant) and str(again) == str(variant)


@few
@given(WORKLOADS)
def test_a_workload_reads_back_what_it_writes(workload: Workload) -> None:
    assert Workload.parse(str(workload)) == workload
    assert Workload.parse(f" {workload} ") == workload


@few
@given(VARIANTS, AXIS, OPTION)
def test_with_choice_sets_one_axis_and_no_other(variant: Variant, axis: str, option: str) -> None:
    changed = variant.with_choice(axis, option)
    assert changed.option(axis) == option
    assert {**dict(variant.choices), axis: option} == dict(changed.choices)


@few
@given(st.text(max_size=20))
def test_any_text_is_read_or_refused_with_a_usage_error(text: str) -> None:
    for read in (Variant.parse, Workload.parse, parse_pair):
        with contextlib.suppress(UsageError):
            read(text)


def test_the_reference_is_the_empty_variant() -> None:
    assert str(REFERENCE) == "reference"
    assert Variant.parse("reference") == Variant.parse("") == Variant.parse(" , ") == REFERENCE
    assert Variant.parse("kv=prealloc").option("norm") is None


def test_an_axis_given_twice_is_refused_unless_it_says_the_same() -> None:
    assert Variant.parse("kv=cat,kv=cat") == Variant.parse("kv=cat")
    with pytest.raises(UsageError, match=r"'kv' is given twice in .* cat and prealloc"):
        Variant.parse("kv=cat kv=prealloc")


@pytest.mark.parametrize("text", ["kv", "kv=", "=cat", "KV=cat", "kv=c at", "kv=cat=x", "k-v=cat", "kv=$x"])
def test_a_malformed_pair_is_named(text: str) -> None:
    with pytest.raises(UsageError, match="is not of the form axis=option") as error:
        parse_pair(text)
    assert f"'{text}'" in str(error.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("decode(", "decode("),
        ("decode(context)", "context"),
        ("decode(context=-1)", "context=-1"),
        ("decode(context=1.5)", "context=1.5"),
        ("decode(context=²)", "context=²"),
        ("decode(=3)", "=3"),
        ("decode(context=3,context=4)", "context"),
        ("decode(a b=3)", "a b=3"),
        ("Decode", "Decode"),
        ("", "''"),
    ],
)
def test_a_malformed_workload_is_named(text: str, named: str) -> None:
    with pytest.raises(UsageError) as error:
        Workload.parse(text)
    assert named in str(error.value)


def test_workload_parameters_are_read_by_name() -> None:
    workload = Workload.parse("decode( new_tokens=32 , context=512,)")
    assert workload["context"] == 512 and workload["new_tokens"] == 32
    assert str(workload) == "decode(context=512,new_tokens=32)"
    assert Workload.parse("decode") == Workload.parse("decode()") == Workload.of("decode")
    with pytest.raises(KeyError):
        workload["batch"]


def test_a_case_id_never_changes() -> None:
    """The identity of a series in every store that was ever written: these literals may not be edited."""
    workload = Workload.parse("decode(batch=1,context=128,new_tokens=32)")
    assert Case(workload, "tiny").case_id == "2a74f9fe0db6"
    assert Case(workload, "tiny", Variant.parse("norm=fused kv=prealloc")).case_id == "26d418cf8f5f"


@few
@given(VARIANTS, AXIS, OPTION)
def test_case_ids_tell_cases_apart(variant: Variant, axis: str, option: str) -> None:
    """Any one of the three parts makes another case, and nothing else does."""
    case = Case(Workload.of("decode", context=8), "tiny", variant)
    others = (
        Case(Workload.of("decode", context=9), "tiny", variant),
        Case(Workload.of("decode", context=8), "minimind-3", variant),
        Case(Workload.of("decode", context=8), "tiny", variant.with_choice(axis, option + "x")),
    )
    assert all(other.case_id != case.case_id for other in others)
    assert Case(Workload.parse(str(case.workload)), "tiny", Variant.parse(str(variant))).case_id == case.case_id


def test_one_of_names_the_bad_the_near_and_all_known() -> None:
    assert one_of("axis", "kv", ["norm", "kv"]) == "kv"
    with pytest.raises(UsageError) as error:
        one_of("axis", "norn", iter(["norm", "kv"]))
    assert str(error.value) == "unknown axis 'norn'. Did you mean 'norm'? Known: kv, norm"
    with pytest.raises(UsageError, match=r"^unknown axis 'zzz'. Known: none$"):
        one_of("axis", "zzz", [])


def test_errors_form_one_tree() -> None:
    for kind in (UsageError, StoreError, Unsupported, CaseFailed):
        assert issubclass(kind, HarnessError)
    assert CaseFailed("x").status == "failed"
    assert CaseFailed("x", status="oom").status == "oom"


def test_values_are_frozen() -> None:
    for value in (REFERENCE, Workload.of("decode"), Case(Workload.of("decode"), "tiny"), Grid((), ())):
        name = dataclasses.fields(value)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, None)


def test_an_iteration_lasts_from_its_start_to_its_end() -> None:
    assert Iteration(1_000_000_000, 3_500_000_000).seconds == 2.5
