"""What the verbs of the command line do. Each takes the parsed arguments, prints, and returns the exit code."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness import registry
from harness.cli import EXIT_INCONCLUSIVE, EXIT_NOTHING, EXIT_OK, EXIT_REGRESSED
from harness.compare import DEFAULT_MARGIN, Comparison, compare_sides, compare_within, measured_cases, open_side
from harness.core import ModelSource, UsageError, one_of, parse_pair
from harness.schema import RunRow
from harness.store import Store
from harness.tables import Column, Table, comparison_table, quantity, render, run_table, to_json


def warn(text: str) -> None:
    """One line on stderr."""
    print(f"warning: {text}", file=sys.stderr)


def _print(table: Table, arguments: argparse.Namespace) -> None:
    sys.stdout.write(render(table, arguments.output))


def _store(arguments: argparse.Namespace, *, create: bool = False) -> Store:
    store = Store.open(arguments.store, create=create)
    return store


def _name_problems(store: Store) -> None:
    for problem in store.problems:
        warn(f"passed over {problem.path}: {problem.reason}")


def _device(arguments: argparse.Namespace) -> str:
    from harness.machine import check_device, find_gpus

    return check_device(arguments.device or ("cuda" if find_gpus() else "cpu"))


# list ---------------------------------------------------------------------------------------------------------------


def _options(axis: registry.Axis) -> list[str]:
    return list(dict.fromkeys((axis.reference, *registry.option_names(axis.name))))


def _listings() -> dict[str, list[tuple[str, str]]]:
    from minimind.config import PRESETS

    return {
        "suites": [(suite.name, suite.doc) for suite in registry.SUITES.values()],
        "axes": [
            (axis.name, f"{axis.doc} Options: {', '.join(_options(axis))} (reference: {axis.reference})")
            for axis in registry.AXES.values()
        ],
        "workloads": [
            (f"{kind.name}({','.join(f'{n}={v}' for n, v in kind.defaults.items())})", kind.doc)
            for kind in registry.WORKLOADS.values()
        ],
        "metrics": [(f"{metric.name} [{metric.unit}]", metric.doc) for metric in registry.METRICS.values()],
        "backends": [(backend.name, backend.doc) for backend in registry.BACKENDS.values()],
        "models": [
            (name, f"{config.num_hidden_layers} layers of {config.hidden_size}") for name, config in PRESETS.items()
        ],
    }


def list_declarations(arguments: argparse.Namespace) -> int:
    """Suites, axes, workloads, metrics, backends and models."""
    registry.load_all(arguments.plugin)
    listings = _listings()
    chosen = [one_of("listing", arguments.what, list(listings))] if arguments.what else list(listings)
    rows = [(kind, *row) for kind in chosen for row in sorted(listings[kind])]
    records = [{"kind": kind, "name": name, "doc": doc} for kind, name, doc in rows]
    _print(Table("", [Column("kind"), Column("name"), Column("what it is")], rows, records), arguments)
    return EXIT_OK


# run ----------------------------------------------------------------------------------------------------------------


def parse_axes(words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """`--axis` words as axis -> options, in the order given. Raises UsageError naming a bad one."""
    axes: dict[str, tuple[str, ...]] = {}
    for word in words:
        name, _, options = word.partition("=")
        chosen = tuple(parse_pair(f"{name}={option}")[1] for option in options.split(",")) if options else ()
        if not chosen:
            raise UsageError(f"'{word}' is not of the form axis=option,option, for example kv=cat,prealloc")
        axes[name.strip()] = tuple(dict.fromkeys((*axes.get(name.strip(), ()), *chosen)))
    return axes


def _source(arguments: argparse.Namespace) -> ModelSource | None:
    if arguments.weights is None:
        for flag in ("tokenizer", "data"):
            if getattr(arguments, flag) is not None and len(arguments.model) != 1:
                raise UsageError(f"--{flag} needs --weights, or one --model, to say which model it belongs to")
        if arguments.tokenizer is None and arguments.data is None:
            return None
    for flag in ("weights", "tokenizer", "data"):
        path = getattr(arguments, flag)
        if path is not None and not Path(path).exists():
            raise UsageError(f"--{flag} '{path}' does not exist")
    preset = arguments.model[0] if arguments.model else None
    name = Path(arguments.weights).stem if arguments.weights else str(preset)
    paths = {
        flag: str(Path(p).resolve()) if (p := getattr(arguments, flag)) else None
        for flag in ("weights", "tokenizer", "data")
    }
    return ModelSource(name, preset=preset, seed=arguments.seed, **paths)


def run_suite(arguments: argparse.Namespace) -> int:
    """Measure a suite, or complete a run, and show its table."""
    from harness.execute import Request, execute, resume

    if arguments.resume is not None:
        store = _store(arguments)
        with _progress() as progress:
            run_id = resume(store, arguments.resume, progress, warn)
        return _show_run(store, store.find_run(run_id), arguments, margin=None)
    if arguments.suite is None:
        registry.load_all(arguments.plugin)
        raise UsageError(f"which suite? Known: {', '.join(sorted(registry.SUITES))}")
    request = Request(
        suite=arguments.suite,
        device=_device(arguments),
        axes=parse_axes(arguments.axis),
        blocks=arguments.blocks,
        seed=arguments.seed,
        models=tuple(arguments.model) if arguments.weights is None else (),
        source=_source(arguments),
        budget_seconds=arguments.budget,
        timeout_seconds=arguments.timeout,
        plugins=tuple(arguments.plugin),
    )
    if arguments.dry_run:
        return _dry_run(request, arguments)
    request.plan()  # a usage error comes before the store is made
    store = _store(arguments, create=True)
    with _progress() as progress:
        run_id = execute(request, store, progress, warn)
    return _show_run(store, store.find_run(run_id), arguments, margin=None)


def _dry_run(request: Any, arguments: argparse.Namespace) -> int:
    from harness.estimate import estimate_seconds

    plan = request.plan()
    rows, records = [], []
    for group in plan.groups:
        for case in group.cases:
            skip = plan.skips.get(case.case_id, "")
            label = registry.workload_label(case.workload)
            rows.append((group.name, case.model, label, str(case.variant), f"skipped: {skip}" if skip else "will run"))
            records.append(
                {
                    "group": group.name,
                    "case_id": case.case_id,
                    "model": case.model,
                    "workload": str(case.workload),
                    "variant": str(case.variant),
                    "status": "skipped" if skip else "planned",
                    "reason": skip,
                }
            )
    seconds = estimate_seconds(plan)
    note = f"{plan.sampling.blocks} blocks; estimated time: {quantity(seconds, 's')} (rough). {request.command()}"
    if arguments.output == "json":
        sys.stdout.write(
            to_json(
                {
                    "suite": plan.suite.name,
                    "device": plan.device,
                    "blocks": plan.sampling.blocks,
                    "estimated_seconds": seconds,
                    "command": request.command(),
                    "cases": records,
                }
            )
        )
        return EXIT_OK
    columns = [Column(name) for name in ("group", "model", "workload", "variant", "plan")]
    _print(Table(f"plan of {plan.suite.name} on {plan.device}", columns, rows, records, [note]), arguments)
    return EXIT_OK


@contextlib.contextmanager
def _progress() -> Iterator[Any]:
    """A progress bar on stderr: share done, time left, current case; a line per tenth where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        last = [-1]

        def line(done: float, text: str) -> None:
            if int(done * 10) > last[0]:
                last[0] = int(done * 10)
                print(f"{done * 100:3.0f}%  {text}", file=sys.stderr, flush=True)

        yield line
        return
    columns = (
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    # No refresh thread: a bar that redraws by itself would use a core beside the slice that is being timed.
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as bar:
        task = bar.add_task("", total=1.0)

        def draw(done: float, text: str) -> None:
            bar.update(task, completed=done, description=text)
            bar.refresh()

        yield draw


# show, compare, export ----------------------------------------------------------------------------------------------


def _machine_line(run: RunRow) -> str:
    device = f", {run.device_name}" if run.device == "cuda" else ""
    return (
        f"{run.cpu_model}, {run.cores} cores{device}, {quantity(float(run.ram_bytes), 'bytes')}; torch {run.torch}, "
        f"Python {run.python}; machine {run.machine_id}"
    )


def _show_run(store: Store, run: RunRow, arguments: argparse.Namespace, *, margin: float | None) -> int:
    registry.load_all(arguments.plugin)
    suite = registry.SUITES.get(run.suite)
    used = margin if margin is not None else (suite.margin if suite else DEFAULT_MARGIN)
    cases = measured_cases(store, run.run_id)
    comparisons = compare_within(store, run, margin=used)
    _name_problems(store)
    notes = [
        f"ratio: variant over reference, 95% interval over blocks; a verdict needs the interval beyond ±{used:.1%}",
        f"machine: {_machine_line(run)}",
        f"repeat:  {run.command}",
    ]
    if run.status != "finished":
        notes.insert(0, f"this run is {run.status}; complete it with: python -m harness run --resume {run.run_id}")
    table = run_table(cases, comparisons, f"{run.suite}  run {run.run_id}", notes)
    if arguments.output == "json":
        document = {
            "run": asdict(run),
            "margin": used,
            "rows": table.records,
            "comparisons": [comparison.as_dict() for comparison in comparisons],
        }
        sys.stdout.write(to_json(document))
    else:
        _print(table, arguments)
    measured = any(case.series for case in cases if case.status in ("ok", "not_steady"))
    return EXIT_OK if measured else EXIT_NOTHING


def show_run(arguments: argparse.Namespace) -> int:
    """One run's table, or the list of runs."""
    store = _store(arguments)
    if arguments.run is not None:
        return _show_run(store, store.find_run(arguments.run), arguments, margin=arguments.margin)
    runs = store.runs()
    _name_problems(store)
    columns = [Column(name) for name in ("run", "suite", "status", "device", "machine", "commit", "command")]
    rows = [
        (r.run_id, r.suite, r.status, r.device, r.machine_id, r.git_sha[:9] + ("+" if r.git_dirty else ""), r.command)
        for r in runs
    ]
    _print(Table(f"{len(runs)} runs in {arguments.store}", columns, rows, [asdict(r) for r in runs]), arguments)
    return EXIT_OK


def compare_two(arguments: argparse.Namespace) -> int:
    """B against A."""
    registry.load_all(arguments.plugin)
    for name in arguments.metric:
        one_of("metric", name, list(registry.METRICS))
    store = _store(arguments)
    a, b = open_side(store, arguments.a), open_side(store, arguments.b)
    margin = arguments.margin if arguments.margin is not None else DEFAULT_MARGIN
    found = compare_sides(a, b, metrics=arguments.metric or None, margin=margin)
    _name_problems(store)
    notes = [f"B over A; a verdict needs the interval beyond ±{margin:.1%}"]
    if a.run.run_id != b.run.run_id:
        notes.append("two runs, not interleaved: what changed on the machine in between is in the ratio")
        if a.run.fingerprint != b.run.fingerprint:
            notes.append("the two runs come from different machines or versions")
    title = f"B = {arguments.b} ({b.run.run_id}) against A = {arguments.a} ({a.run.run_id})"
    if not found:
        warn("the two sides have no case in common")
        return EXIT_NOTHING
    _print(comparison_table(found, title, notes), arguments)
    return _strict(found) if arguments.strict else EXIT_OK


def _strict(found: Sequence[Comparison]) -> int:
    verdicts = {comparison.verdict for comparison in found}
    for name, code in (("regressed", EXIT_REGRESSED), ("invalid", EXIT_NOTHING), ("inconclusive", EXIT_INCONCLUSIVE)):
        if name in verdicts:
            return code
    return EXIT_OK


def export_run(arguments: argparse.Namespace) -> int:
    """All rows of one table of a run."""
    store = _store(arguments)
    run = store.find_run(arguments.run)
    tables: Mapping[str, Any] = {
        "samples": lambda: store.samples(run.run_id),
        "cases": lambda: store.cases(run.run_id),
        "telemetry": lambda: store.telemetry(run.run_id),
        "summary": lambda: _rows_of(store.summary(), run.run_id),
        "runs": lambda: _rows_of(_runs_table(run), run.run_id),
    }
    found = tables[one_of("table", arguments.table, list(tables))]()
    _name_problems(store)
    if arguments.to is None:
        records = found.to_pylist()
        rows = [tuple("" if value is None else str(value) for value in record.values()) for record in records]
        columns = [Column(name) for name in found.column_names]
        _print(Table(f"{arguments.table} of {run.run_id}", columns, rows, records), arguments)
        return EXIT_OK
    _write_export(found, Path(arguments.to), f"{arguments.table} of {run.run_id}")
    return EXIT_OK


def _rows_of(table: Any, run_id: str) -> Any:
    import pyarrow.compute as pc

    return table.filter(pc.equal(table["run_id"], run_id))


def _runs_table(run: RunRow) -> Any:
    from harness import schema

    return schema.run_table(run)


def _write_export(found: Any, path: Path, title: str) -> None:
    formats = {".csv": "csv", ".json": "json", ".md": "md", ".parquet": "parquet"}
    if path.suffix not in formats:
        raise UsageError(f"--to '{path}': unknown ending '{path.suffix}'. Known: {', '.join(formats)}")
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            pq.write_table(found, path)
            return
        records = found.to_pylist()
        rows = [tuple("" if value is None else str(value) for value in record.values()) for record in records]
        table = Table(title, [Column(name) for name in found.column_names], rows, records)
        path.write_text(render(table, formats[path.suffix]), encoding="utf-8")  # type: ignore[arg-type]
    except OSError as error:
        raise UsageError(f"--to '{path}' cannot be written: {error.strerror or error}") from error


# doctor, calibrate, store -------------------------------------------------------------------------------------------


def doctor_report(arguments: argparse.Namespace) -> int:
    """What this machine can run."""
    from harness.machine import doctor

    found = doctor(_device(arguments), plugins=arguments.plugin)
    columns = [Column(name) for name in ("section", "name", "level", "detail")]
    rows = [(row.section, row.name, row.level, row.detail) for row in found]
    _print(Table("what this machine can run", columns, rows, [asdict(row) for row in found]), arguments)
    return EXIT_OK if all(row.level != "refuse" for row in found) else EXIT_NOTHING


def calibrate_machine(arguments: argparse.Namespace) -> int:
    """Measure the machine's peaks again and keep them."""
    from harness.execute import check_fit, measured_peaks

    store = _store(arguments, create=True)
    store.check_writable()
    device = _device(arguments)
    check_fit(device, warn)
    peaks = measured_peaks(store, device, fresh=True)
    columns = [
        Column("kind"),
        Column("dtype"),
        Column("size", right=True),
        Column("threads", right=True),
        Column("value", right=True),
    ]
    rows = [
        (
            peak.kind,
            peak.dtype,
            quantity(float(peak.size_bytes), "bytes") if peak.size_bytes else "",
            str(peak.threads),
            f"{peak.value / 1e9:,.1f} G{peak.unit}",
        )
        for peak in peaks
    ]
    _print(Table("measured peaks", columns, rows, [asdict(peak) for peak in peaks]), arguments)
    return EXIT_OK


def store_care(arguments: argparse.Namespace) -> int:
    """Compact or check the store."""
    opened = _store(arguments)
    if arguments.action == "compact":
        done = opened.compact()
        _name_problems(opened)
        record = asdict(done)
        _print(
            Table("compacted", [Column(name) for name in record], [tuple(map(str, record.values()))], [record]),
            arguments,
        )
        return EXIT_OK
    found = opened.check()
    columns = [Column("file"), Column("problem")]
    rows = [(str(problem.path), str(problem.reason)) for problem in found]
    records = [{"file": path, "problem": reason} for path, reason in rows]
    _print(Table(f"{len(found)} problems in {arguments.store}", columns, rows, records), arguments)
    return EXIT_OK if not found else EXIT_NOTHING


VERBS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "list": list_declarations,
    "run": run_suite,
    "show": show_run,
    "compare": compare_two,
    "export": export_run,
    "doctor": doctor_report,
    "calibrate": calibrate_machine,
    "store": store_care,
}
