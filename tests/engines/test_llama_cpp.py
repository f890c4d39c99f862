"""llama.cpp against ours: token ids, greedy text, logits, and what the engine reports and refuses."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import registry
from harness.backends import _exported
from harness.capability import capabilities
from harness.core import Case, CaseFailed, ModelSource, Unsupported, Variant, Workload
from harness.registry import resolve_workload, why_unsupported
from harness.worker import check_evidence
from minimind.assets import embedded_checkpoint
from minimind.checkpoint import load_weights, save_weights
from minimind.config import MiniMindConfig
from minimind.data.corpus import load_corpus
from minimind.export import gguf
from minimind.generate import generate
from minimind.model import MiniMindForCausalLM
from minimind.tokenizer import RESERVED_TOKENS, MiniMindTokenizer, load_tokenizer

llama_cpp = pytest.importorskip("llama_cpp", reason="runs in an environment with llama-cpp-python")
pytest.importorskip("gguf", reason="llama.cpp reads what the package gguf writes")

registry.load_all()
VARIANTS = ["", "precision=fp16", "precision=bf16", "quant=q8_0", "quant=q4_0"]
SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
CONFIGS = {
    "minimind2": MiniMindConfig.from_dict({"generation": 2, **SHAPE}),
    "minimind3": MiniMindConfig.from_dict({"generation": 3, **SHAPE, "head_dim": 32, "tie_word_embeddings": False}),
    "moe": MiniMindConfig.from_dict({"generation": 3, **SHAPE, "use_moe": True, "num_experts_per_tok": 2}),
}
TEXTS = [
    "",
    " ",
    "a",
    "Hello, world! It's 2024, isn't it? We'll see; they've said so.",
    "def main(argv: list[str]) -> int:\n    for i in range(10):\n\t\tprint(f'{i:>3}')\n    return 0\n",
    "   leading and trailing   \n\n\n  \t \r\n end ",
    "tabs\t\tand\u00a0no-break\u2003em space\u3000wide",
    "naïve café Ümlaut ÆØÅ straße ŒUVRE",
    "你好，世界。人工智能模型　测试",
    "Привет, мир! Γειά σου Κόσμε שלום עולם مرحبا بالعالم",
    "emoji 🙂🚀👩‍👩‍👧‍👦 flags 🇩🇪 and ½ ² ① Ⅷ ٣",
    "e\u0301 combining, zero\u200bwidth, \ufeffbom, \x00nul, \x1bescape, \x85next line",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    "a<|endoftext|>b <|im_start|> c<tool_call>{}</tool_call><|buffer1|>",
    "<|im_start <|im_end| <think >",
    "x" * 300 + "!" * 40 + " " * 70 + "0123456789" * 9,
    "price: $1,234.56 (50% off) a+b==c&&d||!e ... --- ___ ***",
]


@pytest.fixture(autouse=True, scope="module")
def own_exports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Exports in a folder of the test's own."""
    folder = tmp_path_factory.mktemp("exports") / "of_this_user"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_exported, "export_folder", lambda: folder)
        yield


@pytest.fixture(scope="module")
def engine() -> Any:
    from harness.backends import _llama_cpp

    return _llama_cpp


@pytest.fixture(scope="module")
def tokenizer() -> MiniMindTokenizer:
    return load_tokenizer()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, tokenizer: MiniMindTokenizer) -> Iterator[Any]:
    """The trained tiny model in llama.cpp's own high-level class, in fp32 throughout."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    config, weights = load_weights(Path(str(embedded_checkpoint("tiny"))))
    gguf.export_gguf(path, config, weights, tokenizer=tokenizer)
    options = {"n_ctx": 512, "n_threads": 1, "n_threads_batch": 1, "type_k": 0, "type_v": 0, "flash_attn": False}
    model = llama_cpp.Llama(model_path=str(path), verbose=False, **options)
    yield model
    model.close()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSource]:
    """A small random model of each architecture."""
    folder = tmp_path_factory.mktemp("models")
    found = {}
    for name, config in CONFIGS.items():
        torch.manual_seed(5)
        model = MiniMindForCausalLM(config)
        for key, parameter in model.named_parameters():
            torch.nn.init.uniform_(parameter, 0.5, 1.5) if "norm" in key else torch.nn.init.normal_(parameter, std=0.2)
        path = folder / f"{name}.safetensors"
        save_weights(path, config, model.state_dict())
        found[name] = ModelSource(name, weights=str(path))
    return found


def text_of(model: Any, ids: list[int]) -> bytes:
    """llama.cpp's own pieces. NOTE: `Llama.detokenize` drops pieces of more than 32 bytes, as wide indents are."""
    vocabulary = llama_cpp.llama_model_get_vocab(model.model)
    buffer = ctypes.create_string_buffer(512)
    pieces = []
    for token in ids:
        length = llama_cpp.llama_token_to_piece(vocabulary, token, buffer, len(buffer), 0, True)
        assert length >= 0
        pieces.append(buffer.raw[:length])
    return b"".join(pieces)


