"""The frame around the pages: what every address comes to, who may read it, and what a browser is told."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dash import Dash
from flask.testing import FlaskClient

from dashboard import shell
from dashboard.__main__ import main
from dashboard.annotations import read_annotations
from dashboard.app import BUSY_MS, QUIET_MS, build_app
from dashboard.source import Source
from harness.registry import load_all
from harness.schema import RunRow
from harness.store import Store
from tests.synthetic import Arm, store_run

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "results" / "reference"


@pytest.fixture(autouse=True)
def declared() -> None:
    load_all()


def words(component: object) -> str:
    """All text of a component, as JSON: what a browser is given to show."""
    return json.dumps(component, default=lambda value: value.to_plotly_json(), ensure_ascii=False)


def test_every_page_is_in_the_navigation_in_its_order_and_the_page_shown_is_marked() -> None:
    pages = shell.found_pages()
    drawn = shell.draw(Source(REFERENCE), pages, "/runs", "")
    nav = words(drawn.nav)
    assert nav.index('"/runs"') < nav.index('"/compare"') < nav.index('"/help"')
    assert '"nav-link here"' in nav
    assert drawn.now["path"] == "/runs"
    assert drawn.now["title"] == "Runs · minimind-bench"


def test_a_link_of_the_navigation_keeps_language_and_colours() -> None:
    drawn = shell.draw(Source(REFERENCE), shell.found_pages(), "/runs", "?lang=zh&scheme=dark&suite=norm")
    assert '"/compare?lang=zh&scheme=dark"' in words(drawn.nav)
    assert drawn.now["language"] == "zh-Hans"


def test_no_store_is_a_page_with_the_command_that_makes_one(tmp_path: Path) -> None:
    drawn = shell.draw(Source(tmp_path / "none"), shell.found_pages(), "/compare", "?b=latest")
    text = words(drawn.content)
    assert "There are no results here yet" in text
    assert f"python -m harness run quickstart --store {tmp_path / 'none'}" in text


@pytest.mark.parametrize("path", ["/nothing", "/../../etc/passwd", "/export", "//elsewhere"])
def test_an_address_without_a_page_says_so(path: str) -> None:
    drawn = shell.draw(Source(REFERENCE), shell.found_pages(), path, "")
    assert "There is no page at" in words(drawn.content)


def test_nonsense_in_the_address_is_told_and_the_page_stands() -> None:
    drawn = shell.draw(Source(REFERENCE), shell.found_pages(), "/runs", "?sort=;DROP TABLE runs&colour=red")
    text = words(drawn.content)
    assert "';DROP TABLE runs' is not a value of sort" in text
    assert "This page has no setting 'colour'" in text
    assert "7 runs" in text


def test_a_filter_that_cannot_be_read_is_a_message_with_a_way_back() -> None:
    drawn = shell.draw(Source(REFERENCE), shell.found_pages(), "/runs", "?filter=nonsens")
    text = words(drawn.content)
    assert "This cannot be shown." in text
    assert "Show the page without these settings" in text


def test_the_filter_box_stands_only_where_a_page_reads_it() -> None:
    pages = shell.found_pages()
    source = Source(REFERENCE)
    assert '"name": "filter"' in words(shell.draw(source, pages, "/runs", "").top)
    assert '"name": "filter"' not in words(shell.draw(source, pages, "/compare", "").top)


def test_a_damaged_file_is_named_on_every_page_and_the_rest_is_shown(tmp_path: Path) -> None:
    shutil.copytree(REFERENCE, tmp_path / "s")
    victim = next((tmp_path / "s" / "runs").glob("*.parquet"))
    victim.write_bytes(b"PAR1 not really PAR1")
    pages = shell.found_pages()
    for path in ("/runs", "/compare"):
        text = words(shell.draw(Source(tmp_path / "s"), pages, path, "").content)
        assert "Files of the store that could not be read: 1. Everything else is shown." in text
        assert victim.name in text and "readable" in text
        assert f"python -m harness store check --store {tmp_path / 's'}" in text


def test_a_store_that_was_made_up_says_so_on_every_page(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s", create=True)
    run = store_run(store, Arm(timed={"tps": [1.0, 1.1]}))
    store.save_run(replace(run, host="synthetic"))
    source = Source(tmp_path / "s")
    for page in shell.found_pages():
        assert "This store is synthetic" in words(shell.draw(source, shell.found_pages(), page.path, "").content)


def test_a_run_that_goes_on_shows_how_far_it_is(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s", create=True)
    writer = store.begin(RunRow(suite="lab"))
    stamp = Source(tmp_path / "s").stamp()
    assert stamp is not None
    lines = shell.progress("", stamp.running)
    assert len(lines) == 1
    assert "lab is running since" in words(lines) and writer.run_id in words(lines)
    writer.finish("finished")


def test_while_a_run_goes_on_the_store_is_looked_at_more_often(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s", create=True)
    writer = store.begin(RunRow(suite="lab"))
    app = build_app(tmp_path / "s")
    client = app.server.test_client()
    assert ask(client, app, "running.children", [1, "en", "", "", QUIET_MS, "en"])["pulse"]["interval"] == BUSY_MS
    writer.finish("finished")
    answer = ask(client, app, "running.children", [2, "en", "", "", BUSY_MS, "en"])
    assert answer["pulse"]["interval"] == QUIET_MS
    assert answer["running"]["children"] == []
    assert answer["stamp"]["children"].startswith("1 run, complete as of ")


def test_the_words_above_the_page_change_with_its_language() -> None:
    app = build_app(REFERENCE)
    client, now = app.server.test_client(), Source(REFERENCE).generation()
    asked = [1, "zh", "?lang=zh", now, QUIET_MS, "en"]
    stamp = ask(client, app, "running.children", asked)["stamp"]
    assert "次运行" in stamp["children"] and stamp["lang"] == "zh"
    with pytest.raises(AssertionError, match="204"):
        ask(client, app, "running.children", [*asked[:-1], "zh"])


def test_a_mistake_of_ours_is_a_message_on_the_page_and_a_traceback_in_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*given: object) -> shell.Drawn:
        raise ValueError("nobody thought of this")

    app = build_app(REFERENCE)
    monkeypatch.setattr(shell, "draw", broken)
    client = app.server.test_client()
    answer = ask(client, app, "page.children", ["/runs", "", "/runs", "", None], key="sideUpdate")
    assert "A fault of the dashboard: this page could not be drawn." in json.dumps(answer["page"])
    assert "nobody thought of this" in capsys.readouterr().err


def ask(client: FlaskClient, app: Dash, name: str, values: list[Any], *, key: str = "response") -> dict[str, Any]:
    """What a callback of the server answers to the browser's request."""
    output, found = next((output, found) for output, found in app.callback_map.items() if name in output)
    given = [*found["inputs"], *found["state"]]
    bodies = [{**one, "value": value} for one, value in zip(given, values, strict=True)]
    outputs = [
        dict(zip(("id", "property"), part.rsplit(".", 1), strict=True)) for part in output.strip(".").split("...")
    ]
    body = {
        "output": output,
        "outputs": outputs,
        "inputs": bodies[: len(found["inputs"])],
        "state": bodies[len(found["inputs"]) :],
        "changedPropIds": [],
    }
    answer = client.post("/_dash-update-component", json=body)
    assert answer.status_code == 200, answer.text
    found_there: dict[str, Any] = answer.json[key]
    return found_there


