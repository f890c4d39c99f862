"""`harness store compact|check`."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from harness.cli import EXIT_NOTHING, EXIT_OK
from harness.commands.terminal import name_problems, open_store, print_table
from harness.tables import Column, Table


def store_care(arguments: argparse.Namespace) -> int:
    """Compact or check the store."""
    opened = open_store(arguments)
    if arguments.action == "compact":
        done = opened.compact()
        name_problems(opened)
        record = asdict(done)
        print_table(
            Table("compacted", [Column(name) for name in record], [tuple(map(str, record.values()))], [record]),
            arguments,
        )
        return EXIT_OK
    found = opened.check()
    columns = [Column("file"), Column("problem")]
    rows = [(str(problem.path), str(problem.reason)) for problem in found]
    records = [{"file": path, "problem": reason} for path, reason in rows]
    print_table(Table(f"{len(found)} problems in {arguments.store}", columns, rows, records), arguments)
    return EXIT_OK if not found else EXIT_NOTHING
