"""`harness list`."""

from __future__ import annotations

import argparse

from harness import registry
from harness.cli import EXIT_OK
from harness.commands.terminal import print_table
from harness.core import one_of
from harness.tables import Column, Table


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
    print_table(Table("", [Column("kind"), Column("name"), Column("what it is")], rows, records), arguments)
    return EXIT_OK
