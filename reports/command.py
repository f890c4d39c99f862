"""`python -m harness report`: a report of what the store holds, as Markdown, HTML or JSON.

    python -m harness report                                  # the latest run, as Markdown on stdout
    python -m harness report --compare A B -o html --to .     # comparison.html, one file with everything in it
    python -m harness report long_context -o md --to docs/    # long_context.md and its pictures

Refuses an unknown run or kind, a format that is no report, and a place that cannot be written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from harness.cli import EXIT_OK
from harness.core import UsageError
from harness.store import Store
from harness.tables import to_json
from reports.document import Document, to_data
from reports.html import to_html
from reports.kinds import KINDS, build, command_of
from reports.language import as_language
from reports.markdown import picture_files, to_markdown
from reports.sources import Request

FORMATS = ("md", "html", "json")


def report_verb(arguments: argparse.Namespace) -> int:
    """Print or write the report. Always 0: what a report says is no verdict of its own."""
    kind, request = asked(arguments)
    output = _format(arguments.output)
    store = Store.open(arguments.store)
    document = build(store, kind, request)
    for problem in document.problems:
        print(f"warning: passed over {problem}", file=sys.stderr)
    if arguments.to is None:
        sys.stdout.write(_text(document, output))
        return EXIT_OK
    for path in write(document, Path(arguments.to), output):
        print(f"wrote {path}", file=sys.stderr)
    return EXIT_OK


def asked(arguments: argparse.Namespace) -> tuple[str, Request]:
    """The kind of report and its request. A first word that is no kind is a run."""
    language = as_language(getattr(arguments, "language", None) or "en")
    words = tuple(word for word in (arguments.kind, *arguments.refs) if word is not None)
    if arguments.compare is not None:
        if words and words != ("comparison",):
            raise UsageError(f"--compare A B is a report of its own: drop '{' '.join(words)}'")
        return "comparison", Request(tuple(arguments.compare), language)
    if words and words[0] in KINDS:
        return words[0], Request(words[1:], language)
    return "run", Request(words, language)


def _format(output: str | None) -> str:
    if output in (None, "table"):  # the common default of the command line: a report has no terminal table
        return "md"
    if output not in FORMATS:
        raise UsageError(f"a report is no '{output}'. Known: {', '.join(FORMATS)}")
    return str(output)


def _text(document: Document, output: str) -> str:
    if output == "html":
        return to_html(document)
    return to_json(to_data(document)) if output == "json" else to_markdown(document)


def write(document: Document, folder: Path, output: str) -> list[Path]:
    """Write the report into a folder, which is made where need be; returns the files, the report first.

    Raises UsageError where that cannot be written.
    """
    files = {f"{document.kind}.{output}": _text(document, output)}
    if output == "md":
        files = {f"{document.kind}.md": to_markdown(document, pictures=document.kind)}
        files |= picture_files(document, document.kind)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--to '{folder}' cannot be written: {error.strerror or error}") from error
    return [folder / name for name in files]


__all__ = ["FORMATS", "asked", "command_of", "report_verb", "write"]
