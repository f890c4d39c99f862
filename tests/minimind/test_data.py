"""Data: jsonl and text files, pretraining and SFT samples, packed rows, the order of batches."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minimind.data.records import DataError, open_jsonl, read_text
from minimind.data.samples import (
    IGNORED,
    ChatRows,
    ChatVariation,
    PackedRows,
    RecordTexts,
    TextRows,
    batch_indices,
    chat_sample,
    epoch_order,
    pretrain_sample,
    stack,
)
from minimind.tokenizer import MiniMindTokenizer, load_tokenizer

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="upstream's golden data is not beside this checkout")
CHAT = {"conversations": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}


@pytest.fixture(scope="module")
def tokenizer() -> MiniMindTokenizer:
    return load_tokenizer()


@pytest.fixture(scope="module")
def upstream() -> MiniMindTokenizer:
    return load_tokenizer(GOLDEN / "tokenizer")


def golden(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / "dev" / f"{name}.json").read_text(encoding="utf-8"))
    return found


class ConstantRandom(random.Random):
    """Upstream's goldens were made with random.random() pinned to one value."""

    def __init__(self, value: float) -> None:
        super().__init__(0)
        self.value = value

    def random(self) -> float:
        return self.value


def write_lines(path: Path, *lines: object) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


@needs_golden
def test_pretraining_samples_equal_upstreams(upstream: MiniMindTokenizer) -> None:
    for row in golden("dev_pretrain_dataset")["rows"]:
        assert pretrain_sample(upstream, row["text"], row["max_length"]) == (row["input_ids"], row["labels"])


@needs_golden
def test_chat_samples_equal_upstreams(upstream: MiniMindTokenizer) -> None:
    for row in golden("dev_sft_mask")["rows"]:
        ids, labels = chat_sample(
            upstream,
            {"conversations": row["conversations"]},
            row["max_length"],
            variation=ChatVariation(system_ratio=0.2, empty_think_ratio=0.2),
            rng=ConstantRandom(row["random_value"]),
        )
        assert ids == row["input_ids"]
        assert labels == row["labels"]
        assert [int(label != IGNORED) for label in labels] == row["loss_mask"]


@needs_golden
def test_batches_come_in_upstreams_order() -> None:
    facts = golden("dev_sampler")
    for row in facts["rows"]:
        found = batch_indices(range(row["n"]), row["batch_size"], skip=row["skip_batches"])
        assert found == row["batches"] and len(found) == row["len"]
    for row in facts["randperm"]:
        assert epoch_order(row["n"], 0, seed=row["seed"]) == row["randperm"]


def test_order_depends_on_seed_and_epoch_alone() -> None:
    torch.manual_seed(1)
    first = epoch_order(20, 3)
    torch.manual_seed(2)
    assert epoch_order(20, 3) == first == epoch_order(20, 0, seed=45) != epoch_order(20, 4)


def test_padding_and_written_out_padding_carry_no_loss(tokenizer: MiniMindTokenizer) -> None:
    ids, labels = pretrain_sample(tokenizer, "x<|endoftext|>", 8)
    assert ids[0] == 1 and ids[2:] == [0, 2, 0, 0, 0, 0]
    assert labels[2:] == [IGNORED, 2, IGNORED, IGNORED, IGNORED, IGNORED]


def test_only_answers_carry_loss(tokenizer: MiniMindTokenizer) -> None:
    ids, labels = chat_sample(tokenizer, CHAT, 64)
    assert tokenizer.decode([label for label in labels if label != IGNORED]) == "A<|im_end|>\n"
    assert "<think>" not in tokenizer.decode(ids)


def test_a_conversation_beyond_the_length_has_no_label(tokenizer: MiniMindTokenizer) -> None:
    long = {"conversations": [{"role": "user", "content": "word " * 99}, {"role": "assistant", "content": "A"}]}
    assert set(chat_sample(tokenizer, long, 32)[1]) == {IGNORED}


