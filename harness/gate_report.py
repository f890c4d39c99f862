"""What a gate prints: one report as a terminal table, Markdown for a pull request, JUnit XML, JSON, annotations.

    report = GateReport(suite="gate", against="commit 3f2a91c04 (HEAD~1)", rows=rows, ...)
    Path("summary.md").write_text(to_markdown(report), encoding="utf-8")

Every form carries each row's effect, interval, smallest detectable effect, margin and its source. Text that came from
elsewhere (reasons, names) is escaped for the form it stands in. Torch-free.
"""

from __future__ import annotations

import html
import math
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from harness.cli import EXIT_INCONCLUSIVE, EXIT_NOTHING, EXIT_OK, EXIT_REGRESSED
from harness.core import Gate
from harness.gates import Decision, GateRow, describe, exit_code
from harness.tables import Column, Table, quantity, to_json

ORDER: tuple[Decision, ...] = ("regressed", "inconclusive", "invalid", "improved", "passed", "skipped")
UNCHANGED: frozenset[Decision] = frozenset({"passed", "skipped"})
MAX_COMMENT = 65_000  # characters; GitHub takes 65,536
_MAX_ROWS = (60, 30, 15, 5)  # of a Markdown table; fewer are tried until the comment is short enough
_GLYPHS: dict[Decision, str] = {
    "regressed": "▼ regressed",
    "inconclusive": "? inconclusive",
    "invalid": "✗ invalid",
    "improved": "▲ improved",
    "passed": "= passed",
    "skipped": "- skipped",
}
_STYLES = {"regressed": "red", "inconclusive": "yellow", "invalid": "magenta", "improved": "green", "skipped": "dim"}
_MARKS = {EXIT_OK: "🟢", EXIT_REGRESSED: "🔴", EXIT_NOTHING: "⚪", EXIT_INCONCLUSIVE: "🟡"}
_HEADINGS = ("", "case", "metric", "baseline", "candidate", "change [interval]", "detectable", "margin", "limit", "why")
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # in XML 1.0


@dataclass(frozen=True, slots=True)
class GateReport:
    """Everything that the forms of a report say. `commands` repeats each row, in the order of `rows`.

    `abilities`: what this machine can detect, and how often its verdicts are wrong, in sentences. `notes`: what else a
    reader must know. `runs`: side -> run id. `unmatched`: gates that judged nothing.
    """

    suite: str
    against: str
    candidate: str
    machine: str
    command: str
    rows: tuple[GateRow, ...]
    commands: tuple[str, ...] = ()
    abilities: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    runs: tuple[tuple[str, str], ...] = ()
    unmatched: tuple[Gate, ...] = ()
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """As the process ends."""
        return exit_code(self.rows)

    @property
    def sentence(self) -> str:
        """The verdict in one sentence."""
        count = Counter(row.decision for row in self.rows)
        judged = len(self.rows) - count["skipped"]
        against = f"against {self.against}"
        if self.exit_code == EXIT_REGRESSED:
            return f"{count['regressed']} of {judged} gated rows of {self.suite} regressed {against}."
        if self.exit_code == EXIT_NOTHING:
            return f"Nothing of {self.suite} could be measured {against}."
        if self.exit_code == EXIT_INCONCLUSIVE:
            undecided = count["inconclusive"] + count["invalid"]
            return f"Undecided: {undecided} of {judged} gated rows of {self.suite} could not be judged {against}."
        return f"None of {judged} gated rows of {self.suite} regressed {against}."

    def sorted_rows(self) -> list[tuple[int, GateRow]]:
        """(place in `rows`, row), the worst first."""
        return sorted(enumerate(self.rows), key=lambda pair: ORDER.index(pair[1].decision))


def _percent(value: float | None, *, sign: bool = True) -> str:
    if value is None or math.isnan(value):
        return "-"
    if math.isinf(value) or abs(value) > 1e3:
        return "∞" if value > 0 else "-∞"
    value = value if abs(value) >= 5e-5 else 0.0
    text = f"{value:.2%}" if abs(value) < 0.0995 else f"{value:.0%}" if abs(value) >= 1 else f"{value:.1%}"
    return f"+{text}" if sign and value >= 0 else text


def change_text(row: GateRow) -> str:
    """`+3.21% [+2.10%, +4.35%]`; without noise just `+3.21%`."""
    if row.effect is None:
        return "-"
    if row.estimate is None:
        return _percent(row.effect)
    return f"{_percent(row.effect)} [{_percent(row.estimate.low - 1)}, {_percent(row.estimate.high - 1)}]"


def _detectable(row: GateRow) -> str:
    return "any" if row.minimum_detectable_effect == 0 else _percent(row.minimum_detectable_effect, sign=False)


