"""Continue a prompt: greedy by default, or sampled."""

from __future__ import annotations

import argparse
import math
import sys
import time

from minimind.commands import inputs
from minimind.commands.inputs import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `minimind.commands`."""
    inputs.add_model_flags(parser)
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="text to continue")
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="at most so many (default 128)")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0: most likely token (default)")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="sample among the K likeliest (0: all)")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="sample within this probability (1: all)")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, metavar="R", help="1: none (default)")
    parser.add_argument("--cache", choices=("cat", "prealloc"), default="cat", help="KV cache (default cat)")
    parser.add_argument("--no-stop", action="store_true", help="go on after the end token")


def run(args: argparse.Namespace) -> int:
    """See `minimind.commands`."""
    import torch

    from minimind.generate import generate

    _check(args)
    device = inputs.select_device(args)
    model, tokenizer, _ = inputs.open_model(args, device)
    prompt = [tokenizer.bos_id, *tokenizer.encode(args.prompt)]
    room = model.config.max_position_embeddings - len(prompt)
    if args.max_new_tokens > room:
        raise UsageError(f"--max-new-tokens {args.max_new_tokens} is more than the {room} positions left by the prompt")
    generator = torch.Generator(device=device).manual_seed(42 if args.seed is None else args.seed)
    started = time.perf_counter()
    ids = generate(
        model,
        torch.tensor([prompt], device=device),
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        repetition_penalty=args.repetition_penalty,
        eos_token_id=None if args.no_stop else tokenizer.eos_id,
        cache_kind=args.cache,
        generator=generator,
    )
    seconds = time.perf_counter() - started
    new = ids[0, len(prompt) :].tolist()
    print(args.prompt + tokenizer.decode(new, skip_special_tokens=True))
    print(f"{len(new)} tokens in {seconds:.2f} s, prompt included", file=sys.stderr)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse sampling settings out of range."""
    ranges = (
        ("max_new_tokens", args.max_new_tokens >= 1, "at least 1"),
        ("temperature", 0 <= args.temperature < math.inf, "at least 0"),
        ("top_k", args.top_k >= 0, "at least 0"),
        ("top_p", 0 < args.top_p <= 1, "above 0 and at most 1"),
        ("repetition_penalty", 0 < args.repetition_penalty < math.inf, "above 0"),
    )
    for name, ok, allowed in ranges:
        if not ok:
            raise UsageError(f"--{name.replace('_', '-')} must be {allowed}, not {getattr(args, name)}")
