"""The reference against upstream's recorded numbers: logits, cached decode, generation, training.

The vectors were made by upstream's unmodified code (see the NOTICE beside them) and are not part of the repository;
where they are absent, test_transformers_parity.py remains.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from minimind import MiniMindConfig, MiniMindForCausalLM, generate
from minimind.config import RopeScaling
from minimind.generate import sampling_probabilities
from minimind.norm import RMSNorm, RMSNormCastFirst
from minimind.rope import rope_tables, rotate_and_cast

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "dev"
if not GOLDEN.is_dir():
    pytest.skip("the recorded vectors (shared/golden/dev) are not on this machine", allow_module_level=True)

CASES = sorted(
    path.stem
    for path in GOLDEN.glob("*.safetensors")
    if (GOLDEN / f"{path.stem}.json").read_text().find("train_loss") > 0
)
VARIANTS = [("upstream", "cat"), ("upstream", "prealloc"), ("fused", "cat"), ("fused", "prealloc")]


@functools.cache
def read(case: str) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """A case's JSON, its `io.` tensors and its weights."""
    facts = json.loads((GOLDEN / f"{case}.json").read_text())
    tensors = load_file(GOLDEN / f"{case}.safetensors")
    io = {name.removeprefix("io."): tensor for name, tensor in tensors.items() if name.startswith("io.")}
    return facts, io, {name: tensor for name, tensor in tensors.items() if not name.startswith("io.")}


def build(case: str, sdpa: str = "upstream") -> MiniMindForCausalLM:
    facts, _, weights = read(case)
    model = MiniMindForCausalLM(MiniMindConfig.from_dict(facts["config"]))
    model.load_state_dict(weights)
    model.set_attention(sdpa)
    return model.eval()


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def tolerance(case: str, sdpa: str, name: str = "logits") -> float:
    """Upstream's own operations must agree to 1e-5; other operations to the case's measured tolerance."""
    suggested: float = read(case)[0]["suggested_tolerances"][name]
    return min(1e-5, suggested) if sdpa == "upstream" else suggested


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("sdpa", ["upstream", "fused"])
@torch.no_grad()
def test_forward(case: str, sdpa: str) -> None:
    _, io, _ = read(case)
    model = build(case, sdpa)
    out = model(io["input_ids"])
    close(out.logits, io["logits"], tolerance(case, sdpa))
    close(out.hidden_states, io["last_hidden"], tolerance(case, sdpa))
    assert out.loss is None and out.cache is None and out.aux_loss.item() == 0.0
    close(model(io["input_ids"], logits_to_keep=3).logits, io["logits"][:, -3:], tolerance(case, sdpa))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("sdpa", "kind"), VARIANTS)
@torch.no_grad()
def test_cached_decode_and_chunks(case: str, sdpa: str, kind: str) -> None:
    facts, io, _ = read(case)
    ids, start = io["input_ids"], facts["expected"]["prefill_len"]
    chunk = facts["expected"]["chunk_len"]
    model, allowed = build(case, sdpa), tolerance(case, sdpa)
    cache = model.new_cache(kind=kind, batch_size=2, max_length=ids.shape[1])
    close(model(ids[:, :start], cache=cache).logits, io["prefill_logits"], allowed)
    steps = [model(ids[:, t : t + 1], cache=cache).logits for t in range(start, ids.shape[1])]
    close(torch.cat(steps, dim=1), io["decode_logits"], allowed)
    assert cache.length == ids.shape[1]
    for layer in range(model.config.num_hidden_layers):
        keys, values = cache.layer(layer)
        close(keys, io[f"cache_k.{layer}"], allowed)
        close(values, io[f"cache_v.{layer}"], allowed)
    cache.rewind()
    model(ids[:, :start], cache=cache)
    close(model(ids[:, start : start + chunk], cache=cache).logits, io["chunk_logits"], allowed)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("sdpa", "kind"), VARIANTS)
@torch.no_grad()
def test_left_padding(case: str, sdpa: str, kind: str) -> None:
    _, io, _ = read(case)
    ids, mask = io["leftpad_input_ids"], io["leftpad_attention_mask"]
    model, allowed = build(case, sdpa), tolerance(case, sdpa)
    real = mask.bool()
    close(model(ids, attention_mask=mask).logits[real], io["leftpad_logits"][real], allowed)
    cache = model.new_cache(kind=kind, batch_size=2, max_length=ids.shape[1])
    parts = [
        model(ids[:, a:b], attention_mask=mask[:, :b], cache=cache).logits for a, b in ((0, 24), (24, 32), (32, 33))
    ]
    # Chunks take other operations than the whole, in upstream too, so here upstream's arithmetic is not at stake.
    close(torch.cat(parts, dim=1)[real], io["leftpad_logits"][real], tolerance(case, "fused"))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("sdpa", "kind"), VARIANTS)
def test_greedy_generation(case: str, sdpa: str, kind: str) -> None:
    facts, io, _ = read(case)
    expected, model, prompt = facts["expected"], build(case, sdpa), io["gen_prompt_ids"]
    new = expected["gen_len"]
    assert torch.equal(generate(model, prompt, max_new_tokens=new, cache_kind=kind), io["gen_ids"])
    if "gen_eos_ids" in io:
        ids = generate(model, prompt, max_new_tokens=new, eos_token_id=expected["gen_eos_token_id"], cache_kind=kind)
        assert torch.equal(ids, io["gen_eos_ids"])
        ids = generate(model, prompt, max_new_tokens=new, repetition_penalty=expected["gen_reppen"], cache_kind=kind)
        assert torch.equal(ids, io["gen_reppen_ids"])
        assert torch.equal(
            generate(model, prompt, max_new_tokens=6, num_return_sequences=2, cache_kind=kind), io["gen_nrs2_ids"]
        )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("sdpa", ["upstream", "fused"])
