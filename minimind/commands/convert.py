"""Write a model in another program's file format: GGUF, Transformers, ONNX, safetensors."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from minimind.commands import inputs
from minimind.commands.inputs import UsageError

if TYPE_CHECKING:
    from minimind.model import MiniMindForCausalLM
    from minimind.tokenizer import MiniMindTokenizer

# format -> the number formats that it can hold
FORMATS: dict[str, tuple[str, ...]] = {
    "gguf": ("f32", "f16", "bf16", "q8_0", "q4_0"),
    "transformers": ("f32", "f16", "bf16"),
    "onnx": ("f32",),
    "safetensors": ("f32", "f16", "bf16"),
}
_TORCH_NAMES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `minimind.commands`."""
    inputs.add_model_flags(parser)
    parser.add_argument("--to", required=True, choices=FORMATS, help="file format")
    parser.add_argument("--out", required=True, metavar="PATH", type=Path, help="file to write; transformers: folder")
    parser.add_argument("--dtype", default="f32", help="f32 (default), f16, bf16; gguf also q8_0, q4_0; onnx only f32")


def run(args: argparse.Namespace) -> int:
    """See `minimind.commands`."""
    if args.dtype not in FORMATS[args.to]:
        raise UsageError(f"{args.to} has no dtype '{args.dtype}'; known: {', '.join(FORMATS[args.to])}")
    if args.out.exists():
        raise UsageError(f"'{args.out}' is already there: name another path with --out")
    if not args.out.parent.is_dir():
        raise UsageError(f"the folder of '{args.out}' does not exist")
    model, tokenizer, name = inputs.open_model(args, inputs.select_device(args))
    started = time.perf_counter()
    try:
        _write(args, model.cpu(), tokenizer, name)
    except ValueError as error:
        raise UsageError(f"cannot write {name} as {args.to}: {error}") from error
    paths = sorted(args.out.iterdir()) if args.out.is_dir() else [args.out]
    for path in paths:
        print(f"{path}\t{path.stat().st_size} bytes")
    print(f"written in {time.perf_counter() - started:.1f} s", file=sys.stderr)
    return 0


def _write(args: argparse.Namespace, model: MiniMindForCausalLM, tokenizer: MiniMindTokenizer, name: str) -> None:
    import torch

    if args.to == "gguf":
        from minimind.export.gguf import export_gguf

        export_gguf(args.out, model.config, model.state_dict(), tokenizer=tokenizer, dtype=args.dtype, name=name)
    elif args.to == "onnx":
        from minimind.export.onnx import export_onnx

        export_onnx(model, args.out)
    else:
        from minimind.checkpoint import save_weights
        from minimind.export.transformers import export_transformers

        weights = model.to(getattr(torch, _TORCH_NAMES[args.dtype])).state_dict()
        if args.to == "transformers":
            export_transformers(args.out, model.config, weights, tokenizer=tokenizer)
        else:
            save_weights(args.out, model.config, weights)
