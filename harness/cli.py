"""The command line: `python -m harness VERB`. Tables on stdout, progress and warnings on stderr, contract exit codes.

Nothing heavy is imported before a verb needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from harness.core import HarnessError, StoreError, UsageError

FORMATS = ("table", "json", "csv", "md")
EXIT_OK, EXIT_REGRESSED, EXIT_USAGE, EXIT_NOTHING, EXIT_INCONCLUSIVE = range(5)
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


class _Parser(argparse.ArgumentParser):
    """argparse with our wording: a usage error is one line that names the bad value."""

    def error(self, message: str) -> Any:
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\nTry: {self.prog} --help\n")


class Interrupted(KeyboardInterrupt):
    """SIGTERM, told apart from Ctrl-C by its exit code."""


def duration(text: str) -> float:
    """`90`, `90s`, `10m`, `1.5h` in seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"'{text}' is not a duration; use for example 90s, 10m or 1h")
    return float(match[1]) * _UNITS[match[2] or "s"]


def at_least_one(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)


def _common(parser: argparse.ArgumentParser, *, device: bool = False) -> None:
    parser.add_argument("--store", default="results", metavar="DIR", help="folder of the results (default: results)")
    parser.add_argument(
        "-o", "--output", choices=FORMATS, default="table", help="format of what is printed (default: table)"
    )
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="MODULE", help="module or .py file with more declarations"
    )
    if device:
        parser.add_argument("--device", metavar="NAME", help="cpu or cuda (default: cuda where there is one)")


def _cases(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--axis", action="append", default=[], metavar="AXIS=OPTION,...", help="compare these options of an axis"
    )
    parser.add_argument("--model", action="append", default=[], metavar="PRESET", help="measure these presets instead")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="orders, prompts, random weights (default: 0)")


def _selection(parser: argparse.ArgumentParser) -> None:
    _cases(parser)
    parser.add_argument("--blocks", type=at_least_one, metavar="K", help="number of blocks (default: the suite's)")
    parser.add_argument("--budget", type=duration, metavar="TIME", help="stop starting blocks after this time (10m)")


def _add_verdict_verbs(verbs: Any) -> None:
    """Those that judge: gate, bisect, baseline, and what feeds them."""
    gate = verbs.add_parser("gate", help="red only if something really got worse against a baseline")
    _common(gate, device=True)
    gate.add_argument("suite", nargs="?", metavar="SUITE", help="what is measured (default: that of the gates)")
    gate.add_argument(
        "--against",
        default="HEAD~1",
        metavar="BASELINE",
        help="a git revision, a stored run, a baseline's name or axis=option (default: HEAD~1)",
    )
    gate.add_argument("--gates", metavar="FILE", help="declared gates (default: gates.toml, else the suite's own)")
    gate.add_argument("--exact", action="store_true", help="only the gates that have no noise, on any machine")
    gate.add_argument("--markdown", metavar="FILE", help="write the summary for a pull request")
    gate.add_argument("--junit", metavar="FILE", help="write JUnit XML")
    gate.add_argument("--annotations", action="store_true", help="print GitHub annotations on stderr")
    _selection(gate)

    bisect = verbs.add_parser("bisect", help="find the commit that made a case slower")
    _common(bisect, device=True)
    bisect.add_argument("suite", nargs="?", metavar="SUITE", help="what is measured (default: gate)")
    bisect.add_argument("--good", required=True, metavar="REV", help="a revision from before the change")
    bisect.add_argument("--bad", default="HEAD", metavar="REV", help="a revision that has it (default: HEAD)")
    bisect.add_argument("--metric", metavar="NAME", help="the metric to follow (default: each case's own)")
    bisect.add_argument("--effect", type=float, default=0.03, metavar="E", help="smallest change (default: 0.03)")
    _selection(bisect)

    baseline = verbs.add_parser("baseline", help="names for stored runs that gates compare with")
    _common(baseline)
    baseline.add_argument("action", choices=("set", "list", "prune"), help="name a run; list names; drop stale ones")
    baseline.add_argument("name", nargs="?", metavar="NAME", help="set: the name")
    baseline.add_argument("run", nargs="?", metavar="RUN", help="set: the run (default: latest)")
    baseline.add_argument("--keep", type=at_least_one, metavar="N", help="prune: keep the newest N names")

    importing = verbs.add_parser("import", help="take over results of pytest-benchmark or optimum-benchmark")
    _common(importing)
    importing.add_argument("file", metavar="FILE", help="their JSON")
    importing.add_argument("--suite", metavar="NAME", help="the suite's name in the store")

    calibrate = verbs.add_parser("calibrate", help="measure this machine: its peaks, or with --noise its verdicts")
    _common(calibrate, device=True)
    calibrate.add_argument("suite", nargs="?", metavar="SUITE", help="with --noise: the suite (default: gate)")
    calibrate.add_argument("--noise", action="store_true", help="A/A noise floor, false alarms and power")
    calibrate.add_argument(
        "--inject", default="1,2,3,5", metavar="PCT,...", help="injected slowdowns in percent (default: 1,2,3,5)"
    )
    _selection(calibrate)


