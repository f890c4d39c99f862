"""What a forward does: parameters and FLOPs per module, and every tensor operation with shapes, strides and copies.

    for row in module_table(model, input_ids):
        print(row.name, row.parameters, row.flops)
    for row in operation_table(model, input_ids):
        print(row.module, row.operation, row.outputs, row.new_storage)

Both run one forward in the model's current mode and return plain rows; rendering is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True, slots=True)
class ModuleRow:
    """One module: its dotted name ("" is the model), class, parameters within it (tied once), FLOPs of one forward."""

    name: str
    kind: str
    parameters: int
    flops: int


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """How one tensor lies in memory."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    contiguous: bool


@dataclass(frozen=True, slots=True)
class OperationRow:
    """One operation as the dispatcher saw it.

    `new_storage`: an output lies in memory that no input has. `copies`: it has new storage or writes into a tensor,
    and only moves or converts values (clone, cat, copy_, ...) without computing any.
    """

    index: int
    module: str
    operation: str
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    new_storage: bool
    copies: bool


_MOVES = frozenset({"clone", "copy_", "_to_copy", "cat", "stack", "contiguous", "repeat", "index_select", "gather"})


@torch.no_grad()
def module_table(model: nn.Module, input_ids: Tensor, **arguments: Any) -> list[ModuleRow]:
    """A row per module, outermost first; `arguments` go to the forward.

    FLOPs are torch's counter's. Attention runs as plain matrix products here, because the counter does not know the
    fused CPU kernel and would count 0.
    """
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        model(input_ids, **arguments)
    root = type(model).__name__
    flops = counter.get_flop_counts()
    rows = []
    for name, module in model.named_modules():
        counted = flops.get(f"{root}.{name}" if name else "Global", {})
        parameters = sum(parameter.numel() for parameter in module.parameters())
        rows.append(ModuleRow(name, type(module).__name__, parameters, sum(counted.values())))
    return rows


@torch.no_grad()
def operation_table(model: nn.Module, input_ids: Tensor, **arguments: Any) -> list[OperationRow]:
    """A row per operation of one forward, in order; `arguments` go to the forward (e.g. a cache)."""
    with _module_stack(model) as stack:
        recorder = _Recorder(lambda: stack[-1] if stack else "")
        with recorder:
            model(input_ids, **arguments)
    return recorder.rows


@contextmanager
def _module_stack(model: nn.Module) -> Iterator[list[str]]:
    """The dotted names of the modules whose forward is running, innermost last."""
    stack: list[str] = []
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: stack.append(name)))
        handles.append(module.register_forward_hook(lambda *_: _drop_last(stack), always_call=True))
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()


def _drop_last(stack: list[str]) -> None:
    """A hook's return value would replace the module's output, so nothing is returned."""
    stack.pop()


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, current_module: Callable[[], str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows: list[OperationRow] = []
        self._current_module = current_module

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        inputs = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        # Facts first: an operation in place may change its input's shape.
        input_facts = tuple(map(_facts, inputs))
        known = {tensor.untyped_storage().data_ptr() for tensor in inputs}
        result = func(*args, **(kwargs or {}))
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        new_storage = any(tensor.untyped_storage().data_ptr() not in known for tensor in outputs if tensor.numel())
        name = func.overloadpacket.__name__
        self.rows.append(
            OperationRow(
                index=len(self.rows),
                module=self._current_module(),
                operation=name,
                inputs=input_facts,
                outputs=tuple(map(_facts, outputs)),
                new_storage=new_storage,
                copies=name in _MOVES and (new_storage or name.endswith("_")),
            )
        )
        return result


def _facts(tensor: Tensor) -> TensorFacts:
    return TensorFacts(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.is_contiguous())
