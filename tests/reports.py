"""Files of pytest-benchmark and optimum-benchmark for tests, in the shape that versions 5.3 and 0.6 write."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SHA = "3f2a91c04d5e6f708192a3b4c5d6e7f801234567"
MACHINE = {
    "node": "builder",
    "machine": "x86_64",
    "python_implementation": "CPython",
    "python_version": "3.12.4",
    "release": "6.8.0",
    "system": "Linux",
    "cpu": {"brand_raw": "Some Processor", "count": 8, "hz_actual_friendly": "2.9 GHz"},
}


def benchmark(
    fullname: str, seconds: Sequence[float], *, data: bool = True, extra_info: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """One entry of `benchmarks`; without `data` as saved files have it."""
    stats: dict[str, Any] = {
        "min": min(seconds),
        "max": max(seconds),
        "mean": statistics.fmean(seconds),
        "median": statistics.median(seconds),
        "stddev": statistics.stdev(seconds) if len(seconds) > 1 else 0,
        "rounds": len(seconds),
        "iterations": 1,
        **({"data": list(seconds)} if data else {}),
    }
    name = fullname.rpartition("::")[2]
    return {
        "group": None,
        "name": name,
        "fullname": fullname,
        "params": None,
        "param": None,
        "extra_info": dict(extra_info or {}),
        "stats": stats,
    }


def pytest_benchmark(*entries: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A whole document."""
    return {
        "machine_info": MACHINE,
        "commit_info": {"id": SHA, "dirty": True, "branch": "main"},
        "benchmarks": list(entries),
        "datetime": "2025-03-04T05:06:07.000008+00:00",
        "version": "5.3.1",
        **changes,
    }


def _latency(values: Sequence[float]) -> dict[str, Any]:
    found = {"unit": "s", "values": list(values), "count": len(values), "total": sum(values)}
    return {**found, "mean": statistics.fmean(values), "p50": statistics.median(values)}


def optimum(*, device: str = "cpu", launcher: str = "inline") -> dict[str, Any]:
    """benchmark.json of a text generation: prefill, decode of 9 tokens, and the per-token figures."""
    memory = {"unit": "MB", "max_ram": 500.0, "max_allocated": None, "max_reserved": None}
    if device == "cuda":
        memory |= {"max_allocated": 100.0, "max_reserved": 200.0}
    prefill, decode = [0.070, 0.072, 0.071], [1.8, 2.0, 1.9]
    return {
        "config": {
            "name": "llama",
            "backend": {"name": "pytorch", "model": "some/model", "device": device, "version": "2.13.0"},
            "scenario": {
                "input_shapes": {"batch_size": 1, "sequence_length": 128},
                "generate_kwargs": {"max_new_tokens": 10, "do_sample": False},
            },
            "launcher": {"name": launcher},
            "environment": {
                "cpu": " Some Processor",
                "cpu_count": 2,
                "cpu_ram_mb": 24_000.0,
                "platform": "Linux-6.8",
                "python_version": "3.11.7",
                "optimum_benchmark_version": "0.6.0",
                "timm_version": None,
            },
        },
        "report": {
            "load_model": {"memory": memory, "latency": _latency([3.0]), "throughput": None},
            "prefill": {
                "memory": memory,
                "latency": _latency(prefill),
                "throughput": {"unit": "samples/s", "value": 14},
            },
            "decode": {
                "memory": memory,
                "latency": _latency(decode),
                "throughput": {"unit": "tokens/s", "value": 9 / statistics.fmean(decode)},
            },
            "per_token": {"latency": _latency([0.2] * 20), "memory": None, "throughput": None},
        },
    }


def written(folder: Path, document: Any, name: str = "report.json") -> Path:
    """The document as a file; text goes in as it is."""
    path = folder / name
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path
