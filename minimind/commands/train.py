"""Train a model, from random weights, from --weights, or on from where a run stopped (--resume)."""

from __future__ import annotations

import argparse
import dataclasses
import math
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minimind.commands import inputs
from minimind.commands.inputs import Dataset, UsageError

if TYPE_CHECKING:
    from rich.progress import Progress

    from minimind.model import MiniMindForCausalLM
    from minimind.tokenizer import MiniMindTokenizer
    from minimind.trainer import Evaluation, StepReport, TrainingCheckpoint, TrainSettings

# Flag -> (type, help). The defaults are TrainSettings' own, so that a resumed run can tell what was asked for.
_SETTINGS: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "steps": (int, "batches to train on (default: one epoch)"),
    "batch_size": (int, "rows per batch (default 32)"),
    "length": (int, "tokens per row (default 340)"),
    "lr": (float, "peak learning rate; falls to a tenth of it along a cosine (default 5e-4)"),
    "warmup": (int, "steps of linear rise to the peak (default 0, as upstream)"),
    "accumulate": (int, "batches per update of the weights (default 1)"),
    "clip": (float, "largest norm of the gradient (default 1.0)"),
    "precision": (str, "fp32 or bf16 autocast (default fp32)"),
}
WEIGHTS_FILE, RESUME_FILE = "model.safetensors", "resume.pt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `minimind.commands`."""
    inputs.add_model_flags(parser)
    inputs.add_data_flags(parser)
    for name, (kind, text) in _SETTINGS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text, metavar=name.upper()[:5])
    parser.add_argument("--vary-chats", action="store_true", help="upstream's random system prompts and empty thinking")
    parser.add_argument("--heldout", metavar="FILE", type=Path, help="data for the final loss (corpus: its own split)")
    parser.add_argument("--out", metavar="DIR", type=Path, help=f"folder for {WEIGHTS_FILE} and {RESUME_FILE}")
    parser.add_argument("--resume", metavar="FILE", type=Path, help=f"go on from this {RESUME_FILE}")
    parser.add_argument("--save-every", metavar="N", type=int, default=200, help="steps between checkpoints (200)")
    parser.add_argument("--log-every", metavar="N", type=int, default=50, help="steps between log lines (50)")
    parser.add_argument(
        "--store", choices=("fp32", "fp16", "bf16"), default="fp32", help="dtype of the final weights (fp32)"
    )


def run(args: argparse.Namespace) -> int:
    """See `minimind.commands`."""
    from minimind import trainer

    if args.out is None and args.resume is None:
        raise UsageError("name the folder for the results with --out")
    for name in ("save_every", "log_every"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(args, name)}")
    device = inputs.select_device(args)
    checkpoint = _open_checkpoint(args)
    if checkpoint is not None:
        _take_over(args, checkpoint)
    out: Path = args.out or args.resume.parent
    model, tokenizer = _model_and_tokenizer(args, checkpoint, device)
    data, settings = _data_and_settings(args, checkpoint, tokenizer)
    heldout = _open_heldout(args, tokenizer, settings)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(out)
    optimizer = trainer.make_optimizer(model, settings)
    done, seconds_before = 0, 0.0
    if checkpoint is not None:
        try:
            checkpoint.restore(model, optimizer)
        except (RuntimeError, ValueError) as error:
            raise UsageError(f"'{args.resume}' does not fit its own model: {str(error).splitlines()[0]}") from error
        done, seconds_before = checkpoint.step, float(checkpoint.origin["seconds"])
    origin = _origin(args, data, heldout, tokenizer)
    started = time.monotonic()

    def save(step: int) -> None:
        seconds = seconds_before + time.monotonic() - started
        trainer.save_training(
            out / RESUME_FILE, model, optimizer, step=step, settings=settings, origin={**origin, "seconds": seconds}
        )

    with _Report(settings.steps, done, args.log_every) as report:

        def on_step(step: StepReport) -> None:
            report.step(step)
            report.unsaved += 1
            if step.updated and (report.unsaved >= args.save_every or step.step == settings.steps):
                save(step.step)
                report.unsaved = 0

        try:
            trainer.train(model, optimizer, data.rows, settings, done=done, on_step=on_step)
        except KeyboardInterrupt as interrupt:
            kept = f"go on with --resume {out / RESUME_FILE}" if (out / RESUME_FILE).exists() else "nothing saved yet"
            raise KeyboardInterrupt(f"interrupted; {kept}") from interrupt
        evaluation = None
        if heldout is not None:
            evaluation = report.evaluate(model, heldout, tokenizer, settings)
    seconds = seconds_before + time.monotonic() - started
    _write_weights(out / WEIGHTS_FILE, args.store, model, settings, {**origin, "seconds": round(seconds)}, evaluation)
    print(f"{out / WEIGHTS_FILE}: {settings.steps} steps, {seconds:.0f} s", end="")
    print(f", held-out perplexity {evaluation.perplexity:.2f}" if evaluation else ", no held-out data")
    return 0


