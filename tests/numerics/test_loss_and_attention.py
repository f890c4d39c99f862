"""The options of axes `loss` and `sdpa` where they act: in training, compiled by themselves, and without a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import kernels._triton
from harness import registry
from harness.backends._torch import MiniMindEngine, load
from harness.capability import capabilities
from harness.core import Case, ModelSource, Unsupported, Variant, Workload
from harness.options._attention import attend_triton, prepare_triton
from harness.registry import resolve_workload, why_unsupported
from harness.worker import check_evidence
from minimind import MiniMindConfig, MiniMindForCausalLM, save_weights
from minimind.attention import attend_fused, prepare_fused
from minimind.flex import prepare_flex

pytestmark = pytest.mark.usefixtures("one_thread")

registry.load_all()
IDS = torch.randint(0, 6400, (2, 16), generator=torch.Generator().manual_seed(1))
TRAIN = resolve_workload(Workload.of("train_step", batch=2, length=12))
DECODE = resolve_workload(Workload.of("decode", batch=2, context=12, new_tokens=3))
PREFILL = resolve_workload(Workload.of("prefill", batch=2, context=12))
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """A small random MiniMind-3 in a file, with a text to run on."""
    folder = tmp_path_factory.mktemp("model")
    text = folder / "text.txt"
    text.write_text("def main(arguments):\n    return len(arguments) and 'nothing is lost'\n" * 40)
    torch.manual_seed(3)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = MiniMindConfig.from_dict({"generation": 3, "vocab_size": 6400, **shape})
    path = folder / "small.safetensors"
    save_weights(path, config, MiniMindForCausalLM(config).state_dict())
    return ModelSource("small", weights=str(path), data=str(text))


def engine(source: ModelSource, text: str, device: str = "cpu") -> MiniMindEngine:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if (reason := why_unsupported(Variant.parse(text), capabilities(device))) is not None:
        pytest.skip(reason)
    return load(source, Variant.parse(text), device, 0)


def checked_facts(built: MiniMindEngine, text: str, workload: Workload) -> dict[str, Any]:
    """The facts after one iteration, as a worker asks for them; raises where the option left no evidence."""
    session = built.session(workload)
    session.iterate()
    facts = session.facts()
    check_evidence(Case(workload, "small", Variant.parse(text)), facts)
    return facts


# --- loss ---


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["fused", "triton"])
def test_training_with_a_fused_loss_moves_the_weights_alike(name: str, device: str, source: ModelSource) -> None:
    trained = {}
    for text in ("reference", f"loss={name}"):
        built = engine(source, text, device)
        session = built.session(TRAIN)
        for _ in range(3):
            session.iterate()
        trained[text] = built.train_loss(IDS.to(device)).item(), [one.detach().clone() for one in built.parameters()]
    (loss, weights), (expected, others) = trained[f"loss={name}"], trained["reference"]
    assert loss == pytest.approx(expected, abs=1e-4)
    for ours, theirs in zip(weights, others, strict=True):
        # AdamW moves every weight by about 5e-4 a step, whatever its gradient: a wrong sign would show.
        assert (ours - theirs).abs().mean().item() < 2e-5


def test_the_fused_loss_is_proved_by_its_operation(source: ModelSource) -> None:
    proof = registry.OPTIONS["loss", "fused"].evidence
    assert proof is not None
    plain = checked_facts(engine(source, "reference"), "reference", TRAIN)
    assert not proof(plain) and not proof({**plain, "loss": "chunked"})
    facts = checked_facts(engine(source, "loss=fused"), "loss=fused", TRAIN)
    ours = "minimind_bench::linear_cross_entropy_chunked"
    assert facts["operations"][ours] == 1 and "aten::nll_loss_forward" not in facts["operations"]
    without = {name: count for name, count in facts["operations"].items() if name != ours}
    assert not proof({**facts, "operations": without})
    assert proof(checked_facts(engine(source, "loss=fused"), "loss=fused", DECODE)), "nothing to prove in inference"


def test_a_fused_loss_under_autocast(source: ModelSource) -> None:
    losses = [engine(source, f"{text} precision=amp-bf16") for text in ("", "loss=fused")]
    with losses[0].computing():
        plain, fused = (built.train_loss(IDS) for built in losses)
    fused.backward()
    assert fused.item() == pytest.approx(plain.item(), abs=2e-2)
    assert all(one.grad is not None and one.grad.dtype == torch.float32 for one in losses[1].parameters())


# --- sdpa ---


def test_what_needs_a_gpu_is_skipped_with_its_reason_on_a_cpu() -> None:
    for text in ("sdpa=triton", "loss=triton"):
        reason = why_unsupported(Variant.parse(text), capabilities("cpu"))
        assert reason == f"{text} needs triton, which this machine does not offer"


def test_the_triton_strategy_never_runs_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt is SDPA's by declaration; a decode step without its kernel is an error, also where triton is broken."""
    q, k = torch.ones(1, 3, 4, 8), torch.ones(1, 3, 2, 8)
    seen = prepare_triton(3, 0, None, torch.float32, q.device)
    assert seen == prepare_fused(3, 0, None, torch.float32, q.device)
    assert torch.equal(attend_triton(q, k, k, seen, 0.0), attend_fused(q, k, k, seen, 0.0))
    alone = prepare_triton(1, 2, None, torch.float32, q.device)
    with pytest.raises(RuntimeError, match=r"needs CUDA tensors|triton cannot be imported"):
        attend_triton(q[:, :1], k, k, alone, 0.0)
    monkeypatch.setattr(kernels._triton, "WHY_NO_TRITON", "triton cannot be imported: broken")
    with pytest.raises(RuntimeError, match="cannot be imported: broken"):
        attend_triton(q[:, :1], k, k, alone, 0.0)
    with pytest.raises(ValueError, match="no padding mask"):
        prepare_triton(1, 2, torch.ones(1, 3), torch.float32, q.device)


