"""What the verbs of the command line do: one function each, which prints and returns the exit code.

A verb's module is imported when it is called: `harness show` on a laptop needs nothing that measures.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Mapping

VERBS: Mapping[str, str] = {
    "list": "listing:list_declarations",
    "run": "run:run_suite",
    "profile": "profile:profile_verb",
    "show": "show:show_run",
    "compare": "show:compare_two",
    "export": "show:export_run",
    "doctor": "machine:doctor_report",
    "gate": "gate:gate_verb",
    "bisect": "bisect:bisect_verb",
    "baseline": "baseline:baseline_verb",
    "import": "importing:import_verb",
    "calibrate": "calibrate:calibrate_verb",
    "store": "store:store_care",
    "sample-store": "sample:sample_verb",
    "report": "reports.command:report_verb",  # by text: what is above the harness is not imported by it
}


def find_verb(name: str) -> Callable[[argparse.Namespace], int]:
    """The function of a verb, its module imported."""
    module, _, function = VERBS[name].partition(":")
    place = module if "." in module else f"{__name__}.{module}"
    found: Callable[[argparse.Namespace], int] = getattr(importlib.import_module(place), function)
    return found
