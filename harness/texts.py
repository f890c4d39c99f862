"""The token ids that workloads run on: held-out text, the user's or the embedded corpus's. Torch-free.

The same source, seed and shape always give the same ids, whatever the variant, so that all arms of a block see the same
prompts; held-out text carries a fingerprint, since perplexities are comparable only on the same tokens.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core import ModelSource, UsageError

if TYPE_CHECKING:
    from minimind.tokenizer import MiniMindTokenizer


@cache
def _tokenizer(path: str | None) -> MiniMindTokenizer:
    from minimind.tokenizer import load_tokenizer

    return load_tokenizer(path)


def preload(source: ModelSource) -> None:
    """Read the tokenizer and the text of a source, so that a process which measures memory has them already."""
    _tokenizer(source.tokenizer)
    _documents(source.data)


@cache
def _documents(data: str | None) -> tuple[str, ...]:
    if data is None:
        from minimind.data.corpus import load_corpus

        return tuple(document.text for document in load_corpus("heldout"))
    from minimind.data.records import is_jsonl, open_jsonl, read_text

    path = Path(data)
    if not is_jsonl(path):
        return (read_text(path),)
    records = open_jsonl(path)
    if records.kind != "text":
        turns = (records[index]["conversations"] for index in range(len(records)))
        return tuple("\n".join(str(turn.get("content", "")) for turn in conversation) for conversation in turns)
    return tuple(str(records[index]["text"]) for index in range(len(records)))


def _stream(source: ModelSource, order: random.Random, vocab_size: int) -> Iterator[int]:
    tokenizer = _tokenizer(source.tokenizer)
    if tokenizer.vocab_size > vocab_size:
        raise UsageError(
            f"the tokenizer has {tokenizer.vocab_size} entries but model '{source.name}' only {vocab_size}; "
            "give the model's own with --tokenizer"
        )
    documents = list(_documents(source.data))
    order.shuffle(documents)
    for text in documents:
        yield from tokenizer.encode(text)


def _rows(source: ModelSource, batch: int, length: int, seed: int | str, vocab_size: int) -> list[list[int]]:
    ids: list[int] = []
    for token in _stream(source, random.Random(seed), vocab_size):
        ids.append(token)
        if len(ids) == batch * length:
            return [ids[row * length : (row + 1) * length] for row in range(batch)]
    where = source.data or "the embedded corpus"
    raise UsageError(f"{where} holds {len(ids)} tokens, but {batch} x {length} are needed; give more text with --data")


def prompt_ids(source: ModelSource, batch: int, length: int, seed: int, vocab_size: int) -> list[list[int]]:
    """`batch` rows of `length` token ids of text, other text for another seed. Raises UsageError on too little."""
    return _rows(source, batch, length, seed, vocab_size)


def decoded(source: ModelSource, ids: list[int]) -> str:
    """The text of token ids; those that only the model has and the tokenizer does not are left out."""
    tokenizer = _tokenizer(source.tokenizer)
    return tokenizer.decode([token for token in ids if token < tokenizer.vocab_size])


def held_out_ids(source: ModelSource, batch: int, length: int, vocab_size: int) -> tuple[list[list[int]], str]:
    """Rows of held-out token ids, always the same for a source and shape, and their fingerprint (16 hex digits)."""
    rows = _rows(source, batch, length, "quality", vocab_size)
    return rows, hashlib.sha256(repr(rows).encode()).hexdigest()[:16]
