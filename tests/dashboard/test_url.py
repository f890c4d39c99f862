"""The state of a page and its query string: every state comes back from its address, and nonsense becomes words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hypothesis import given
from hypothesis import strategies as st

from dashboard import url


@dataclass(frozen=True, slots=True)
class State:
    metric: str = "tps"
    metrics: tuple[str, ...] = ("tps", "ttft")
    sort: Literal["effect", "name"] = "effect"
    limit: int = 50
    at: float = 1.5
    shown: bool = True
    filter: str = ""


words = st.text(max_size=30).filter(
    lambda text: "\x00" not in text and not any(0xD800 <= ord(c) < 0xE000 for c in text)
)
states = st.builds(
    State,
    metric=words,
    metrics=st.lists(words.filter(bool), max_size=4).map(tuple),
    sort=st.sampled_from(("effect", "name")),
    limit=st.integers(-(10**17), 10**17),
    at=st.floats(allow_nan=False, allow_infinity=False),
    shown=st.booleans(),
    filter=words,
)


@given(states)
def test_every_state_comes_back_from_its_address(state: State) -> None:
    address = url.format("/compare", state)
    assert address.startswith("/compare")
    assert url.parse(State, address.removeprefix("/compare")) == (state, ())


@given(st.text(max_size=200))
def test_any_text_at_all_gives_a_state(text: str) -> None:
    state, _ = url.parse(State, "?" + text)
    assert url.parse(State, url.format("", state)) == (state, ())


def test_only_what_differs_from_the_default_stands_in_the_address() -> None:
    assert url.format("/runs", State()) == "/runs"
    assert url.format("/runs", State(metric="ppl", shown=False)) == "/runs?metric=ppl&shown=no"
    assert url.format("/runs", State(metrics=())) == "/runs?metrics="


def test_variants_stay_readable() -> None:
    assert url.format("/compare", State(metric="latest/norm=triton")) == "/compare?metric=latest/norm=triton"


def test_nonsense_becomes_the_default_and_a_sentence_that_names_the_allowed() -> None:
    state, notices = url.parse(State, "?sort=1;drop+table+runs&limit=many&shown=1&at=nan")
    assert state == State()
    assert len(notices) == 4
    assert notices[0] == "'1;drop table runs' is not a value of sort; allowed: effect, name. The default is shown."


def test_a_name_that_nobody_knows_is_named() -> None:
    assert url.parse(State, "?colour=red")[1] == ("This page has no setting 'colour'; it was passed over.",)
    assert url.parse(State, "?lang=zh&scheme=dark") == (State(), ())


def test_an_endless_address_is_cut_and_says_so() -> None:
    state, notices = url.parse(State, "?metric=" + "x" * 50_000)
    assert len(state.metric) == url.MAX_TEXT
    assert notices == ("The address is too long; the end of it was not read.",)
