"""The tokenizer: reserved ids, round trips, the chat template, and upstream's own results where they are at hand."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimind.chat_format import CHAT_TEMPLATE
from minimind.tokenizer import (
    ASSETS,
    RESERVED_TOKENS,
    SPECIAL_TOKENS,
    MiniMindTokenizer,
    TokenizerError,
    default_settings,
    load_tokenizer,
    train_tokenizer,
)

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="upstream's golden data is not beside this checkout")

TOOLS = [{"type": "function", "function": {"name": "fetch", "description": 'a <b> "c" é'}}]
CALLS = [{"name": "f", "arguments": {}}]


@pytest.fixture(scope="module")
def embedded() -> MiniMindTokenizer:
    return load_tokenizer()


@pytest.fixture(scope="module")
def upstream() -> MiniMindTokenizer:
    return load_tokenizer(GOLDEN / "tokenizer")


def golden(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / "dev" / f"{name}.json").read_text(encoding="utf-8"))
    return found


def test_reserved_ids_are_minimind_3s(embedded: MiniMindTokenizer) -> None:
    assert embedded.vocab_size == 6400
    assert len(RESERVED_TOKENS) == 36
    assert [embedded.backend.token_to_id(token) for token in RESERVED_TOKENS] == list(range(36))
    assert (embedded.pad_id, embedded.bos_id, embedded.eos_id) == (0, 1, 2)
    flags = {token.content: token.special for token in embedded.backend.get_added_tokens_decoder().values()}
    assert flags == {token: token in SPECIAL_TOKENS for token in RESERVED_TOKENS}
    assert embedded.encode("<|im_start|>user<think></think><tool_call><|buffer9|>")[0::2] == [1, 25, 21]


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=40))
def test_decoding_gives_the_text_back(text: str) -> None:
    tokenizer = load_tokenizer_once()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert sum(tokenizer.byte_lengths[token_id] for token_id in ids) == len(text.encode())


def load_tokenizer_once(kept: list[MiniMindTokenizer] = []) -> MiniMindTokenizer:  # noqa: B006
    """Hypothesis calls the test a hundred times; a fixture would do, but not under its health checks."""
    if not kept:
        kept.append(load_tokenizer())
    return kept[0]


def test_special_tokens_stand_for_no_bytes(embedded: MiniMindTokenizer) -> None:
    assert embedded.byte_lengths[:3] == (0, 0, 0)
    assert embedded.byte_lengths[25] == len("<think>")


def test_decode_refuses_ids_outside_the_vocabulary(embedded: MiniMindTokenizer) -> None:
    with pytest.raises(TokenizerError, match="6400 is outside"):
        embedded.decode([5, 6400])


def test_batches_equal_single_texts(embedded: MiniMindTokenizer) -> None:
    texts = ["import os\n", "", "é" * 9]
    assert embedded.encode_batch(texts) == [embedded.encode(text) for text in texts]


def test_training_is_deterministic_and_saves_what_it_trained(tmp_path: Path) -> None:
    texts = ["def f(x):\n    return x\n" * 5, "for item in items: print(item)"]
    first, second = (train_tokenizer(texts, vocab_size=310) for _ in range(2))
    assert first.backend.to_str() == second.backend.to_str()
    assert first.vocab_size == 310
    first.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.fingerprint == first.fingerprint != load_tokenizer_once().fingerprint
    assert loaded.encode(texts[0]) == first.encode(texts[0])
    assert loaded.settings == default_settings()
    assert load_tokenizer(tmp_path / "tokenizer.json").vocab_size == 310


def test_training_refuses_a_vocabulary_smaller_than_the_bytes() -> None:
    with pytest.raises(ValueError, match="take 292"):
        train_tokenizer(["x"], vocab_size=291)


def test_the_committed_settings_are_what_training_writes(embedded: MiniMindTokenizer) -> None:
    assert json.loads((ASSETS / "tokenizer_config.json").read_text(encoding="utf-8")) == default_settings()
    assert embedded.settings["chat_template"] == CHAT_TEMPLATE


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="nowhere"):
        load_tokenizer(tmp_path / "nowhere")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"is not a tokenizer\.json"):
        load_tokenizer(tmp_path)
    load_tokenizer().save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(TokenizerError, match="expected a JSON object"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    with pytest.raises(TokenizerError, match="no eos_token '</s>'"):
        load_tokenizer(tmp_path)


def test_conversations_that_cannot_be_rendered_are_refused(embedded: MiniMindTokenizer) -> None:
    with pytest.raises(TokenizerError, match="no chat template"):
        MiniMindTokenizer(embedded.backend).render_chat([{"role": "user", "content": "x"}])
    with pytest.raises(TokenizerError, match="cannot render"):
        embedded.render_chat([])


def test_a_template_cannot_reach_into_python(embedded: MiniMindTokenizer) -> None:
    hostile = MiniMindTokenizer(embedded.backend, {"chat_template": "{{ messages.__class__.__mro__ }}"})
    with pytest.raises(TokenizerError, match="cannot render"):
        hostile.render_chat([{"role": "user", "content": "x"}])


def test_conversation_with_tools_and_thinking(embedded: MiniMindTokenizer) -> None:
    text = embedded.render_chat(
        [
            {"role": "system", "content": "Short."},
            {"role": "user", "content": "Q"},
            {
                "role": "assistant",
                "content": "A",
                "reasoning_content": "why",
                "tool_calls": [{"name": "f", "arguments": {}}],
            },
            {"role": "tool", "content": "1"},
            {"role": "tool", "content": "2"},
        ],
        tools=TOOLS,
        add_generation_prompt=True,
        open_thinking=True,
    )
    assert text.startswith("<|im_start|>system\nShort.\n\n# Tools\n\n")
    assert '"description": "a <b> \\"c\\" é"' in text
    assert "<|im_start|>assistant\n<think>\nwhy\n</think>\n\nA\n<tool_call>\n" in text
    results = "<|im_start|>user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response><|im_end|>\n"
    assert text.endswith(results + "<|im_start|>assistant\n<think>\n")


@needs_golden
def test_reserved_tokens_are_those_of_upstreams_file() -> None:
    added = json.loads((GOLDEN / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    assert [token["content"] for token in added] == list(RESERVED_TOKENS)
    assert [token["special"] for token in added] == [token in SPECIAL_TOKENS for token in RESERVED_TOKENS]


@needs_golden
def test_upstreams_tokenizer_gives_upstreams_ids(upstream: MiniMindTokenizer) -> None:
    for row in golden("dev_tokenizer")["rows"]:
        assert upstream.encode(row["text"]) == row["ids"]
        assert upstream.decode(row["ids"]) == row["decoded"]
        assert upstream.decode(row["ids"], skip_special_tokens=True) == row["decoded_skip_special"]


@needs_golden
def test_both_templates_render_the_golden_conversations(upstream: MiniMindTokenizer) -> None:
    ours = MiniMindTokenizer(upstream.backend, default_settings())
    for row in golden("dev_chat_template")["rows"]:
        for tokenizer in (upstream, ours):
            text = tokenizer.render_chat(row["messages"], tools=row["tools"], **row["kwargs"])
            assert text == row["rendered"]
            assert tokenizer.encode(text) == row["ids"]


@needs_golden
def test_our_template_equals_upstreams_on_random_conversations(upstream: MiniMindTokenizer) -> None:
    ours = MiniMindTokenizer(upstream.backend, default_settings())
    rng = random.Random(7)
    for _ in range(400):
        messages = [_random_message(rng) for _ in range(rng.randint(1, 6))]
        options: dict[str, Any] = {
            "tools": rng.choice([None, [], TOOLS, [{"name": "x"}, *TOOLS]]),
            "add_generation_prompt": rng.random() < 0.5,
            "open_thinking": rng.random() < 0.5,
        }
        assert ours.render_chat(messages, **options) == upstream.render_chat(messages, **options)


def _random_message(rng: random.Random) -> dict[str, Any]:
    contents = ["", "\n", "plain", "\n\nspaced\n", "<think>\nx\n</think>\n\ny", "</think>", "<think>q", "{}"]
    calls = [[], [{"name": "f", "arguments": {"k": "<é>"}}], [{"function": {"name": "g", "arguments": "{}"}}] * 2]
    message: dict[str, Any] = {
        "role": rng.choice(["system", "user", "assistant", "tool", "other"]),
        "content": rng.choice(contents),
    }
    if message["role"] != "system" and rng.random() < 0.1:
        message["content"] = None
    if message["role"] == "assistant":
        if rng.random() < 0.4:
            message["reasoning_content"] = rng.choice(contents)
        if rng.random() < 0.5:
            message["tool_calls"] = rng.choice(calls)
    return message
