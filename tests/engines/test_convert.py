"""`python -m minimind convert`: what it writes, and what it refuses without a traceback."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from minimind.checkpoint import load_weights, save_weights
from minimind.cli import main
from minimind.config import PRESETS, MiniMindConfig
from minimind.export.transformers import config_to_transformers
from minimind.model import MiniMindForCausalLM
from minimind.tokenizer import load_tokenizer

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
CONFIGS = {
    "minimind2": MiniMindConfig.from_dict({"generation": 2, **SHAPE}),
    "minimind3": MiniMindConfig.from_dict({"generation": 3, **SHAPE, "head_dim": 16}),
    "moe": MiniMindConfig.from_dict({"generation": 3, **SHAPE, "use_moe": True}),
}
IDS = torch.randint(0, 6400, (1, 10), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small random model of each kind, with the tokenizer beside them."""
    folder = tmp_path_factory.mktemp("models")
    for name, config in CONFIGS.items():
        torch.manual_seed(1)
        save_weights(folder / f"{name}.safetensors", config, MiniMindForCausalLM(config).state_dict())
    load_tokenizer().save(folder)
    return folder


def convert(folder: Path, name: str, out: Path, *more: str) -> int:
    return main(["convert", "--weights", str(folder / f"{name}.safetensors"), "--out", str(out), *more])


@torch.inference_mode()
def logits_of(path: Path) -> torch.Tensor:
    config, weights = load_weights(path)
    model = MiniMindForCausalLM(config)
    model.load_state_dict(weights)
    logits: torch.Tensor = model.eval()(IDS).logits
    return logits


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("target", ["transformers", "safetensors"])
def test_what_is_written_is_the_same_model(folder: Path, tmp_path: Path, name: str, target: str) -> None:
    out = tmp_path / ("hf" if target == "transformers" else "copy.safetensors")
    assert convert(folder, name, out, "--to", target) == 0
    assert torch.equal(logits_of(out), logits_of(folder / f"{name}.safetensors"))
    if target == "transformers":
        config, _ = load_weights(out)
        assert config == CONFIGS[name]
        assert load_tokenizer(out).fingerprint == load_tokenizer().fingerprint


def test_the_dtype_is_that_of_the_file(folder: Path, tmp_path: Path) -> None:
    assert convert(folder, "minimind3", tmp_path / "hf", "--to", "transformers", "--dtype", "bf16") == 0
    _, weights = load_weights(tmp_path / "hf")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_opens_the_folder(folder: Path, tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers", reason="opens the folder with its own loader")
    assert convert(folder, name, tmp_path / "hf", "--to", "transformers") == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", local_files_only=True)
    with torch.inference_mode():
        logits = model.eval()(IDS).logits
    torch.testing.assert_close(logits, logits_of(folder / f"{name}.safetensors"), rtol=0, atol=2e-5)


def test_gguf_is_written_with_the_tokenizer(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gguf = pytest.importorskip("gguf", reason="the exporter writes through the package gguf")
    out = tmp_path / "model.gguf"
    assert convert(folder, "minimind2", out, "--to", "gguf", "--dtype", "q8_0") == 0
    assert capsys.readouterr().out == f"{out}\t{out.stat().st_size} bytes\n"
    reader = gguf.GGUFReader(out)
    assert len(reader.fields["tokenizer.ggml.tokens"].contents()) == 6400
    assert {gguf.GGMLQuantizationType(tensor.tensor_type).name for tensor in reader.tensors} == {"F32", "Q8_0"}


def test_without_the_package_gguf_it_says_what_to_install(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert convert(folder, "minimind2", tmp_path / "model.gguf", "--to", "gguf") == 1
    assert "writing GGUF needs the package gguf: pip install" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--to", "gguf", "--out", "OUT/x", "--dtype", "q5_k"],
            "gguf has no dtype 'q5_k'; known: f32, f16, bf16, q8_0",
        ),
        (["--to", "safetensors", "--out", "OUT/x", "--dtype", "q8_0"], "safetensors has no dtype 'q8_0'; known: f32"),
        (["--to", "safetensors", "--out", "OUT"], "is already there: name another path"),
        (["--to", "safetensors", "--out", "OUT/no/x"], "does not exist"),
        (["--to", "safetensors", "--out", "OUT/x", "--weights", "nowhere.pth"], "nowhere.pth: no such file"),
        (
            ["--to", "gguf", "--out", "OUT/x", "--preset", "minimind2-moe"],
            "cannot write minimind2-moe (random weights)",
        ),
        (["--to", "transformers", "--out", "OUT/x", "--preset", "minimind2-moe"], "has no model in Transformers"),
    ],
)
def test_refusals(tmp_path: Path, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", *(text.replace("OUT", str(tmp_path)) for text in argv)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err and len(captured.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_an_unknown_format_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["convert", "--to", "coreml", "--out", "x"])
    assert "invalid choice: 'coreml'" in capsys.readouterr().err


def test_scaled_rope_has_no_twin() -> None:
    config = MiniMindConfig.from_dict({**PRESETS["minimind-3"].to_dict(), "inference_rope_scaling": True})
    with pytest.raises(ValueError, match="YaRN"):
        config_to_transformers(config)
