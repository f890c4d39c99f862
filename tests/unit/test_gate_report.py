"""The forms of a gate's report: every row carries what it rests on, and foreign text stays text."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any

import pytest

from harness import registry
from harness.compare import Measured
from harness.core import Gate
from harness.gate_report import (
    MAX_COMMENT,
    GateReport,
    escape_data,
    escape_markdown,
    escape_property,
    to_annotations,
    to_json_text,
    to_junit,
    to_markdown,
    to_table,
)
from harness.gate_rules import GateRow
from harness.stats import Estimate
from harness.tables import render

registry.load_all()
FLOOR = "A/A noise floor of decode on tiny, calibrated 2026-11-20 on this machine"


def case(name: str = "a", variant: str = "kv=prealloc", status: str = "ok") -> Measured:
    return Measured("run", name, "decode(batch=1,context=8,new_tokens=4)", "tiny", variant, status, "", "g", {}, {})


def row(decision: str = "regressed", name: str = "a", **changes: Any) -> GateRow:
    """A statistical row: 3% fewer tokens per second, 1.5% to 4.4%."""
    fields: dict[str, Any] = {
        "gate": Gate("tps"),
        "case": case(name),
        "reference": case(name),
        "decision": decision,
        "reason": "the whole interval lies beyond the margin",
        "unit": "tokens/s",
        "baseline_value": 1000.0,
        "candidate_value": 970.0,
        "estimate": Estimate(0.97, 0.956, 0.985, 0.95, 16, 0.02, 15.0, "t"),
        "margin": 0.021,
        "margin_source": FLOOR,
        "limit": 0.045,
        "limit_source": "what 16 blocks support here",
        "minimum_detectable_effect": 0.037,
        "p_value": 0.001,
        "adjusted_p": 0.01,
        **changes,
    }
    return GateRow(**fields)


def exact(decision: str = "passed", name: str = "b") -> GateRow:
    plain = {"estimate": None, "limit": None, "limit_source": "", "margin": 0.0, "margin_source": "policy"}
    return row(
        decision,
        name,
        gate=Gate("kv_bytes", "exact"),
        unit="bytes",
        baseline_value=1024.0,
        candidate_value=1024.0,
        minimum_detectable_effect=0.0,
        p_value=None,
        reason="equal",
        **plain,
    )


def report(*rows: GateRow, **changes: Any) -> GateReport:
    fields: dict[str, Any] = {
        "suite": "gate",
        "against": "commit 3f2a91c04 (HEAD~1)",
        "candidate": "8edcd7b12 with local changes",
        "machine": "Some CPU, 2 cores",
        "command": "python -m harness gate gate --against commit:3f2a",
        "rows": rows,
        "commands": tuple(f"python -m harness gate gate --model tiny # {found.case.case_id}" for found in rows),
        "abilities": ("Calibrated 2026-11-20: 0 of 220 comparisons of unchanged code were red.",),
        "runs": (("baseline", "r1"), ("candidate", "r2")),
        "seconds": 12.5,
        **changes,
    }
    return GateReport(**fields)


@pytest.mark.parametrize(
    ("rows", "code", "words"),
    [
        ([row(), exact()], 1, "1 of 2 gated rows of gate regressed against commit 3f2a91c04 (HEAD~1)."),
        ([row("passed"), exact()], 0, "None of 2 gated rows"),
        ([row("inconclusive"), exact()], 4, "Undecided: 1 of 2"),
        ([row("invalid", candidate_value=None)], 3, "Nothing of gate could be measured"),
        ([], 3, "Nothing of gate could be measured"),
        ([exact("skipped"), exact()], 0, "None of 1 gated rows"),
    ],
)
def test_the_verdict_is_one_sentence_and_comes_first(rows: list[GateRow], code: int, words: str) -> None:
    found = report(*rows)
    assert found.exit_code == code and words in found.sentence
    first = to_markdown(found).splitlines()[0]
    assert escape_markdown(words) in first and first.startswith("**")


@pytest.mark.parametrize("form", [to_markdown, lambda found: render(to_table(found), "table"), to_json_text, to_junit])
def test_every_form_carries_what_a_verdict_rests_on(form: Any) -> None:
    text = form(report(row()))
    assert FLOOR in text and "tps" in text and "kv=prealloc" in text and "Some CPU" in text
    for shown, stored in (("-3.00%", "-0.030"), ("-4.40%", "-0.044"), ("3.70%", "0.037"), ("2.10%", "0.021")):
        assert shown in text or stored in text, shown
    assert "python -m harness gate" in text


def test_markdown_hides_what_did_not_change_and_counts_it() -> None:
    text = to_markdown(report(row(), exact(name="b"), exact(name="c"), exact("improved", "d")))
    shown, _, hidden = text.partition("<details>")
    assert "2 rows unchanged (hidden)" in hidden
    assert "▼ regressed" in shown and "▲ improved" in shown and "= passed" not in shown
    assert hidden.count("= passed") == 2
    assert "# a" in text and "# b" not in text  # a command for each row that is shown
    assert "Calibrated 2026-11-20" in text and "8edcd7b12" in text


def test_a_green_summary_has_no_table_but_a_command() -> None:
    text = to_markdown(report(exact()))
    assert text.index("<details>") < text.index("| = passed")
    assert "python -m harness gate gate --against commit:3f2a" in text


def test_both_measurements_of_a_red_row_are_shown() -> None:
    first = row(estimate=Estimate(0.9, 0.85, 0.95, 0.95, 16, 0.02, 15.0, "t"))
    text = to_markdown(report(row(first=first)))
    assert "-10.0%" in text and "-3.00%" in text and "First measured" in text
    assert json.loads(to_json_text(report(row(first=first))))["rows"][0]["first"]["effect"] == pytest.approx(-0.1)


def test_markdown_keeps_foreign_text_in_its_cell() -> None:
    evil = "died | of <b>`x`</b>\nsecond *line* & [link](http://x) \x00"
    text = to_markdown(report(row(reason=evil)))
    (line,) = [line for line in text.splitlines() if line.startswith("| ▼")]
    plain = line.replace("\\|", "")
    assert plain.count("|") == 11 and "<b>" not in line and "\x00" not in text
    assert "\\[link\\]" in line and "\\*line\\*" in line and "&amp;" in line


def test_a_command_cannot_end_its_code_block() -> None:
    lines = to_markdown(report(row(), commands=("python -m harness gate '```'",))).splitlines()
    place = lines.index("python -m harness gate '```'")
    assert lines[place - 1] == lines[place + 1] == "````"


def test_a_comment_stays_within_what_github_takes() -> None:
    long = [row(name=str(number), reason="|" * 5000) for number in range(300)]
    for decision in ("regressed", "passed"):
        text = to_markdown(report(*long, *(replace(found, decision=decision) for found in long)))
        assert len(text) <= MAX_COMMENT < 65_536
        assert "rows more" in text and text.count("python -m harness") >= 1
    assert "and 240 rows more" in to_markdown(report(*(row(name=str(number), reason="x") for number in range(300))))


def test_junit_is_well_formed_and_counts() -> None:
    rows = (row(reason='"<&\x00>'), exact(), row("inconclusive", "c"), exact("skipped", "d"))
    root = ET.fromstring(to_junit(report(*rows)))
    suite = root[0]
    assert {name: suite.get(name) for name in ("tests", "failures", "skipped", "errors")} == {
        "tests": "4",
        "failures": "1",
        "skipped": "2",
        "errors": "0",
    }
    cases = suite.findall("testcase")
    assert len(cases) == 4 and len({(found.get("classname"), found.get("name")) for found in cases}) >= 2
    failure = cases[0].find("failure")
    assert failure is not None and '"<&?>' in str(failure.get("message"))
    found = {str(one.get("name")): one.get("value") for one in cases[0].iter("property")}
    assert found["margin_source"] == FLOOR and found["command"].startswith("python -m harness")  # type: ignore[union-attr]
    assert found["effect"] is not None and float(found["effect"]) == pytest.approx(-0.03)


def test_annotations_escape_what_the_format_uses() -> None:
    assert escape_data("100%\r\n: ,") == "100%25%0D%0A: ,"
    assert escape_property("a:b,c%\n") == "a%3Ab%2Cc%25%0A"
    lines = to_annotations(report(row(reason="50%\n::error::x"), exact(), row("invalid", "c"))).splitlines()
    assert [line.split(" ")[0] for line in lines] == ["::error", "::warning"]
    title, _, message = lines[0].removeprefix("::error title=").partition("::")
    assert "regressed%3A tiny" in title and "," not in title
    assert "50%25" in message and "%0A" in message


def test_json_holds_everything_and_no_infinity() -> None:
    found = json.loads(to_json_text(report(row(minimum_detectable_effect=float("inf")), unmatched=(Gate("mfu"),))))
    assert found["exit_code"] == 1 and found["runs"] == {"baseline": "r1", "candidate": "r2"}
    assert found["unmatched"][0]["metric"] == "mfu"
    (only,) = found["rows"]
    assert only["minimum_detectable_effect"] is None and only["margin_source"] == FLOOR
    assert only["low"] == pytest.approx(-0.044) and only["command"].endswith("# a")


def test_the_terminal_table_puts_the_worst_first_and_names_silent_gates() -> None:
    found = report(exact(), row(), unmatched=(Gate("launches_per_step", "exact"),))
    table = to_table(found)
    assert [line[0] for line in table.rows] == ["▼ regressed", "= passed"]
    assert any("exact launches_per_step" in note for note in table.notes)
    text = render(table, "table")
    assert "[1] " + FLOOR in text and "repeat:" in text
