"""The command line of the model: `python -m minimind train|generate|eval|inspect|tokenizer|convert`.

    python -m minimind generate --prompt "def main():"
    python -m minimind train --preset tiny --steps 200 --out out
    python -m minimind eval --weights out/model.safetensors -o json

Results go to stdout, progress and remarks to stderr. Exit codes: 0 ok; 1 the work failed on the way (a loss that is not
a number, a full disk); 2 a usage error, whose message names the bad value and the allowed ones; 130 after Ctrl-C.
Each verb is a module of `minimind.commands`; nothing heavy is imported before a verb runs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from minimind.commands import COMMANDS
from minimind.commands.inputs import UsageError


def build_parser() -> argparse.ArgumentParser:
    """The whole command line, one sub-parser per verb."""
    parser = argparse.ArgumentParser(
        prog="python -m minimind",
        description="Train, run, evaluate and look into MiniMind. With no files named, everything uses the embedded "
        "tokenizer, the embedded tiny model and the standard library of this Python as text.",
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, command in COMMANDS.items():
        summary = (command.__doc__ or "").splitlines()[0]
        verb = verbs.add_parser(name, help=summary, description=summary)
        command.add_arguments(verb)
        verb.set_defaults(run=command.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code. argparse's own errors and --help raise SystemExit."""
    args = build_parser().parse_args(argv)
    args.command_line = ["python", "-m", "minimind", *(sys.argv[1:] if argv is None else argv)]
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except UsageError as error:
        return _fail(args.verb, error, 2)
    except KeyboardInterrupt as interrupt:
        return _fail(args.verb, str(interrupt) or "interrupted", 130)
    except BrokenPipeError:
        # The reader of stdout (`| head`) has left. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, RuntimeError) as error:
        return _fail(args.verb, error, 1)
    return code


def _fail(verb: str, reason: object, code: int) -> int:
    print(f"python -m minimind {verb}: {reason}", file=sys.stderr)
    return code