def load(engine: Any, source: ModelSource, text: str) -> Any:
    # One thread: two would wait for each other wherever a neighbour is busy.
    return engine.load(source, Variant.parse(f"backend=llama_cpp threads=1 {text}"), "cpu", 0)


@pytest.mark.parametrize("text", TEXTS)
def test_token_ids_are_ours(tiny: Any, tokenizer: MiniMindTokenizer, text: str) -> None:
    assert tiny.tokenize(text.encode(), add_bos=False, special=True) == tokenizer.encode(text)


def test_token_ids_of_real_files_are_ours(tiny: Any, tokenizer: MiniMindTokenizer) -> None:
    for document in load_corpus("heldout")[:40]:
        text = document.text[:20000]
        ids = tiny.tokenize(text.encode(), add_bos=False, special=True)
        assert ids == tokenizer.encode(text), document.name
        assert text_of(tiny, ids).decode() == text


def test_special_ids_are_ours(tiny: Any, tokenizer: MiniMindTokenizer) -> None:
    assert (tiny.token_bos(), tiny.token_eos()) == (tokenizer.bos_id, tokenizer.eos_id)
    for token in RESERVED_TOKENS:
        ids = tokenizer.encode(token)
        assert tiny.tokenize(token.encode(), add_bos=False, special=True) == ids
        assert text_of(tiny, ids).decode() == token
    assert tiny.metadata["tokenizer.chat_template"] == tokenizer.settings["chat_template"]


@pytest.mark.slow
@pytest.mark.parametrize("prompt", ["def main():\n", "import os\n\nclass Reader:\n    def read(self", "    # The "])
def test_greedy_text_is_ours(tiny: Any, tokenizer: MiniMindTokenizer, prompt: str) -> None:
    num_new = 96
    config, weights = load_weights(Path(str(embedded_checkpoint("tiny"))))
    model = MiniMindForCausalLM(config)
    model.load_state_dict(weights)
    ids = tokenizer.encode(prompt)
    ours = generate(model.eval(), torch.tensor([ids]), max_new_tokens=num_new, eos_token_id=None)[0].tolist()
    stream = tiny.generate(tiny.tokenize(prompt.encode(), add_bos=False, special=True), temp=0.0, repeat_penalty=1.0)
    theirs = ids + [token for token, _ in zip(stream, range(num_new), strict=False)]
    assert theirs == ours
    assert text_of(tiny, theirs).decode(errors="replace") == tokenizer.decode(ours)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_the_reference_in_prefill_decode_and_after_rewinding(
    engine: Any, sources: dict[str, ModelSource], name: str
) -> None:
    ours = load(engine, sources[name], "")
    reference = ours.reference()
    ids = torch.randint(0, 6400, (1, 40), generator=torch.Generator().manual_seed(2))
    own, other = ours.new_state(1, 40), reference.new_state(1, 40)
    with torch.inference_mode():
        for piece in (ids[:, :30], *ids[:, 30:].split(1, dim=1)):
            torch.testing.assert_close(ours.forward(piece, own), reference.forward(piece, other), rtol=0, atol=2e-4)
        again = reference.forward(ids, reference.new_state(1, 40))
        ours.rewind(own, 10)
        torch.testing.assert_close(ours.next_logits(ids[:, 10:25], own), again[:, 24:25], rtol=0, atol=2e-4)
        ours.rewind(own, 0)
        torch.testing.assert_close(ours.forward(ids, own), again, rtol=0, atol=2e-4)
    assert float(again.abs().max()) > 1  # logits large enough for the tolerance to mean something


@pytest.mark.parametrize("text", VARIANTS)
def test_a_variant_runs_as_named_and_within_its_bound(engine: Any, text: str) -> None:
    built = load(engine, ModelSource("tiny"), text)
    workload = resolve_workload(Workload.of("perplexity", batch=2, length=96, prefill=64))
    session = built.session(workload)
    quality, facts = session.quality(), session.facts()
    variant = Variant.parse(f"backend=llama_cpp threads=1 {text}")
    check_evidence(Case(workload, "tiny", variant), facts)
    bounds = [option.numerics.max_kl for option, _ in registry.options_of(variant) if option.numerics.max_kl]
    assert quality["kl"] <= (bounds[0] if bounds else 1e-9)
    half = {"precision=fp16": "f16", "precision=bf16": "bf16"}
    stored = half.get(text, text.removeprefix("quant=") or "f32")
    assert facts["tensor_types"][stored] > 4 * 7 - 1
    assert facts["cache_types"] == [half.get(text, "f32")] * 2
    assert facts["graph_operations"]["MUL_MAT"] >= 4 * 7 + 1
    assert facts["flash_attention"] == (text in half)
    assert facts["threads"] == 1 and "AVX" in facts["system_info"] and built.load_seconds > 0