def _add_reading_verbs(verbs: Any) -> None:
    """Those that present what is stored: report, and a made-up store to try them on."""
    report = verbs.add_parser("report", help="what the store holds as Markdown, one HTML file or JSON")
    report.add_argument(
        "kind", nargs="?", metavar="KIND", help="run, comparison, gate, final... or a RUN (default: latest)"
    )
    report.add_argument("refs", nargs="*", metavar="REF", help="what the report is about: runs, sides")
    report.add_argument("--compare", nargs=2, metavar=("A", "B"), help="the same as: comparison A B")
    report.add_argument("-o", "--output", choices=("md", "html", "json"), default="md", help="format (default: md)")
    report.add_argument("--to", metavar="DIR", help="write files into this folder, pictures too, instead of printing")
    report.add_argument("--language", choices=("en", "zh"), default="en", help="language of the text (default: en)")
    report.add_argument("--store", default="results", metavar="DIR", help="folder of the results (default: results)")

    sample = verbs.add_parser("sample-store", help="write a made-up store to try reports and the dashboard on")
    sample.add_argument("folder", metavar="DIR", help="a new or an empty folder")
    sample.add_argument(
        "--samples", type=at_least_one, default=100_000, metavar="N", help="about how many samples (default: 100000)"
    )
    sample.add_argument("--seed", type=int, default=0, metavar="N", help="of all numbers (default: 0)")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; its flags are frozen by a test."""
    parser = _Parser(prog="harness", description="Measure what a change really does to speed, memory and quality.")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Parser)

    listing = verbs.add_parser("list", help="suites, axes, workloads, metrics, backends, models")
    _common(listing)
    listing.add_argument("what", nargs="?", metavar="WHAT", help="one of them (default: all)")

    run = verbs.add_parser("run", help="measure a suite")
    _common(run, device=True)
    run.add_argument("suite", nargs="?", metavar="SUITE", help="see `harness list suites`")
    _selection(run)
    run.add_argument("--weights", metavar="PATH", help="your model: .pth, .safetensors or a Transformers folder")
    run.add_argument("--tokenizer", metavar="PATH", help="your tokenizer.json")
    run.add_argument("--data", metavar="PATH", help="your text: MiniMind's jsonl, or plain text")
    run.add_argument("--timeout", type=duration, metavar="TIME", help="longest time that one step of a case may take")
    run.add_argument("--dry-run", action="store_true", help="print the plan, the skips and the estimated time")
    run.add_argument("--resume", metavar="RUN", help="complete an interrupted run")

    profile = verbs.add_parser("profile", help="where the time and memory of a suite's cases go: traces, stacks")
    _common(profile, device=True)
    profile.add_argument("suite", nargs="?", metavar="SUITE", help="see `harness list suites`")
    _cases(profile)

    show = verbs.add_parser("show", help="the table of a run, or the list of runs")
    _common(show)
    show.add_argument("run", nargs="?", metavar="RUN", help="run id, its beginning, a suite, latest, latest~1")
    show.add_argument("--margin", type=float, default=None, metavar="M", help="relative margin (default: the suite's)")

    compare = verbs.add_parser("compare", help="B against A: runs, commits, tags, machines, or variants of them")
    _common(compare)
    compare.add_argument("a", metavar="A", help="RUN, commit:REV, tag:NAME, machine:ID[@SUITE]; /VARIANT")
    compare.add_argument("b", metavar="B", help="likewise, for example latest/kv=prealloc")
    compare.add_argument("--metric", action="append", default=[], metavar="NAME", help="only these metrics")
    compare.add_argument("--margin", type=float, default=None, metavar="M", help="relative margin (default: 0.01)")
    compare.add_argument(
        "--strict", action="store_true", help="exit 1 if anything regressed, 3 invalid, 4 inconclusive"
    )

    export = verbs.add_parser("export", help="all rows of a run: samples, cases, telemetry or summary")
    _common(export)
    export.add_argument("run", metavar="RUN")
    export.add_argument("--table", default="samples", metavar="NAME", help="samples, cases, telemetry, summary, runs")
    export.add_argument("--to", metavar="FILE", help="write .csv, .json, .md or .parquet instead of printing")

    doctor = verbs.add_parser("doctor", help="what this machine can run, and why not the rest")
    _common(doctor, device=True)

    _add_verdict_verbs(verbs)

    _add_reading_verbs(verbs)

    store = verbs.add_parser("store", help="look after the results")
    _common(store)
    store.add_argument("action", choices=("compact", "check"), help="merge many files into few; or name damaged ones")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    from harness.commands import find_verb

    try:
        with _signals():
            return find_verb(arguments.verb)(arguments)
    except UsageError as error:
        print(f"harness {arguments.verb}: {error}", file=sys.stderr)
        return EXIT_USAGE
    except (StoreError, HarnessError) as error:
        print(f"harness {arguments.verb}: {error}", file=sys.stderr)
        return EXIT_NOTHING
    except Interrupted:
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK


@contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM leaves by the same door as Ctrl-C, so that workers end and the store stays whole."""

    def terminated(number: int, frame: object) -> None:
        raise Interrupted

    previous = signal.signal(signal.SIGTERM, terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
