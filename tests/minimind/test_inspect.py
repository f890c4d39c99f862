"""The inspection tables of one forward."""

from __future__ import annotations

import torch

from minimind import MiniMindConfig, MiniMindForCausalLM
from minimind.inspect import module_table, operation_table

IDS = torch.zeros(2, 6, dtype=torch.int64)


def build() -> MiniMindForCausalLM:
    values = {
        "generation": 3,
        "vocab_size": 48,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
    }
    return MiniMindForCausalLM(MiniMindConfig.from_dict(values)).eval()


def test_module_table() -> None:
    model = build()
    rows = {row.name: row for row in module_table(model, IDS)}
    assert rows[""].parameters == model.num_parameters() and rows[""].flops == model.prefill_flops(2, 6)
    assert rows[""].kind == "MiniMindForCausalLM"
    q_proj = rows["model.layers.1.self_attn.q_proj"]
    assert (q_proj.kind, q_proj.parameters, q_proj.flops) == ("Linear", 32 * 32, 2 * 12 * 32 * 32)
    assert rows["lm_head"].flops == 2 * 12 * 32 * 48
    assert rows["model.norm"].flops == 0


def test_operation_table_sees_copies() -> None:
    model = build()
    upstream = operation_table(model, IDS)
    assert [row.index for row in upstream] == list(range(len(upstream)))
    assert all(row.module.startswith(("model", "lm_head")) or row.module == "" for row in upstream)
    embedding = next(row for row in upstream if row.operation == "embedding")
    assert embedding.module == "model.embed_tokens"
    assert embedding.outputs[0].shape == (2, 6, 32) and embedding.outputs[0].stride == (192, 32, 1)
    assert embedding.new_storage and not embedding.copies
    transposed = next(row for row in upstream if row.operation == "transpose")
    assert not transposed.new_storage and not transposed.outputs[0].contiguous

    def copies(module: str) -> list[str]:
        rows = operation_table(model, IDS)
        return [row.operation for row in rows if row.copies and row.module == module]

    repeated = copies("model.layers.0.self_attn")
    model.set_attention("fused")
    fused = copies("model.layers.0.self_attn")
    assert repeated.count("clone") - fused.count("clone") == 2, "upstream copies keys and values for the query heads"
    assert fused.count("cat") == 2, "one per rotation"


def test_caches_differ_in_what_they_copy() -> None:
    model = build()
    operations = {}
    for kind in ("cat", "prealloc"):
        cache = model.new_cache(kind=kind, batch_size=2, max_length=8)
        with torch.no_grad():
            model(IDS, cache=cache)
        operations[kind] = [row.operation for row in operation_table(model, IDS[:, :1], cache=cache) if row.copies]
    assert operations["cat"].count("cat") == operations["prealloc"].count("cat") + 4
    assert operations["prealloc"].count("copy_") == 4


def test_hooks_are_gone_afterwards() -> None:
    model = build()
    operation_table(model, IDS)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