def test_files_shrink_and_the_cache_counts_its_cells(engine: Any) -> None:
    sizes, caches = [], []
    for text in VARIANTS:
        built = load(engine, ModelSource("tiny"), text)
        state = built.new_state(1, 100)
        sizes.append(built.disk_bytes())
        caches.append(built.kv_bytes(state))
        assert f"KV buffer size = {caches[-1] / 2**20:8.2f} MiB" in "".join(state[0].log)
    assert sizes[0] > sizes[1] == sizes[2] > sizes[3] > sizes[4] and sizes[0] > 3.5 * sizes[3]
    assert caches == [caches[0], caches[0] // 2, caches[0] // 2, caches[0], caches[0]]


def test_timed_sessions_are_deterministic_and_agree_with_torch(engine: Any) -> None:
    workload = resolve_workload(Workload.of("generate", batch=1, prompt=16, new_tokens=24))
    session = load(engine, ModelSource("tiny"), "").session(workload)
    session.iterate()
    first = session.outputs.tolist()
    iteration = session.iterate()
    assert session.outputs.tolist() == first and len(iteration.token_ns) == 24
    torch_session = session.engine.reference().session(workload)
    torch_session.iterate()
    assert torch_session.outputs.tolist() == first
    decode = session.engine.session(resolve_workload(Workload.of("decode", batch=1, context=16, new_tokens=23)))
    decode.iterate()
    assert decode.outputs.tolist()[0] == first[0][1:]


def test_long_prompts_go_in_pieces(
    engine: Any, sources: dict[str, ModelSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    built = load(engine, sources["minimind3"], "")
    ids = torch.randint(0, 6400, (1, 50), generator=torch.Generator().manual_seed(4))
    whole = built.forward(ids, built.new_state(1, 50))
    monkeypatch.setattr(engine, "MAX_BATCH", 16)
    torch.testing.assert_close(built.forward(ids, built.new_state(1, 50)), whole, rtol=0, atol=1e-4)
    torch.testing.assert_close(built.next_logits(ids, built.new_state(1, 50)), whole[:, -1:], rtol=0, atol=1e-4)


def test_a_wrong_file_is_never_timed(
    engine: Any, sources: dict[str, ModelSource], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_exported, "export_folder", lambda: tmp_path)
    monkeypatch.setattr(gguf, "interleave_halves", lambda weight, head_dim: weight)
    with pytest.raises(CaseFailed, match=r"the GGUF \(f32\) is not the model") as failure:
        load(engine, sources["minimind2"], "")
    assert failure.value.status == "wrong"


def test_a_file_is_verified_once_and_again_when_it_was_changed(
    engine: Any, sources: dict[str, ModelSource], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_exported, "export_folder", lambda: tmp_path)
    compared = []
    verify = engine.LlamaCppEngine._verify
    monkeypatch.setattr(engine.LlamaCppEngine, "_verify", lambda self: compared.append(self) or verify(self))
    found = [load(engine, sources["minimind2"], "").facts()["verified"] for _ in range(2)]
    assert found[0] == found[1] and found[0]["max_difference"] < 2e-4 and len(compared) == 1
    (path,) = (tmp_path / "gguf").glob("*.gguf")
    content = bytearray(path.read_bytes())
    content[-4096:] = bytes(4096)  # the end of the last tensor
    path.write_bytes(content)
    with pytest.raises(CaseFailed, match="is not the model"):
        load(engine, sources["minimind2"], "")
    assert len(compared) == 2


def test_refusals(engine: Any, sources: dict[str, ModelSource]) -> None:
    source = sources["minimind3"]
    built = load(engine, source, "")
    for workload, message in (
        ("decode(batch=2,context=8,new_tokens=2)", "timed with batch 1 only, not 2"),
        ("train_step(batch=1,length=8)", "cannot train"),
    ):
        with pytest.raises(Unsupported, match=message):
            built.session(resolve_workload(Workload.parse(workload)))
    with pytest.raises(Unsupported, match="CPU only, not on cuda"):
        engine.load(source, Variant.parse("backend=llama_cpp"), "cuda", 0)
    with pytest.raises(Unsupported, match="mixture of experts has no architecture"):
        engine.load(ModelSource("minimind2-moe"), Variant.parse("backend=llama_cpp"), "cpu", 0)
    with pytest.raises(CaseFailed, match="llama_decode answered"):
        built.forward(torch.zeros(1, 400, dtype=torch.long), built.new_state(1, 8))
    gc.collect()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("quant=q8_0", "backend torch does not offer quant=q8_0"),
        ("backend=llama_cpp quant=q4_0 precision=bf16", "excludes"),
        ("backend=llama_cpp kv=prealloc", "does not offer axis kv"),
        ("backend=llama_cpp quant=q8_0 threads=2", None),
    ],
)
def test_combinations_are_declared(text: str, reason: str | None) -> None:
    found = why_unsupported(Variant.parse(text), capabilities("cpu"))
    assert found is None if reason is None else reason in str(found)
