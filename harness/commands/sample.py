"""`harness sample-store DIR`: a made-up store to look at the pages with."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.cli import EXIT_OK
from harness.sample_store import write_sample_store


def sample_verb(arguments: argparse.Namespace) -> int:
    """Write the store and say what it holds."""
    written = write_sample_store(Path(arguments.folder), samples=arguments.samples, seed=arguments.seed)
    counted = f"{written.num_runs} runs, {written.num_cases} cases, {written.num_samples} samples"
    print(f"{written.path}: {counted}, all synthetic")
    print(f"look at it: python -m dashboard --store {written.path}")
    return EXIT_OK
