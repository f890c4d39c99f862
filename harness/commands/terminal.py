"""What every verb does alike: open the store, choose the device, print a table, warn, draw progress."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from harness.store import Store
from harness.tables import Table, render


def warn(text: str) -> None:
    """One line on stderr."""
    print(f"warning: {text}", file=sys.stderr)


def print_table(table: Table, arguments: argparse.Namespace) -> None:
    """A table on stdout in the format asked for."""
    sys.stdout.write(render(table, arguments.output))


def open_store(arguments: argparse.Namespace, *, create: bool = False) -> Store:
    """The store of `--store`. Raises StoreError if there is none, unless it may be made."""
    return Store.open(arguments.store, create=create)


def name_problems(store: Store) -> None:
    """Warn of every file that was passed over, with its reason."""
    for problem in store.problems:
        warn(f"passed over {problem.path}: {problem.reason}")


def chosen_device(arguments: argparse.Namespace) -> str:
    """The device of `--device`, else cuda where there is one. Raises UsageError for one that is not here."""
    from harness.machine import check_device, find_gpus

    return check_device(arguments.device or ("cuda" if find_gpus() else "cpu"))


@contextlib.contextmanager
def progress_bar() -> Iterator[Any]:
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
