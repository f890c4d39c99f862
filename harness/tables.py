"""Tables for people and programs: one description, printed as a terminal table, JSON, CSV or Markdown. Torch-free."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from harness.compare import Comparison, Measured
from harness.core import VerdictName
from harness.registry import KL_RESOLUTION

Format = Literal["table", "json", "csv", "md"]
FORMATS: tuple[Format, ...] = ("table", "json", "csv", "md")

GLYPHS: dict[VerdictName, str] = {
    "improved": "▲ improved",
    "regressed": "▼ regressed",
    "equivalent": "= equivalent",
    "inconclusive": "? inconclusive",
    "invalid": "✗ invalid",
}
_IDENTITY = ("run_id", "case_id", "model", "workload", "variant", "status", "reason")
QUALITY = frozenset({"ppl", "kl", "top1_agreement"})
# Columns of a run's table that stand there only where something was recorded for them.
EXTRA_COLUMNS = {
    "kv_bytes": "KV cache",
    "disk_bytes": "on disk",
    "load_time": "load",
    "compile_time": "compile",
    "graph_breaks": "breaks",
    "recompiles": "recompiles",
    "fused_kernels": "kernels",
    "launches_per_step": "launches",
}
STYLES: dict[VerdictName, str] = {
    "improved": "green",
    "regressed": "red",
    "equivalent": "default",
    "inconclusive": "yellow",
    "invalid": "magenta",
}


@dataclass(frozen=True, slots=True)
class Column:
    """A heading; numbers are set to the right."""

    name: str
    right: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text for people (`rows`) beside the same rows as data for programs (`records`)."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    records: Sequence[Mapping[str, Any]]
    notes: Sequence[str] = ()
    styles: Sequence[str] = ()


def render(table: Table, fmt: Format) -> str:
    """The table as text in a format; a trailing newline included."""
    if fmt == "json":
        return to_json(list(table.records))
    if fmt == "csv":
        return _csv(table)
    return _markdown(table) if fmt == "md" else _terminal(table)


def to_json(value: Any) -> str:
    """Indented JSON; what JSON cannot say (infinity, not a number) becomes null."""

    def clean(item: Any) -> Any:
        if isinstance(item, Mapping):
            return {str(key): clean(inner) for key, inner in item.items()}
        if isinstance(item, list | tuple):
            return [clean(inner) for inner in item]
        return None if isinstance(item, float) and not math.isfinite(item) else item

    return json.dumps(clean(value), indent=2, ensure_ascii=False, default=str) + "\n"


def _csv(table: Table) -> str:
    buffer = io.StringIO()
    records = [_flat(record) for record in table.records]
    names = list(dict.fromkeys(name for record in records for name in record))
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return buffer.getvalue()


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as columns of their own: `metrics.tps.value`."""
    found: dict[str, Any] = {}
    for name, value in record.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def _markdown(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", "<br>") for cell in cells) + " |"

    lines = [f"**{table.title}**", "", line([column.name for column in table.columns])]
    lines.append("|" + "|".join("---:" if column.right else "---" for column in table.columns) + "|")
    lines += map(line, table.rows)
    lines += ["", *(f"{note}  " for note in table.notes)] if table.notes else []
    return "\n".join(lines) + "\n"


def _terminal(table: Table) -> str:
    from rich import box
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for number, column in enumerate(table.columns):
        words = [len(word) for row in table.rows for word in row[number].split()]  # an option is never cut in two
        drawn.add_column(
            column.name,
            justify="right" if column.right else "left",
            overflow="fold",
            no_wrap=column.right,
            min_width=None if column.right else min(max(words, default=0) + 2, 48),
        )
    styles = list(table.styles) or ["default"] * len(table.rows)
    for row, style in zip(table.rows, styles, strict=True):
        drawn.add_row(*(Text(cell) for cell in row), style=style)
    width = _width()
    console = Console(
        file=io.StringIO(), width=width or 10_000, highlight=False, force_terminal=_colour(), legacy_windows=False
    )
    if width is None:
        console.width = Measurement.get(console, console.options, drawn).maximum
    console.print(Text(table.title, style="bold"), soft_wrap=width is None)
    console.print(drawn)
    for note in table.notes:
        console.print(Text(note, style="dim"), soft_wrap=width is None)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _width() -> int | None:
    """Columns of the terminal; None where the table goes into a file or a pipe and may be as wide as it is."""
    import shutil
    import sys

    return shutil.get_terminal_size((150, 50)).columns if sys.stdout.isatty() else None


def _colour() -> bool:
    import sys

    return sys.stdout.isatty()


def quantity(value: float | None, unit: str) -> str:
    """A number for people with its unit: bytes in MiB, seconds in ms where small, rates with three digits."""
    if value is None or not math.isfinite(value):
        return "-"
    if unit == "bytes":
        return f"{value / 2**20:,.1f} MiB" if abs(value) >= 2**20 else f"{value / 1024:,.1f} KiB"
    if unit == "s":
        return f"{value:.3f} s" if value >= 1 else f"{value * 1e3:.4g} ms"
    if unit == "tokens/s":
        return f"{value:,.0f} tok/s" if value >= 100 else f"{value:.1f} tok/s"
    if unit == "bytes/s":
        return f"{value / 1e9:.3g} GB/s"
    if unit == "ratio":
        return f"{value * 100:.1f}%"
    return f"{value:.4g}"


def interval(comparison: Comparison) -> str:
    """`1.137 [1.120, 1.154]`, or the bare ratio where there is no interval."""
    estimate = comparison.estimate
    if estimate is None:
        ratio = comparison.as_dict()["ratio"]
        return "-" if ratio is None else f"{ratio:.3f}"
    return f"{estimate.ratio:.3f} [{_bound(estimate.low)}, {_bound(estimate.high)}]"


def _bound(value: float) -> str:
    return f"{value:.3f}" if 1e-3 < value < 1e3 else ("0" if value < 1 else "∞")


def run_table(cases: Sequence[Measured], comparisons: Sequence[Comparison], title: str, notes: Sequence[str]) -> Table:
    """The table of one run: a row per timed case, its headline metric against the reference, its quality beside it."""
    quality = _quality_of(cases)
    timed = {(case.model, case.variant) for case in cases if not case.workload.startswith("perplexity")}
    versus = {c.candidate.case_id: c for c in comparisons if c.metric == c.candidate.headline}
    first_of = {(c.candidate.group, c.candidate.model, c.candidate.workload): c.reference for c in comparisons}
    extra = [name for name in EXTRA_COLUMNS if any(name in case.series for case in cases)]
    columns = [
        Column("variant"),
        Column("value", right=True),
        Column("ratio [95%]", right=True),
        Column("verdict"),
        Column("would show", right=True),
        Column("margin", right=True),
        Column("peak memory", right=True),
        *(Column(EXTRA_COLUMNS[name], right=True) for name in extra),
        Column("PPL", right=True),
        Column("KL", right=True),
        Column("top-1", right=True),
        Column("output"),
    ]
    rows, records, styles = [], [], []
    failed = _reasons(cases)
    spoiled = sorted({f"invalid: {c.reason}" for c in versus.values() if c.verdict == "invalid"})
    notes = [
        *failed,
        *(spoiled if not failed else ()),
        *_sample_texts(cases),
        *_margin_notes(list(versus.values())),
        *notes,
    ]
    previous: tuple[str, str] | None = None
    for case in cases:
        if case.workload.startswith("perplexity") and case.status == "ok" and (case.model, case.variant) in timed:
            continue  # stands beside the timed cases of the same variant
        beside = quality.get((case.model, case.variant)) or quality.get(("", case.variant))
        comparison = versus.get(case.case_id)
        base = first_of.get((case.group, case.model, case.workload))
        record = _record(case, comparison, beside, base)
        place = (case.model, case.label)
        if place != previous:
            rows.append([f"{case.model}: {case.label}", *[""] * (len(columns) - 1)])
            styles.append("bold")
            previous = place
        is_reference = base is None or base.case_id == case.case_id
        rows.append(_cells(case, comparison, record, is_reference, extra))
        records.append(record)
        styles.append(STYLES[comparison.verdict] if comparison and case.status == "ok" else "default")
    borrowed = {record["quality_model"] for record in records if record["quality_model"] not in (None, record["model"])}
    if borrowed:
        notes.append(f"quality in brackets: of the same variant of {', '.join(sorted(borrowed))}, which is trained")
    return Table(title, columns, rows, records, notes, styles)


def _sample_texts(cases: Sequence[Measured]) -> list[str]:
    """What the reference writes after a piece of held-out text, and what the variants write that differ from it."""
    texts = {case.variant: case.facts["sample_text"] for case in cases if case.facts.get("sample_text")}
    if len(texts) < 2:
        return []
    (first, expected), *others = texts.items()
    differing = [f"  {variant}: {text!r}" for variant, text in others if text != expected]
    return [f"sample text of {first}: {expected!r}; of {len(others) - len(differing)} others the same", *differing]


def _reasons(cases: Sequence[Measured]) -> list[str]:
    """Why cases were not measured; a reason that several share is told once."""
    shared: dict[tuple[str, str], list[str]] = {}
    for case in cases:
        if case.status != "ok":
            shared.setdefault((case.status, case.reason), []).append(f"{case.label} {case.variant}")
    return [
        f"{status}: {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {reason}"
        for (status, reason), names in shared.items()
    ]


def _quality_of(cases: Sequence[Measured]) -> dict[tuple[str, str], Measured]:
    """Where each variant's quality was measured: by its model, and under no model's name on one that is trained."""
    scored = [case for case in cases if not QUALITY.isdisjoint(case.series)]
    trained = {("", case.variant): case for case in scored if case.facts.get("trained")}
    return {**trained, **{(case.model, case.variant): case for case in scored}}


def _divergence(kl: float | None) -> str:
    """Nats per token; what only rounding makes different from nothing is nothing."""
    return "-" if kl is None else "0" if kl < KL_RESOLUTION else f"{kl:.2g}"


def identity(case: Measured) -> dict[str, str]:
    """Which case of which run a row is about, and what became of it, as data."""
    return {name: getattr(case, name) for name in _IDENTITY}


def _record(
    case: Measured, comparison: Comparison | None, beside: Measured | None, base: Measured | None
) -> dict[str, Any]:
    """One row as data: identity, status, every metric's median, the comparison, the quality and the output check."""
    ours, theirs = case.facts.get("outputs"), (base or case).facts.get("outputs")
    return {
        **identity(case),
        "num_blocks": max((len(series.blocks) for series in case.series.values() if not series.single), default=0),
        "metrics": {
            name: {"value": series.median, "unit": series.unit}
            for source in (beside, case)
            if source is not None
            for name, series in source.series.items()
            if source is case or name in QUALITY
        },
        "trained": case.facts.get("trained"),
        "quality_model": beside.model if beside else None,
        "data_fingerprint": beside.facts.get("data_fingerprint") if beside else None,
        "same_output": None if ours is None or theirs is None else ours == theirs,
        "comparison": comparison.as_dict() if comparison else None,
    }


def _cells(
    case: Measured, comparison: Comparison | None, record: Mapping[str, Any], is_reference: bool, extra: Sequence[str]
) -> list[str]:
    if case.status not in ("ok", "not_steady"):
        return ["  " + str(case.variant), "", "", case.status, *[""] * (7 + len(extra))]
    values = {name: cell["value"] for name, cell in record["metrics"].items()}
    headline = case.headline
    series = case.series.get(headline) if headline else None
    name = f"{headline} " if headline in ("ttft", "tpot", "step_time") else ""
    borrowed = record["quality_model"] not in (None, record["model"])

    def beside(text: str) -> str:
        return f"({text})" if borrowed and text != "-" else text

    same = {True: "same", False: "differs", None: ""}[record["same_output"]]
    return [
        "  " + str(case.variant),
        name + quantity(series.median, series.unit) if series else "-",
        interval(comparison) if comparison else ("1" if is_reference else "-"),
        GLYPHS[comparison.verdict] if comparison else ("(reference)" if is_reference else "-"),
        *_resolution(comparison),
        quantity(values.get("peak_bytes"), "bytes"),
        *(quantity(cell["value"], cell["unit"]) if (cell := record["metrics"].get(name)) else "-" for name in extra),
        beside(f"{values['ppl']:.2f}" if "ppl" in values and (record["trained"] or borrowed) else "-"),
        beside(_divergence(values.get("kl"))),
        beside(quantity(values.get("top1_agreement"), "ratio")),
        "" if is_reference else same,
    ]


def _resolution(comparison: Comparison | None) -> tuple[str, str]:
    """The smallest change that would have shown, and the margin; marked where the margin is not the policy's."""
    if comparison is None or comparison.estimate is None:
        return "", ""
    effect = comparison.minimum_detectable_effect
    seen = "-" if effect is None or not math.isfinite(effect) else f"{effect:.1%}"
    return seen, f"{comparison.margin:.1%}{'' if comparison.margin_source.startswith('policy') else '*'}"


def _margin_notes(comparisons: Sequence[Comparison]) -> list[str]:
    """What the two columns mean, and where each margin comes from."""
    judged = [c for c in comparisons if c.estimate is not None]
    floors = sorted({c.margin_source for c in judged if not c.margin_source.startswith("policy")})
    lines = [
        "values: medians over blocks, each side alone; a ratio pairs turns within blocks, so it may differ from theirs",
        "would show: the smallest true change that these blocks show as beyond the margin in 4 of 5 cases",
    ]
    return [*lines, *(f"margin*: {source}" for source in floors)] if judged else []


def comparison_table(comparisons: Sequence[Comparison], title: str, notes: Sequence[str]) -> Table:
    """One row per metric and case: both values, ratio, verdict, and what would decide an open one."""
    columns = [
        Column("model"),
        Column("workload"),
        Column("variant"),
        Column("metric"),
        Column("A", right=True),
        Column("B", right=True),
        Column("B/A [95%]", right=True),
        Column("verdict"),
        Column("would show", right=True),
        Column("margin", right=True),
        Column("reason"),
    ]
    rows = []
    for c in comparisons:
        variant = (
            c.candidate.variant
            if c.reference.variant == c.candidate.variant
            else (f"{c.candidate.variant} against {c.reference.variant}")
        )
        rows.append(
            [
                c.candidate.model,
                c.candidate.label,
                variant,
                c.metric,
                quantity(c.reference_value, c.unit),
                quantity(c.candidate_value, c.unit),
                interval(c),
                GLYPHS[c.verdict],
                *_resolution(c),
                c.reason,
            ]
        )
    records, styles = [c.as_dict() for c in comparisons], [STYLES[c.verdict] for c in comparisons]
    return Table(title, columns, rows, records, [*notes, *_margin_notes(comparisons)], styles)
