"""Bad addresses, hostile words, no store, an empty one, a damaged one, a run that went away: a page says what to do."""

from __future__ import annotations

import json
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import expect

from harness.store import Store
from tests.browser.conftest import Known
from tests.browser.walking import Visitor, accessibility_faults, serving
from tests.synthetic import Arm, store_run

Open = Callable[[str], Visitor]
PATHS = (
    "/", "/runs", "/compare", "/trend", "/pareto", "/memory", "/matrix", "/noise", "/roofline", "/profile", "/case",
    "/help",
)  # fmt: skip
SQL = "x'; DROP TABLE runs; --"


def _sound(visitor: Visitor) -> str:
    """The text of a page that was drawn, whatever was asked; nothing of the inside is shown."""
    text = visitor.text()
    assert visitor.title() and visitor.sentence()
    assert not re.search(r"Traceback|A fault of the dashboard|duckdb|BinderException|\bNone\b.*Error", text), text[
        :2000
    ]
    return text


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_nonsense_and_sql_in_the_address(visitor: Visitor, path: str) -> None:
    values = "&".join(f"{name}={quote(SQL)}" for name in ("filter", "machine", "run", "case", "metric", "sort", "a"))
    visitor.go(f"{path}?{values}&no%00such={quote('<script>alert(1)</script>')}&part=-3&effect=nan")
    _sound(visitor)
    assert visitor.page.locator("script", has_text="alert(1)").count() == 0


@pytest.mark.slow
def test_words_of_sql_drop_nothing(visitor: Visitor, known: Known) -> None:
    visitor.go(f"/runs?filter={quote('suite=' + json.dumps(SQL))}&machine={quote(SQL)}&suite={quote(SQL)}")
    assert f"None of the {known.num_runs} runs matches" in _sound(visitor)
    visitor.go("/runs")
    assert visitor.sentence().startswith(f"{known.num_runs} runs")


def test_what_is_not_understood_is_said_in_words(visitor: Visitor) -> None:
    visitor.go("/compare?sort=sideways&colour=red")
    text = _sound(visitor)
    assert "'sideways' is not a value of sort; allowed: effect, worst, best, plan" in text
    assert "This page has no setting 'colour'" in text


def test_there_is_no_such_page(visitor: Visitor) -> None:
    visitor.go("/no/such/page")
    assert "There is no page at /no/such/page" in _sound(visitor)
    visitor.page.get_by_role("link", name="Go to the overview").click()
    expect(visitor.page.locator("#page-title")).to_have_text("Overview")


def test_only_this_machine_is_answered_and_what_a_page_may_do_is_fixed(address: str) -> None:
    def ask(path: str, **headers: str) -> tuple[int, str, dict[str, str]]:
        try:
            with urllib.request.urlopen(urllib.request.Request(address + path, headers=headers)) as answer:
                return answer.status, answer.read().decode(), dict(answer.headers)
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(), dict(error.headers)

    code, text, _ = ask("/", Host="attacker.example")
    assert code == 403 and "only on this machine" in text
    code, _, headers = ask("/")
    policy = headers["Content-Security-Policy"]
    assert code == 200 and policy.startswith("default-src 'self'") and "unsafe-eval" not in policy
    assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]
    assert ask("/export/compare.md?b=nowhere")[0] == 400
    for outside in (
        "/export/../../etc/passwd.csv",
        "/assets/../app.py",
        "/assets/%2e%2e/app.py",
        "/export/..%2fruns.csv",
    ):
        assert "root:" not in ask(outside)[1] and "def build_app" not in ask(outside)[1]


@pytest.mark.slow
def test_a_folder_without_a_store_then_an_empty_one_then_a_first_run(tmp_path: Path, open_tab: Open) -> None:
    """The dashboard may be started first; nothing has to be started again."""
    path = tmp_path / "results"
    with serving(path) as address:
        visitor = open_tab(address)
        for place in ("/", "/runs", "/compare?a=x&b=y"):
            visitor.go(place)
            text = _sound(visitor)
            assert "There are no results here yet" in text and "python -m harness run quickstart" in text
            assert "sample-store" in text
        assert accessibility_faults(visitor.page) == []
        store = Store.open(path, create=True)
        for place in PATHS[:-1]:
            visitor.go(place)
            text = _sound(visitor)
            assert "python -m harness" in text, place
        arms = [Arm(timed={"tps": [10.0, 11.0]}), Arm(variant="norm=fused", timed={"tps": [12.0, 13.2]})]
        store_run(store, *arms, suite="quickstart", machine_id="m1")
        visitor.go("/runs")
        assert visitor.sentence().startswith("1 run; one machine")
        assert visitor.grid("suite") == ["quickstart"]
        visitor.page.close()


