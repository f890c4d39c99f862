"""MiniMind, both living generations, as one small reference model.

    from minimind import MiniMindConfig, MiniMindForCausalLM, generate

Importing this package costs no torch: a name that needs it is loaded when it is first asked for.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from minimind.config import PRESETS, ConfigError, MiniMindConfig

if TYPE_CHECKING:
    from minimind.attention import convert_heads as convert_heads
    from minimind.checkpoint import load_weights as load_weights
    from minimind.checkpoint import save_weights as save_weights
    from minimind.generate import generate as generate
    from minimind.model import MiniMindForCausalLM as MiniMindForCausalLM

_HOME = {
    "MiniMindForCausalLM": "minimind.model",
    "generate": "minimind.generate",
    "convert_heads": "minimind.attention",
    "load_weights": "minimind.checkpoint",
    "save_weights": "minimind.checkpoint",
}

__all__ = [
    "PRESETS",
    "ConfigError",
    "MiniMindConfig",
    "MiniMindForCausalLM",
    "convert_heads",
    "generate",
    "load_weights",
    "save_weights",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'minimind' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


class _Package(ModuleType):
    """Keeps `minimind.generate` the function: the import system would bind the submodule of that name over it."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "generate" and isinstance(value, ModuleType):
            value = value.generate
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
