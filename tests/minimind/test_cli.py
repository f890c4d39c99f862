"""`python -m minimind`: what each verb prints, what it refuses, and how it stops."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from minimind import trainer
from minimind.checkpoint import load_weights, save_weights
from minimind.cli import main
from minimind.commands.inputs import EMBEDDED_WEIGHTS
from minimind.config import MiniMindConfig
from minimind.data.corpus import corpus_fingerprint, file_fingerprint
from minimind.model import MiniMindForCausalLM
from minimind.tokenizer import load_tokenizer

needs_embedded = pytest.mark.skipif(not EMBEDDED_WEIGHTS.is_file(), reason="the embedded weights are not there")
SMALL = {
    "generation": 3,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}
TEXT = "\n".join(f"line {number} of a text with {number * 7} words" for number in range(120))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a few thousand weights with its tokenizer, and a text."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = MiniMindConfig.from_dict(SMALL)
    save_weights(folder / "small.safetensors", config, MiniMindForCausalLM(config).state_dict())
    load_tokenizer().save(folder)
    (folder / "text.txt").write_text(TEXT)
    (folder / "chat.jsonl").write_text(
        json.dumps({"conversations": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}) + "\n"
    )
    return folder


def train_argv(folder: Path, out: Path, *more: str) -> list[str]:
    weights, data = folder / "small.safetensors", folder / "text.txt"
    argv = ["train", "--weights", str(weights), "--data", str(data), "--heldout", str(data), "--out", str(out)]
    return [*argv, "--steps", "6", "--batch-size", "2", "--length", "24", "--lr", "1e-2", *more]


def run_main(argv: Sequence[str]) -> int:
    try:
        return main(argv)
    except SystemExit as end:  # argparse ends by itself
        return int(end.code or 0)


def test_help_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from minimind.cli import main\n"
        "try: main(['train', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(' '.join({'torch', 'tokenizers', 'rich', 'numpy'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--accumulate" in done.stdout


def test_the_module_runs_and_refuses_without_a_traceback() -> None:
    argv = [sys.executable, "-m", "minimind", "generate", "--prompt", "x", "--preset", "huge"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "python -m minimind generate: unknown preset 'huge'; known: minimind2-small, minimind2, minimind2-moe, "
        "minimind-3, minimind-3-moe, tiny"
    ]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["fly"], "invalid choice: 'fly'"),
        (["eval", "--preset", "huge"], "unknown preset 'huge'; known: minimind2-small"),
        (["eval", "--weights", "nowhere.pth"], "nowhere.pth: no such file"),
        (["eval", "--weights", "FOLDER/text.txt", "--tokenizer", "embedded"], "unknown kind of file '.txt'"),
        (["eval", "--weights", "FOLDER/damaged.safetensors", "--tokenizer", "embedded"], "damaged"),
        (["eval", "--weights", "FOLDER/alone/small.safetensors"], "no tokenizer.json beside"),
        (["eval", "--weights", "FOLDER/small.safetensors", "--tokenizer", "nowhere"], "no tokenizer at 'nowhere'"),
        (["eval", "--weights", "FOLDER/small.safetensors", "--tokenizer", "FOLDER/alone"], "has 310 ids and the model"),
        (["eval", "--weights", "FOLDER/small.safetensors", "--preset", "tiny"], "do not fit the model shape"),
        (["eval", "--preset", "tiny", "--data", "nowhere.txt"], "cannot read 'nowhere.txt'"),
        (["eval", "--preset", "tiny", "--data", "FOLDER/bad.jsonl"], "bad.jsonl, line 1: not JSON"),
        (["eval", "--preset", "tiny", "--data", "FOLDER/chat.jsonl", "--layout", "packed"], "cannot be packed"),
        (["eval", "--preset", "tiny", "--length", "1"], "length must be at least 2"),
        (["eval", "--preset", "tiny", "--batch-size", "0"], "--batch-size must be at least 1, not 0"),
        (["eval", "--preset", "tiny", "--precision", "fp8"], "unknown precision 'fp8'; known: fp32, bf16"),
        (["eval", "--preset", "tiny", "--device", "abacus"], "unknown device 'abacus'; allowed: cpu, cuda"),
        (["eval", "--preset", "tiny", "--device", "cuda:63"], "device 'cuda:63' is not there"),
        (["eval", "--preset", "tiny", "--device", "meta"], "device 'meta' is not supported"),
        (["eval", "--preset", "tiny", "--threads", "0"], "--threads must be at least 1"),
        (["generate", "--preset", "tiny", "--prompt", "x", "--top-p", "0"], "--top-p must be above 0"),
        (["generate", "--preset", "tiny", "--prompt", "x", "--temperature", "-1"], "--temperature must be"),
        (["generate", "--preset", "tiny", "--prompt", "x", "--max-new-tokens", "99999"], "is more than the"),
        (["inspect", "--preset", "tiny", "--context", "4", "--cache", "none"], "--context needs a cache"),
        (["inspect", "--preset", "tiny", "--length", "99999"], "has 32768 positions"),
        (["tokenizer", "--out", "FOLDER/new", "--vocab-size", "9"], "vocab_size 9 is too small"),
        (["tokenizer", "--out", "FOLDER/new", "--data", "nowhere.txt"], "cannot read 'nowhere.txt'"),
        (["train", "--preset", "tiny"], "name the folder for the results with --out"),
        (["train", "--out", "FOLDER/new", "--lr", "-1"], "--lr must be a number above 0, not -1.0"),
        (["train", "--out", "FOLDER/new", "--steps", "some"], "invalid int value: 'some'"),
        (["train", "--resume", "FOLDER/text.txt", "--preset", "tiny"], "--preset contradicts --resume"),
        (["train", "--resume", "nowhere.pt"], "no training checkpoint at 'nowhere.pt'"),
        (["train", "--resume", "FOLDER/text.txt"], "cannot read the training checkpoint"),
    ],
)
def test_bad_input_is_named(folder: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    (folder / "bad.jsonl").write_text("{")
    (folder / "damaged.safetensors").write_bytes((folder / "small.safetensors").read_bytes()[:-9])
    (folder / "alone").mkdir(exist_ok=True)
    (folder / "alone" / "small.safetensors").write_bytes((folder / "small.safetensors").read_bytes())
    if "ids" in message:
        main(["tokenizer", "--data", str(folder / "text.txt"), "--vocab-size", "310", "--out", str(folder / "alone")])
    code = run_main([word.replace("FOLDER", str(folder)) for word in argv])
    for left in (folder / "alone").glob("tokenizer*"):
        left.unlink()
    assert code == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert not (folder / "new").exists()


def test_train_writes_weights_with_their_origin(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(train_argv(folder, tmp_path, "--accumulate", "2", "--store", "fp16", "--log-every", "3")) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{tmp_path / 'model.safetensors'}: 6 steps")
    assert "step 3/6: loss" in captured.err and "tokens/s" in captured.err
    config, state = load_weights(tmp_path / "model.safetensors")
    assert config == MiniMindConfig.from_dict(SMALL)
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["settings"])["accumulate"] == 2
    assert metadata["command"].startswith("python -m minimind train --weights")
    assert metadata["heldout_fingerprint"] == file_fingerprint(folder / "text.txt")
    assert float(metadata["heldout_perplexity"]) < 6400
    assert (tmp_path / "tokenizer.json").is_file()


def test_an_interrupted_run_exits_130_and_resumes_to_the_same_weights(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(train_argv(folder, tmp_path / "whole")) == 0
    plain_step = trainer.train_step
    calls = []

    def interrupted(*args: object, **options: object) -> trainer.StepLoss:
        calls.append(args)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return plain_step(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer, "train_step", interrupted)
    capsys.readouterr()
    assert main(train_argv(folder, tmp_path / "parts", "--save-every", "2")) == 130
    resume = tmp_path / "parts" / "resume.pt"
    assert f"interrupted; go on with --resume {resume}" in capsys.readouterr().err
    assert trainer.load_training(resume).step == 4
    monkeypatch.undo()
    again = ["train", "--resume", str(resume)]
    assert main([*again, "--lr", "0.5"]) == 2
    assert "--lr 0.5 contradicts --resume, whose run had 0.01" in capsys.readouterr().err
    assert main(["train", "--resume", str(resume), "--data", str(folder / "chat.jsonl")]) == 2
    capsys.readouterr()
    assert main(again) == 0
    assert "held-out perplexity" in capsys.readouterr().out
    whole, parts = (load_weights(tmp_path / name / "model.safetensors")[1] for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_loss_that_is_no_number_exits_1(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(train_argv(folder, tmp_path, "--lr", "1e30")) == 1
    error = capsys.readouterr().err
    assert "the loss is" in error and "step " in error


def test_chats_train_with_answers_only(folder: Path, tmp_path: Path) -> None:
    argv = ["train", "--weights", str(folder / "small.safetensors"), "--data", str(folder / "chat.jsonl")]
    assert main([*argv, "--length", "32", "--vary-chats", "--out", str(tmp_path)]) == 0


def test_a_tokenizer_of_another_size_decides_the_vocabulary(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(folder / "text.txt")
    assert main(["tokenizer", "--data", data, "--vocab-size", "300", "--out", str(tmp_path / "t")]) == 0
    argv = ["train", "--tokenizer", str(tmp_path / "t"), "--data", data, "--steps", "1", "--out", str(tmp_path)]
    assert main([*argv, "--batch-size", "1", "--length", "8"]) == 0
    assert "vocab_size 6400 becomes 300" in capsys.readouterr().err
    assert load_weights(tmp_path / "model.safetensors")[0].vocab_size == 300


def test_eval_prints_json_and_nothing_else(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["eval", "--weights", str(folder / "small.safetensors"), "--data", str(folder / "text.txt")]
    assert main([*argv, "--length", "32", "-o", "json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["data_fingerprint"] == file_fingerprint(folder / "text.txt")
    assert facts["tokenizer_fingerprint"] == load_tokenizer().fingerprint
    assert 5000 < facts["perplexity"] < 8000
    tokens = len(load_tokenizer().encode(TEXT)) + 1  # the end token; the begin token is given
    assert facts["tokens"] == tokens
    assert facts["bytes_per_token"] == pytest.approx(len(TEXT) / tokens)
    assert main([*argv, "--length", "32", "--max-rows", "2"]) == 0
    assert "perplexity" in capsys.readouterr().out


def test_generate_repeats_itself_for_a_seed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def output(*more: str) -> str:
        argv = ["generate", "--weights", str(folder / "small.safetensors"), "--prompt", "def f(", "--no-stop"]
        assert main([*argv, "--max-new-tokens", "9", *more]) == 0
        return capsys.readouterr().out

    sampled = output("--temperature", "1", "--seed", "1")
    assert sampled.startswith("def f(") and sampled == output("--temperature", "1", "--seed", "1")
    assert sampled != output("--temperature", "1", "--seed", "2")
    assert output() == output("--cache", "prealloc")


def test_inspect_shows_costs_modules_and_operations(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["inspect", "--weights", str(folder / "small.safetensors"), "--length", "1", "--context", "5"]
    assert main([*argv, "-o", "json"]) == 0
    content = json.loads(capsys.readouterr().out)
    config = MiniMindConfig.from_dict(SMALL)
    assert content["totals"]["parameters"] == sum(p.numel() for p in MiniMindForCausalLM(config).parameters())
    assert content["modules"][0]["flops"] == content["totals"]["forward_flops"]
    assert any(row["operation"] == "cat" and row["copies"] for row in content["operations"])
    assert {"shape", "stride", "dtype", "contiguous"} <= set(content["operations"][0]["outputs"][0])
    assert main([*argv, "--cache", "prealloc"]) == 0
    table = capsys.readouterr().out
    assert "self_attn.q_proj" in table and "kv bytes per token" in table and "not contiguous" in table


@needs_embedded
def test_the_embedded_model_knows_python(capsys: pytest.CaptureFixture[str]) -> None:
    assert EMBEDDED_WEIGHTS.stat().st_size < 8_000_000
    assert main(["generate", "--prompt", "def __init__(self", "--max-new-tokens", "8"]) == 0
    assert "):\n        " in capsys.readouterr().out
    with safe_open(EMBEDDED_WEIGHTS, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["tokenizer_fingerprint"] == load_tokenizer().fingerprint
    assert main(["eval", "--max-rows", "16", "-o", "json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["data_fingerprint"] == corpus_fingerprint("heldout")
    assert facts["perplexity"] < 150  # these rows; a smoothed bigram model has 106 on all rows, random weights 6,700
