"""The embedded corpus: the standard library of the Python interpreter in use. No download, no torch.

    from minimind.data.corpus import corpus_fingerprint, load_corpus
    documents = load_corpus("train")          # [Document(name="abc", text='# Copyright ...'), ...]
    corpus_fingerprint("heldout")             # 64 hex digits: quote it with every perplexity

Source files count with their docstrings; the language reference shipped as `pydoc_data.topics` becomes one document per
topic. Left out: tests, IDLE, lib2to3, turtledemo, installed packages, character tables and build settings written by
programs. A module is in the `heldout` split when a hash of its dotted name says so, so the split is the same for every
interpreter version; the *text* differs between versions, which is what the fingerprint is for.
"""

from __future__ import annotations

import ast
import hashlib
import io
import os
import sysconfig
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = get_args(Split)

HELDOUT_PERCENT = 8
TOPICS_MODULE = "pydoc_data.topics"

_SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "idlelib", "lib2to3", "site-packages", "dist-packages", "turtledemo", "__pycache__"}
)
_GENERATED_MARK = "generated from"  # in the docstring of every encodings table written by gencodec.py


@dataclass(frozen=True, slots=True)
class Document:
    """One text of the corpus: a module's source, or one topic of the language reference."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """A source file that is not part of the corpus because it could not be read, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Corpus:
    """One split, sorted by document name, and the files that should have been in the corpus but are unreadable."""

    documents: tuple[Document, ...]
    skipped: tuple[Skipped, ...]

    @property
    def fingerprint(self) -> str:
        """See `fingerprint_documents`."""
        return fingerprint_documents(self.documents)


def split_of(name: str) -> Split:
    """The split that a document belongs to: `heldout` for about 8 % of all names, by SHA-256 of the dotted name."""
    bucket = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 100
    return "heldout" if bucket < HELDOUT_PERCENT else "train"


def fingerprint_documents(documents: Iterable[Document]) -> str:
    """SHA-256 (64 hex digits) over every document's name and the SHA-256 of its text, in the order given."""
    digest = hashlib.sha256()
    for document in documents:
        content = hashlib.sha256(document.text.encode("utf-8", "surrogatepass")).hexdigest()
        digest.update(f"{document.name}\0{content}\n".encode())
    return digest.hexdigest()


def read_corpus(split: Split, *, root: Path | None = None) -> Corpus:
    """Read one split of the corpus; what cannot be decoded is listed in `skipped` instead of vanishing.

    root: a folder of Python sources; by default the standard library of this interpreter.
    Raises ValueError for an unknown split and for a folder that holds no document of it.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split '{split}'; known: {', '.join(SPLITS)}")
    folder = Path(sysconfig.get_paths()["stdlib"]) if root is None else root
    documents: list[Document] = []
    skipped: list[Skipped] = []
    for name, path in _sources(folder):
        # Topics are split one by one, so that both splits hold prose: their file has to be opened either way.
        if name != TOPICS_MODULE and split_of(name) != split:
            continue
        try:
            text = _read_source(path)
            found = _topics(text) if name == TOPICS_MODULE else [Document(name, text)]
        except (OSError, SyntaxError, ValueError) as error:
            skipped.append(Skipped(name, f"{type(error).__name__}: {error}"))
            continue
        documents += [it for it in found if split_of(it.name) == split and not _is_generated(it)]
    if not documents:
        raise ValueError(f"no Python source of the '{split}' split under {folder}: is the standard library installed?")
    return Corpus(tuple(sorted(documents, key=lambda document: document.name)), tuple(skipped))


def load_corpus(split: Split) -> list[Document]:
    """The documents of one split (`train` or `heldout`), sorted by name. See `read_corpus`."""
    return list(read_corpus(split).documents)


def corpus_fingerprint(split: Split) -> str:
    """The fingerprint of one split of this interpreter's corpus: perplexities compare only where it agrees."""
    return read_corpus(split).fingerprint


def file_fingerprint(path: Path) -> str:
    """SHA-256 (64 hex digits) of a data file's bytes, the counterpart of `corpus_fingerprint` for a user's own data."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sources(folder: Path) -> Iterator[tuple[str, Path]]:
    """(dotted module name, path) of every source file that can be part of the corpus, sorted by name."""
    found: list[tuple[str, Path]] = []
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]  # packages are 10,000 files
        for name in files:
            path = Path(where, name)
            if path.suffix != ".py":
                continue
            parts = path.relative_to(folder).with_suffix("").parts
            module = parts[:-1] if parts[-1] == "__init__" else parts
            if module and not parts[0].startswith(("config-", "_sysconfigdata")):
                found.append((".".join(module), path))
    yield from sorted(found)


def _read_source(path: Path) -> str:
    """Decode a source file as Python itself does (BOM or coding cookie, else UTF-8), newlines as `\\n`."""
    content = path.read_bytes()
    encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
    return content.decode(encoding).replace("\r\n", "\n")


def _topics(source: str) -> list[Document]:
    """One document per topic of `pydoc_data.topics`, read from its source without importing it."""
    for node in ast.parse(source).body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Dict):
            topics = ast.literal_eval(node.value)
            return [Document(f"{TOPICS_MODULE}.{name}", text) for name, text in topics.items()]
    raise ValueError("holds no dictionary of topics")


def _is_generated(document: Document) -> bool:
    return document.name.startswith("encodings.") and _GENERATED_MARK in document.text[:400]