def _limit(row: GateRow) -> str:
    if row.limit is None:
        return "-"
    return f"{row.limit:g}" if row.gate.kind == "bound" else _percent(row.limit, sign=False)


def _margin(row: GateRow) -> str:
    return _percent(row.margin, sign=False) if row.margin_source else "-"


def _case(row: GateRow) -> str:
    against = row.reference.variant if row.reference is not None else row.case.variant
    versus = f" (against {against})" if against != row.case.variant else ""
    return f"{row.case.model} {row.case.label} {row.case.variant}{versus}"


def _why(row: GateRow) -> str:
    first = f" First measured: {change_text(row.first)}, {row.first.reason}." if row.first is not None else ""
    return row.reason + ("." if first else "") + first


def to_table(report: GateReport) -> Table:
    """For the terminal and CSV: all rows, the worst first; sources of margins and limits as notes."""
    sources: dict[str, str] = {}

    def noted(text: str, source: str) -> str:
        if source in ("", "policy") or text == "-":
            return f"{text} policy" if source and text != "-" else text
        return f"{text} [{sources.setdefault(source, str(len(sources) + 1))}]"

    rows, ordered = [], [row for _, row in report.sorted_rows()]
    for row in ordered:
        rows.append(
            (
                _GLYPHS[row.decision],
                row.case.model,
                row.case.label,
                row.case.variant,
                row.metric,
                quantity(row.baseline_value, row.unit),
                quantity(row.candidate_value, row.unit),
                change_text(row),
                _detectable(row),
                noted(_margin(row), row.margin_source),
                noted(_limit(row), row.limit_source),
            )
        )
    columns = [Column(name) for name in ("verdict", "model", "workload", "variant", "metric")]
    columns += [Column(name, right=True) for name in (*_HEADINGS[3:6], "detectable", "margin", "limit")]
    notes = [f"[{number}] {source}" for source, number in sources.items()]
    notes += [f"{row.decision}: {_case(row)} {row.metric}: {_why(row)}" for row in ordered if row.decision != "passed"]
    notes += [f"no case here has this gate's metric or pattern: {describe(gate)}" for gate in report.unmatched]
    notes += [*report.notes, *report.abilities, f"machine: {report.machine}", f"repeat:  {report.command}"]
    styles = [_STYLES.get(row.decision, "default") for row in ordered]
    return Table(report.sentence, columns, rows, [row.as_dict() for row in ordered], notes, styles)


def as_document(report: GateReport) -> dict[str, Any]:
    """The whole report as plain data."""
    return {
        "verdict": report.sentence,
        "exit_code": report.exit_code,
        "suite": report.suite,
        "against": report.against,
        "candidate": report.candidate,
        "runs": dict(report.runs),
        "machine": report.machine,
        "seconds": report.seconds,
        "command": report.command,
        "abilities": list(report.abilities),
        "notes": list(report.notes),
        "unmatched": [asdict(gate) for gate in report.unmatched],
        "rows": [{**row.as_dict(), "command": _command(report, place)} for place, row in enumerate(report.rows)],
    }


def to_json_text(report: GateReport) -> str:
    """The whole report as JSON."""
    return to_json(as_document(report))


def _command(report: GateReport, place: int) -> str:
    return report.commands[place] if place < len(report.commands) else report.command


def escape_markdown(text: str) -> str:
    """Text that shows as it is, on one line, in a table too."""
    flat = " ".join(_FORBIDDEN.sub("?", text).split())
    return html.escape(re.sub(r"([\\`*_\[\]|~#])", r"\\\1", flat), quote=False)


def _markdown_table(rows: Sequence[tuple[int, GateRow]], most: int) -> list[str]:
    lines = ["| " + " | ".join(_HEADINGS) + " |", "|" + "---|" * 3 + "---:|" * 6 + "---|"]
    for _, row in rows[:most]:
        cells = (
            _GLYPHS[row.decision],
            _case(row),
            row.metric,
            quantity(row.baseline_value, row.unit),
            quantity(row.candidate_value, row.unit),
            change_text(row),
            _detectable(row),
            _margin(row) + (f" ({row.margin_source})" if row.margin_source else ""),
            _limit(row) + (f" ({row.limit_source})" if row.limit_source else ""),
            _why(row),
        )
        lines.append("| " + " | ".join(escape_markdown(cell[:400]) for cell in cells) + " |")
    if len(rows) > most:
        lines += ["", f"and {len(rows) - most} rows more: see the JSON or JUnit file."]
    return lines


def _fenced(lines: Sequence[str]) -> list[str]:
    text = "\n".join(_FORBIDDEN.sub("?", line) for line in lines)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return [fence, *text.splitlines(), fence]


