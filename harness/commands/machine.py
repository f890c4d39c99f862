"""`harness doctor` and `calibrate`: what this machine can run, and how fast it can be."""

from __future__ import annotations

import argparse
import contextlib
from dataclasses import asdict

from harness.cli import EXIT_NOTHING, EXIT_OK
from harness.commands.terminal import chosen_device, open_store, print_table, warn
from harness.core import UsageError
from harness.tables import Column, Table, quantity


def doctor_report(arguments: argparse.Namespace) -> int:
    """What this machine can run."""
    from harness.machine import doctor
    from harness.worktree import own_repository, sweep

    with contextlib.suppress(UsageError):  # installed without its repository: then no gate has left anything there
        for folder in sweep(own_repository()):
            warn(f"removed {folder}, which a gate or bisect that was killed left behind")
    found = doctor(chosen_device(arguments), plugins=arguments.plugin)
    columns = [Column(name) for name in ("section", "name", "level", "detail")]
    rows = [(row.section, row.name, row.level, row.detail) for row in found]
    print_table(Table("what this machine can run", columns, rows, [asdict(row) for row in found]), arguments)
    return EXIT_OK if all(row.level != "refuse" for row in found) else EXIT_NOTHING


def calibrate_machine(arguments: argparse.Namespace) -> int:
    """Measure the machine's peaks again and keep them."""
    from harness.execute import check_fit, measured_peaks

    store = open_store(arguments, create=True)
    store.check_writable()
    device = chosen_device(arguments)
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
    print_table(Table("measured peaks", columns, rows, [asdict(peak) for peak in peaks]), arguments)
    return EXIT_OK
