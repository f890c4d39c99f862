"""The verbs of `python -m minimind`, one module each: `add_arguments(parser)` and `run(args) -> exit code`.

A verb is added by writing its module and naming it in COMMANDS. The first line of a module's docstring is its help.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType, ModuleType

from minimind.commands import convert, evaluate, generate, inspect, tokenizer, train

COMMANDS: Mapping[str, ModuleType] = MappingProxyType(
    {
        "train": train,
        "generate": generate,
        "eval": evaluate,
        "inspect": inspect,
        "tokenizer": tokenizer,
        "convert": convert,
    }
)
