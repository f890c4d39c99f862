"""The embedded defaults: a tokenizer and a trained `tiny` checkpoint (README.md says how they were made)."""

from __future__ import annotations

from pathlib import Path


def embedded_checkpoint(preset: str) -> str | None:
    """The path of the trained checkpoint that ships for a preset, or None."""
    path = Path(__file__).with_name(f"{preset}.safetensors")
    return str(path) if path.is_file() else None
