"""The chunked head and cross-entropy: torch's numbers without ever holding all logits, alone and in the model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import kernels.linear_cross_entropy
from kernels.linear_cross_entropy import (
    chunk_rows,
    linear_cross_entropy,
    linear_cross_entropy_chunked,
    loss_and_gradients,
    row_loss,
)
from minimind import MiniMindConfig, MiniMindForCausalLM

SHAPES = [(70, 53, 7), (512, 40, 8), (1, 5, 3), (33, 1, 4), (20, 300, 16), (61, 60, 1)]


def example(num_rows: int, num_classes: int, hidden: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, weight and targets, every third of them ignored."""
    generator = torch.Generator().manual_seed(num_rows)
    x, w = (torch.randn(count, hidden, generator=generator, dtype=torch.float64) for count in (num_rows, num_classes))
    target = torch.randint(0, num_classes, (num_rows,), generator=generator)
    target[1::3] = -100
    return x.to(dtype).requires_grad_(), w.to(dtype).requires_grad_(), target


def native(x: Tensor, w: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(x @ w.t(), target)


def value_and_gradients(loss: Tensor, *by: Tensor) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(1.7 * loss, by)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loss_and_gradients_are_torchs(shape: tuple[int, int, int], dtype: torch.dtype, tolerance: float) -> None:
    x, w, target = example(*shape, dtype)
    found = value_and_gradients(linear_cross_entropy(x, w, target), x, w)
    wide = [one.detach().double().requires_grad_() for one in (x, w)]
    for ours, theirs in zip(found, value_and_gradients(native(*wide, target), *wide), strict=True):
        assert ours.dtype == dtype and ours.shape == theirs.shape
        assert (ours.double() - theirs).abs().max().item() < tolerance * max(1.0, theirs.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_no_worse_than_torchs(dtype: torch.dtype) -> None:
    x, w, target = example(512, 40, 8, dtype)
    wide = [one.detach().double().requires_grad_() for one in (x, w)]
    exact = value_and_gradients(native(*wide, target), *wide)
    found = value_and_gradients(linear_cross_entropy(x, w, target), x, w)
    theirs = value_and_gradients(native(x, w, target), x, w)
    assert found[0].dtype == torch.float32 and found[1].dtype == found[2].dtype == dtype
    for ours, torchs, truth in zip(found, theirs, exact, strict=True):
        assert (ours.double() - truth).norm() <= 1.05 * (torchs.double() - truth).norm() + 1e-4 * truth.norm()


def test_nothing_to_learn_from_is_nan_with_zero_gradients_as_in_torch() -> None:
    for num_rows in (0, 6):
        x, w, _ = example(num_rows, 5, 3, torch.float32)
        target = torch.full((num_rows,), -100)
        for loss in (native(x, w, target), linear_cross_entropy(x, w, target)):
            value, dx, dw = value_and_gradients(loss, x, w)
            assert value.isnan() and not dx.any() and not dw.any()


def test_another_ignore_index_strides_and_one_gradient_alone() -> None:
    x, w, target = example(70, 53, 7, torch.float64)
    target = torch.where(target < 0, 2, target)
    expected = F.cross_entropy(x @ w.t(), target, ignore_index=2)
    turned = linear_cross_entropy(x.t().contiguous().t(), w.t().contiguous().t(), target, ignore_index=2)
    torch.testing.assert_close(turned, expected)
    for wanted in (x, w):
        other = {id(x): (x, w.detach()), id(w): (x.detach(), w)}[id(wanted)]
        (found,) = torch.autograd.grad(linear_cross_entropy(*other, target, ignore_index=2), wanted)
        (truth,) = torch.autograd.grad(expected, wanted, retain_graph=True)
        torch.testing.assert_close(found, truth)
    with torch.no_grad():
        assert not linear_cross_entropy(x, w, target, ignore_index=2).requires_grad


def test_autocast_multiplies_in_its_dtype() -> None:
    x, w, target = example(70, 53, 16, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, expected = linear_cross_entropy(x, w, target), F.cross_entropy(F.linear(x, w), target)
    found, theirs = value_and_gradients(loss, x, w), value_and_gradients(expected, x, w)
    for ours, torchs in zip(found, theirs, strict=True):
        assert ours.dtype == torchs.dtype == torch.float32
        torch.testing.assert_close(ours, torchs, rtol=2e-2, atol=2e-3)
    assert not torch.equal(loss, linear_cross_entropy(x, w, target)), "bf16 products are not fp32's"


def test_what_is_refused() -> None:
    x, w, target = example(4, 5, 3, torch.float32)
    for arguments, said in (
        ((x[None], w, target), r"\[N, E\]"),
        ((x, w, target[:2]), r"\[N, E\]"),
        ((x, w[:, :2], target), "one hidden size"),
        ((x, w, target.int()), "int64"),
        ((x, w.double(), target), "one dtype"),
    ):
        with pytest.raises(ValueError, match=said):
            linear_cross_entropy(*arguments)
    with pytest.raises(ValueError, match="unknown implementation 'fast'; known: chunked, triton"):
        linear_cross_entropy(x, w, target, implementation="fast")
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        linear_cross_entropy(x, w, torch.full((4,), 5))
    (gradient,) = torch.autograd.grad(linear_cross_entropy(x, w, target), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.sum().backward()


def test_the_operator_meets_its_contract() -> None:
    """Schema, fake kernel, autograd; with compilation, at the end of this file."""
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    x, w, target = example(9, 5, 3, torch.float32)
    torch.library.opcheck(linear_cross_entropy_chunked, (x, w, target, -100, True), test_utils=tests)
    torch.library.opcheck(linear_cross_entropy_chunked, (x.detach(), w.detach(), target, -100, False), test_utils=tests)
    with pytest.raises(RuntimeError, match="without its gradients"):
        linear_cross_entropy_chunked(x, w, target, -100, False)[0].backward()


# --- memory ---


class LargestOutput(TorchDispatchMode):
    """The most elements that any operator returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(one, Tensor):
                self.elements = max(self.elements, one.numel())
        return result


@pytest.mark.parametrize("shape", [(600, 96, 24), (2000, 300, 8), (64, 640, 32)], ids=str)
def test_no_tensor_holds_all_logits(shape: tuple[int, int, int]) -> None:
    """Of everything that is computed, the most is one chunk of logits, or the larger of hidden states and weight."""
    num_rows, num_classes, hidden = shape
    x, w, target = example(*shape, torch.float32)
    with LargestOutput() as plain:
        native(x, w, target).backward()
    assert plain.elements == num_rows * num_classes, "the measurement sees logits where there are some"
    with LargestOutput() as chunked:
        loss_and_gradients(x.detach(), w.detach(), target, -100, True, row_loss)
    assert chunked.elements <= max(num_rows, num_classes) * hidden + num_classes < num_rows * num_classes
    assert chunked.elements >= chunk_rows(*shape) * num_classes > 0


def test_the_allocator_agrees() -> None:
    """The dispatcher does not see what an operator does inside; the profiler sees every allocation."""
    x, w, target = example(2000, 300, 8, torch.float32)
    peaks = {}
    for name, loss in (("native", native), ("chunked", linear_cross_entropy)):
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            loss(x, w, target).backward()
        held = peak = 0
        for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
            if event.name() == "[memory]":
                held += event.nbytes()
                peak = max(peak, held)
        peaks[name] = peak
    logits = 4 * 2000 * 300
    assert peaks["native"] >= 2 * logits
    assert peaks["chunked"] < logits / 4


def test_chunks_are_even_and_never_empty() -> None:
    assert chunk_rows(2048, 6400, 512) == 512 and chunk_rows(600, 6400, 512) == 300
    assert chunk_rows(16384, 6400, 512) == 1261  # 13 chunks
    assert chunk_rows(0, 6400, 512) == chunk_rows(3, 6400, 1) == 1
    for num_rows in (1, 7, 100, 513):
        assert 1 <= chunk_rows(num_rows, 53, 7) <= num_rows


# --- in the model ---


def build(**fields: Any) -> MiniMindForCausalLM:
    torch.manual_seed(0)
    config = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return MiniMindForCausalLM(MiniMindConfig.from_dict({"vocab_size": 300, **config, **fields})).train()


IDS = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(1))
LABELS = torch.where(torch.arange(40) % 5 == 0, -100, IDS)


@pytest.mark.parametrize("fields", [
    {"generation": 2}, {"generation": 3}, {"generation": 3, "tie_word_embeddings": False},
    {"generation": 3, "use_moe": True},
], ids=str)  # fmt: skip
def test_a_training_step_is_the_same(fields: dict[str, Any]) -> None:
    results: list[tuple[Any, dict[str, Tensor]]] = []
    losses: tuple[Callable[..., Tensor] | None, ...] = (None, linear_cross_entropy)
    for loss in losses:
        model = build(**fields)
        model.fused_loss = loss
        out = model(IDS, labels=LABELS)
        (out.loss + out.aux_loss).backward()
        results.append((out, {name: parameter.grad for name, parameter in model.named_parameters()}))
    (plain, expected), (fused, found) = results
    torch.testing.assert_close(fused.loss, plain.loss)
    assert torch.equal(fused.aux_loss, plain.aux_loss) and torch.equal(fused.hidden_states, plain.hidden_states)
    assert plain.logits.shape == (2, 40, 300) and fused.logits.shape == (2, 0, 300)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-7)


def test_without_labels_a_fused_loss_changes_nothing() -> None:
    model = build(generation=3).eval()
    expected = model(IDS).logits
    model.fused_loss = linear_cross_entropy
    out = model(IDS)
    assert torch.equal(out.logits, expected) and out.loss is None
    with pytest.raises(ValueError, match="every position"):
        model(IDS, labels=IDS, logits_to_keep=1)


@pytest.mark.slow
def test_the_model_compiles_around_it_in_one_graph() -> None:
    """Backend `aot_eager`: the whole of torch.compile except the code generation, backward pass included."""
    model = build(generation=3, num_hidden_layers=1)
    model.fused_loss = partial(linear_cross_entropy, implementation="chunked")
    expected = model(IDS, labels=LABELS).loss
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    loss = torch.compile(model, backend="aot_eager", fullgraph=True)(IDS, labels=LABELS).loss
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(torch.autograd.grad(loss, list(model.parameters())), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_the_kernels_table_and_operators_carry_the_names_that_evidence_looks_for() -> None:
    for name in ("chunked", "triton"):
        operator = getattr(kernels.linear_cross_entropy, f"linear_cross_entropy_{name}")
        assert operator._qualname == f"minimind_bench::linear_cross_entropy_{name}"
