"""The whole command line as a literal: a verb, flag, default or choice that comes, goes or changes is seen here."""

from __future__ import annotations

import argparse

from harness.cli import build_parser

COMMON = {"--store": "'results'", "-o/--output": "'table' of table|json|csv|md", "--plugin": "[] ..."}
DEVICE = {"--device": "None"}
SELECTION = {"--axis": "[] ...", "--model": "[] ...", "--blocks": "None", "--budget": "None", "--seed": "0"}
VERBS: dict[str, dict[str, str]] = {
    "list": {**COMMON, "what": "None ?"},
    "run": {
        **COMMON,
        **DEVICE,
        **SELECTION,
        "suite": "None ?",
        "--weights": "None",
        "--tokenizer": "None",
        "--data": "None",
        "--timeout": "None",
        "--dry-run": "flag",
        "--resume": "None",
    },
    "profile": {**COMMON, **DEVICE, "suite": "None ?", "--axis": "[] ...", "--model": "[] ...", "--seed": "0"},
    "show": {**COMMON, "run": "None ?", "--margin": "None"},
    "compare": {**COMMON, "a": "None", "b": "None", "--metric": "[] ...", "--margin": "None", "--strict": "flag"},
    "export": {**COMMON, "run": "None", "--table": "'samples'", "--to": "None"},
    "doctor": {**COMMON, **DEVICE},
    "gate": {
        **COMMON,
        **DEVICE,
        **SELECTION,
        "suite": "None ?",
        "--against": "'HEAD~1'",
        "--gates": "None",
        "--exact": "flag",
        "--markdown": "None",
        "--junit": "None",
        "--annotations": "flag",
    },
    "bisect": {
        **COMMON,
        **DEVICE,
        **SELECTION,
        "suite": "None ?",
        "--good": "None",
        "--bad": "'HEAD'",
        "--metric": "None",
        "--effect": "0.03",
    },
    "baseline": {**COMMON, "action": "None of set|list|prune", "name": "None ?", "run": "None ?", "--keep": "None"},
    "import": {**COMMON, "file": "None", "--suite": "None"},
    "calibrate": {**COMMON, **DEVICE, **SELECTION, "suite": "None ?", "--noise": "flag", "--inject": "'1,2,3,5'"},
    "report": {
        "kind": "None ?",
        "refs": "None *",
        "--compare": "None 2",
        "-o/--output": "'md' of md|html|json",
        "--to": "None",
        "--language": "'en' of en|zh",
        "--store": "'results'",
    },
    "sample-store": {"folder": "None", "--samples": "100000", "--seed": "0"},
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
    from harness.commands import find_verb

    assert CODE.keys() == verbs().keys()
    assert all(callable(find_verb(name)) for name in CODE)
    unexplained = {("compare", "run"), ("export", "run")}
    for verb, parser in verbs().items():
        for action in parser._actions:
            assert action.help or (verb, action.dest) in unexplained, (verb, action.dest)