@torch.inference_mode()
def logits_of(built: MiniMindEngine) -> torch.Tensor:
    """A prompt of 8, four single tokens, a piece of 4 after them."""
    ids = IDS.to(built.device)
    state = built.new_state(2, 16)
    with built.computing():
        pieces = (ids[:, :8], *ids[:, 8:12].split(1, dim=1), ids[:, 12:])
        return torch.cat([built.forward(piece, state) for piece in pieces], dim=1)


@pytest.mark.gpu
@pytest.mark.parametrize("cache", ["cat", "prealloc"])
def test_triton_attention_in_the_model(cache: str, source: ModelSource) -> None:
    both = f"kv={cache} sdpa=triton"
    built = engine(source, both, "cuda")
    difference = logits_of(built) - logits_of(engine(source, f"kv={cache}", "cuda"))
    assert difference.abs().max().item() <= registry.OPTIONS["sdpa", "triton"].numerics.tolerance["fp32"]
    for workload in (DECODE, PREFILL):
        facts = checked_facts(built, both, workload)
        assert ("minimind_bench::decode_attention" in facts["operations"]) == (workload is DECODE)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch\\.jit.*:DeprecationWarning")  # torch's own compiler still uses it
@pytest.mark.parametrize("device", DEVICES)
def test_flex_attention_in_the_model(device: str, source: ModelSource) -> None:
    """A prompt, single tokens and a piece after them, and the evidence; three kernels are compiled for it."""
    built = engine(source, "sdpa=flex kv=prealloc", device)
    difference = logits_of(built) - logits_of(engine(source, "reference", device))
    assert difference.abs().max().item() <= registry.OPTIONS["sdpa", "flex"].numerics.tolerance["fp32"]
    facts = checked_facts(built, "sdpa=flex kv=prealloc", DECODE)
    proof = registry.OPTIONS["sdpa", "flex"].evidence
    plain = checked_facts(engine(source, "sdpa=fused", device), "sdpa=fused", DECODE)
    assert proof is not None and proof(facts) and not proof({**plain, "attention": "flex"})
    if device == "cpu":
        with pytest.raises(Unsupported, match="cannot train on a CPU"):
            built.session(TRAIN)
        with pytest.raises(ValueError, match="no gradients on a CPU"):
            built.model(IDS)


def test_flex_attention_takes_no_padding_and_compiles_alone() -> None:
    with pytest.raises(ValueError, match="takes no padding mask"):
        prepare_flex(3, 0, torch.ones(1, 3), torch.float32, torch.device("cpu"))
    reason = why_unsupported(Variant.parse("sdpa=flex compile=default"), capabilities("cpu") | {"compile"})
    assert reason == "sdpa=flex excludes compile=default"