def test_chats_vary_by_seed_and_row_only(tokenizer: MiniMindTokenizer, tmp_path: Path) -> None:
    records = open_jsonl(write_lines(tmp_path / "chat.jsonl", *[CHAT] * 30))
    variation = ChatVariation(system_ratio=0.5, empty_think_ratio=0.5)
    first, again, other = (
        ChatRows(tokenizer, records, length=64, variation=variation, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(stack(first, range(30))[0], stack(again, reversed(range(30)))[0].flip(0))
    assert not torch.equal(stack(first, range(30))[0], stack(other, range(30))[0])
    texts = {tokenizer.decode(first[index][0].tolist(), skip_special_tokens=True) for index in range(30)}
    assert any("<think>" in text for text in texts) and any("<think>" not in text for text in texts)
    assert any(text.startswith("system") for text in texts) and any(text.startswith("user") for text in texts)


def test_text_rows_read_records_by_offset(tokenizer: MiniMindTokenizer, tmp_path: Path) -> None:
    texts = ["first", "zweite Zeile é", "三"]
    records = open_jsonl(write_lines(tmp_path / "t.jsonl", *({"text": text} for text in texts), ""))
    rows = TextRows(tokenizer, RecordTexts(records), length=16)
    assert (records.kind, len(rows)) == ("text", 3)
    for index in (2, 0, 1):
        assert tokenizer.decode(rows[index][0].tolist(), skip_special_tokens=True) == texts[index]
    assert stack(rows, [0, 2])[1].shape == (2, 16)


@settings(max_examples=30, deadline=None)
@given(num_tokens=st.integers(2, 60), length=st.integers(2, 12))
def test_packed_rows_predict_every_token_once(num_tokens: int, length: int) -> None:
    stream = torch.arange(num_tokens)
    rows = PackedRows(stream, length=length, pad_id=0)
    ids, labels = stack(rows, range(len(rows)))
    assert ids.shape == labels.shape == (len(rows), length)
    targets = labels[:, 1:]
    assert targets[targets != IGNORED].tolist() == stream[1:].tolist()
    inputs = ids[:, :-1][targets != IGNORED]
    assert inputs.tolist() == stream[:-1].tolist()


def test_packing_frames_every_text(tokenizer: MiniMindTokenizer) -> None:
    rows = PackedRows.from_texts(tokenizer, ["a b", "c"], length=4)
    assert tokenizer.decode(rows.stream.tolist()) == "<|im_start|>a b<|im_end|><|im_start|>c<|im_end|>"
    with pytest.raises(ValueError, match="too few"):
        PackedRows.from_texts(tokenizer, [], length=4)
    with pytest.raises(IndexError):
        rows[len(rows)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"line 2: not JSON .*expected \{\"text\""),
        ("[1]", "line 2: a JSON list"),
        ({"txt": "x"}, r"line 2: fields \['txt'\]"),
        ({"text": 3}, "line 2: fields"),
        (CHAT, "line 2: a 'conversations' record, but the lines before are 'text' records"),
        ({"conversations": []}, "line 2: 'conversations' must be"),
        ({"conversations": [{"role": "human", "content": "x"}]}, "turn 1: role 'human' is not known; allowed: system,"),
        ({"conversations": ["x"]}, "turn 1: role 'x'"),
        ({"conversations": [{"role": "user", "content": ["x"]}]}, "'content' must be a text, not list"),
        ({"conversations": [{"role": "system", "content": "", "tools": "[{"}]}, "'tools' is not JSON"),
        ({"conversations": [{"role": "user", "content": "", "tool_calls": "{}"}]}, "'tool_calls' must be a list"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: object, message: str) -> None:
    path = write_lines(tmp_path / "data.jsonl", {"text": "fine"}, line)
    with pytest.raises(DataError, match=message) as caught:
        open_jsonl(path)
    assert str(path) in str(caught.value)


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl'"):
        open_jsonl(tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match="no records"):
        open_jsonl(write_lines(tmp_path / "empty.jsonl", ""))
    with pytest.raises(DataError, match=r"nowhere\.txt'"):
        read_text(tmp_path / "nowhere.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match="not UTF-8"):
        read_text(tmp_path / "latin.txt")
    with pytest.raises(DataError, match="no text"):
        read_text(write_lines(tmp_path / "blank.txt", " "))


def test_text_files_lose_their_byte_order_mark_and_carriage_returns(tmp_path: Path) -> None:
    (tmp_path / "windows.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert read_text(tmp_path / "windows.txt") == "one\ntwo\n"
