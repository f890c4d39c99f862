"""Train a byte-level BPE tokenizer with MiniMind's reserved ids, on the embedded corpus or a file of yours."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from minimind.commands.inputs import UsageError
from minimind.data.corpus import load_corpus
from minimind.data.records import chat_messages, is_jsonl, open_jsonl, read_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `minimind.commands`."""
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder for the two files")
    parser.add_argument("--data", metavar="FILE", type=Path, help="jsonl or plain text; default: the embedded corpus")
    parser.add_argument("--vocab-size", metavar="N", type=int, default=6400, help="number of ids (default 6400)")


def run(args: argparse.Namespace) -> int:
    """See `minimind.commands`."""
    from minimind.tokenizer import train_tokenizer

    try:
        tokenizer = train_tokenizer(_texts(args.data), vocab_size=args.vocab_size)
    except ValueError as error:
        raise UsageError(str(error)) from error
    tokenizer.save(args.out)
    if tokenizer.vocab_size < args.vocab_size:
        print(f"the text is too short for {args.vocab_size} ids", file=sys.stderr)
    print(f"{args.out}: {tokenizer.vocab_size} ids, fingerprint {tokenizer.fingerprint}")
    return 0


def _texts(path: Path | None) -> Iterable[str]:
    """The texts to train on. Raises DataError for a file that cannot be used."""
    if path is None:
        return [document.text for document in load_corpus("train")]
    if not is_jsonl(path):
        return [read_text(path)]
    records = open_jsonl(path)
    if records.kind == "text":
        return (str(records[index]["text"]) for index in range(len(records)))
    return ("\n".join(_contents(records[index])) for index in range(len(records)))


def _contents(record: dict[str, object]) -> list[str]:
    messages, _ = chat_messages(record)
    return [message["content"] for message in messages if message.get("content")]
