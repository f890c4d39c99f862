"""Turns records into rows of token ids and labels, and rows into batches.

    rows = PackedRows.from_texts(tokenizer, ["one text", "another"], length=256)
    rows = TextRows(tokenizer, texts, length=340)              # MiniMind's pretraining samples
    rows = ChatRows(tokenizer, open_jsonl(path), length=768)   # MiniMind's SFT samples
    input_ids_BT, labels_BT = stack(rows, [0, 1, 2])

Legend: B rows of a batch, T positions. Labels are the ids themselves, IGNORED where no loss is wanted; the model shifts
them by one. Source of the sample rules: upstream `dataset/lm_dataset.py` at d65ef2c.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor

from minimind.data.records import JsonlRecords, chat_messages
from minimind.tokenizer import MiniMindTokenizer

IGNORED = -100
_EMPTY_THINK = "<think>\n\n</think>\n\n"


class Rows(Protocol):
    """Anything that gives rows of equal length."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Ids and labels of one row, each int64 [T]."""


class SizedTexts(Protocol):
    """Texts by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatVariation:
    """Chances with which SFT samples are varied; the default varies nothing (upstream: 0.2 and 0.2).

    system_ratio: chance of a system prompt from `system_prompts` where a conversation without tools has none.
    empty_think_ratio: chance of keeping the empty `<think>` blocks that the template writes; otherwise they go.
    """

    system_ratio: float = 0.0
    empty_think_ratio: float = 0.0
    system_prompts: tuple[str, ...] = (
        "You are MiniMind, a small language model. Answer helpfully.",
        "Answer the user's questions truthfully and briefly.",
        "你是 MiniMind，一个小型语言模型，请尽力回答用户的问题。",
    )


AS_WRITTEN = ChatVariation()


def pretrain_sample(tokenizer: MiniMindTokenizer, text: str, length: int) -> tuple[list[int], list[int]]:
    """Ids and labels of one pretraining sample: begin, at most length - 2 ids of the text, end, padding to `length`.

    NOTE: as upstream, every padding id is without loss, also one that was written out in the text.
    """
    ids = [tokenizer.bos_id, *tokenizer.encode(text)[: length - 2], tokenizer.eos_id]
    ids += [tokenizer.pad_id] * (length - len(ids))
    return ids, [IGNORED if token_id == tokenizer.pad_id else token_id for token_id in ids]


def chat_sample(
    tokenizer: MiniMindTokenizer,
    record: dict[str, Any],
    length: int,
    *,
    variation: ChatVariation = AS_WRITTEN,
    rng: random.Random | None = None,
) -> tuple[list[int], list[int]]:
    """Ids and labels of one SFT sample: the rendered conversation, cut and padded to `length`; loss on answers only.

    rng draws the variation. NOTE: a conversation whose answers lie beyond `length` has no label at all.
    """
    rng = rng or random.Random(0)
    ids = tokenizer.encode(chat_text(tokenizer, record, variation=variation, rng=rng))[:length]
    ids += [tokenizer.pad_id] * (length - len(ids))
    return ids, answer_labels(tokenizer, ids)


def chat_text(
    tokenizer: MiniMindTokenizer, record: dict[str, Any], *, variation: ChatVariation, rng: random.Random
) -> str:
    """The conversation as text after the chat template and the variation drawn from `rng`."""
    messages, tools = chat_messages(record)
    plain = not any(message.get("tools") for message in messages)
    if plain and messages[0].get("role") != "system" and rng.random() < variation.system_ratio:
        messages = [{"role": "system", "content": rng.choice(variation.system_prompts)}, *messages]
    text = tokenizer.render_chat(messages, tools=tools)
    keeps = variation.empty_think_ratio > 0 and _EMPTY_THINK in text and rng.random() <= variation.empty_think_ratio
    return text if keeps else text.replace(_EMPTY_THINK, "")


def answer_labels(tokenizer: MiniMindTokenizer, ids: Sequence[int]) -> list[int]:
    """Labels that keep what follows each `<|im_start|>assistant\\n`, up to and including its `<|im_end|>\\n`."""
    opening = [tokenizer.bos_id, *tokenizer.encode("assistant\n")]
    closing = [tokenizer.eos_id, *tokenizer.encode("\n")]
    ids = list(ids)
    labels = [IGNORED] * len(ids)
    position = 0
    while position < len(ids):
        if ids[position : position + len(opening)] != opening:
            position += 1
            continue
        start = position + len(opening)
        end = next((at for at in range(start, len(ids)) if ids[at : at + len(closing)] == closing), len(ids))
        position = end + len(closing)
        labels[start:position] = ids[start:position]
    return labels


class TextRows:
    """One pretraining sample per text, padded to `length`."""

    def __init__(self, tokenizer: MiniMindTokenizer, texts: SizedTexts, *, length: int) -> None:
        self.tokenizer, self.texts, self.length = tokenizer, texts, _checked_length(length, 3)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return _tensors(pretrain_sample(self.tokenizer, self.texts[index], self.length))


class RecordTexts:
    """The `text` fields of a jsonl file, by index."""

    def __init__(self, records: JsonlRecords) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int, /) -> str:
        return str(self.records[index]["text"])


class ChatRows:
    """One SFT sample per conversation, padded to `length`; a row varies by (seed, index) only."""

    def __init__(
        self,
        tokenizer: MiniMindTokenizer,
        records: JsonlRecords,
        *,
        length: int,
        variation: ChatVariation = AS_WRITTEN,
        seed: int = 42,
    ) -> None:
        self.tokenizer, self.records, self.length = tokenizer, records, _checked_length(length, 3)
        self.variation, self.seed = variation, seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        rng = random.Random(f"{self.seed}/{index}")
        record = self.records[index]
        return _tensors(chat_sample(self.tokenizer, record, self.length, variation=self.variation, rng=rng))


class PackedRows:
    """Texts joined to one stream and cut into rows of `length`, without padding except in the last row.

    Neighbouring rows share one token: the last of a row is the first of the next, so that every token but the stream's
    first is predicted exactly once.
    """

    def __init__(self, stream: Tensor, *, length: int, pad_id: int) -> None:
        self.stream, self.length, self.pad_id = stream, _checked_length(length, 2), pad_id
        if len(stream) < 2:
            raise ValueError(f"{len(stream)} tokens are too few to predict one from another")

    @classmethod
    def from_texts(cls, tokenizer: MiniMindTokenizer, texts: Iterable[str], *, length: int) -> PackedRows:
        """Join texts, each between a begin and an end token."""
        pieces = [torch.empty(0, dtype=torch.int32)]
        for chunk in _chunks(texts, 256):
            for ids in tokenizer.encode_batch(chunk):
                pieces.append(torch.tensor([tokenizer.bos_id, *ids, tokenizer.eos_id], dtype=torch.int32))
        return cls(torch.cat(pieces), length=length, pad_id=tokenizer.pad_id)

    def __len__(self) -> int:
        return math.ceil((len(self.stream) - 1) / (self.length - 1))

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        start = range(len(self))[index] * (self.length - 1)
        ids = self.stream[start : start + self.length].to(torch.int64)
        missing = self.length - len(ids)
        if not missing:
            return ids, ids.clone()
        padding = ids.new_full((missing,), self.pad_id)
        return torch.cat((ids, padding)), torch.cat((ids, torch.full_like(padding, IGNORED)))


def stack(rows: Rows, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The batch of these rows: input_ids [B, T] and labels [B, T], int64."""
    found = [rows[index] for index in indices]
    return torch.stack([ids for ids, _ in found]), torch.stack([labels for _, labels in found])


def epoch_order(num_rows: int, epoch: int, *, seed: int = 42) -> list[int]:
    """The order of rows in an epoch (0-based): a permutation drawn from seed + epoch, as upstream."""
    generator = torch.Generator().manual_seed(seed + epoch)
    order: list[int] = torch.randperm(num_rows, generator=generator).tolist()
    return order


def batch_indices(order: Sequence[int], batch_size: int, *, skip: int = 0) -> list[list[int]]:
    """`order` cut into batches, the last one short if need be, without the first `skip` (those that are done)."""
    return [list(order[at : at + batch_size]) for at in range(skip * batch_size, len(order), batch_size)]


def _chunks(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    remaining = iter(texts)
    while chunk := list(islice(remaining, size)):
        yield chunk


def _checked_length(length: int, least: int) -> int:
    if length < least:
        raise ValueError(f"length must be at least {least}, not {length}")
    return length


def _tensors(sample: tuple[list[int], list[int]]) -> tuple[Tensor, Tensor]:
    ids, labels = sample
    return torch.tensor(ids, dtype=torch.int64), torch.tensor(labels, dtype=torch.int64)
