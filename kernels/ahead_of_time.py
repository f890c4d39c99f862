"""Compiles every Triton kernel for a GPU that is not there, and reads off what its machine code needs.

    python -m kernels.ahead_of_time                                  # a table of all kernels for sm_80 and sm_90
    python -m kernels.ahead_of_time kernels.swiglu --json            # one module's, a line of JSON each

A kernel takes part by standing in its module's `AHEAD_OF_TIME` (see `kernels._triton.AheadOfTime`); modules are found
by walking this package. Registers and spills are those that cuobjdump, which comes with triton, finds in the cubin.
Refuses to run under TRITON_INTERPRET, where there is nothing to compile.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels._triton import WHY_NO_TRITON, AheadOfTime, interpreted

CAPABILITIES = (80, 90)


@dataclass(frozen=True, slots=True)
class Resources:
    """What one kernel's machine code needs: registers per thread, bytes of shared memory per program, bytes of local
    memory per thread (the stack holds spilled registers), threads per program."""

    module: str
    kernel: str
    case: str
    capability: int
    registers: int
    shared_bytes: int
    spill_bytes: int
    num_threads: int


def kernel_modules() -> dict[str, tuple[AheadOfTime, ...]]:
    """Module name -> its table, for every module of this package that has one."""
    package = importlib.import_module("kernels")
    found = {}
    for info in pkgutil.walk_packages(package.__path__, "kernels."):
        table = getattr(importlib.import_module(info.name), "AHEAD_OF_TIME", None)
        if table:
            found[info.name] = tuple(table)
    return found


def resources(entry: AheadOfTime, capability: int) -> Resources:
    """Compile one kernel for sm_<capability> and read its needs. Raises RuntimeError where triton cannot compile."""
    if WHY_NO_TRITON is not None or interpreted():
        raise RuntimeError(WHY_NO_TRITON or "nothing is compiled under TRITON_INTERPRET")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, constexprs, num_warps, num_stages = _with_default(entry)
    names = list(kernel.arg_names)
    if missing := set(names) ^ {*entry.signature, *constexprs}:
        raise RuntimeError(f"{kernel.__name__}: its table and its parameters disagree about {sorted(missing)}")
    signature = {name: entry.signature.get(name, "constexpr") for name in names}
    aligned = [name for name in names if signature[name].startswith("*") or name in entry.divisible]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constexprs.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": num_warps, "num_stages": num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    usage = _usage(compiled.asm["cubin"])
    return Resources(
        module=kernel.__module__,
        kernel=kernel.__name__,
        case=entry.case,
        capability=capability,
        registers=usage["REG"],
        shared_bytes=int(compiled.metadata.shared),
        spill_bytes=usage["STACK"] + usage["LOCAL"],
        num_threads=32 * num_warps,
    )


def _with_default(entry: AheadOfTime) -> tuple[Any, dict[str, Any], int, int]:
    """(jitted function, constexprs, warps, stages); an autotuned kernel's default fills in what is not given."""
    constexprs = dict(entry.constexprs)
    configs = getattr(entry.kernel, "configs", None)
    if not configs:
        return entry.kernel, constexprs, entry.num_warps, entry.num_stages
    return entry.kernel.fn, {**configs[0].kwargs, **constexprs}, entry.num_warps, entry.num_stages


def _usage(cubin: bytes) -> dict[str, int]:
    """cuobjdump's resource usage of the one function in a cubin: REG, STACK, SHARED, LOCAL."""
    import triton.backends.nvidia

    program = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [str(program), "--dump-resource-usage", str(path)]
        text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    lines = [line for line in text.splitlines() if "REG:" in line]
    if len(lines) != 1:
        raise RuntimeError(f"cuobjdump reports {len(lines)} functions where one was compiled")
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", lines[0])}


def compiled(modules: Sequence[str] = ()) -> Iterator[Resources]:
    """Every kernel of these modules (none given: all) on every capability."""
    for name, table in kernel_modules().items():
        if not modules or name in modules:
            for entry in table:
                for capability in CAPABILITIES:
                    yield resources(entry, capability)


def main(argv: Sequence[str]) -> None:
    """The command line of this module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m kernels.ahead_of_time", description="Compile without a GPU.")
    parser.add_argument("modules", nargs="*", help="modules such as kernels.swiglu; none means all")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    options = parser.parse_args(argv)
    if not options.json:
        print(f"{'kernel':34} {'case':28} {'sm':>3} {'threads':>7} {'registers':>9} {'shared B':>8} {'spilled B':>9}")
    for found in compiled(options.modules):
        if options.json:
            print(json.dumps(dataclasses.asdict(found)), flush=True)
        else:
            print(
                f"{found.kernel:34} {found.case:28} {found.capability:3} {found.num_threads:7} {found.registers:9} "
                f"{found.shared_bytes:8} {found.spill_bytes:9}",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
