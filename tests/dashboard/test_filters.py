"""The filter box: what it reads, what it refuses, and that no text of a user becomes SQL."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboard.filters import FIELDS, Filter, fields, parse_filter
from harness.core import UsageError

EVIL = ("'; DROP TABLE runs; --", '" OR 1=1 --', "x' UNION SELECT * FROM runs", "%", "_", "\\", "a;b", "?", "\x00", "–")


def test_an_empty_box_lets_everything_through() -> None:
    for text in ("", "   "):
        assert parse_filter(text) == Filter() and parse_filter(text).where() == ("TRUE", ())


def test_clauses_are_read_in_order_with_their_level() -> None:
    found = parse_filter("norm=triton context>=2048 model=tiny suite=engines status=failed machine=ab12 metric=tps")
    assert [str(clause) for clause in found.clauses] == found.text.split()
    levels = {clause.field: clause.level for clause in found.clauses}
    assert {name for name, level in levels.items() if level == "run"} == {"suite", "machine"}
    assert {name for name, level in levels.items() if level == "case"} == {"norm", "context", "model", "status"}
    assert levels["metric"] == "metric"


def test_each_level_has_its_own_condition() -> None:
    found = parse_filter("suite=gate norm=fused metric=tps")
    assert found.where("run") == ("(runs.suite = ?)", ("gate",))
    assert found.where("metric") == ("(summary.metric = ?)", ("tps",))
    condition, values = found.where()
    assert condition.count(" AND ") >= 2 and values == ("gate", "norm", "fused", "tps")
    assert found.speaks_of("case") and not parse_filter("suite=gate").speaks_of("case")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("model=tiny,minimind-3", ("tiny", "minimind-3")),
        ("model=mini*", ("mini%",)),
        ("machine=ab", ("ab", "ab%", "ab")),
        ("commit!=3f2a", ("3f2a%",)),
        ("model=a_b%c*", (r"a\_b\%c%",)),
        ("dirty=yes", (True,)),
        ("context=128,256", ("context", 128, 256)),
        ("context<1000", ("context", 1000)),
        ("started>=2026-11-22", (datetime(2026, 11, 22, tzinfo=UTC),)),
        ("started<2026-11-22T10:00+02:00", (datetime(2026, 11, 22, 8, tzinfo=UTC),)),
        ("variant='kv=prealloc norm=fused'", ("kv=prealloc norm=fused",)),
    ],
)
def test_values_are_bound(text: str, values: tuple[object, ...]) -> None:
    found = parse_filter(text).where()[1]
    assert found == tuple(value.replace(tzinfo=None) if isinstance(value, datetime) else value for value in values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("norm", "'norm' is not of the form field=value"),
        ("nrom=fused", "unknown field of a filter 'nrom'. Did you mean 'norm'?"),
        ("model=", "'model=' has no value"),
        ("model=,", "'model=,' has no value"),
        ("norm>fused", "norm can be compared with = and != only"),
        ("model>=tiny", "model can be compared with = and != only"),
        ("context>=many", "context is a whole number"),
        ("context=1,x", "context is a whole number"),
        ("context>=" + "9" * 40, "context is a whole number"),
        ("started=2026-11-22", "started can be compared with >=, <=, > and < only"),
        ("started>=yesterday", "'yesterday' is not a time"),
        ("dirty=maybe", "dirty is yes or no"),
        ("model='tiny", "has an open quotation mark"),
        ("Model=tiny", "is not of the form"),
        ("a.b=1", "is not of the form"),
        (" ".join(["model=tiny"] * 41), "has 41 clauses"),
        ("model=" + "x" * 3000, "has 3006 characters"),
    ],
)
def test_what_means_nothing_is_refused_with_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_filter(text)
    assert message in str(caught.value)


def test_an_axis_that_only_the_store_knows_is_a_field_when_named() -> None:
    with pytest.raises(UsageError):
        parse_filter("flavour=sweet")
    assert parse_filter("flavour=sweet", axes=["flavour"]).where()[1] == ("flavour", "sweet")
    assert "flavour" in fields(["flavour"]) and {"norm", "context", *FIELDS} <= set(fields())


@pytest.mark.parametrize("evil", EVIL)
@pytest.mark.parametrize("field", ["model", "machine", "norm", "variant", "metric"])
def test_no_text_of_a_user_is_in_the_condition(field: str, evil: str) -> None:
    quoted = "'" + evil.replace("'", "'\"'\"'") + "'"
    condition, values = parse_filter(f"{field}={quoted}").where()
    harmless, _ = parse_filter(f"{field}={'x*' if '*' in evil else 'x'}").where()
    assert condition == harmless and condition.count("?") == len(values)


def test_a_picker_reads_and_replaces_its_own_field() -> None:
    found = parse_filter("suite=gate,norm model!=tiny")
    assert found.values_of("suite") == ("gate", "norm") and found.values_of("model") == ()
    assert found.with_value("suite", "engines").text == "model!=tiny suite=engines"
    assert found.with_value("suite", "").text == "model!=tiny"
    assert found.with_value("flavour", "sweet").where()[1][-2:] == ("flavour", "sweet")  # an axis of the store
    assert len(found.with_value("run", ",".join(["20261122T095707-971a34"] * 500)).values_of("run")) == 500
    assert found.with_value("variant", "kv=cat norm=fused").values_of("variant") == ("kv=cat norm=fused",)


_WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).filter(
    lambda word: word.strip(",")
)
_CLAUSES = st.one_of(
    st.tuples(
        st.sampled_from(["model", "suite", "machine", "norm", "variant", "metric"]),
        st.sampled_from(["=", "!="]),
        _WORDS,
    ),
    st.tuples(st.just("context"), st.sampled_from([">=", "<", "=", "!="]), st.integers(0, 10**9).map(str)),
)


@given(st.lists(_CLAUSES, max_size=6))
def test_a_filter_is_what_its_text_says(parts: list[tuple[str, str, str]]) -> None:
    """parse_filter(found.text) == found, whatever the values hold."""
    import shlex

    found = parse_filter(" ".join(shlex.quote(f"{field}{sign}{value}") for field, sign, value in parts))
    assert [(c.field, c.sign, c.value) for c in found.clauses] == parts
    assert parse_filter(found.text) == found
    condition, values = found.where()
    assert condition.count("?") == len(values)
