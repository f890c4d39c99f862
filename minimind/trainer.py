"""Training: one step, one loop, the held-out loss, and checkpoints that resume to the same numbers.

    optimizer = make_optimizer(model, settings)
    train(model, optimizer, rows, settings, on_step=print)
    print(evaluate(model, heldout_rows).perplexity)

A step is one batch, as upstream counts (jingyaogong/minimind at d65ef2c, trainer/train_pretrain.py): the learning rate
moves with every step, the weights with every `accumulate`-th and at the end of an epoch. Refuses (TrainingError): a
loss that is no longer a number, naming its step; a damaged checkpoint.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import AdamW, Optimizer

from minimind.data.samples import IGNORED, Rows, batch_indices, epoch_order, stack
from minimind.model import MiniMindForCausalLM

Precision = Literal["fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
_CHECKPOINT_FORMAT = 1


class TrainingError(RuntimeError):
    """Training cannot go on, or a training checkpoint cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """What decides a training run besides model and data. Rates per step, lengths in tokens."""

    steps: int
    batch_size: int = 32
    length: int = 340
    lr: float = 5e-4
    warmup: int = 0
    accumulate: int = 1
    clip: float = 1.0
    weight_decay: float = 0.01
    precision: Precision = "fp32"
    seed: int = 42

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.length < 2:
            raise ValueError(f"length must be at least 2, not {self.length}")
        for name in ("lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number above 0, not {getattr(self, name)}")
        if not 0 <= self.warmup < self.steps:
            raise ValueError(f"warmup must be at least 0 and below steps ({self.steps}), not {self.warmup}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"unknown precision '{self.precision}'; known: {', '.join(PRECISIONS)}")


class StepLoss(NamedTuple):
    """Losses of one batch, detached scalars on the model's device: cross entropy per label (nats) and auxiliary."""

    loss: Tensor
    aux_loss: Tensor


@dataclass(frozen=True, slots=True)
class StepReport:
    """One finished step. `loss` (nats per label) is None for a batch without any label, which is passed over.

    num_tokens counts ids with padding. `updated` says that the weights moved in this step: a checkpoint taken now
    resumes exactly.
    """

    step: int
    loss: float | None
    aux_loss: float
    lr: float
    num_tokens: int
    updated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """A loss over held-out rows: nats summed over predicted tokens, and the bytes of text behind those tokens."""

    total_nats: float
    num_tokens: int
    num_bytes: int
    length: int

    @property
    def loss(self) -> float:
        """Nats per predicted token."""
        return self.total_nats / self.num_tokens

    @property
    def perplexity(self) -> float:
        """e to the loss; compares only between equal data, tokenizer and row length."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text behind a predicted token on average."""
        return self.num_bytes / self.num_tokens

    @property
    def bits_per_byte(self) -> float:
        """Bits needed per byte of text; compares between tokenizers, too."""
        return self.total_nats / math.log(2) / self.num_bytes if self.num_bytes else math.nan


def learning_rate(step: int, total_steps: int, peak: float, *, warmup: int = 0) -> float:
    """The rate of a 1-based step: a cosine from `peak` to a tenth of it, as upstream's `get_lr`.

    warmup steps, which upstream has not, rise linearly to `peak` first; the cosine then spans the remaining steps.
    """
    if step < warmup:
        return peak * step / warmup
    done = (step - warmup) / (total_steps - warmup)
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


def make_optimizer(model: MiniMindForCausalLM, settings: TrainSettings) -> AdamW:
    """AdamW with torch's defaults over every parameter, norms and embeddings included, as upstream."""
    return AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)


def autocast(device_type: str, precision: Precision) -> AbstractContextManager[Any]:
    """The context of forward passes: nothing for fp32, torch's autocast for bf16 (on the CPU, too)."""
    return nullcontext() if precision == "fp32" else torch.autocast(device_type, dtype=torch.bfloat16)


def train_step(
    model: MiniMindForCausalLM,
    optimizer: Optimizer,
    input_ids: Tensor,
    labels: Tensor,
    *,
    precision: Precision = "fp32",
    clip: float = 1.0,
    accumulate: int = 1,
    update: bool = True,
) -> StepLoss:
    """Forward, backward and, with `update`, clipping, the optimizer's step and clearing the gradients.

    input_ids and labels [B, T] on the model's device, labels not shifted. The gradient is that of (loss + auxiliary
    loss) / accumulate. The model must be in training mode. No device synchronisation of its own.
    """
    with autocast(input_ids.device.type, precision):
        out = model(input_ids, labels=labels)
        total: Tensor = (out.loss + out.aux_loss) / accumulate
    total.backward()  # type: ignore[no-untyped-call]
    if update:
        apply_update(model, optimizer, clip=clip)
    return StepLoss(out.loss.detach(), out.aux_loss.detach())


