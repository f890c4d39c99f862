"""Sessions of the torch engine on a small model: what an iteration does, and that it does the same every time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import registry
from harness.backends._torch import MiniMindEngine, load
from harness.core import CaseFailed, Iteration, ModelSource, Unsupported, UsageError, Variant, Workload
from harness.worker import warm_up
from minimind import MiniMindConfig, MiniMindForCausalLM, save_weights

pytestmark = pytest.mark.usefixtures("one_thread")

registry.load_all()
DECODE = Workload.of("decode", batch=2, context=10, new_tokens=5)
PREFILL = Workload.of("prefill", batch=2, context=10)
GENERATE = Workload.of("generate", batch=2, prompt=10, new_tokens=6)
TRAIN = Workload.of("train_step", batch=2, length=12)
PERPLEXITY = Workload.of("perplexity", batch=2, length=16, prefill=10)
EVERY = (DECODE, PREFILL, GENERATE, TRAIN, PERPLEXITY)
NUM_LAYERS, NUM_KV, HEAD = 2, 2, 8


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    folder = tmp_path_factory.mktemp("model")
    (folder / "text.txt").write_text("".join(f"def f{n}(x):\n    return x ** {n}\n" for n in range(200)))
    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": NUM_KV,
    }
    config = MiniMindConfig.from_dict({"generation": 3, "vocab_size": 6400, "head_dim": HEAD, **shape})
    save_weights(folder / "small.safetensors", config, MiniMindForCausalLM(config).state_dict())
    return ModelSource("small", weights=str(folder / "small.safetensors"), data=str(folder / "text.txt"))


def engine(source: ModelSource, text: str = "reference", seed: int = 0) -> MiniMindEngine:
    return load(source, Variant.parse(text), "cpu", seed)


@pytest.mark.parametrize("workload", [DECODE, GENERATE, PREFILL], ids=lambda workload: workload.kind)
def test_every_iteration_gives_the_same_tokens(workload: Workload, source: ModelSource) -> None:
    """Rewinding works: an iteration leaves nothing behind for the next one, whatever the cache."""
    tokens = []
    for text in ("reference", "kv=prealloc", "kv=prealloc sdpa=fused", "loop=bare"):
        session = engine(source, text).session(workload)
        for _ in range(3):
            session.iterate()
            assert session.outputs is not None
            tokens.append(session.outputs.clone())
        session.step()
        session.iterate()
        tokens.append(session.outputs)
    assert all(torch.equal(one, tokens[0]) for one in tokens)
    assert tokens[0].shape == (2, {"decode": 5, "generate": 6, "prefill": 1}[workload.kind])
    assert len({*tokens[0].flatten().tolist()}) > 1


def test_decode_goes_on_where_prefill_ends(source: ModelSource) -> None:
    """One generation of six tokens is a prefill's token and a decode's five."""
    found = {}
    for workload in (PREFILL, DECODE, GENERATE):
        session = engine(source).session(workload)
        session.iterate()
        found[workload.kind] = session.outputs
    assert torch.equal(torch.cat((found["prefill"], found["decode"]), dim=1), found["generate"])


def test_variants_of_a_seed_get_the_same_prompt_and_other_seeds_another(source: ModelSource) -> None:
    one, same, other = (
        engine(source, text, seed).prompt(2, 10) for text, seed in (("reference", 1), ("attn=mqa", 1), ("reference", 2))
    )
    assert torch.equal(one, same) and one.shape == other.shape == (2, 10)


def test_token_times_lie_inside_the_iteration(source: ModelSource) -> None:
    session = engine(source).session(GENERATE)
    iteration = session.iterate()
    times = [iteration.start_ns, *iteration.token_ns, iteration.end_ns]
    assert len(iteration.token_ns) == 6 and times == sorted(times)
    assert engine(source).session(DECODE).iterate().token_ns == ()


@pytest.mark.parametrize(
    ("text", "workload", "positions"),
    [
        ("reference", DECODE, 15),
        ("kv=prealloc", DECODE, 15),
        ("reference", PREFILL, 10),
        ("reference", GENERATE, 15),
        ("kv=prealloc", GENERATE, 16),
    ],
)
def test_kv_bytes_are_what_the_shapes_say(text: str, workload: Workload, positions: int, source: ModelSource) -> None:
    """The last token of a generation is never fed back: cat holds one position less than prealloc has room for."""
    for precision, size in (("fp32", 4), ("bf16", 2), ("amp-bf16", 2)):
        session = engine(source, f"{text} precision={precision}" if text != "reference" else f"precision={precision}")
        opened = session.session(workload)
        opened.iterate()
        assert opened.kv_bytes() == 2 * NUM_LAYERS * NUM_KV * HEAD * 2 * positions * size


def test_the_norm_alone_is_the_variants_own(source: ModelSource) -> None:
    """Rows in, rows out and the weight once per call; nothing else of the model runs."""
    session = engine(source, "norm=fused").session(Workload.of("rms_norm", rows=5, calls=3))
    iteration = session.iterate()
    assert iteration.seconds > 0 and iteration.token_ns == ()
    assert session.work.bytes == 3 * (2 * 5 + 1) * 32 * 4 and session.work.tokens == 15
    native = engine(source).session(Workload.of("rms_norm", rows=5, calls=3))
    assert "aten::rsqrt" in native.facts()["operations"] and "aten::mm" not in native.facts()["operations"]


def test_only_the_last_position_gets_logits_where_that_is_asked(source: ModelSource) -> None:
    """The same next token, fewer products; quality still sees every position."""
    last, every = (engine(source, text) for text in ("logits=last", "reference"))
    ids = last.prompt(2, 10)
    with torch.inference_mode():
        short, full = last.next_logits(ids, last.new_state(2, 10)), every.next_logits(ids, every.new_state(2, 10))
        assert short.shape == (2, 1, 6400) and full.shape == (2, 10, 6400)
        assert torch.allclose(short[:, 0], full[:, -1], atol=1e-5)
        assert last.forward(ids, last.new_state(2, 10)).shape == full.shape
    saved = every.session(PREFILL).work.flops - last.session(PREFILL).work.flops
    assert saved == 2 * 2 * 9 * 6400 * 32


@pytest.mark.parametrize("workload", EVERY, ids=lambda workload: workload.kind)
def test_every_session_states_its_work_and_its_facts(workload: Workload, source: ModelSource) -> None:
    session = engine(source).session(workload)
    work = session.work
    tokens = {"decode": 10, "prefill": 20, "generate": 12, "train_step": 24, "perplexity": 32}[workload.kind]
    assert work.tokens == tokens and work.flops > 0 and (work.bytes > 0) == (workload.kind != "train_step")
    if workload.kind != "perplexity":
        session.iterate()
    facts = session.facts()
    assert facts["operations"] and any(name in ("aten::linear", "aten::mm") for name in facts["operations"])
    assert (facts["weight_dtype"], facts["compute_dtype"], facts["cache"], facts["trained"]) == (
        "float32",
        "fp32",
        "cat",
        True,
    )
    assert ("outputs" in facts) == (workload.kind in ("decode", "prefill", "generate"))
    assert ("data_fingerprint" in facts) == (workload.kind == "perplexity")


def test_half_as_many_bytes_move_in_bf16(source: ModelSource) -> None:
    full, half = (engine(source, text).session(DECODE).work for text in ("reference", "precision=bf16"))
    assert full.bytes == 2 * half.bytes and full.flops == half.flops


@pytest.mark.parametrize("text", ["precision=amp-bf16", "precision=amp-bf16 loop=bare"])
@pytest.mark.parametrize("workload", EVERY, ids=lambda workload: workload.kind)
def test_autocast_is_on_in_every_forward(
    workload: Workload, text: str, source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = engine(source, text)
    seen: list[bool] = []

    def note(module: Any, *_: Any) -> None:
        seen.append(torch.is_autocast_enabled("cpu"))

    built.model.register_forward_pre_hook(note)
    session = built.session(workload)
    session.quality() if workload.kind == "perplexity" else session.iterate()
    session.step()
    assert seen and all(seen)
    assert not torch.is_autocast_enabled("cpu")


def test_training_lowers_the_loss_and_leaves_other_engines_alone(source: ModelSource) -> None:
    built, other = engine(source), engine(source)
    session = built.session(TRAIN)
    before = built.train_loss(session.ids).item()  # type: ignore[attr-defined]
    for _ in range(8):
        assert session.iterate().seconds > 0
    after = built.train_loss(session.ids).item()  # type: ignore[attr-defined]
    assert after < before - 0.1
    assert all(parameter.grad is None for parameter in built.parameters()), "gradients are freed, as zero_grad does"
    pairs = zip(built.parameters(), other.parameters(), strict=True)
    assert not all(torch.equal(one, two) for one, two in pairs)
    fresh = zip(engine(source).parameters(), other.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in fresh)


# --- quality ---


def test_the_reference_is_itself(source: ModelSource) -> None:
    quality = engine(source).session(PERPLEXITY).quality()
    assert quality["kl"] == 0.0 and quality["top1_agreement"] == 1.0
    assert quality["ppl"] == pytest.approx(6400, rel=0.2), "a random model knows nothing"


@torch.inference_mode()
def test_perplexity_and_divergence_are_those_of_a_plain_forward(source: ModelSource) -> None:
    """Computed once more without a cache, in one piece."""
    session = engine(source, "attn=mqa").session(PERPLEXITY)
    quality = session.quality()
    ids = session.ids  # type: ignore[attr-defined]
    ours, theirs = (
        engine(source, text).model(ids[:, :-1]).logits.double().log_softmax(-1) for text in ("attn=mqa", "reference")
    )
    nll = -ours.gather(-1, ids[:, 1:].unsqueeze(-1)).mean().item()
    assert quality["ppl"] == pytest.approx(math.exp(nll), rel=1e-6)
    assert quality["kl"] == pytest.approx((theirs.exp() * (theirs - ours)).sum(-1).mean().item(), rel=1e-4)
    assert quality["top1_agreement"] == (ours.argmax(-1) == theirs.argmax(-1)).double().mean().item()


def test_quality_does_not_depend_on_how_the_text_is_cut(source: ModelSource) -> None:
    cuts = [Workload.of("perplexity", batch=2, length=16, prefill=cut) for cut in (1, 8, 15, 99)]
    found = [engine(source, "norm=fused").session(cut).quality()["ppl"] for cut in cuts]
    assert found == pytest.approx([found[0]] * 4, rel=1e-5)


def test_held_out_text_is_the_same_for_every_seed_and_variant(source: ModelSource) -> None:
    prints = {
        engine(source, text, seed).session(PERPLEXITY).facts()["data_fingerprint"]
        for text, seed in (("reference", 0), ("attn=mqa", 1), ("precision=bf16", 2))
    }
    assert len(prints) == 1
    longer = Workload.of("perplexity", batch=2, length=17, prefill=10)
    assert engine(source).session(longer).facts()["data_fingerprint"] not in prints


def test_logits_that_are_not_finite_are_wrong(source: ModelSource) -> None:
    built = engine(source, "norm=fused")
    with torch.no_grad():
        built.model.model.norm.weight.fill_(math.nan)
    with pytest.raises(CaseFailed, match="not finite") as error:
        built.session(PERPLEXITY).quality()
    assert error.value.status == "wrong"


# --- what cannot be ---


def test_what_a_session_does_not_have_is_refused(source: ModelSource, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="no workload serve"):
        engine(source).session(Workload.of("serve", batch=1, context=1, new_tokens=1))
    with pytest.raises(CaseFailed, match="decode has no quality"):
        engine(source).session(DECODE).quality()
    with pytest.raises(CaseFailed, match="solo pass"):
        engine(source).session(PERPLEXITY).iterate()
    with pytest.raises(UsageError, match=r"unknown model 'tinny'\. Did you mean 'tiny'"):
        load(ModelSource("tinny"), Variant(), "cpu", 0)
    (tmp_path / "short.txt").write_text("too short")
    short = ModelSource("small", weights=source.weights, data=str(tmp_path / "short.txt"))
    with pytest.raises(UsageError, match=r"short\.txt holds \d+ tokens, but 2 x 10 are needed"):
        engine(short).session(PREFILL)


# --- warm-up ---


class Scripted:
    """Iterations of given lengths in seconds; the last one for ever."""

    def __init__(self, *seconds: float) -> None:
        self.lengths = list(seconds)
        self.count = 0

    def iterate(self) -> Iteration:
        length = self.lengths[min(self.count, len(self.lengths) - 1)]
        self.count += 1
        return Iteration(0, int(length * 1e9))


def test_a_warm_up_ends_when_the_time_is_flat() -> None:
    done, steady = warm_up(Scripted(9.0, 1.0), 0.0, 4)  # type: ignore[arg-type]
    assert steady and len(done) == 4, "the first iteration, slow by nature, does not count"
    done, steady = warm_up(Scripted(9.0, 4.0, 2.0, 1.0), 0.0, 3)  # type: ignore[arg-type]
    assert steady and len(done) > 3
    assert done[-1].seconds == done[-2].seconds == 1.0


def test_a_warm_up_that_never_gets_flat_is_given_up_and_says_so() -> None:
    falling = Scripted(*(2.0**-n for n in range(29)))
    done, steady = warm_up(falling, 0.0, 3)  # type: ignore[arg-type]
    assert not steady and len(done) == 9, "three times the least number of iterations"
    rising = Scripted(1.0, 1.0, 2.0, 4.0, 8.0)
    assert warm_up(rising, 0.0, 3)[1], "getting slower is drift, not a warm-up"  # type: ignore[arg-type]
