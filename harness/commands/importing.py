"""`harness import`: what other tools measured, as a run of the store."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.commands.show import print_run
from harness.commands.terminal import open_store, warn
from harness.importing import EVIDENCE, import_report, read_report


def import_verb(arguments: argparse.Namespace) -> int:
    """Import a JSON file of pytest-benchmark or optimum-benchmark and show its table; once is enough."""
    report = read_report(Path(arguments.file))
    store = open_store(arguments, create=True)
    run_id, is_new = import_report(store, report, suite=arguments.suite)
    if not is_new:
        run = store.find_run(run_id)
        warn(f"{arguments.file} was imported before, as run {run_id} of suite {run.suite}: nothing was written")
    for note in report.notes:
        warn(note)
    warn(f"{report.tool}: {EVIDENCE}")
    return print_run(store, store.find_run(run_id), arguments, margin=None)