def _open_checkpoint(args: argparse.Namespace) -> TrainingCheckpoint | None:
    """The checkpoint of --resume, with flags that contradict it refused."""
    from minimind.trainer import TrainingError, load_training

    if args.resume is None:
        return None
    for name in ("weights", "preset"):
        if getattr(args, name) is not None:
            raise UsageError(f"--{name} contradicts --resume, which brings its own model: leave it out")
    if not args.resume.is_file():
        raise UsageError(f"no training checkpoint at '{args.resume}': expected a {RESUME_FILE} that train wrote")
    try:
        checkpoint = load_training(args.resume)
    except TrainingError as error:
        raise UsageError(str(error)) from error
    for name in (*_SETTINGS, "seed"):
        asked, was = getattr(args, name), getattr(checkpoint.settings, name)
        if asked is not None and asked != was:
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} {asked} contradicts --resume, whose run had {was}: leave it out")
    return checkpoint


def _take_over(args: argparse.Namespace, checkpoint: TrainingCheckpoint) -> None:
    """Put what the resumed run was asked for into the flags that are not given now."""
    for name in ("data", "heldout"):
        path = checkpoint.origin[f"{name}_path"]
        if getattr(args, name) is None and path:
            setattr(args, name, Path(path))
    args.layout = args.layout or checkpoint.origin["layout_flag"] or None
    args.vary_chats = args.vary_chats or bool(checkpoint.origin["vary_chats"])


def _model_and_tokenizer(
    args: argparse.Namespace, checkpoint: TrainingCheckpoint | None, device: Any
) -> tuple[MiniMindForCausalLM, MiniMindTokenizer]:
    from minimind.config import MiniMindConfig

    if checkpoint is not None:
        tokenizer = inputs.open_tokenizer(args.tokenizer, args.resume)
        if tokenizer.fingerprint != checkpoint.origin["tokenizer_fingerprint"]:
            raise UsageError("the tokenizer is not the one that the resumed run had; name that with --tokenizer")
        config, state = MiniMindConfig.from_dict(checkpoint.config), None
        return inputs.build_model(config, state, seed=checkpoint.settings.seed, device=device, name="resume"), tokenizer
    tokenizer = inputs.open_tokenizer(args.tokenizer, args.weights)
    if args.weights is not None:
        config, state = inputs.read_weights(args.weights, args.preset)
        inputs.check_vocabulary(tokenizer, config)
    else:
        config, state = inputs.with_vocabulary(inputs.preset(args.preset or "tiny"), tokenizer), None
    seed = 42 if args.seed is None else args.seed
    return inputs.build_model(config, state, seed=seed, device=device, name=str(args.weights)), tokenizer


def _data_and_settings(
    args: argparse.Namespace, checkpoint: TrainingCheckpoint | None, tokenizer: MiniMindTokenizer
) -> tuple[Dataset, TrainSettings]:
    """The training rows and the settings, whose steps default to one epoch of them."""
    from minimind.data.samples import AS_WRITTEN, ChatVariation
    from minimind.trainer import TrainSettings

    given = {name: getattr(args, name) for name in (*_SETTINGS, "seed") if getattr(args, name) is not None}
    try:
        settings = checkpoint.settings if checkpoint else TrainSettings(**{"steps": 10**9, **given})
    except ValueError as error:
        raise UsageError(f"--{error}") from error
    data = inputs.open_dataset(
        tokenizer,
        args.data,
        split="train",
        length=settings.length,
        layout=args.layout,
        variation=ChatVariation(system_ratio=0.2, empty_think_ratio=0.2) if args.vary_chats else AS_WRITTEN,
        seed=settings.seed,
    )
    if checkpoint is not None and data.fingerprint != checkpoint.origin["train_fingerprint"]:
        raise UsageError(f"'{data.name}' is not the data of the resumed run ({checkpoint.origin['data']}); use --data")
    if checkpoint is None and args.steps is None:
        steps = math.ceil(len(data.rows) / settings.batch_size)
        if settings.warmup >= steps:
            raise UsageError(f"--warmup {settings.warmup} must be below the {steps} steps of one epoch")
        settings = dataclasses.replace(settings, steps=steps)
    return data, settings


