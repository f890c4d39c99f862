"""Measure the held-out perplexity, bytes per token and bits per byte of a model."""

from __future__ import annotations

import argparse
import json

from minimind.commands import inputs
from minimind.commands.inputs import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `minimind.commands`."""
    inputs.add_model_flags(parser)
    inputs.add_data_flags(parser)
    parser.add_argument("--length", type=int, default=256, metavar="N", help="tokens per row, read alone (default 256)")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="rows at a time (default 16)")
    parser.add_argument("--max-rows", type=int, metavar="N", help="only the first N rows (default: all)")
    parser.add_argument("--precision", default="fp32", help="fp32 or bf16 autocast (default fp32)")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table", help="table (default) or json")


def run(args: argparse.Namespace) -> int:
    """See `minimind.commands`."""
    from rich.console import Console
    from rich.progress import Progress

    from minimind.trainer import PRECISIONS, evaluate

    for name in ("batch_size", "max_rows"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    if args.precision not in PRECISIONS:
        raise UsageError(f"unknown precision '{args.precision}'; known: {', '.join(PRECISIONS)}")
    device = inputs.select_device(args)
    model, tokenizer, name = inputs.open_model(args, device)
    data = inputs.open_dataset(tokenizer, args.data, split="heldout", length=args.length, layout=args.layout)
    num_rows = min(args.max_rows or len(data.rows), len(data.rows))
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("held-out", total=num_rows)
        try:
            result = evaluate(
                model,
                data.rows,
                byte_lengths=tokenizer.byte_lengths,
                batch_size=args.batch_size,
                precision=args.precision,
                max_rows=args.max_rows,
                on_batch=lambda done: progress.update(task, completed=done),
            )
        except ValueError as error:
            raise UsageError(f"{data.name}: {error}") from error
    facts = {
        "model": name,
        "data": data.name,
        "perplexity": result.perplexity,
        "loss_nats_per_token": result.loss,
        "bits_per_byte": result.bits_per_byte,
        "tokens": result.num_tokens,
        "bytes_per_token": result.bytes_per_token,
        "row_length": args.length,
        "rows": num_rows,
        "layout": data.layout,
        "precision": args.precision,
        "data_fingerprint": data.fingerprint,
        "tokenizer_fingerprint": tokenizer.fingerprint,
    }
    if args.output == "json":
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return 0
    for key, value in facts.items():
        print(f"{key.replace('_', ' '):22} {format(value, '.4f') if isinstance(value, float) else value}")
    return 0
