"""What the verbs share: flags for model, tokenizer, data and device, and opening what they name.

Everything that a user can get wrong here ends as a UsageError that names the value and the allowed ones. Torch is
imported inside the functions that need it, so that `--help` stays fast.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minimind.config import PRESETS, MiniMindConfig
from minimind.data.corpus import Split, file_fingerprint, read_corpus
from minimind.data.records import DataError, is_jsonl, open_jsonl, read_text

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from minimind.data.samples import ChatVariation, Rows
    from minimind.model import MiniMindForCausalLM
    from minimind.tokenizer import MiniMindTokenizer

EMBEDDED = "embedded"
EMBEDDED_WEIGHTS = Path(__file__).parent.parent / "assets" / "tiny.safetensors"
LAYOUTS = ("packed", "padded")


class UsageError(ValueError):
    """A name or value from the user that is not allowed: exit code 2."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """Rows to train or evaluate on, and what identifies their text. name: `corpus/train`, or a file's path."""

    rows: Rows
    name: str
    layout: str
    fingerprint: str


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """--weights, --preset, --tokenizer, --seed, --device, --threads."""
    parser.add_argument("--weights", metavar="PATH", type=Path, help=".pth, safetensors or a Transformers folder")
    parser.add_argument(
        "--preset", metavar="NAME", help=f"model shape: {', '.join(PRESETS)}; without --weights, random weights"
    )
    parser.add_argument(
        "--tokenizer", metavar="PATH", help=f"folder or tokenizer.json; '{EMBEDDED}'; default: beside the weights"
    )
    add_run_flags(parser)


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """--seed, --device, --threads."""
    parser.add_argument("--seed", type=int, metavar="N", help="seed of everything random (default 42)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default cpu)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """--data, --layout."""
    parser.add_argument(
        "--data", metavar="FILE", type=Path, help="MiniMind's jsonl or plain text; default: the embedded corpus"
    )
    parser.add_argument(
        "--layout",
        choices=LAYOUTS,
        help="packed: texts joined and cut (default for text and the corpus); padded: a row each (default for jsonl)",
    )


def select_device(args: argparse.Namespace) -> torch.device:
    """The device named by --device, after setting --threads. Refuses unknown devices and CUDA where there is none."""
    import torch

    if args.threads is not None:
        if args.threads < 1:
            raise UsageError(f"--threads must be at least 1, not {args.threads}")
        torch.set_num_threads(args.threads)
    try:
        device = torch.device(args.device)
    except RuntimeError as error:
        raise UsageError(f"unknown device '{args.device}'; allowed: cpu, cuda, cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device '{args.device}' is not supported; allowed: cpu, cuda, cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise UsageError(f"device '{args.device}' is not there: this machine offers {count} CUDA devices")
    return device


def preset(name: str) -> MiniMindConfig:
    """The config of a preset. Refuses unknown names."""
    if name not in PRESETS:
        raise UsageError(f"unknown preset '{name}'; known: {', '.join(PRESETS)}")
    return PRESETS[name]


def open_tokenizer(path: str | None, weights: Path | None) -> MiniMindTokenizer:
    """The tokenizer named by --tokenizer, else the one beside the weights, else (no weights named) the embedded one."""
    from minimind.tokenizer import TokenizerError, load_tokenizer

    try:
        if path is not None:
            return load_tokenizer(None if path == EMBEDDED else path)
        if weights is None:
            return load_tokenizer()
        folder = weights if weights.is_dir() else weights.parent
        if weights.exists() and not (folder / "tokenizer.json").is_file():
            # The embedded tokenizer may have the same size and quite other pieces: never assume it.
            raise UsageError(f"no tokenizer.json beside '{weights}': name one with --tokenizer (or '{EMBEDDED}')")
        return load_tokenizer(folder)
    except TokenizerError as error:
        raise UsageError(str(error)) from error


def read_weights(weights: Path, preset_name: str | None) -> tuple[MiniMindConfig, Mapping[str, Tensor]]:
    """Config and state dict of a weights file or folder; --preset replaces a config that its shapes cannot tell."""
    from minimind.checkpoint import CheckpointError, load_weights

    try:
        config, state = load_weights(weights)
    except CheckpointError as error:
        raise UsageError(str(error)) from error
    return config if preset_name is None else preset(preset_name), state


def build_model(
    config: MiniMindConfig, state: Mapping[str, Tensor] | None, *, seed: int, device: torch.device, name: str
) -> MiniMindForCausalLM:
    """A model in fp32 on `device`, with these weights or random ones drawn from `seed`."""
    import torch

    from minimind.model import MiniMindForCausalLM

    torch.manual_seed(seed)
    model = MiniMindForCausalLM(config)
    if state is not None:
        try:
            model.load_state_dict(state)
        except (RuntimeError, ValueError) as error:
            lines = [line.strip() for line in str(error).splitlines()]
            reason = lines[1] if len(lines) > 1 else lines[0]
            raise UsageError(f"the weights of '{name}' do not fit the model shape: {reason[:300]}") from error
    return model.to(device)


def open_model(args: argparse.Namespace, device: torch.device) -> tuple[MiniMindForCausalLM, MiniMindTokenizer, str]:
    """Model in evaluation mode, tokenizer and the model's name, from --weights, --preset and --tokenizer.

    With neither weights nor preset: the embedded tiny model.
    """
    seed = 42 if args.seed is None else args.seed
    if args.weights is None and args.preset is not None:
        config, state, name = preset(args.preset), None, f"{args.preset} (random weights)"
    else:
        path = args.weights or EMBEDDED_WEIGHTS
        config, state = read_weights(path, args.preset)
        name = str(args.weights or f"tiny ({EMBEDDED})")
    tokenizer = open_tokenizer(args.tokenizer, args.weights)
    check_vocabulary(tokenizer, config)
    return build_model(config, state, seed=seed, device=device, name=name).eval(), tokenizer, name


def check_vocabulary(tokenizer: MiniMindTokenizer, config: MiniMindConfig) -> None:
    """Refuse a tokenizer whose number of ids is not the model's."""
    if tokenizer.vocab_size != config.vocab_size:
        raise UsageError(
            f"the tokenizer has {tokenizer.vocab_size} ids and the model {config.vocab_size}: "
            "name the model's own with --tokenizer"
        )


def open_dataset(
    tokenizer: MiniMindTokenizer,
    path: Path | None,
    *,
    split: Split,
    length: int,
    layout: str | None = None,
    variation: ChatVariation | None = None,
    seed: int = 42,
) -> Dataset:
    """Rows from a data file, or from a split of the embedded corpus where `path` is None."""
    from minimind.data.samples import AS_WRITTEN, ChatRows, PackedRows, RecordTexts, TextRows

    rows: Rows
    try:
        if path is None:
            corpus = read_corpus(split)
            for skipped in corpus.skipped:
                print(f"corpus: skipped {skipped.name}: {skipped.reason}", file=sys.stderr)
            name, fingerprint, layout = f"corpus/{split}", corpus.fingerprint, layout or "packed"
            texts: Any = [document.text for document in corpus.documents]
        elif is_jsonl(path):
            records = open_jsonl(path)
            name, fingerprint, layout = str(path), file_fingerprint(path), layout or "padded"
            if records.kind == "conversations":
                if layout == "packed":
                    raise UsageError(f"{path}: conversations cannot be packed; use --layout padded")
                rows = ChatRows(tokenizer, records, length=length, variation=variation or AS_WRITTEN, seed=seed)
                return Dataset(rows, name, layout, fingerprint)
            texts = RecordTexts(records)
        else:
            text = read_text(path)
            name, fingerprint, layout = str(path), file_fingerprint(path), layout or "packed"
            texts = [text] if layout == "packed" else [line for line in text.splitlines() if line.strip()]
        if layout == "packed":
            rows = PackedRows.from_texts(tokenizer, (texts[index] for index in range(len(texts))), length=length)
        else:
            rows = TextRows(tokenizer, texts, length=length)
    except UsageError:
        raise
    except DataError as error:
        raise UsageError(str(error)) from error
    except ValueError as error:
        raise UsageError(f"{path or 'the corpus'}: {error}") from error
    return Dataset(rows, name, layout, fingerprint)


def with_vocabulary(config: MiniMindConfig, tokenizer: MiniMindTokenizer) -> MiniMindConfig:
    """The config for training from random weights with this tokenizer: its vocabulary counts, and is told."""
    if tokenizer.vocab_size == config.vocab_size:
        return config
    print(f"vocab_size {config.vocab_size} becomes {tokenizer.vocab_size}, the tokenizer's", file=sys.stderr)
    return dataclasses.replace(config, vocab_size=tokenizer.vocab_size)
