"""What the Triton kernels share: triton itself where it can be imported, configurations, launch checks, and the table
from which every kernel is compiled without a GPU.

    @autotune([{"ROWS": 4, "num_warps": 4}, {"ROWS": 1, "num_warps": 2}], key=("NUM_COLS", "magnitude"))
    @jit(do_not_specialize=("magnitude",))
    def copy_kernel(x_ptr, y_ptr, num_rows, magnitude, NUM_COLS: tl.constexpr, ROWS: tl.constexpr): ...

    AHEAD_OF_TIME = (AheadOfTime(copy_kernel, "768 bf16", {"x_ptr": "*bf16", ...}, {"NUM_COLS": 768}),)

A kernel module imports `tl` from here, so that it can be imported where triton cannot; launching there raises, and so
does launching on tensors that are not on the current CUDA device. Under TRITON_INTERPRET=1 (a tool for tests, never
timed) tensors on the CPU are taken. Every operator is registered in the torch.library namespace `NAMESPACE`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError as error:
    triton = tl = None
    WHY_NO_TRITON: str | None = f"triton cannot be imported: {error}"
else:
    WHY_NO_TRITON = None

__all__ = ["NAMESPACE", "WHY_NO_TRITON", "AheadOfTime", "autotune", "jit", "require_launchable", "rows_of", "tl"]

NAMESPACE = "minimind_bench"
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def interpreted() -> bool:
    """Whether triton was imported under TRITON_INTERPRET=1: kernels then run, slowly, on the CPU."""
    return triton is not None and bool(triton.knobs.runtime.interpret)


def jit(function: Callable[..., Any] | None = None, *, do_not_specialize: Sequence[str] = ()) -> Any:
    """`triton.jit`; the undecorated function where there is no triton, for nothing can launch it."""
    if function is None:
        return lambda given: jit(given, do_not_specialize=do_not_specialize)
    return function if triton is None else triton.jit(function, do_not_specialize=list(do_not_specialize))


def autotune(
    configurations: Sequence[Mapping[str, int]], key: Sequence[str], *, tile: Sequence[str] = (), values: int = 32
) -> Callable[[Any], Any]:
    """`triton.autotune` over these constexprs, `num_warps` and `num_stages`; the first configuration is the default.

    Only a GPU chooses. Ahead of time the default is compiled; the interpreter, whose time goes by the program, takes
    the last one, which should be that with the fewest programs. `tile` names the constexprs whose product is what a
    program holds at once: a configuration that leaves more than `values` of it to a thread is not even compiled, which
    could take minutes.
    """

    def decorate(kernel: Any) -> Any:
        if triton is None:
            return kernel
        chosen = configurations[-1:] if interpreted() else configurations
        prune = {"early_config_prune": partial(within_registers, tuple(tile), values)} if tile else None
        configs = [_config(given) for given in chosen]
        return triton.autotune(configs=configs, key=list(key), prune_configs_by=prune)(kernel)

    return decorate


def within_registers(
    tile: Sequence[str], values: int, configs: Sequence[Any], arguments: Mapping[str, Any], **constexprs: Any
) -> list[Any]:
    """Those of Triton's configurations that leave a thread at most `values` of the tile; failing that, the one that
    leaves it the fewest."""

    def per_thread(config: Any) -> float:
        sizes = {**arguments, **constexprs, **config.kwargs}
        return math.prod(sizes[name] for name in tile) / (32 * config.num_warps)

    return [config for config in configs if per_thread(config) <= values] or [min(configs, key=per_thread)]


def _config(values: Mapping[str, int]) -> Any:
    options = {name: values[name] for name in ("num_warps", "num_stages") if name in values}
    return triton.Config({name: value for name, value in values.items() if name not in options}, **options)


def magnitude(count: int) -> int:
    """The autotuning key for a count that varies from call to call: its order of magnitude in base 16."""
    return (count.bit_length() + 3) // 4


def require_launchable(operator: str, *tensors: Tensor) -> None:
    """Raise unless a Triton kernel can take these tensors here.

    RuntimeError: there is no triton, or a tensor is not on a GPU (and triton does not interpret). ValueError: not on
    the current CUDA device, or not fp32, bf16 or fp16.
    """
    if WHY_NO_TRITON is not None:
        raise RuntimeError(f"{operator}: {WHY_NO_TRITON}")
    for tensor in tensors:
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{operator} takes float32, bfloat16 or float16, not {tensor.dtype}")
        if tensor.is_cuda:
            if tensor.device.index != torch.cuda.current_device():
                raise ValueError(f"{operator}: a tensor is on {tensor.device}, which is not the current CUDA device")
        elif not interpreted():
            raise RuntimeError(f"{operator} is a Triton kernel and needs CUDA tensors, not {tensor.device.type}")


def rows_of(x: Tensor, num_cols: int) -> Tensor:
    """`x` as rows [N, num_cols] with a last stride of 1: a view where possible, otherwise a copy."""
    rows = x.reshape(x.numel() // num_cols, num_cols)
    return rows if num_cols == 1 or rows.stride(1) == 1 else rows.contiguous()


def power_of_2(count: int) -> int:
    """The smallest power of two that is not below `count`: the length of a block that covers it."""
    return 1 << max(count - 1, 0).bit_length()


@dataclass(frozen=True, slots=True)
class AheadOfTime:
    """One kernel with everything that decides its machine code, for `kernels.ahead_of_time`.

    kernel: as decorated in its module; the constexprs and warps of an autotuned one default to its first configuration.
    case: what distinguishes this entry: sizes and dtypes. signature: argument -> Triton's type ("*bf16", "i32",
    "fp32"), for every argument that is no constexpr. Pointers, and the arguments named in `divisible`, are multiples
    of 16, as in a real launch: without that the compiler's spills are artefacts.
    """

    kernel: Any
    case: str
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    divisible: tuple[str, ...] = ()
    num_warps: int = 4
    num_stages: int = 2