def test_training_loss_and_gradients(case: str, sdpa: str) -> None:
    facts, io, _ = read(case)
    expected, suggested = facts["expected"], facts["suggested_tolerances"]
    model = build(case, sdpa).train()
    out = model(io["train_input_ids"], labels=io["train_labels"])
    close(out.loss, io["train_loss"], suggested["loss"])
    close(out.aux_loss, io["train_aux_loss"], suggested["aux_loss"])
    (out.loss + out.aux_loss).backward()
    norms = {name: parameter.grad.norm().item() for name, parameter in model.named_parameters()}
    assert norms.keys() == expected["grad_norms"].keys()
    for name, norm in expected["grad_norms"].items():
        assert norms[name] == pytest.approx(norm, rel=suggested["grad_norm_rel"], abs=1e-7), name


@pytest.mark.parametrize("case", CASES)
def test_short_training_run(case: str) -> None:
    facts, io, _ = read(case)
    plan, suggested = facts["expected"]["traj"], facts["suggested_tolerances"]
    model = build(case).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan["lr"])
    clipped = []
    for step, lr in enumerate(plan["lr_per_micro_step"]):
        optimizer.param_groups[0]["lr"] = lr
        out = model(io["traj_input_ids"][step], labels=io["traj_labels"][step])
        assert out.loss.item() == pytest.approx(plan["loss"][step], abs=suggested["traj_loss"])
        assert out.aux_loss.item() == pytest.approx(plan["aux_loss"][step], abs=suggested["aux_loss"])
        ((out.loss + out.aux_loss) / plan["accumulation_steps"]).backward()
        if (step + 1) % plan["accumulation_steps"] == 0:
            clipped.append(torch.nn.utils.clip_grad_norm_(model.parameters(), plan["grad_clip"]).item())
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    assert clipped == pytest.approx(plan["grad_norm_before_clip"], rel=1e-4)
    with torch.no_grad():
        logits = model.eval()(io["input_ids"]).logits[:, -8:]
    close(logits, io["traj_final_logits"], suggested["traj_final_logits"])
    for name, parameter in model.named_parameters():
        wanted = plan["final_param_norms"][name]
        assert parameter.norm().item() == pytest.approx(wanted, rel=suggested["traj_param_norm_rel"]), name


@pytest.mark.parametrize("sdpa", ["upstream", "fused"])
@torch.no_grad()
def test_yarn_beyond_the_original_length(sdpa: str) -> None:
    facts, io, _ = read("dev_yarn_upstream_long")
    model, allowed = build("dev_yarn_upstream_long", sdpa), facts["suggested_tolerances"]["logits"]
    ids = io["input_ids"]
    close(model(ids).logits[:, io["positions"]], io["logits_at_positions"], allowed)
    cache = model.new_cache(kind="prealloc", max_length=ids.shape[1])
    model(ids[:, :-4], cache=cache)
    steps = [model(ids[:, t : t + 1], cache=cache).logits for t in range(ids.shape[1] - 4, ids.shape[1])]
    close(torch.cat(steps, dim=1), io["decode_logits_last4"], allowed)


def test_norm_ops() -> None:
    facts, _, tensors = read("dev_ops")
    for prefix, norm_type in (("v3", RMSNorm), ("v2", RMSNormCastFirst)):
        norm = norm_type(64, facts["rmsnorm_eps"])
        norm.weight.data = tensors["rmsnorm.weight"]
        x = tensors["rmsnorm.x"]
        assert torch.equal(norm(x), tensors[f"rmsnorm.{prefix}.y_f32"])
        expected = tensors[f"rmsnorm.{prefix}.y_xbf16_wf32"]
        assert torch.equal(norm(x.bfloat16()), expected) and norm(x.bfloat16()).dtype == expected.dtype
        assert torch.equal(norm.bfloat16()(x.bfloat16()), tensors[f"rmsnorm.{prefix}.y_xbf16_wbf16"])


def test_rope_ops() -> None:
    facts, _, tensors = read("dev_ops")
    positions = tensors["rope.positions"]
    yarn = RopeScaling.from_dict(facts["yarn_upstream"])
    for name, theta, scaling in (("plain", 1e6, None), ("plain_b1e4", 1e4, None), ("yarn_upstream", 1e6, yarn)):
        cos, sin = rope_tables(64, 32768, theta, scaling, 32768)
        assert torch.equal(cos[positions], tensors[f"rope.{name}.cos"]), name
        assert torch.equal(sin[positions], tensors[f"rope.{name}.sin"]), name
    start = int(tensors["rope_apply.start_pos"])
    cos, sin = rope_tables(64, start + 5, 1e6, None, 32768)
    rotation = cos[start:].unsqueeze(1), sin[start:].unsqueeze(1)
    assert torch.equal(rotate_and_cast(tensors["rope_apply.q"], *rotation), tensors["rope_apply.q_out"])
    assert torch.equal(rotate_and_cast(tensors["rope_apply.k"], *rotation), tensors["rope_apply.k_out"])


def test_sampling_distribution() -> None:
    facts, io, _ = read("dev_sampling")
    with torch.no_grad():
        logits = build(facts["model_case"])(io["prompt_ids"]).logits[:, -1]
    close(logits, io["raw_last_logits"], 1e-5)
    for number, setting in enumerate(facts["settings"]):
        probabilities = sampling_probabilities(io["raw_last_logits"], io["prompt_ids"], **setting)
        close(probabilities, io[f"probs.{number}"], 1e-6)
