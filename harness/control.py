"""The negative control: the same four small pieces of work before every slice, whatever the variant under test.

    control = make_control("cpu")             # buffers are allocated and warmed here
    times = control()                         # {"matmul_fp32": 5.1e-4, "matmul_bf16": 1.4e-4, "copy": ..., "tiny": ...}
    reason = control_moved(history, times)    # None, or which piece moved and by how much

No variant changes this work, so when it takes longer or shorter than it did in the same run the machine has changed,
and the slice beside it says nothing about the variant. It does not see all: a slow spell inside the slice passes by.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# Loose on purpose: telemetry sees neighbours and steal, this sees the machine change its mode. On a quiet virtual
# machine whose cores are another guest's hyper-threads, single controls read 0.6 to 1.4 ms (matmul_fp32) and 0.9 to
# 2.4 ms (tiny) from one moment to the next, 2.2 times their median at most; that is noise, which intervals carry.
# Beside a busy neighbour matmul_fp32 read 3 to 20 ms.
TOLERANCE = 2.0
# Not judged: on such machines AMX has two modes, three times apart, that flip by themselves. Recorded all the same.
UNJUDGED = frozenset({"matmul_bf16"})
REPETITIONS = 3
MIN_HISTORY = 3

_SIZE = 384
_PRODUCTS = 5
_COPY_BYTES = 32 << 20
_TINY = 300
_BF16_SECONDS = 2e-3


def make_control(device: str) -> Callable[[], dict[str, float]]:
    """A callable that runs the control once and gives name -> seconds, each the least of three repetitions.

    matmul_fp32, matmul_bf16: one product of 384 x 384 matrices (mean of several in a row); copy: 32 MiB from buffer to
    buffer; tiny: 300 additions of 16 numbers, which is dispatch and nothing else. Uses torch's present number of
    threads: compare only controls of equal thread count. About 25 ms by its arithmetic (230 GFLOP/s,
    12 GB/s), not yet measured on a quiet machine; nothing is allocated in a call.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    a = torch.rand(_SIZE, _SIZE, generator=generator).to(device)
    b = torch.rand(_SIZE, _SIZE, generator=generator).to(device)
    out = torch.empty_like(a)
    a16, b16, out16 = (tensor.to(torch.bfloat16) for tensor in (a, b, out))
    source = torch.ones(_COPY_BYTES // 4, device=device)
    target = torch.zeros_like(source)
    small = torch.zeros(16, device=device)
    synchronize: Callable[[], Any] = torch.cuda.synchronize if device == "cuda" else (lambda: None)

    def products(left: torch.Tensor, right: torch.Tensor, into: torch.Tensor, count: int) -> Callable[[], None]:
        def run() -> None:
            for _ in range(count):
                torch.mm(left, right, out=into)

        return run

    def copy() -> None:
        target.copy_(source)

    def tiny() -> None:
        for _ in range(_TINY):
            small.add_(1.0)

    def least(run: Callable[[], None], repetitions: int) -> float:
        best = float("inf")
        for _ in range(repetitions):
            synchronize()
            start = time.perf_counter_ns()
            run()
            synchronize()
            best = min(best, (time.perf_counter_ns() - start) * 1e-9)
        return best

    with torch.inference_mode():
        # NOTE: without bf16 instructions a product can take 50 ms: fewer of them then; the value is per product
        one = least(products(a16, b16, out16, 1), 3)
        num_bf16 = max(1, min(_PRODUCTS * 2, int(_BF16_SECONDS / max(one, 1e-9))))
    work: dict[str, tuple[Callable[[], None], int]] = {
        "matmul_fp32": (products(a, b, out, _PRODUCTS), _PRODUCTS),
        "matmul_bf16": (products(a16, b16, out16, num_bf16), num_bf16),
        "copy": (copy, 1),
        "tiny": (tiny, 1),
    }

    def control() -> dict[str, float]:
        with torch.inference_mode():
            return {name: least(run, REPETITIONS) / count for name, (run, count) in work.items()}

    control()
    return control


def control_moved(
    history: Sequence[Mapping[str, float]],
    current: Mapping[str, float],
    *,
    tolerance: float = TOLERANCE,
) -> str | None:
    """Why this control differs from the run's median, or None: which piece, how much. `history` may hold `current`.

    Moved is a factor above 1 + tolerance or below 1 / (1 + tolerance); of several pieces the one that moved most is
    named. With fewer than three controls in the history of a piece there is no median to trust and it says nothing.
    """
    worst: tuple[float, str] | None = None
    for name, seconds in current.items():
        past = [entry[name] for entry in history if entry.get(name, 0.0) > 0.0]
        if name in UNJUDGED or len(past) < MIN_HISTORY or seconds <= 0.0:
            continue
        median = statistics.median(past)
        factor = seconds / median
        size = max(factor, 1.0 / factor)
        if size > 1.0 + tolerance and (worst is None or size > worst[0]):
            way = "slower" if factor > 1.0 else "faster"
            worst = size, f"control {name} took {seconds * 1e3:.3g} ms, {size:.2f} times {way} than the run's median"
    return None if worst is None else worst[1]