def to_markdown(report: GateReport) -> str:
    """A comment for a pull request: the verdict first, then only what changed, then what it rests on."""
    texts = (_markdown(report, most) for most in _MAX_ROWS)
    return next((text for text in texts if len(text) <= MAX_COMMENT), _markdown(report, 1))


def _markdown(report: GateReport, most: int) -> str:
    shown = [pair for pair in report.sorted_rows() if pair[1].decision not in UNCHANGED]
    hidden = [pair for pair in report.sorted_rows() if pair[1].decision in UNCHANGED]
    lines = [f"**{_MARKS[report.exit_code]} {escape_markdown(report.sentence)}**", ""]
    if shown:
        lines += [*_markdown_table(shown, most), ""]
    if hidden:
        count = f"{len(hidden)} row{'s' if len(hidden) > 1 else ''} unchanged (hidden)"
        lines += [f"<details><summary>{count}</summary>", "", *_markdown_table(hidden, most), "", "</details>", ""]
    told = [f"Gate without a case here: {describe(gate)}" for gate in report.unmatched]
    lines += [f"- {escape_markdown(note)}" for note in (*report.abilities, *report.notes, *told)]
    lines += [f"- Machine: {escape_markdown(report.machine)}", f"- Candidate: {escape_markdown(report.candidate)}", ""]
    by_command: dict[str, list[str]] = {}
    for place, row in shown[:most]:
        by_command.setdefault(_command(report, place), []).append(f"{_case(row)} {row.metric}")
    lines.append("Repeat a row with:" if by_command else "Repeat with:")
    for command, names in (by_command or {report.command: []}).items():
        lines += ["", *([escape_markdown("; ".join(names)[:600]), ""] if names else []), *_fenced([command])]
    return "\n".join(lines) + "\n"


def to_junit(report: GateReport) -> str:
    """JUnit XML: a test case per row. What regressed is a failure; what could not be judged is skipped, with why."""
    count = Counter(row.decision for row in report.rows)
    skipped = count["inconclusive"] + count["invalid"] + count["skipped"]
    totals = {
        "tests": str(len(report.rows)),
        "failures": str(count["regressed"]),
        "errors": "0",
        "skipped": str(skipped),
        "time": f"{report.seconds:.3f}",
    }
    root = ET.Element("testsuites", totals)
    suite = ET.SubElement(root, "testsuite", {"name": _xml(f"harness gate {report.suite}"), **totals})
    _properties(suite, {"against": report.against, "machine": report.machine, "verdict": report.sentence})
    for place, row in enumerate(report.rows):
        name, kind = _xml(f"{_case(row)} {row.metric}"), _xml(f"gate.{report.suite}.{row.gate.kind}")
        case = ET.SubElement(suite, "testcase", {"classname": kind, "name": name, "time": "0"})
        flat = {key: value for key, value in row.as_dict().items() if key != "first" and value is not None}
        _properties(case, {**flat, "command": _command(report, place)})
        message = _xml(f"{change_text(row)}: {_why(row)}")
        if row.decision == "regressed":
            failure = ET.SubElement(case, "failure", {"type": "regressed", "message": message})
            failure.text = _xml(f"{message}\n{_command(report, place)}")
        elif row.decision in ("inconclusive", "invalid", "skipped"):
            ET.SubElement(case, "skipped", {"message": f"{row.decision}: {message}"})
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _properties(parent: ET.Element, values: dict[str, Any]) -> None:
    found = ET.SubElement(parent, "properties")
    for key, value in values.items():
        ET.SubElement(found, "property", {"name": key, "value": _xml(str(value))})


def _xml(text: str) -> str:
    """Text without the characters that XML has no way to write; the library escapes the rest."""
    return _FORBIDDEN.sub("?", text)


def to_annotations(report: GateReport) -> str:
    """GitHub workflow commands: an error per regression, a warning per row that could not be judged."""
    lines = []
    for place, row in report.sorted_rows():
        if row.decision in ("regressed", "inconclusive", "invalid"):
            level = "error" if row.decision == "regressed" else "warning"
            title = f"{row.decision}: {_case(row)} {row.metric}"
            margin = f"{_margin(row)} ({row.margin_source})" if row.margin_source else "none"
            text = (
                f"{change_text(row)} against {report.against}, margin {margin}, detectable {_detectable(row)}. "
                f"{_why(row)}\n{_command(report, place)}"
            )
            lines.append(f"::{level} title={escape_property(title)}::{escape_data(text)}")
    return "".join(f"{line}\n" for line in lines)


def escape_data(text: str) -> str:
    """The message of a workflow command: percent and line ends are coded, percent first."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def escape_property(text: str) -> str:
    """A property of a workflow command: colon and comma are coded as well."""
    return escape_data(text).replace(":", "%3A").replace(",", "%2C")
