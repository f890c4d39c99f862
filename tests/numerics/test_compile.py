"""torch.compile: what is compiled, how often, with which kernels, and whose it is when engines share a process."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from harness import registry
from harness.backends._compile import CompileRecord, cold_caches, inductor_options
from harness.backends._operations import cuda_calls
from harness.backends._torch import MiniMindEngine, load
from harness.capability import capabilities
from harness.core import Case, CaseFailed, ModelSource, Variant, Workload
from harness.registry import why_unsupported
from harness.worker import check_evidence
from minimind import MiniMindConfig, MiniMindForCausalLM, save_weights

registry.load_all()
# torch's own compiler still uses what it has deprecated
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*torch\\.jit.*:DeprecationWarning"),
]
needs_compiler = pytest.mark.skipif(
    "compile" not in capabilities("cpu"), reason="torch.compile needs a C++ compiler on a CPU"
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    folder = tmp_path_factory.mktemp("model")
    (folder / "text.txt").write_text("def main(arguments):\n    return len(arguments)\n" * 40)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = MiniMindConfig.from_dict({"generation": 3, "vocab_size": 6400, **shape})
    save_weights(folder / "small.safetensors", config, MiniMindForCausalLM(config).state_dict())
    return ModelSource("small", weights=str(folder / "small.safetensors"), data=str(folder / "text.txt"))


def engine(source: ModelSource, text: str) -> MiniMindEngine:
    return load(source, Variant.parse(text), "cpu", 0)


DECODE = Workload.of("decode", batch=2, context=12, new_tokens=50)


class Toy(nn.Module):
    """Two elementwise chains, with a graph break between them where asked for."""

    def __init__(self, breaks: bool) -> None:
        super().__init__()
        self.breaks = breaks

    def forward(self, x: Tensor) -> Tensor:
        x = (x * 2).sin()
        if self.breaks:
            torch._dynamo.graph_break()
        return (x + 1).cos()


@needs_compiler
@pytest.mark.slow
def test_each_record_counts_its_own_graphs_breaks_and_kernels() -> None:
    whole, broken = CompileRecord("default"), CompileRecord("default")
    assert whole.facts()["compiled_graphs"] == 0 and whole.facts()["kernels"] is None
    x = torch.linspace(0, 1, 64)
    with cold_caches(), torch.no_grad():
        first, second = whole.compiled(Toy(breaks=False)), broken.compiled(Toy(breaks=True))
        for call, module in ((first, Toy(False)), (second, Toy(True)), (first, Toy(False))):
            torch.testing.assert_close(call(x), module(x))
    facts = whole.facts()
    assert (facts["compiled_graphs"], facts["graph_breaks"], facts["recompiles"]) == (1, 0, 0)
    assert facts["fused_kernels"] == 1 and facts["kernels"][0].startswith("cpp_fused")
    assert "sin" in facts["kernels"][0] and "cos" in facts["kernels"][0] and facts["compile_seconds"] > 0
    facts = broken.facts()
    assert (facts["compiled_graphs"], facts["graph_breaks"], facts["recompiles"]) == (2, 1, 0)
    assert facts["fused_kernels"] == 2
    with torch.no_grad():
        first(torch.zeros(32))
    assert whole.facts()["recompiles"] == 1 and broken.facts()["recompiles"] == 0


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "cpp-wrapper"])
def test_a_decode_compiles_prompt_and_step_once_each_however_long_it_gets(mode: str, source: ModelSource) -> None:
    compiled = engine(source, f"compile={mode} kv=prealloc")
    with compiled.cold_start():
        session = compiled.session(DECODE)
        assert compiled.compiled_graphs() == 1
        session.iterate()
        once = compiled.facts()
        session.iterate()
    facts = session.facts()
    assert (facts["compiled_graphs"], facts["graph_breaks"], facts["recompiles"]) == (2, 0, 1)
    assert facts["recompiles"] == once["recompiles"], "the second iteration compiled again"
    assert facts["fused_kernels"] == len(facts["kernels"]) > 3
    assert any("CompiledFxGraph" in name for name in facts["operations"]), "the step did not run the compiled graph"
    check_evidence(Case(DECODE, source.name, Variant.parse(f"compile={mode} kv=prealloc")), facts)
    with pytest.raises(CaseFailed, match="compile=max-autotune was asked for but did not run"):
        check_evidence(Case(DECODE, source.name, Variant.parse("compile=max-autotune")), facts)
    plain = engine(source, "kv=prealloc").session(DECODE)
    plain.iterate()
    assert session.outputs is not None and plain.outputs is not None
    assert torch.equal(session.outputs, plain.outputs)


@needs_compiler
@pytest.mark.slow
def test_quality_compiles_prompt_and_step_and_its_facts_nothing_more(source: ModelSource) -> None:
    text = Workload.of("perplexity", batch=2, length=32, prefill=16)
    compiled = engine(source, "compile=default kv=prealloc")
    session = compiled.session(text)
    quality = session.quality()
    assert quality["kl"] < 1e-6 and compiled.compiled_graphs() == 2
    facts = session.facts()
    assert facts["compiled_graphs"] == 2, "the facts' step or the sample compiled another shape"
    plain = engine(source, "kv=prealloc").session(text)
    assert quality["ppl"] == pytest.approx(plain.quality()["ppl"], rel=1e-4)
    assert facts["sample_text"] == plain.facts()["sample_text"] != ""


def test_an_engine_that_does_not_compile_has_no_such_facts(source: ModelSource) -> None:
    plain = engine(source, "kv=prealloc")
    facts = plain.facts()
    assert facts["compiled_graphs"] == 0 == plain.compiled_graphs()
    assert not {"graph_breaks", "recompiles", "fused_kernels", "kernels"} & facts.keys()
    with plain.cold_start():
        assert plain.session(Workload.of("decode", batch=1, context=4, new_tokens=2)).iterate().seconds > 0


def test_modes_and_where_they_can_run() -> None:
    assert inductor_options("default") == {} and inductor_options("cpp-wrapper") == {"cpp_wrapper": True}
    assert inductor_options("reduce-overhead")["triton.cudagraphs"] and inductor_options("max-autotune")["max_autotune"]
    cpu = capabilities("cpu")
    assert "needs cuda" in (why_unsupported(Variant.parse("compile=reduce-overhead kv=prealloc"), cpu) or "")
    assert "needs cuda" in (why_unsupported(Variant.parse("cudagraph=on kv=prealloc"), cpu) or "")
    both = {*cpu, "cuda", "compile", "cxx"}
    assert "requires kv=prealloc" in (why_unsupported(Variant.parse("cudagraph=on"), frozenset(both)) or "")
    mixed = Variant.parse("compile=default cudagraph=on kv=prealloc")
    assert "requires compile=off" in (why_unsupported(mixed, frozenset(both)) or "")


def test_buffers_are_marked_where_a_graph_would_move_them(source: ModelSource) -> None:
    cache = engine(source, "kv=prealloc").new_state(1, 8)
    CompileRecord("default").keep_in_place(cache)
    assert not hasattr(cache.buffers(0)[0], "_dynamo_static_input_type")
    CompileRecord("reduce-overhead").keep_in_place(cache)
    assert all(hasattr(buffer, "_dynamo_static_input_type") for buffer in cache.buffers(0))


def test_a_replayed_graph_is_one_launch_and_the_sessions_own_waiting_is_no_sync() -> None:
    counts = {"cudaLaunchKernel": 3, "cuLaunchKernelEx": 2, "cudaLaunchKernelExC": 1, "cudaGraphLaunch": 1}
    counts |= {"cudaMemcpyAsync": 2, "cudaMemsetAsync": 1, "cudaStreamSynchronize": 1, "cudaDeviceSynchronize": 2}
    counts |= {"aten::mm": 9, "cudaEventSynchronize": 1, "cudaStreamIsCapturing": 4, "cudaEventRecord": 5}
    assert cuda_calls(counts) == {"launches_per_step": 10, "syncs_per_step": 2}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a CUDA device")
def test_a_graph_needs_a_fifth_of_the_launches(source: ModelSource) -> None:
    facts = {}
    for text in ("kv=prealloc", "cudagraph=on kv=prealloc"):
        session = load(source, Variant.parse(text), "cuda", 0).session(DECODE)
        session.iterate()
        facts[text] = session.facts()
        check_evidence(Case(DECODE, source.name, Variant.parse(text)), facts[text])
    plain, graphed = facts.values()
    assert plain["launches_per_step"] >= 5 * graphed["launches_per_step"] > 0
    assert graphed["syncs_per_step"] == 0 and plain["outputs"] == graphed["outputs"]


@needs_compiler
@pytest.mark.slow
def test_max_autotune_runs(source: ModelSource) -> None:
    text = "compile=max-autotune kv=prealloc"
    session = engine(source, text).session(Workload.of("decode", batch=1, context=8, new_tokens=4))
    session.iterate()
    check_evidence(Case(DECODE, source.name, Variant.parse(text)), session.facts())
