"""The ONNX export and the two engines that run ONNX, on small random models of both generations and the trained one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
pytest.importorskip("onnxscript", reason="torch's ONNX exporter needs onnxscript")

import numpy as np
import onnx
import onnxruntime
import torch

from harness import registry
from harness.backends import _exported, _onnxruntime
from harness.backends._torch import load as load_torch
from harness.core import Case, CaseFailed, ModelSource, Unsupported, Variant, Workload
from harness.worker import check_evidence
from minimind import MiniMindConfig, MiniMindForCausalLM, save_weights
from minimind.checkpoint import load_weights
from minimind.export.onnx import export_onnx, past_names

pytestmark = pytest.mark.usefixtures("quiet_machine")

registry.load_all()
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
IDS = torch.randint(0, 6400, (3, 64), generator=torch.Generator().manual_seed(1))
WORKLOADS = [
    Workload.of("prefill", batch=2, context=12),
    Workload.of("decode", batch=2, context=12, new_tokens=5),
    Workload.of("generate", batch=2, prompt=6, new_tokens=5),
]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[int, ModelSource]:
    """Generation -> a small random model in a file, with a text to run on."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "text.txt").write_text("".join(f"def f{n}(x):\n    return x ** {n}\n" for n in range(200)))
    found = {}
    for generation in (2, 3):
        torch.manual_seed(generation)
        config = MiniMindConfig.from_dict({"generation": generation, "vocab_size": 6400, **SHAPE})
        model = MiniMindForCausalLM(config)
        for name, parameter in model.named_parameters():
            if "norm" in name:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
        path = folder / f"generation{generation}.safetensors"
        save_weights(path, config, model.state_dict())
        found[generation] = ModelSource(path.stem, weights=str(path), data=str(folder / "text.txt"))
    return found


@pytest.fixture(params=[2, 3], ids=["minimind2", "minimind3"])
def source(request: pytest.FixtureRequest, sources: dict[int, ModelSource]) -> ModelSource:
    return sources[request.param]


def engine(source: ModelSource, text: str = "backend=onnxruntime") -> _onnxruntime.OnnxRuntimeEngine:
    return _onnxruntime.load(source, Variant.parse(text), "cpu", 0)


# --- the file ---


@pytest.mark.slow  # torch traces a model for it
@torch.inference_mode()
def test_the_file_is_the_model_at_any_batch_and_length(source: ModelSource) -> None:
    config, weights = load_weights(str(source.weights))
    path = _onnxruntime.exported_file(config, weights)
    onnx.checker.check_model(str(path), full_check=True)
    model = MiniMindForCausalLM(config).eval()
    model.load_state_dict(weights)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = ["input_ids", *past_names(config)]
    assert [entry.name for entry in session.get_inputs()] == names
    for batch in (1, 3):
        for length in (1, 7, 33):
            cache = model.new_cache("cat")
            past = [np.zeros((batch, 2, 0, config.head_dim), np.float32)] * 4
            ids = IDS[:batch]
            for piece in (ids[:, :length], ids[:, length : length + 1], ids[:, length + 1 : length + 9]):
                logits, *past = session.run(None, dict(zip(names, (piece.numpy(), *past), strict=True)))
                expected = model(piece, cache=cache).logits.numpy()
                assert logits.shape == expected.shape and np.abs(logits - expected).max() < 1e-4
            for layer in range(2):
                for mine, theirs in zip((past[layer], past[2 + layer]), cache.layer(layer), strict=True):
                    assert np.abs(mine - theirs.transpose(1, 2).numpy()).max() < 1e-5


def test_the_file_uses_the_operators_of_opset_23(sources: dict[int, ModelSource]) -> None:
    graph = onnx.load(_onnxruntime.exported_file(*load_weights(str(sources[3].weights))))
    assert [entry.version for entry in graph.opset_import if not entry.domain] == [23]
    kinds = [node.op_type for node in graph.graph.node]
    assert kinds.count("Attention") == 2 and kinds.count("RMSNormalization") == 9
    assert {entry.key for entry in graph.metadata_props} >= {"config"}


@pytest.mark.parametrize(
    ("change", "message"), [({"use_moe": True}, "mixture of experts"), ({}, "must be float32")], ids=["moe", "bf16"]
)
def test_what_cannot_be_exported_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = MiniMindForCausalLM(MiniMindConfig.from_dict({"generation": 3, "vocab_size": 6400, **SHAPE, **change}))
    with pytest.raises(ValueError, match=message):
        export_onnx(model if change else model.bfloat16(), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_export_is_made_once_and_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_exported, "export_folder", lambda: tmp_path / "exports")
    made = []

    def make(path: Path) -> None:
        made.append(path)
        path.write_text("half")
        if len(made) == 1:
            raise CaseFailed("broken")

    with pytest.raises(CaseFailed, match="broken"):
        _exported.exported("kind", "name", make)
    path = _exported.exported("kind", "name", make)
    assert _exported.exported("kind", "name", make) == path and len(made) == 2
    assert [entry.name for entry in path.parent.iterdir()] == ["name"]
    assert path.parent.parent.stat().st_mode & 0o777 == 0o700


