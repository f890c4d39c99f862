"""The ONNX Runtime GenAI engine on the trained tiny model and on a small random one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness import registry
from harness.backends import _torch
from harness.backends._torch import load as load_torch
from harness.core import Case, CaseFailed, ModelSource, Unsupported, Variant, Workload
from harness.worker import check_evidence

pytest.importorskip("onnxruntime_genai", reason="ONNX Runtime GenAI is not installed (it is in no extra)")
from harness.backends import _onnxruntime_genai

# Its model builder takes 10 to 20 seconds a model.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quiet_machine")]

registry.load_all()
TINY = ModelSource("tiny")


def engine(text: str = "") -> Any:
    return _onnxruntime_genai.load(TINY, Variant.parse(f"backend=onnxruntime_genai {text}"), "cpu", 0)


def test_sessions_give_the_tokens_of_torch() -> None:
    own, other = engine(), load_torch(TINY, Variant(), "cpu", 0)
    for workload in (
        Workload.of("prefill", batch=1, context=12),
        Workload.of("decode", batch=1, context=12, new_tokens=5),
        Workload.of("generate", batch=1, prompt=6, new_tokens=5),
    ):
        facts = []
        for built in (own, other):
            session = built.session(registry.resolve_workload(workload))
            for _ in range(3):
                iteration = session.iterate()
                assert iteration.seconds > 0 and len(iteration.token_ns) == (5 if workload.kind == "generate" else 0)
            facts.append(session.facts())
        assert facts[0]["outputs"] == facts[1]["outputs"], workload.kind
        assert facts[0]["graph_operations"]["GroupQueryAttention"] == own.config.num_hidden_layers
        assert facts[0]["threads"] == 1


@pytest.mark.parametrize("name", ["none", "genai-int8", "genai-int4"])
def test_quality_through_every_position(name: str) -> None:
    text = "" if name == "none" else f"quant={name} threads=2"
    session = engine(text).session(Workload.of("perplexity", batch=1, length=64, prefill=48))
    quality, facts = session.quality(), session.facts()
    bound = {"none": 1e-8, "genai-int8": 0.01, "genai-int4": 0.1}[name]
    assert quality["kl"] < bound and quality["top1_agreement"] > 0.85
    check_evidence(Case(session.workload, "tiny", Variant.parse(f"backend=onnxruntime_genai {text}")), facts)
    for other in {"genai-int8", "genai-int4"} - {name}:
        proof = registry.OPTIONS["quant", other].evidence
        assert proof is not None and not proof(facts)


def test_another_model_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The folder of other weights under this model's name is found out before anything is timed."""
    config, weights = _torch.weights_of(TINY, 0)
    other = {name: tensor + 0.05 if "o_proj" in name else tensor for name, tensor in weights.items()}
    folder = _onnxruntime_genai.model_folder(config, other, "fp32")
    monkeypatch.setattr(_onnxruntime_genai, "model_folder", lambda *arguments: folder)
    with pytest.raises(CaseFailed, match="not the model") as error:
        engine()
    assert error.value.status == "wrong"


def test_what_the_engine_does_not_do_is_said() -> None:
    built = engine()
    with pytest.raises(Unsupported, match="batch 1"):
        built.session(Workload.of("decode", batch=2, context=12, new_tokens=5))
    with pytest.raises(Unsupported, match="cannot train"):
        built.session(Workload.of("train_step", batch=1, length=12))
