"""`harness baseline set|list|prune`: names for stored runs that gates compare with."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict

from harness.baselines import Named, list_baselines, prune_baselines, set_baseline
from harness.cli import EXIT_OK
from harness.commands.terminal import name_problems, open_store, print_table
from harness.core import UsageError
from harness.schema import RunRow
from harness.store import Store
from harness.tables import Column, Table


def baseline_verb(arguments: argparse.Namespace) -> int:
    """Name a run, list the names, or drop stale ones."""
    _check_words(arguments)
    store = open_store(arguments)
    if arguments.action == "set":
        run = _latest_finished(store) if arguments.run is None else store.find_run(arguments.run)
        named = set_baseline(store, arguments.name, run)
        print(f"baseline {named.name} is run {named.run_id} of {named.suite}", file=sys.stderr)
        _print_names(store, [named], f"baseline {named.name}", arguments)
    elif arguments.action == "list":
        found = list_baselines(store)
        _print_names(store, found, f"{len(found)} baselines in {arguments.store}", arguments)
    else:
        dropped = prune_baselines(store, keep=arguments.keep)
        _print_names(store, dropped, f"{len(dropped)} baselines dropped", arguments)
    name_problems(store)
    return EXIT_OK


def _check_words(arguments: argparse.Namespace) -> None:
    """Words that an action has no use for are mistakes, not decoration."""
    if arguments.action == "set" and arguments.name is None:
        raise UsageError("set needs a name, for example: harness baseline set release-1 latest")
    if arguments.action != "set" and arguments.name is not None:
        raise UsageError(f"{arguments.action} takes no name, but '{arguments.name}' was given")
    if arguments.action != "prune" and arguments.keep is not None:
        raise UsageError(f"--keep belongs to prune, not to {arguments.action}")


def _latest_finished(store: Store) -> RunRow:
    finished = [run for run in store.runs() if run.status == "finished"]
    if not finished:
        raise UsageError(f"store {store.path} holds no finished run to name")
    return finished[-1]


def _print_names(store: Store, names: Sequence[Named], title: str, arguments: argparse.Namespace) -> None:
    runs = {run.run_id for run in store.runs()}
    columns = [Column(name) for name in ("name", "run", "suite", "commit", "machine", "set", "there")]
    rows = [
        (
            named.name,
            named.run_id,
            named.suite,
            named.git_sha[:9],
            named.machine_id,
            named.set_at[:19].replace("T", " "),
            "yes" if named.run_id in runs else "no: the run is gone",
        )
        for named in names
    ]
    records = [{**asdict(named), "there": named.run_id in runs} for named in names]
    print_table(Table(title, columns, rows, records), arguments)
