"""Training: the schedule, one step, the loop, evaluation, and checkpoints that resume to the same numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from minimind.config import MiniMindConfig
from minimind.data.samples import IGNORED, PackedRows, stack
from minimind.model import MiniMindForCausalLM
from minimind.trainer import (
    StepReport,
    TrainingError,
    TrainSettings,
    evaluate,
    learning_rate,
    load_training,
    make_optimizer,
    save_training,
    train,
    train_step,
)

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "dev"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="upstream's golden data is not beside this checkout")
VOCAB = 32


def make_model(*, dropout: float = 0.0, seed: int = 0, **fields: Any) -> MiniMindForCausalLM:
    torch.manual_seed(seed)
    values = {
        "generation": 3,
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "dropout": dropout,
    }
    return MiniMindForCausalLM(MiniMindConfig.from_dict({**values, **fields}))


def make_rows(num_tokens: int = 400, length: int = 16) -> PackedRows:
    """A counting stream: what follows is always certain."""
    return PackedRows(torch.arange(num_tokens) % (VOCAB - 3) + 3, length=length, pad_id=0)


class LabelledRows:
    """Rows given as they are."""

    def __init__(self, ids: Tensor, labels: Tensor) -> None:
        self.ids, self.labels = ids, labels

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.ids[index], self.labels[index]


def run(
    model: MiniMindForCausalLM, settings: TrainSettings, rows: Any = None, **options: Any
) -> tuple[list[StepReport], torch.optim.Optimizer]:
    reports: list[StepReport] = []
    optimizer = make_optimizer(model, settings)
    train(model, optimizer, rows or make_rows(), settings, on_step=reports.append, **options)
    return reports, optimizer


@needs_golden
def test_the_schedule_is_upstreams() -> None:
    for case in json.loads((GOLDEN / "dev_lr_schedule.json").read_text(encoding="utf-8"))["cases"]:
        for step, value in zip(case["steps"], case["values"], strict=True):
            assert learning_rate(step, case["total_steps"], case["lr"]) == pytest.approx(value, rel=1e-12)


def test_the_schedule_falls_from_the_peak_to_a_tenth() -> None:
    assert learning_rate(0, 10, 2.0) == 2.0
    assert learning_rate(10, 10, 2.0) == pytest.approx(0.2)
    warm = [learning_rate(step, 20, 1.0, warmup=4) for step in range(1, 21)]
    assert warm[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert warm[4:] == sorted(warm[4:], reverse=True) and warm[-1] == pytest.approx(0.1)


@needs_golden
@pytest.mark.parametrize("case", ["dev_dense_small", "dev_moe_small", "dev_v2_dense_small", "dev_v2_moe_small"])
def test_steps_repeat_upstreams_short_run(case: str) -> None:
    facts = json.loads((GOLDEN / f"{case}.json").read_text(encoding="utf-8"))
    tensors = load_file(GOLDEN / f"{case}.safetensors")
    plan, tolerance = facts["expected"]["traj"], facts["suggested_tolerances"]
    model = MiniMindForCausalLM(MiniMindConfig.from_dict(facts["config"])).train()
    model.load_state_dict({name: tensor for name, tensor in tensors.items() if not name.startswith("io.")})
    settings = TrainSettings(steps=plan["micro_steps"], lr=plan["lr"], accumulate=plan["accumulation_steps"])
    optimizer = make_optimizer(model, settings)
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step + 1, settings.steps, settings.lr)
        result = train_step(
            model,
            optimizer,
            tensors["io.traj_input_ids"][step],
            tensors["io.traj_labels"][step],
            clip=plan["grad_clip"],
            accumulate=settings.accumulate,
            update=(step + 1) % settings.accumulate == 0,
        )
        assert float(result.loss) == pytest.approx(plan["loss"][step], abs=tolerance["traj_loss"])
        assert float(result.aux_loss) == pytest.approx(plan["aux_loss"][step], abs=tolerance["aux_loss"])
    for name, parameter in model.named_parameters():
        wanted = plan["final_param_norms"][name]
        assert float(parameter.detach().norm()) == pytest.approx(wanted, rel=tolerance["traj_param_norm_rel"]), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loss_falls(precision: Any) -> None:
    model = make_model()
    settings = TrainSettings(steps=60, batch_size=8, length=16, lr=1e-2, warmup=5, precision=precision)
    reports, _ = run(model, settings)
    losses = [report.loss for report in reports if report.loss is not None]
    assert losses[0] > 3 and losses[-1] < 0.7
    assert evaluate(model, make_rows(100)).perplexity < 2
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_reports_say_what_happened() -> None:
    settings = TrainSettings(steps=5, batch_size=10, length=16, accumulate=2)
    reports, _ = run(make_model(), settings)  # 27 rows: epochs of 3 batches, the last of 7 rows
    assert [report.step for report in reports] == [1, 2, 3, 4, 5]
    assert [report.num_tokens for report in reports] == [160, 160, 112, 160, 160]
    assert [report.updated for report in reports] == [False, True, True, False, True]
    assert [report.lr for report in reports] == [learning_rate(step, 5, 5e-4) for step in range(1, 6)]


def test_accumulating_equals_a_larger_batch() -> None:
    ids, labels = stack(make_rows(), range(8))
    first, second = make_model(), make_model()
    for model, parts in ((first, 1), (second, 4)):
        optimizer = make_optimizer(model, TrainSettings(steps=1, lr=1e-2))
        for part, (some_ids, some_labels) in enumerate(zip(ids.chunk(parts), labels.chunk(parts), strict=True)):
            train_step(
                model.train(), optimizer, some_ids, some_labels, accumulate=parts, update=part == parts - 1, clip=1e-2
            )
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    settings = TrainSettings(steps=12, batch_size=6, length=16, lr=5e-3, warmup=2, accumulate=2)
    whole = make_model(dropout=0.1)
    reports, optimizer = run(whole, settings)

    class Stop(Exception):
        pass

    first = make_model(dropout=0.1)
    first_optimizer = make_optimizer(first, settings)

    def save_and_stop(report: StepReport) -> None:
        if report.step == 7:  # the second batch of the second epoch: nothing is accumulated
            assert report.updated
            save_training(tmp_path / "r.pt", first, first_optimizer, step=7, settings=settings, origin={"data": "x"})
            raise Stop

    with pytest.raises(Stop):
        train(first, first_optimizer, make_rows(), settings, on_step=save_and_stop)
    checkpoint = load_training(tmp_path / "r.pt")
    assert (checkpoint.step, checkpoint.settings, checkpoint.origin) == (7, settings, {"data": "x"})
    second = make_model(dropout=0.1, seed=99)
    second_optimizer = make_optimizer(second, settings)
    checkpoint.restore(second, second_optimizer)
    rest: list[StepReport] = []
    train(second, second_optimizer, make_rows(), settings, done=checkpoint.step, on_step=rest.append)
    assert rest == reports[7:]
    for (name, one), other in zip(whole.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other), name
    states = (optimizer.state_dict()["state"], second_optimizer.state_dict()["state"])
    assert all(torch.equal(states[0][key]["exp_avg_sq"], states[1][key]["exp_avg_sq"]) for key in states[0])


def test_a_loss_that_is_no_number_stops_naming_the_step() -> None:
    model = make_model()

    def poison(report: StepReport) -> None:
        if report.step == 3:
            with torch.no_grad():
                model.model.norm.weight.fill_(math.nan)

    settings = TrainSettings(steps=9, batch_size=4, length=16)
    with pytest.raises(TrainingError, match="step 4: the loss is nan"):
        train(model, make_optimizer(model, settings), make_rows(), settings, on_step=poison)


def test_batches_without_labels_are_passed_over_visibly() -> None:
    ids, labels = stack(make_rows(), range(4))
    labels[:, 1:] = IGNORED
    model = make_model()
    before = [parameter.clone() for parameter in model.parameters()]
    reports, _ = run(model, TrainSettings(steps=2, batch_size=2, length=16), LabelledRows(ids, labels))
    assert [report.loss for report in reports] == [None, None]
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
    with pytest.raises(ValueError, match="no token to predict"):
        evaluate(model, LabelledRows(ids, labels))


def test_evaluation_sums_every_predicted_token_once() -> None:
    model = make_model().train()
    rows = make_rows(100, length=16)
    lengths = [2] * VOCAB
    found = evaluate(model, rows, byte_lengths=lengths, batch_size=3)
    assert model.training
    assert (found.num_tokens, found.num_bytes, found.length) == (99, 198, 16)
    ids, labels = stack(rows, range(len(rows)))
    with torch.no_grad():
        logits = model.eval()(ids).logits[:, :-1].flatten(0, 1)
    total = float(F.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"))
    assert found.total_nats == pytest.approx(total, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(total / 99), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(total / math.log(2) / 198, rel=1e-5)
    assert evaluate(model, rows, max_rows=2).num_tokens == 30


def test_a_model_that_knows_nothing_has_the_vocabulary_as_perplexity() -> None:
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert evaluate(model, make_rows()).perplexity == pytest.approx(VOCAB, rel=1e-5)


def test_a_failed_save_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, settings = make_model(), TrainSettings(steps=1)
    optimizer = make_optimizer(model, settings)
    path = tmp_path / "deep" / "resume.pt"
    save_training(path, model, optimizer, step=1, settings=settings, origin={})

    def full_disk(content: object, file: Path) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_training(path, model, optimizer, step=2, settings=settings, origin={})
    assert load_training(path).step == 1
    assert [found.name for found in path.parent.iterdir()] == ["resume.pt"]


def test_damaged_and_foreign_checkpoints_are_named(tmp_path: Path) -> None:
    path = tmp_path / "resume.pt"
    with pytest.raises(TrainingError, match="cannot read the training checkpoint"):
        load_training(path)
    path.write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(TrainingError, match=r"resume\.pt"):
        load_training(path)
    torch.save({"weights": torch.zeros(1)}, path)
    with pytest.raises(TrainingError, match="is not a training checkpoint"):
        load_training(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"length": 1}, "length must be at least 2"),
        ({"lr": math.nan}, "lr must be a number above 0"),
        ({"clip": 0.0}, "clip must be"),
        ({"warmup": 9}, r"warmup must be at least 0 and below steps \(9\)"),
        ({"precision": "fp8"}, "unknown precision 'fp8'; known: fp32, bf16"),
    ],
)
def test_settings_refuse_nonsense(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainSettings(**{"steps": 9, **fields})