def _open_heldout(args: argparse.Namespace, tokenizer: MiniMindTokenizer, settings: TrainSettings) -> Dataset | None:
    """The rows of the final loss: --heldout, or the corpus' held-out split when training on the corpus."""
    if args.heldout is None and args.data is not None:
        return None
    return inputs.open_dataset(tokenizer, args.heldout, split="heldout", length=settings.length, layout=args.layout)


def _origin(
    args: argparse.Namespace, data: Dataset, heldout: Dataset | None, tokenizer: MiniMindTokenizer
) -> dict[str, Any]:
    """What a checkpoint says about where it comes from."""
    import torch

    return {
        "command": shlex.join(args.command_line),
        "data": data.name,
        "data_path": str(args.data or ""),
        "heldout_path": str(args.heldout or ""),
        "layout_flag": args.layout or "",
        "layout": data.layout,
        "vary_chats": args.vary_chats,
        "train_fingerprint": data.fingerprint,
        "heldout_fingerprint": heldout.fingerprint if heldout else "",
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def _write_weights(
    path: Path,
    store: str,
    model: MiniMindForCausalLM,
    settings: TrainSettings,
    origin: Mapping[str, Any],
    evaluation: Evaluation | None,
) -> None:
    """The final weights with their origin as metadata."""
    import torch

    from minimind.checkpoint import save_weights

    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[store]
    metadata = {**origin, "settings": dataclasses.asdict(settings)}
    for name in ("data_path", "heldout_path", "layout_flag"):
        del metadata[name]
    if evaluation is not None:
        metadata |= {
            "heldout_perplexity": round(evaluation.perplexity, 4),
            "heldout_bits_per_byte": round(evaluation.bits_per_byte, 4),
            "heldout_tokens": evaluation.num_tokens,
        }
    state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    save_weights(path, model.config, state, metadata)


class _Report:
    """Progress on stderr: a bar on a terminal, a line every `log_every` steps anywhere else."""

    def __init__(self, steps: int, done: int, log_every: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self.unsaved = 0
        self._log_every = log_every
        self._logs_lines = not console.is_terminal
        self._progress: Progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[remark]}"),
            console=console,
            disable=self._logs_lines,
        )
        self._steps = steps
        self._task = self._progress.add_task("train", total=steps, completed=done, remark="")
        self._window: list[StepReport] = []
        self._window_started = time.monotonic()

    def __enter__(self) -> _Report:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def step(self, report: StepReport) -> None:
        """Show one step; every `log_every` steps with the mean loss and the throughput since the last time."""
        self._window.append(report)
        if report.step % self._log_every and report.step != self._steps:
            self._progress.update(self._task, completed=report.step)
            return
        seconds = time.monotonic() - self._window_started
        losses = [past.loss for past in self._window if past.loss is not None]
        empty = len(self._window) - len(losses)
        remark = f"loss {sum(losses) / len(losses):.3f}" if losses else "no labels"
        remark += f", lr {report.lr:.2e}, {sum(past.num_tokens for past in self._window) / seconds:.0f} tokens/s"
        remark += f", {empty} batches without labels" if empty else ""
        self._progress.update(self._task, completed=report.step, remark=remark)
        if self._logs_lines:
            print(f"step {report.step}/{self._steps}: {remark}", file=sys.stderr, flush=True)
        self._window, self._window_started = [], time.monotonic()

    def evaluate(
        self, model: MiniMindForCausalLM, heldout: Dataset, tokenizer: MiniMindTokenizer, settings: TrainSettings
    ) -> Evaluation:
        """The held-out loss, under its own bar."""
        from minimind.trainer import evaluate

        task = self._progress.add_task("held-out", total=len(heldout.rows), remark="")
        return evaluate(
            model,
            heldout.rows,
            byte_lengths=tokenizer.byte_lengths,
            on_batch=lambda num_rows: self._progress.update(task, completed=num_rows),
        )