def test_the_stamp_counts_runs_and_says_until_when() -> None:
    text = shell.stamp_text("", Source(REFERENCE).stamp())
    assert text.startswith("7 runs, complete as of 2026-11-22 ")
    assert shell.stamp_text("?lang=zh", None) == "没有结果库"


def test_only_this_machine_is_answered_without_a_token() -> None:
    client = build_app(REFERENCE).server.test_client()
    assert client.get("/", headers={"Host": "127.0.0.1:8050"}).status_code == 200
    assert client.get("/", headers={"Host": "localhost:8050"}).status_code == 200
    assert client.get("/", headers={"Host": "[::1]:8050"}).status_code == 200
    refused = client.get("/", headers={"Host": "evil.example:8050"})
    assert refused.status_code == 403
    assert "only on this machine" in refused.text


def test_a_token_is_asked_of_every_request_and_leaves_the_address() -> None:
    token = "a-token-of-some-length"
    client = build_app(REFERENCE, token=token).server.test_client()
    for path in ("/", "/_dash-layout", "/_dash-dependencies", "/export/runs.csv", "/assets/shell.css"):
        assert client.get(path).status_code == 401, path
    assert client.get("/?token=wrong").status_code == 401
    assert client.get("/", headers={"Authorization": f"Bearer {token}"}).status_code == 200
    hostile = {"PATH_INFO": "//elsewhere.example/", "QUERY_STRING": f"token={token}&b=latest"}
    answer = client.get("/", environ_overrides=hostile)
    assert answer.status_code == 302
    assert answer.headers["Location"].startswith("/elsewhere.example/?b=latest")
    assert "HttpOnly" in answer.headers["Set-Cookie"] and "SameSite=Strict" in answer.headers["Set-Cookie"]
    assert client.get("/").status_code == 200  # the cookie is enough from here on


