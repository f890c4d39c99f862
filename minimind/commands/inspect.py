"""Show a model's parameters, FLOPs and memory, and every tensor operation of one forward."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minimind.commands import inputs
from minimind.commands.inputs import UsageError
from minimind.config import PRESETS

if TYPE_CHECKING:
    from minimind.inspect import ModuleRow, OperationRow, TensorFacts
    from minimind.model import MiniMindForCausalLM


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `minimind.commands`."""
    parser.add_argument("--weights", metavar="PATH", type=Path, help="weights whose shape to show")
    parser.add_argument("--preset", metavar="NAME", help=f"{', '.join(PRESETS)}; default: the embedded model")
    inputs.add_run_flags(parser)
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="rows of the forward (default 1)")
    parser.add_argument("--length", type=int, default=16, metavar="N", help="new tokens of the forward (default 16)")
    parser.add_argument("--context", type=int, default=0, metavar="N", help="tokens cached before it (default 0)")
    parser.add_argument("--cache", choices=("none", "cat", "prealloc"), default="cat", help="KV cache (default cat)")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table", help="tables (default) or json")


def run(args: argparse.Namespace) -> int:
    """See `minimind.commands`."""
    from minimind.inspect import module_table

    device = inputs.select_device(args)
    model = _open_model(args, device)
    _check(args, model)
    input_ids, arguments = _forward_inputs(args, model, device)
    modules = module_table(model, input_ids, **arguments)
    input_ids, arguments = _forward_inputs(args, model, device)
    operations = _operations(model, input_ids, arguments)
    totals = _totals(args, model)
    if args.output == "json":
        content = {
            "totals": totals,
            "modules": [dataclasses.asdict(row) for row in modules],
            "operations": [dataclasses.asdict(row) for row in operations],
        }
        print(json.dumps(content, indent=2, default=str))
    else:
        _print_tables(totals, modules, operations)
    return 0


def _open_model(args: argparse.Namespace, device: Any) -> MiniMindForCausalLM:
    seed = 42 if args.seed is None else args.seed
    if args.weights is None and args.preset is not None:
        config, state = inputs.preset(args.preset), None
    else:
        config, state = inputs.read_weights(args.weights or inputs.EMBEDDED_WEIGHTS, args.preset)
    return inputs.build_model(config, state, seed=seed, device=device, name=str(args.weights)).eval()


def _check(args: argparse.Namespace, model: MiniMindForCausalLM) -> None:
    for name, least in (("batch_size", 1), ("length", 1), ("context", 0)):
        if getattr(args, name) < least:
            raise UsageError(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(args, name)}")
    if args.context and args.cache == "none":
        raise UsageError("--context needs a cache: --cache cat or --cache prealloc")
    most = model.config.max_position_embeddings
    if args.context + args.length > most:
        raise UsageError(f"--context plus --length is {args.context + args.length}, the model has {most} positions")


def _forward_inputs(args: argparse.Namespace, model: MiniMindForCausalLM, device: Any) -> tuple[Any, dict[str, Any]]:
    """Random ids [batch, length] and, where asked for, a cache filled with `context` positions."""
    import torch

    generator = torch.Generator().manual_seed(0)
    shape = (args.batch_size, args.context + args.length)
    ids = torch.randint(model.config.vocab_size, shape, generator=generator).to(device)
    if args.cache == "none":
        return ids, {}
    cache = model.new_cache(kind=args.cache, batch_size=args.batch_size, max_length=shape[1])
    if args.context:
        with torch.no_grad():
            model(ids[:, : args.context], cache=cache, logits_to_keep=1)
    return ids[:, args.context :], {"cache": cache}


def _operations(model: MiniMindForCausalLM, input_ids: Any, arguments: Mapping[str, Any]) -> list[OperationRow]:
    from minimind.inspect import operation_table

    return operation_table(model, input_ids, **arguments)


def _totals(args: argparse.Namespace, model: MiniMindForCausalLM) -> dict[str, int]:
    """Costs of this model for the asked shapes, in parameters, FLOPs and bytes (fp32)."""
    batch, length, context = args.batch_size, args.length, args.context
    return {
        "parameters": model.num_parameters(),
        "active_parameters": model.num_active_parameters(),
        "weight_bytes_fp32": model.weight_bytes(),
        "kv_bytes_per_token_fp32": model.kv_bytes_per_token(),
        "forward_flops": model.prefill_flops(batch, length, context),
        "decode_step_flops": model.decode_flops(batch, context + length),
        "decode_step_bytes_fp32": model.decode_bytes(batch, context + length),
        "train_step_flops": model.train_flops(batch, length),
    }


def _print_tables(totals: Mapping[str, int], modules: Sequence[ModuleRow], operations: Sequence[OperationRow]) -> None:
    from rich.console import Console
    from rich.table import Table

    # A pipe has no width: as wide as the rows, so that nothing is cut.
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    summary = Table("cost", title="Totals", title_justify="left")
    summary.add_column("value", justify="right")
    for name, value in totals.items():
        summary.add_row(name.replace("_", " "), f"{value:,}")
    console.print(summary)
    table = Table("module", "class", title="Parameters and FLOPs of one forward", title_justify="left")
    for title in ("parameters", "FLOPs"):
        table.add_column(title, justify="right")
    for row in modules:
        table.add_row(row.name or "(model)", row.kind, f"{row.parameters:,}", f"{row.flops:,}")
    console.print(table)
    table = Table("#", "module", "operation", "inputs", "outputs", "memory", title="Operations", title_justify="left")
    for step in operations:
        memory = "copy" if step.copies else "new" if step.new_storage else "view or in place"
        table.add_row(str(step.index), step.module, step.operation, _layout(step.inputs), _layout(step.outputs), memory)
    console.print(table)
    copies = sum(step.copies for step in operations)
    console.print(f"{len(operations)} operations, {copies} of them copies. Layouts: shape/strides, ~ not contiguous.")


def _layout(tensors: Sequence[TensorFacts]) -> str:
    """Shapes and strides, one tensor per line: `1x16x192/3072,192,1`."""
    return "\n".join(
        f"{'x'.join(map(str, facts.shape)) or 'scalar'}/{','.join(map(str, facts.stride))}"
        + ("" if facts.contiguous else " ~")
        for facts in tensors
    )
