"""vLLM against ours on the trained tiny model and a random MiniMind-3: tokens, logits, facts, refusals."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from harness import registry
from harness.backends import _torch
from harness.backends._torch import load as load_torch
from harness.capability import capabilities
from harness.core import Case, CaseFailed, ModelSource, Unsupported, Variant, Workload
from harness.worker import check_evidence
from minimind import MiniMindConfig, MiniMindForCausalLM, save_weights

with warnings.catch_warnings():  # vLLM's dependencies warn when they are imported
    warnings.simplefilter("ignore")
    pytest.importorskip("vllm", reason="vLLM is not installed (it is in no extra: docs/engines.md)")
    from harness.backends import _vllm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("quiet_machine"),
    pytest.mark.filterwarnings("ignore"),  # its own warnings are not ours
]

registry.load_all()
TINY = ModelSource("tiny")


def engine(text: str = "", source: ModelSource = TINY) -> Any:
    return _vllm.load(source, Variant.parse(f"backend=vllm {text}"), "cpu", 0)


@pytest.fixture(scope="module")
def fp32(quiet_machine: None) -> Any:
    return engine()


@pytest.mark.parametrize(
    "text",
    [
        "prefill(batch=1,context=40)",
        "prefill(batch=3,context=12)",
        "decode(batch=1,context=12,new_tokens=6)",
        "decode(batch=3,context=12,new_tokens=6)",
        "generate(batch=2,prompt=6,new_tokens=5)",
    ],
)
def test_sessions_give_the_tokens_of_torch(fp32: Any, text: str) -> None:
    workload = registry.resolve_workload(Workload.parse(text))
    facts = []
    for built in (fp32, load_torch(TINY, Variant(), "cpu", 0)):
        session = built.session(workload)
        for _ in range(3):
            iteration = session.iterate()
            assert iteration.seconds > 0
            assert len(iteration.token_ns) == (5 if workload.kind == "generate" else 0)
            assert list(iteration.token_ns) == sorted(iteration.token_ns)
        facts.append(session.facts())
    assert facts[0]["outputs"] == facts[1]["outputs"]


@pytest.mark.parametrize("text", ["", "precision=bf16"])
def test_quality_and_facts_of_a_variant(fp32: Any, text: str) -> None:
    built = engine(text) if text else fp32
    workload = registry.resolve_workload(Workload.of("perplexity", batch=2, length=96, prefill=80))
    session = built.session(workload)
    quality, facts = session.quality(), session.facts()
    assert quality["kl"] < (1e-2 if text else 1e-8) and quality["top1_agreement"] > (0.9 if text else 0.999)
    reference = built.reference().session(workload)
    assert quality["ppl"] == pytest.approx(reference.quality()["ppl"], rel=1e-2 if text else 1e-5)
    if not text:
        assert reference.sample() == session.sample()
    check_evidence(Case(workload, "tiny", Variant.parse(f"backend=vllm {text}")), facts)
    dtype = "bfloat16" if text else "float32"
    assert (facts["weight_dtype"], facts["cache_dtypes"]) == (dtype, [dtype])
    assert facts["attention"] == ["CPUAttentionBackendImpl"] and facts["compiled_graphs"] == 1
    operations = facts["operations"]  # which product of matrices it takes differs between number formats
    assert facts["threads"] == 1
    assert sum(count for name, count in operations.items() if "mm" in name or "linear" in name) >= 4 * 4, operations
    assert any("cpu_attention" in name for name in operations), operations


def test_a_cached_load_does_not_compare_again(fp32: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def compare(self: Any) -> dict[str, float]:
        raise AssertionError("compared again")

    monkeypatch.setattr(_vllm.VllmEngine, "_verify", compare)
    assert engine().verified == fp32.verified and fp32.verified["max_difference"] < 1e-4


def test_another_model_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of other weights under this model's name is found out before anything is timed."""
    config, weights = _torch.weights_of(TINY, 0)
    other = {name: tensor + 0.05 if "o_proj" in name else tensor for name, tensor in weights.items()}
    folder = _vllm.exported_folder(config, other)
    monkeypatch.setattr(_vllm, "exported_folder", lambda *arguments: folder)
    with pytest.raises(CaseFailed, match="not the model") as error:
        engine()
    assert error.value.status == "wrong"


def test_minimind_3_is_a_qwen3(tmp_path_factory: pytest.TempPathFactory) -> None:
    config = MiniMindConfig.from_dict(
        {
            "generation": 3,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
        }
    )
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("models") / "minimind3.safetensors"
    save_weights(path, config, MiniMindForCausalLM(config).state_dict())
    built = engine(source=ModelSource("minimind3", weights=str(path)))
    assert built.verified["max_difference"] < 1e-4 and built.facts()["model_class"] == "Qwen3ForCausalLM"


def test_what_the_engine_does_not_do_is_said(fp32: Any) -> None:
    for text, message in (
        ("train_step(batch=1,length=8)", "cannot train"),
        ("prefill(batch=40,context=200)", "in a step"),
        ("decode(batch=1,context=16,new_tokens=20000)", "exceed vLLM's cache"),
    ):
        with pytest.raises(Unsupported, match=message):
            fp32.session(registry.resolve_workload(Workload.parse(text)))
    with pytest.raises(Unsupported, match="CPU only, not on cuda"):
        _vllm.load(TINY, Variant.parse("backend=vllm"), "cuda", 0)
    with pytest.raises(Unsupported, match="mixture of experts has no model in Transformers"):
        engine(source=ModelSource("minimind2-moe"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("backend=vllm kv=prealloc", "does not offer axis kv"),
        ("backend=vllm precision=amp-bf16", "does not offer precision=amp-bf16"),
        ("backend=vllm precision=bf16 threads=2", None),
    ],
)
def test_combinations_are_declared(text: str, reason: str | None) -> None:
    found = registry.why_unsupported(Variant.parse(text), capabilities("cpu"))
    assert found is None if reason is None else reason in str(found)