def apply_update(model: MiniMindForCausalLM, optimizer: Optimizer, *, clip: float) -> None:
    """Clip the accumulated gradient to the norm `clip`, move the weights, clear the gradient."""
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def train(
    model: MiniMindForCausalLM,
    optimizer: Optimizer,
    rows: Rows,
    settings: TrainSettings,
    *,
    done: int = 0,
    on_step: Callable[[StepReport], object] | None = None,
) -> None:
    """Train from step done + 1 to settings.steps, epoch after epoch, rows shuffled by seed + epoch.

    done: steps taken before, when resuming. on_step sees every finished step and may save or evaluate; the model is in
    training mode again afterwards. Raises TrainingError when the loss is not finite.
    """
    device = next(model.parameters()).device
    per_epoch = math.ceil(len(rows) / settings.batch_size)
    step = done
    model.train()
    while step < settings.steps:
        epoch, position = divmod(step, per_epoch)
        order = epoch_order(len(rows), epoch, seed=settings.seed)
        for indices in batch_indices(order, settings.batch_size, skip=position):
            step, position = step + 1, position + 1
            update = position % settings.accumulate == 0 or position == per_epoch or step == settings.steps
            input_ids, labels = (tensor.to(device) for tensor in stack(rows, indices))
            lr = learning_rate(step, settings.steps, settings.lr, warmup=settings.warmup)
            for group in optimizer.param_groups:
                group["lr"] = lr
            loss, aux_loss = _guarded_step(model, optimizer, input_ids, labels, settings, update=update, step=step)
            if on_step is not None:
                on_step(StepReport(step, loss, aux_loss, lr, input_ids.numel(), update))
                model.train()
            if step == settings.steps:
                break


def _guarded_step(
    model: MiniMindForCausalLM,
    optimizer: Optimizer,
    input_ids: Tensor,
    labels: Tensor,
    settings: TrainSettings,
    *,
    update: bool,
    step: int,
) -> tuple[float | None, float]:
    """`train_step` with its losses as numbers; a batch without labels, whose mean would be NaN, only updates."""
    if not bool((labels[:, 1:] != IGNORED).any()):
        if update:
            apply_update(model, optimizer, clip=settings.clip)
        return None, 0.0
    result = train_step(
        model,
        optimizer,
        input_ids,
        labels,
        precision=settings.precision,
        clip=settings.clip,
        accumulate=settings.accumulate,
        update=update,
    )
    loss, aux_loss = float(result.loss), float(result.aux_loss)
    if not math.isfinite(loss + aux_loss):
        raise TrainingError(
            f"step {step}: the loss is {loss} (auxiliary {aux_loss}), so training stops; "
            f"try a lower --lr than {settings.lr:g}, a warmup, or precision fp32"
        )
    return loss, aux_loss


@torch.no_grad()
def evaluate(
    model: MiniMindForCausalLM,
    rows: Rows,
    *,
    byte_lengths: Sequence[int] = (),
    batch_size: int = 16,
    precision: Precision = "fp32",
    max_rows: int | None = None,
    on_batch: Callable[[int], object] | None = None,
) -> Evaluation:
    """The loss over the first `max_rows` rows (None: all), every row on its own, in evaluation mode.

    byte_lengths: bytes per token id (`MiniMindTokenizer.byte_lengths`), for bits per byte. on_batch gets the number of
    rows done. The model's mode is put back. Raises ValueError if no row has a label.
    """
    device = next(model.parameters()).device
    table = torch.tensor(byte_lengths, dtype=torch.int64)
    num_rows = len(rows) if max_rows is None else min(max_rows, len(rows))
    total_nats, num_tokens, num_bytes, length = 0.0, 0, 0, 0
    was_training = model.training
    model.eval()
    try:
        for indices in batch_indices(range(num_rows), batch_size):
            input_ids, labels = stack(rows, indices)
            targets = labels[:, 1:]
            with autocast(device.type, precision):
                logits = model(input_ids.to(device)).logits[:, :-1]
            total_nats += float(
                F.cross_entropy(
                    logits.flatten(0, 1).float(), targets.flatten().to(device), ignore_index=IGNORED, reduction="sum"
                )
            )
            kept = targets[targets != IGNORED]
            num_tokens += kept.numel()
            num_bytes += int(table[kept].sum()) if len(table) else 0
            length = input_ids.shape[1]
            if on_batch is not None:
                on_batch(indices[-1] + 1)
    finally:
        model.train(was_training)
    if not num_tokens:
        raise ValueError("the held-out rows hold no token to predict")
    return Evaluation(total_nats=total_nats, num_tokens=num_tokens, num_bytes=num_bytes, length=length)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingCheckpoint:
    """Everything that a run needs to go on as if it had not stopped.

    config: the model's, as a dict. origin: free text fields of the caller (data, fingerprints, tokenizer).
    """

    config: Mapping[str, Any]
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    step: int
    settings: TrainSettings
    random: Mapping[str, Any]
    origin: Mapping[str, Any]

    def restore(self, model: MiniMindForCausalLM, optimizer: Optimizer) -> None:
        """Put weights, optimizer state and random state back."""
        model.load_state_dict(dict(self.model))
        optimizer.load_state_dict(dict(self.optimizer))
        torch.set_rng_state(self.random["cpu"])
        if self.random["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(self.random["cuda"])


def save_training(
    path: Path,
    model: MiniMindForCausalLM,
    optimizer: Optimizer,
    *,
    step: int,
    settings: TrainSettings,
    origin: Mapping[str, Any],
) -> None:
    """Write a training checkpoint (full precision) atomically. Only exact when taken after an update."""
    content = {
        "format": _CHECKPOINT_FORMAT,
        "config": model.config.to_dict(),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "settings": dataclasses.asdict(settings),
        "random": {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        },
        "origin": dict(origin),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        torch.save(content, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_training(path: Path) -> TrainingCheckpoint:
    """Read a training checkpoint. Raises TrainingError naming the file if it is missing, damaged or something else."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise TrainingError(f"cannot read the training checkpoint '{path}': {_first_line(error)}") from error
    if not isinstance(content, dict) or content.get("format") != _CHECKPOINT_FORMAT:
        raise TrainingError(f"'{path}' is not a training checkpoint (expected what `train` wrote as resume.pt)")
    content.pop("format")
    return TrainingCheckpoint(**{**content, "settings": TrainSettings(**content["settings"])})


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
