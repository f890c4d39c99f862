"""MiniMind's tokenizer: byte-level BPE with ChatML turns, over the `tokenizers` library. No torch, no transformers.

    from minimind.tokenizer import load_tokenizer
    tokenizer = load_tokenizer()                      # the embedded one; or a folder, or a tokenizer.json
    ids = tokenizer.encode("def main():\\n")
    text = tokenizer.decode(ids)
    prompt = tokenizer.render_chat([{"role": "user", "content": "Hi"}], add_generation_prompt=True)

Ids 0 to 35 are reserved, in MiniMind-3's order (upstream `trainer/train_tokenizer.py`): 0 `<|endoftext|>` pads, 1
`<|im_start|>` begins and 2 `<|im_end|>` ends a text or a turn. Refuses (TokenizerError): a missing or damaged file, a
file without the begin, end or padding token, a conversation that the chat template cannot render.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from minimind.chat_format import CHAT_TEMPLATE

if TYPE_CHECKING:
    from jinja2 import Template

ASSETS = Path(__file__).parent / "assets"
VOCAB_SIZE = 6400

PAD, BEGIN, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS: tuple[str, ...] = (
    PAD,
    BEGIN,
    END,
    *(f"<|{kind}_{edge}|>" for kind in ("object_ref", "box", "quad", "vision") for edge in ("start", "end")),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", "<|audio_start|>", "<|audio_end|>", "<|audio_pad|>"),
    *("<tts_pad>", "<tts_text_bos>", "<tts_text_eod>", "<tts_text_bos_single>"),
)
MARKUP_TOKENS: tuple[str, ...] = tuple(
    f"<{slash}{name}>" for name in ("tool_call", "tool_response", "think") for slash in ("", "/")
)
RESERVED_TOKENS: tuple[str, ...] = (
    *SPECIAL_TOKENS,
    *MARKUP_TOKENS,
    *(f"<|buffer{number}|>" for number in range(1, 10)),
)

Message = Mapping[str, Any]


class TokenizerError(ValueError):
    """A tokenizer that cannot be read, or a conversation that its chat template cannot render."""


class MiniMindTokenizer:
    """A `tokenizers.Tokenizer` with MiniMind's special ids and chat template.

    backend: the tokenizer proper. settings: the content of tokenizer_config.json (may be empty).
    """

    def __init__(self, backend: Tokenizer, settings: Mapping[str, Any] | None = None) -> None:
        self.backend = backend
        self.settings: Mapping[str, Any] = settings or {}
        self.pad_id = self._required_id("pad_token", PAD)
        self.bos_id = self._required_id("bos_token", BEGIN)
        self.eos_id = self._required_id("eos_token", END)

    def _required_id(self, setting: str, default: str) -> int:
        token = self.settings.get(setting) or default
        content = token["content"] if isinstance(token, Mapping) else token
        token_id = self.backend.token_to_id(str(content))
        if token_id is None:
            raise TokenizerError(f"the tokenizer has no {setting} '{content}'")
        return token_id

    @property
    def vocab_size(self) -> int:
        """Number of ids, reserved ones included."""
        return self.backend.get_vocab_size()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (64 hex digits) of the vocabulary and merges: perplexity per token compares only where it agrees."""
        vocabulary = sorted(self.backend.get_vocab().items(), key=lambda item: item[1])
        merges = json.loads(self.backend.to_str())["model"].get("merges", [])
        # Older files write a merge as "a b", newer ones as ["a", "b"].
        pairs = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
        return hashlib.sha256(json.dumps([vocabulary, pairs]).encode()).hexdigest()

    @cached_property
    def byte_lengths(self) -> tuple[int, ...]:
        """Bytes of text behind every id [vocab_size]; special tokens stand for structure and count 0.

        Makes bits per byte comparable between tokenizers. Exact for byte-level BPE: a piece has a letter per byte.
        """
        added = self.backend.get_added_tokens_decoder()
        lengths = []
        for token_id in range(self.vocab_size):
            token = added.get(token_id)
            if token is not None:
                lengths.append(0 if token.special else len(token.content.encode()))
            else:
                lengths.append(len(self.backend.id_to_token(token_id) or ""))
        return tuple(lengths)

    def encode(self, text: str) -> list[int]:
        """Ids of a text. Nothing is added; special tokens written out in the text become their ids, as upstream."""
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many texts; the library spreads them over the cores."""
        return [list(found.ids) for found in self.backend.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Text of ids; incomplete characters show as U+FFFD. Raises TokenizerError for ids outside the vocabulary."""
        unknown = [token_id for token_id in ids if not 0 <= token_id < self.vocab_size]
        if unknown:
            raise TokenizerError(f"token id {unknown[0]} is outside the vocabulary of {self.vocab_size}")
        return str(self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def render_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        open_thinking: bool = False,
    ) -> str:
        """The text of a conversation after the tokenizer's own chat template.

        messages: `role` and `content`, for assistants also `reasoning_content` and `tool_calls`. tools: JSON schemas of
        functions. add_generation_prompt: end with an open assistant turn, its thinking left open with open_thinking.
        Raises TokenizerError if there is no template or it cannot render the messages.
        """
        from jinja2.exceptions import TemplateError

        try:
            text: str = self._chat_template.render(
                messages=list(messages),
                tools=list(tools) if tools else None,
                add_generation_prompt=add_generation_prompt,
                open_thinking=open_thinking,
            )
            return text
        except (TemplateError, TypeError, IndexError) as error:
            raise TokenizerError(f"the chat template cannot render this conversation: {error}") from error

    @cached_property
    def _chat_template(self) -> Template:
        # Imported here: encoding needs no templates. Sandboxed: a user's tokenizer brings its own template.
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        source = self.settings.get("chat_template")
        if not isinstance(source, str):
            raise TokenizerError("the tokenizer has no chat template: tokenizer_config.json lacks 'chat_template'")
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.filters["tojson"] = _to_json  # jinja2's own escapes HTML, which a model must not see
        return environment.from_string(source)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which upstream and Transformers read, each whole or not."""
        folder.mkdir(parents=True, exist_ok=True)
        settings = json.dumps(self.settings, ensure_ascii=False, indent=2)
        for name, text in (("tokenizer.json", self.backend.to_str(pretty=True)), ("tokenizer_config.json", settings)):
            temporary = folder / f".{name}.{os.getpid()}.tmp"
            temporary.write_text(text + "\n", encoding="utf-8")
            temporary.replace(folder / name)


def load_tokenizer(path: str | Path | None = None) -> MiniMindTokenizer:
    """Read a tokenizer: the embedded one (None), a folder, or a tokenizer.json (tokenizer_config.json beside it).

    Raises TokenizerError naming the file that is missing or damaged.
    """
    folder = ASSETS if path is None else Path(path)
    file = folder / "tokenizer.json" if folder.is_dir() else folder
    if not file.is_file():
        raise TokenizerError(f"no tokenizer at '{folder}': expected a folder with tokenizer.json, or that file")
    try:
        backend = Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # NOTE: the library raises bare Exception for a damaged file
        raise TokenizerError(f"'{file}' is not a tokenizer.json: {error}") from error
    return MiniMindTokenizer(backend, _read_settings(file.with_name("tokenizer_config.json")))


def train_tokenizer(documents: Iterable[str], *, vocab_size: int = VOCAB_SIZE) -> MiniMindTokenizer:
    """Train byte-level BPE on texts, with the reserved ids first and the settings of the embedded tokenizer.

    The same texts in the same order give the same tokenizer. vocab_size counts reserved tokens and the 256 bytes, and
    so is at least 292; fewer ids come out if the texts offer no more merges. Raises ValueError for a smaller size.
    Source: upstream `trainer/train_tokenizer.py`.
    """
    smallest = len(RESERVED_TOKENS) + 256
    if vocab_size < smallest:
        raise ValueError(f"vocab_size {vocab_size} is too small: the reserved tokens and the bytes take {smallest}")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[
            AddedToken(token, special=token in SPECIAL_TOKENS, normalized=False) for token in RESERVED_TOKENS
        ],
    )
    backend.train_from_iterator(documents, trainer=trainer)
    return MiniMindTokenizer(_with_flags(backend), default_settings())


def default_settings() -> dict[str, Any]:
    """The tokenizer_config.json of a tokenizer trained here, with `minimind.chat_format`'s template.

    The fields are those that Transformers' PreTrainedTokenizerFast reads.
    """
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": PAD,
        "unk_token": PAD,
        "add_bos_token": False,
        "add_eos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "additional_special_tokens": [token for token in SPECIAL_TOKENS if token != PAD],
        "model_max_length": 32768,
        "chat_template": CHAT_TEMPLATE,
    }


def _with_flags(backend: Tokenizer) -> Tokenizer:
    """The same tokenizer with `special` as declared: the trainer marks every reserved token special."""
    content = json.loads(backend.to_str())
    for token in content["added_tokens"]:
        token["special"] = token["content"] in SPECIAL_TOKENS
    return Tokenizer.from_str(json.dumps(content))


def _read_settings(file: Path) -> dict[str, Any]:
    """The content of tokenizer_config.json, with a chat_template.jinja beside it (Transformers 5's layout) put in."""
    settings: dict[str, Any] = {}
    if file.is_file():
        try:
            loaded = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise TokenizerError(f"'{file}' is not JSON: {error}") from error
        if not isinstance(loaded, dict):
            raise TokenizerError(f"'{file}' holds {type(loaded).__name__}, expected a JSON object")
        settings = loaded
    template = file.with_name("chat_template.jinja")
    if "chat_template" not in settings and template.is_file():
        settings["chat_template"] = template.read_text(encoding="utf-8")
    return settings


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