def test_only_the_newest_exports_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_exported, "export_folder", lambda: tmp_path / "exports")
    monkeypatch.setattr(_exported, "KEPT", 2)
    for name in "abc":
        last = _exported.exported("kind", name, lambda path: path.mkdir())
    assert last.exists() and len(list(last.parent.iterdir())) == 2


def test_a_failing_export_says_its_last_line() -> None:
    with pytest.raises(CaseFailed, match="the export failed: ValueError: no such thing"):
        _exported.run_child("-c", "raise ValueError('no such thing')")


# --- the engine ---


def test_sessions_give_the_tokens_of_torch(source: ModelSource) -> None:
    own, other = engine(source), load_torch(source, Variant(), "cpu", 0)
    for workload in map(registry.resolve_workload, WORKLOADS):
        facts = []
        for built in (own, other):
            session = built.session(workload)
            for _ in range(2):
                assert session.iterate().seconds > 0
            facts.append(session.facts())
        assert facts[0]["outputs"] == facts[1]["outputs"], workload.kind
        operations = facts[0]["graph_operations"]
        assert operations["Attention"] == 2 and operations["MatMul"] == 15
        assert facts[0]["providers"] == ["CPUExecutionProvider"] and facts[0]["threads"] == 1
        assert session.kv_bytes() and facts[0]["disk_bytes"] > 4 * facts[0]["num_params"]


def test_perplexity_is_that_of_the_reference(source: ModelSource) -> None:
    quality = engine(source).session(Workload.of("perplexity", batch=2, length=16, prefill=10)).quality()
    assert quality["kl"] < 1e-8 and quality["top1_agreement"] == 1.0


def test_rewinding_forgets(sources: dict[int, ModelSource]) -> None:
    built = engine(sources[3])
    state = built.new_state(3, 16)
    with torch.inference_mode():
        whole = built.forward(IDS[:, :12], state).clone()
        for length in (7, 0):
            built.rewind(state, length)
            again = built.forward(IDS[:, length:12], state)
            assert (again - whole[:, length:]).abs().max() < 1e-5
    assert state.length == 12 and built.kv_bytes(state) == 2 * 2 * 3 * 2 * 12 * 8 * 4


def test_a_file_with_other_weights_is_wrong(
    sources: dict[int, ModelSource], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    graph = onnx.load(_onnxruntime.exported_file(*load_weights(str(sources[3].weights))))
    tensor = next(entry for entry in graph.graph.initializer if "o_proj" in entry.name or entry.dims == [32, 32])
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[0, 0] += 1.0
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(graph, tmp_path / "other.onnx")
    monkeypatch.setattr(_onnxruntime, "exported_file", lambda config, weights: tmp_path / "other.onnx")
    with pytest.raises(CaseFailed, match="not the model") as error:
        engine(sources[3])
    assert error.value.status == "wrong"


@pytest.mark.slow  # torch traces a model for it
@pytest.mark.parametrize("threads", [1, 2])
def test_int8_on_the_trained_model_is_int8_and_close(threads: int) -> None:
    text = f"backend=onnxruntime quant=ort-int8 threads={threads}"
    built = engine(ModelSource("tiny"), text)
    session = built.session(Workload.of("perplexity", batch=4, length=64, prefill=48))
    quality, facts = session.quality(), session.facts()
    declared = registry.OPTIONS["quant", "ort-int8"]
    assert declared.numerics.max_kl is not None and 0 < quality["kl"] <= declared.numerics.max_kl
    assert quality["top1_agreement"] > 0.9
    check_evidence(Case(session.workload, "tiny", Variant.parse(text)), facts)
    assert facts["disk_bytes"] < 0.6 * engine(ModelSource("tiny")).disk_bytes()


def test_fp32_is_no_evidence_of_int8(sources: dict[int, ModelSource]) -> None:
    facts = engine(sources[3]).facts()
    for name in ("ort-int8", "genai-int8", "genai-int4"):
        proof = registry.OPTIONS["quant", name].evidence
        assert proof is not None and not proof({**facts, "weight_dtype": "int8", "weight_bits": [8]})


def test_what_the_engine_does_not_do_is_said(sources: dict[int, ModelSource]) -> None:
    with pytest.raises(Unsupported, match="cannot train"):
        engine(sources[3]).session(Workload.of("train_step", batch=2, length=12))
    with pytest.raises(Unsupported, match="CPU only"):
        _onnxruntime.load(sources[3], Variant.parse("backend=onnxruntime"), "cuda", 0)


@pytest.mark.parametrize(
    ("text", "missing", "reason"),
    [
        ("backend=onnxruntime", "onnxruntime", "needs the package onnxruntime"),
        ("backend=onnxruntime_genai", "onnxruntime_genai", "needs the package onnxruntime_genai"),
        ("backend=onnxruntime norm=fused", None, "does not offer axis norm"),
        ("backend=onnxruntime quant=genai-int4", None, "does not offer quant=genai-int4"),
        ("quant=ort-int8", None, "backend torch does not offer quant=ort-int8"),
    ],
)
def test_what_cannot_run_is_skipped_with_its_reason(text: str, missing: str | None, reason: str) -> None:
    packages = {f"pkg:{name}" for engine in registry.BACKENDS.values() for name in engine.packages}
    found = registry.why_unsupported(Variant.parse(text), frozenset({"cpu", *packages} - {f"pkg:{missing}"}))
    assert found is not None and reason in found
