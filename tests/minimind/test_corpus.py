"""The embedded corpus: its splits, its order, its fingerprints, and what it leaves out."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from minimind.data.corpus import (
    Corpus,
    Document,
    corpus_fingerprint,
    file_fingerprint,
    fingerprint_documents,
    load_corpus,
    read_corpus,
    split_of,
)


@pytest.fixture(scope="module")
def train() -> Corpus:
    return read_corpus("train")


@pytest.fixture(scope="module")
def heldout() -> Corpus:
    return read_corpus("heldout")


def test_the_splits_share_nothing_and_are_sorted(train: Corpus, heldout: Corpus) -> None:
    names = [[document.name for document in split.documents] for split in (train, heldout)]
    assert not set(names[0]) & set(names[1])
    assert all(found == sorted(set(found)) for found in names)
    sizes = [sum(len(document.text) for document in split.documents) for split in (train, heldout)]
    assert 0.03 < sizes[1] / sum(sizes) < 0.15
    assert sizes[0] > 5_000_000
    assert not train.skipped and not heldout.skipped


def test_the_split_depends_on_the_name_alone(train: Corpus, heldout: Corpus) -> None:
    assert all(split_of(document.name) == "train" for document in train.documents)
    assert all(split_of(document.name) == "heldout" for document in heldout.documents)
    # Frozen: a module must never change sides, or old and new perplexities would be measured on training text.
    assert [split_of(name) for name in ("json", "getopt", "abc", "typing")] == ["heldout", "heldout", "train", "train"]


def test_it_holds_modules_docstrings_and_the_language_reference(train: Corpus) -> None:
    texts = {document.name: document.text for document in train.documents}
    assert "Abstract Base Classes (ABCs)" in texts["abc"]
    topics = [name for name in texts if name.startswith("pydoc_data.topics.")]
    assert len(topics) > 50 and "\\n" not in texts[topics[0]]


def test_it_leaves_out_tests_and_generated_files(train: Corpus, heldout: Corpus) -> None:
    names = [document.name for document in (*train.documents, *heldout.documents)]
    parts = {part for name in names for part in name.split(".")}
    assert not parts & {"test", "tests", "idlelib", "lib2to3", "site-packages", "turtledemo", "cp1252", "topics_"}
    assert not [name for name in names if name.startswith("_sysconfigdata")]
    assert "encodings.utf_8" in names


def test_reading_twice_gives_the_same_fingerprint(heldout: Corpus) -> None:
    assert corpus_fingerprint("heldout") == heldout.fingerprint == fingerprint_documents(load_corpus("heldout"))
    assert len(heldout.fingerprint) == 64


def test_the_fingerprint_sees_names_contents_and_order() -> None:
    one, two = Document("a", "x"), Document("b", "y")
    prints = {
        fingerprint_documents(documents)
        for documents in ([one], [one, two], [two, one], [Document("a", "y"), two], [Document("ab", "x"), two])
    }
    assert len(prints) == 5


def test_unreadable_sources_are_listed_not_lost(tmp_path: Path) -> None:
    names = [f"m{number}" for number in range(40)]
    for name in names:
        (tmp_path / f"{name}.py").write_text(f"# {name}\r\nx = 1\n")
    (tmp_path / "bad_utf8.py").write_bytes(b"x = 1\n\nx = '\xff'\n")
    (tmp_path / "bad_cookie.py").write_bytes(b"# coding: no-such-codec\n")
    (tmp_path / "latin.py").write_bytes(b"# coding: latin-1\nx = '\xe9'\n")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "inner.py").write_text("x = 1\n")
    both = [read_corpus(split, root=tmp_path) for split in ("train", "heldout")]  # type: ignore[arg-type]
    skipped = {found.name: found.reason for split in both for found in split.skipped}
    texts = {document.name: document.text for split in both for document in split.documents}
    assert set(skipped) == {"bad_utf8", "bad_cookie"}
    assert "UnicodeDecodeError" in skipped["bad_utf8"]
    assert set(texts) == {*names, "latin"}
    assert texts["latin"].endswith("x = 'é'\n") and texts["m1"] == "# m1\nx = 1\n"


def test_unknown_splits_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown split 'test'; known: train, heldout"):
        load_corpus("test")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no Python source"):
        read_corpus("train", root=tmp_path)


def test_files_have_a_fingerprint_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_bytes(b"text")
    assert file_fingerprint(path) == hashlib.sha256(b"text").hexdigest()


def test_the_corpus_costs_no_torch() -> None:
    code = "import sys, minimind.data.corpus; sys.exit('torch' in sys.modules or 'tokenizers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
