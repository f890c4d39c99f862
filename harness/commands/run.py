"""`harness run`: measure a suite, print its plan, or complete an interrupted run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import registry
from harness.cli import EXIT_OK
from harness.commands.show import print_run
from harness.commands.terminal import chosen_device, open_store, print_table, progress_bar, warn
from harness.core import ModelSource, UsageError, parse_pair
from harness.tables import Column, Table, quantity, to_json

if TYPE_CHECKING:
    from harness.execute import Request


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


def model_source(arguments: argparse.Namespace) -> ModelSource | None:
    """The user's weights, tokenizer and data; None for the presets' own. Raises UsageError for what is not there."""
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


def request_of(arguments: argparse.Namespace, suite: str, **more: Any) -> Request:
    """What the flags of every measuring verb ask for, of this suite; `more`: other fields. Raises UsageError."""
    from harness.execute import Request

    fields: dict[str, Any] = {
        "device": chosen_device(arguments),
        "axes": parse_axes(arguments.axis),
        "seed": arguments.seed,
        "models": tuple(arguments.model),
        "plugins": tuple(arguments.plugin),
    }
    return Request(suite=suite, **(fields | more))


def run_suite(arguments: argparse.Namespace) -> int:
    """Measure a suite, or complete a run, and show its table."""
    from harness.execute import execute, resume

    if arguments.resume is not None:
        store = open_store(arguments)
        with progress_bar() as progress:
            run_id = resume(store, arguments.resume, progress, warn)
        return print_run(store, store.find_run(run_id), arguments, margin=None)
    if arguments.suite is None:
        registry.load_all(arguments.plugin)
        raise UsageError(f"which suite? Known: {', '.join(sorted(registry.SUITES))}")
    request = request_of(
        arguments,
        arguments.suite,
        blocks=arguments.blocks,
        models=tuple(arguments.model) if arguments.weights is None else (),
        source=model_source(arguments),
        budget_seconds=arguments.budget,
        timeout_seconds=arguments.timeout,
    )
    if arguments.dry_run:
        return _dry_run(request, arguments)
    request.plan()  # a usage error comes before the store is made
    store = open_store(arguments, create=True)
    with progress_bar() as progress:
        run_id = execute(request, store, progress, warn)
    return print_run(store, store.find_run(run_id), arguments, margin=None)


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
    print_table(Table(f"plan of {plan.suite.name} on {plan.device}", columns, rows, records, [note]), arguments)
    return EXIT_OK
