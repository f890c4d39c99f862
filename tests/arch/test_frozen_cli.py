"""The whole command line as a literal: a verb, flag, default or choice that comes, goes or changes is seen here."""

from __future__ import annotations

import argparse

from harness.cli import build_parser

COMMON = {"--store": "'results'", "-o/--output": "'table' of table|json|csv|md", "--plugin": "[] ..."}
DEVICE = {"--device": "None"}
VERBS: dict[str, dict[str, str]] = {
    "list": {**COMMON, "what": "None ?"},
    "run": {
        **COMMON,
        **DEVICE,
        "suite": "None ?",
        "--axis": "[] ...",
        "--model": "[] ...",
        "--weights": "None",
        "--tokenizer": "None",
        "--data": "None",
        "--blocks": "None",
        "--budget": "None",
        "--timeout": "None",
        "--seed": "0",
        "--dry-run": "flag",
        "--resume": "None",
    },
    "show": {**COMMON, "run": "None ?", "--margin": "None"},
    "compare": {**COMMON, "a": "None", "b": "None", "--metric": "[] ...", "--margin": "None", "--strict": "flag"},
    "export": {**COMMON, "run": "None", "--table": "'samples'", "--to": "None"},
    "doctor": {**COMMON, **DEVICE},
    "calibrate": {**COMMON, **DEVICE},
    "store": {**COMMON, "action": "None of compact|check"},
}


def described(action: argparse.Action) -> str:
    """Default, choices and how often."""
    if action.const is True:
        return "flag"
    choices = f" of {'|'.join(action.choices)}" if action.choices is not None else ""
    often = " ..." if isinstance(action, argparse._AppendAction) else f" {action.nargs}" if action.nargs else ""
    return f"{action.default!r}{choices}{often}"


def verbs() -> dict[str, argparse.ArgumentParser]:
    (actions,) = [a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(actions.choices)


def test_the_verbs_and_their_flags_are_these() -> None:
    found = {
        verb: {
            "/".join(action.option_strings) or action.dest: described(action)
            for action in parser._actions
            if not isinstance(action, argparse._HelpAction)
        }
        for verb, parser in verbs().items()
    }
    assert found == VERBS


def test_every_verb_has_its_code_and_every_flag_its_help() -> None:
    from harness.commands import VERBS as CODE

    assert CODE.keys() == verbs().keys()
    unexplained = {("compare", "run"), ("export", "run")}
    for verb, parser in verbs().items():
        for action in parser._actions:
            assert action.help or (verb, action.dest) in unexplained, (verb, action.dest)