def test_scripts_come_from_here_only_and_inline_ones_are_named_by_hash() -> None:
    answer = build_app(REFERENCE).server.test_client().get("/")
    rules = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
    assert rules["default-src"] == "'self'"
    assert rules["script-src"].startswith("'self' 'sha256-")
    assert "unsafe" not in rules["script-src"]
    assert rules["frame-ancestors"] == "'none'"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "http://" not in answer.text and "https://" not in answer.text


def test_exports_are_answered_by_pages_that_have_them_and_nothing_else() -> None:
    client = build_app(REFERENCE).server.test_client()
    answer = client.get("/export/runs.csv?suite=norm")
    assert answer.headers["Content-Disposition"] == 'attachment; filename="runs.csv"'
    assert answer.text.splitlines()[0].startswith("run_id,started_at")
    assert len(answer.text.splitlines()) == 2
    assert client.get("/export/runs.exe").status_code == 404
    assert "root:" not in client.get("/export/..%2f..%2fetc%2fpasswd.csv").text
    wrong = client.get("/export/compare.md?a=nonsense&b=latest")
    assert wrong.status_code == 400
    assert wrong.text.startswith("no run 'nonsense'")


def test_remarks_are_written_only_where_that_was_allowed_and_only_from_our_own_pages(tmp_path: Path) -> None:
    Store.open(tmp_path / "s", create=True)
    remark = {
        "text": "new driver",
        "author": "ada",
        "case": "*decode*",
        "status": "explained",
        "back": "//evil.example",
    }
    own = {"Sec-Fetch-Site": "same-origin"}
    closed = build_app(tmp_path / "s").server.test_client()
    assert closed.post("/annotations", data=remark, headers=own).status_code in (404, 405)
    client = build_app(tmp_path / "s", write=True).server.test_client()
    assert client.post("/annotations", data=remark, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert client.post("/annotations", data=remark, headers={"Origin": "http://evil.example"}).status_code == 403
    assert client.post("/annotations", data={**remark, "text": " "}, headers=own).status_code == 400
    assert client.post("/annotations", data={**remark, "status": "fine"}, headers=own).status_code == 400
    assert not (tmp_path / "s" / "annotations.jsonl").exists()
    answer = client.post("/annotations", data=remark, headers=own)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/trend")
    notes, problems = read_annotations(tmp_path / "s")
    assert [(note.text, note.author, note.case, note.status) for note in notes] == [
        ("new driver", "ada", "*decode*", "explained")
    ]
    assert problems == ()


def test_the_form_for_remarks_stands_only_where_they_may_be_added() -> None:
    pages = shell.found_pages()
    assert "Add a remark" in words(shell.draw(Source(REFERENCE, write=True), pages, "/trend", "").content)
    assert "Add a remark" not in words(shell.draw(Source(REFERENCE), pages, "/trend", "").content)
    assert "Add a remark" not in words(shell.draw(Source(REFERENCE, write=True), pages, "/runs", "").content)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "opens the dashboard to other machines; give a --token too"),
        (["--host", "0.0.0.0", "--token", "short"], "a token needs 16 characters or more"),
        (["--port", "70000"], "port 70000 does not exist"),
    ],
)
def test_what_would_open_it_by_mistake_is_refused(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options) == 2
    assert said in capsys.readouterr().err


def test_a_port_that_is_taken_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["--store", str(REFERENCE), "--port", str(port)]) == 2
    assert f"{port}" in capsys.readouterr().err


def test_what_a_page_chose_by_itself_is_no_change_of_the_address() -> None:
    """A control that only appears must not write its value into the address: back would need two steps."""
    now = shell.draw(Source(REFERENCE), shell.found_pages(), "/matrix", "").now
    assert now["values"]["rows"] == ["quant"] and now["defaults"]["rows"] == [""]