@pytest.mark.slow
def test_damaged_and_newer_files_are_named_and_the_rest_is_shown(known: Known, tmp_path: Path, open_tab: Open) -> None:
    path = tmp_path / "store"
    shutil.copytree(known.path, path)
    broken = sorted((path / "runs").glob("*.parquet"))[0]
    broken.write_bytes(b"PAR1 not a run PAR1")
    summary = path / "summary.parquet"
    summary.write_bytes(summary.read_bytes()[:-200])
    with serving(path) as address:
        visitor = open_tab(address)
        visitor.go("/runs")
        text = _sound(visitor)
        assert re.search(r"Files of the store that could not be read: \d+\. Everything else is shown", text)
        visitor.page.get_by_text("Which, and why").click()
        expect(visitor.page.locator(".notice-warning", has_text="could not be read")).to_contain_text(broken.name)
        assert "store check" in visitor.text()
        assert visitor.grid("suite")
        visitor.go(f"/compare?a={known.baseline}&b={known.candidate}")
        _sound(visitor)
        visitor.page.close()


@pytest.mark.slow
def test_a_run_deleted_while_it_is_looked_at(tmp_path: Path, open_tab: Open) -> None:
    store = Store.open(tmp_path / "store", create=True)
    arms = [Arm(timed={"tps": [10.0, 11.0, 10.5]}), Arm(variant="norm=fused", timed={"tps": [12.0, 13.2, 12.6]})]
    kept, gone = (store_run(store, *arms, suite="lab", machine_id="m1") for _ in range(2))
    with serving(store.path) as address:
        visitor = open_tab(address)
        visitor.go(f"/compare?b={gone.run_id}")
        assert visitor.rows("comparisons")
        (store.path / "runs" / f"{gone.run_id}.parquet").unlink()
        shutil.rmtree(store.path / "inbox" / gone.run_id)
        visitor.page.reload()
        visitor.settle()
        text = _sound(visitor)
        assert gone.run_id in text and kept.run_id in text
        for place in (f"/profile?run={gone.run_id}", f"/pareto?run={gone.run_id}", "/runs", "/"):
            visitor.go(place)
            _sound(visitor)
        visitor.page.close()


@pytest.mark.slow
def test_hostile_words_of_a_store_are_shown_as_words(tmp_path: Path, open_tab: Open) -> None:
    markup = "<img src=x onerror=document.title='owned'>"
    store = Store.open(tmp_path / "store", create=True)
    arms = [
        Arm(timed={"tps": [10.0, 11.0]}, facts={"stderr": markup}),
        Arm(variant="norm=fused", status="failed", reason=markup),
    ]
    run = store_run(store, *arms, suite=markup, machine_id="m1", git_sha=markup, command=f"run {markup}",
                    cpu_model=markup)  # fmt: skip
    (store.path / "commits.json").write_text(json.dumps({markup: markup}))
    with serving(store.path) as address:
        visitor = open_tab(address)
        for place in ("/", "/runs", f"/compare?b={run.run_id}", "/matrix", "/case", "/trend", "/noise", "/memory"):
            visitor.go(place)
            _sound(visitor)
            assert visitor.page.locator("img").count() == 0
            assert "owned" not in visitor.page.title()
        visitor.go("/runs")
        assert markup in visitor.grid("suite")
        visitor.page.close()


@pytest.mark.slow
def test_a_token_opens_the_door_once_and_leaves_the_address(known: Known, open_tab: Open) -> None:
    token = "0123456789abcdef0123"
    with serving(known.path, "--token", token) as address:
        visitor = open_tab(address)
        answer = visitor.page.goto(address + "/runs")
        assert answer is not None and answer.status == 401 and "token" in visitor.page.inner_text("body")
        visitor.load(f"/runs?token={token}")
        assert "token" not in visitor.page.url and visitor.grid("suite")
        visitor.page.close()
        # That refusal was asked for; the console tells of it when it likes.
        visitor.faults[:] = [fault for fault in visitor.faults if "401" not in fault]
