"""`harness report`: what its words mean, what it writes, what it refuses."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from harness.cli import main
from harness.core import StoreError, UsageError
from reports.command import asked, report_verb
from tests.report_kinds.reference import AB, STORE


def _arguments(*words: str, **flags: Any) -> argparse.Namespace:
    kind, *refs = words or (None,)
    defaults = {"compare": None, "output": "table", "to": None, "language": "en", "store": str(STORE)}
    return argparse.Namespace(kind=kind, refs=refs, **{**defaults, **flags})


def test_the_first_word_is_a_kind_or_a_run() -> None:
    assert asked(_arguments()) == ("run", asked(_arguments())[1])
    assert asked(_arguments("latest"))[0] == "run"
    assert asked(_arguments("latest"))[1].refs == ("latest",)
    assert asked(_arguments("long_context", "kv_cache"))[0] == "long_context"
    assert asked(_arguments("long_context", "kv_cache"))[1].refs == ("kv_cache",)
    assert asked(_arguments(compare=["a", "b"], language="zh"))[0] == "comparison"
    assert asked(_arguments("comparison", "a", "b"))[1].refs == ("a", "b")


def test_compare_takes_no_other_words() -> None:
    with pytest.raises(UsageError, match="drop 'final'"):
        asked(_arguments("final", compare=["a", "b"]))


def test_markdown_goes_to_stdout_and_says_that_pictures_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert report_verb(_arguments("compile")) == 0
    out = capsys.readouterr().out
    assert out.startswith("# Run 20261122T094517-2246f5: compile\n\n**2 of 8 cases improved")
    assert "Pictures are left out here" in out


def test_json_on_stdout_is_nothing_but_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert report_verb(_arguments(compare=list(AB), output="json")) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["kind"] == "comparison"
    tables = [block for section in data["sections"] for block in section["blocks"] if block["type"] == "table"]
    assert tables[0]["records"][0]["verdict"] == "improved"


def test_a_folder_gets_the_report_and_its_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    assert report_verb(_arguments("compile", to=str(folder), output="md")) == 0
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["run-forest-dark.svg", "run-forest.svg", "run.md"]
    assert 'src="run-forest.svg"' in (folder / "run.md").read_text(encoding="utf-8")


def test_html_is_one_file(tmp_path: Path) -> None:
    report_verb(_arguments("compile", to=str(tmp_path), output="html", language="zh"))
    assert [path.name for path in tmp_path.iterdir()] == ["run.html"]
    assert 'lang="zh-Hans"' in (tmp_path / "run.html").read_text(encoding="utf-8")


def test_what_it_refuses_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a report is no 'csv'. Known: md, html, json"):
        report_verb(_arguments("compile", output="csv"))
    with pytest.raises(UsageError, match="unknown language 'fr'"):
        report_verb(_arguments("compile", language="fr"))
    with pytest.raises(UsageError, match="no run 'nothing'"):
        report_verb(_arguments("nothing"))
    with pytest.raises(StoreError, match="there is no store at"):
        report_verb(_arguments("compile", store=str(tmp_path / "none")))
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        report_verb(_arguments("compile", to=str(blocked)))


def test_the_command_line_reaches_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "serving", "--language", "zh", "--store", str(STORE)]) == 0
    assert capsys.readouterr().out.startswith("# 服务：多个并发请求")
    assert main(["report", "nothing", "--store", str(STORE)]) == 2
    assert "no run 'nothing'" in capsys.readouterr().err
