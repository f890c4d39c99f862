"""What the options of axis `quant` share: which layers, what replaces them, what is recorded. Imports torch.

    replace_linears(build, lambda path, layer: DynamicInt8Linear(layer), storage="int8, a scale per channel")

Quantised are all linear layers of the blocks and the head; routers of mixtures stay as they are, since a wrong choice
of expert costs more than the few bytes. A head that shares its matrix with the embedding is quantised apart: the
embedding keeps its float values, of which a step reads one row, and a file then holds both.

Legend: N output channels, K input channels, M tokens.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.backends._sessions import stored_bytes
from harness.backends._torch import Build, _NoInit
from harness.core import Unsupported
from kernels.gptq import gptq
from kernels.hqq import hqq
from kernels.quantized_linear import Int4Linear
from kernels.weight_grids import Granularity, WeightGrid, in_groups, round_to_nearest
from minimind.data.corpus import load_corpus
from minimind.model import MiniMindForCausalLM
from minimind.tokenizer import load_tokenizer

GROUP = 32
CALIBRATION_ROWS, CALIBRATION_LENGTH = 16, 256


class SimulatedLinear(nn.Module):
    """A linear layer whose float weight holds only values of a grid; the arithmetic stays float."""

    def __init__(self, linear: nn.Linear, grid: WeightGrid, granularity: Granularity) -> None:
        super().__init__()
        self.weight = nn.Parameter(grid.dequantized().to(linear.weight), requires_grad=False)
        self.granularity = granularity

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)

    def num_levels(self) -> int:
        """The most different values that any of the first groups of the weight really holds."""
        groups = in_groups(self.weight, self.granularity).flatten(0, 1)[:16]
        return max(int(group.unique().numel()) for group in groups)


class DynamicInt8Linear(nn.Module):
    """int8 weights with a scale per output channel; the input of each call is quantised to 8 bits with one scale."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale_N = (linear.weight.detach().float().abs().amax(dim=1) / 127).clamp_min(1e-12)
        zero_N = torch.zeros_like(scale_N, dtype=torch.long)
        with warnings.catch_warnings():
            # torch calls its quantised tensors deprecated, but its fastest int8 product takes its weight as one.
            warnings.filterwarnings("ignore", r"torch\.quantize_per_tensor, .* are deprecated", UserWarning)
            weight_NK = torch.quantize_per_channel(linear.weight.detach().float(), scale_N, zero_N, 0, torch.qint8)
        self.packed = torch.ops.quantized.linear_prepack(weight_NK, None)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = torch.ops.quantized.linear_dynamic(x.float(), self.packed)
        return output.to(x.dtype)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        weight_NK, _ = torch.ops.quantized.linear_unpack(self.packed)
        destination[prefix + "weight"] = weight_NK.int_repr()
        destination[prefix + "scale"] = weight_NK.q_per_channel_scales().float()


def linears_of(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """(path, layer) of every linear layer that is quantised, in the order of computation within a block."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and not path.endswith(".gate"):
            yield path, module


def replace_linears(build: Build, make: Callable[[str, nn.Linear], nn.Module], *, storage: str) -> None:
    """Quantize stage: put `make(path, layer)` in the place of every linear layer, and record what that comes to.

    `make` raises ValueError where a layer's shape does not fit the scheme: then the variant is Unsupported.
    """
    model = build.built()
    build.facts["num_params"] = sum(parameter.numel() for parameter in model.parameters())
    layers = list(linears_of(model))
    for path, layer in layers:
        try:
            model.set_submodule(path, make(path, layer))
        except ValueError as error:
            raise Unsupported(f"{path} cannot be quantised: {error}") from error
    finish(build, num_layers=len(layers), storage=storage)


def finish(build: Build, *, num_layers: int, storage: str) -> None:
    """Record what was quantised, and from the stored tensors the bytes per weight that a step must read."""
    model = build.built()
    read = {name: value for name, value in model.state_dict().items() if "embed_tokens" not in name}
    embedding = model.model.embed_tokens.weight.numel()
    num_read = build.facts["num_params"] - (0 if build.config.tie_word_embeddings else embedding)
    build.weight_bytes = stored_bytes(read.values()) / num_read
    build.inference_only = "quantised weights are not trained: leave axis quant at none for this workload"
    build.facts |= {
        "quant_storage": storage,
        "quantized_layers": num_layers,
        "head_quantized": True,
        "embedding": "float",
        "bytes_per_weight": round(build.weight_bytes, 4),
    }


def simulate(build: Build, *, bits: int, granularity: Granularity) -> None:
    """Weights rounded to the nearest point of their grid and kept as floats."""

    def make(path: str, layer: nn.Linear) -> nn.Module:
        grid = round_to_nearest(layer.weight, bits=bits, granularity=granularity)
        return SimulatedLinear(layer, grid, granularity)

    replace_linears(build, make, storage="simulated: float weights on the grid")
    build.facts["quant_bits"] = bits
    layers = [module for module in build.built().modules() if isinstance(module, SimulatedLinear)]
    build.observe(lambda: {"weight_levels": max(layer.num_levels() for layer in layers)})


def dynamic_int8(build: Build) -> None:
    """See `DynamicInt8Linear`."""
    replace_linears(build, lambda path, layer: DynamicInt8Linear(layer), storage="int8, float32 scale per channel")


def calibration_ids(build: Build) -> tuple[Tensor, str]:
    """Token ids [rows, length] of the training split of the embedded corpus, and what they are in words.

    Never of the text that perplexity is measured on: that is the other split, or the user's own data.
    """
    tokenizer = load_tokenizer(build.source.tokenizer)
    length = min(CALIBRATION_LENGTH, build.config.max_position_embeddings)
    ids: list[int] = []
    names: list[str] = []
    documents = load_corpus("train")
    for document in documents[:: max(1, len(documents) // CALIBRATION_ROWS)]:
        start = document.text[: 16 * length]  # far more than `length` tokens, far less than the longest module
        row = [token for token in tokenizer.encode(start) if token < build.config.vocab_size][:length]
        if len(row) == length:
            ids += row
            names.append(document.name)
    text = f"{len(ids)} tokens: the start of {len(names)} documents of the training split of the embedded corpus"
    return torch.tensor(ids).view(-1, length).to(build.device), text


def gptq_grids(build: Build) -> dict[str, WeightGrid]:
    """Path -> grid of every linear layer, each calibrated on what the layers before it, already quantised, hand on.

    The calibrated model is the variant's own in its config and weights, but plain in its modules, in float32 and on
    one thread, so that the result does not depend on how other options compute: a weight that rounds the other way
    moves all that come after it.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.device("meta"), _NoInit():
        twin = MiniMindForCausalLM(build.config)
    twin.load_state_dict(build.weights, assign=True)
    twin.eval().float().to(build.device)
    grids: dict[str, WeightGrid] = {}

    def calibrate(path: str, layer: nn.Linear, inputs: tuple[Tensor, ...]) -> None:
        x_MK = inputs[0].reshape(-1, inputs[0].shape[-1])
        grids[path] = gptq(layer.weight, x_MK.T @ x_MK, group_size=GROUP)
        layer.weight = nn.Parameter(grids[path].dequantized(), requires_grad=False)

    layers = dict(linears_of(twin))
    for path, layer in layers.items():
        layer.register_forward_pre_hook(lambda module, inputs, path=path: calibrate(path, module, inputs))
    ids, build.facts["calibration"] = calibration_ids(build)
    with torch.no_grad():
        hidden_BTE, _ = twin.model(ids, None, None)
        calibrate("lm_head", twin.lm_head, (hidden_BTE,))
    torch.set_num_threads(threads)
    for path in layers.keys() - grids.keys():  # experts that no token was sent to
        grids[path] = round_to_nearest(layers[path].weight, bits=4, granularity=GROUP)
    return grids


def gptq_int4(build: Build) -> None:
    """See `kernels.gptq`."""
    grids = gptq_grids(build)
    _int4(build, lambda path, layer: grids[path])


def hqq_int4(build: Build) -> None:
    """See `kernels.hqq`."""
    _int4(build, lambda path, layer: hqq(layer.weight, bits=4, group_size=GROUP))


def _int4(build: Build, grid_of: Callable[[str, nn.Linear], WeightGrid]) -> None:
    """Grids of groups of 32, stored packed and multiplied by our int4 kernel."""

    def make(path: str, layer: nn.Linear) -> nn.Module:
        return Int4Linear(*grid_of(path, layer).packed(), layer.weight.dtype)

    replace_linears(build, make, storage=f"int4 groups of {GROUP}, float16 scales")


def bitsandbytes(build: Build, kind: str) -> None:
    """`kind` is int8 (LLM.int8()), nf4 or fp4 (blocks of 64 with a float32 scale, which is not quantised again)."""
    # NOTE: on a CPU with AVX-512 BF16 its import asks a package named `kernels` for a kernel from a model hub. Ours of
    # that name is found instead and has none, which it logs as a warning: nothing is loaded, its own kernels run.
    bnb: Any = import_module("bitsandbytes.nn")

    def make(path: str, layer: nn.Linear) -> nn.Module:
        shape, weight = (layer.in_features, layer.out_features), layer.weight.detach()
        made: nn.Module
        if kind == "int8":
            made = bnb.Linear8bitLt(*shape, bias=False, has_fp16_weights=False, threshold=6.0, device="meta")
            made.weight = bnb.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        else:
            made = bnb.Linear4bit(*shape, bias=False, compress_statistics=False, quant_type=kind, device="meta")
            made.weight = bnb.Params4bit(weight, requires_grad=False, compress_statistics=False, quant_type=kind)
        return made.to(build.device)  # where it quantises

    replace_linears(
        build, make, storage="int8, float32 scale per channel" if kind == "int8" else f"{kind} blocks of 64"
    )
    _observe_weights(build)


def torchao(build: Build, bits: int) -> None:
    """Weight-only: int8 with a scale per channel, int4 with a scale per group, which a CPU gets as unpacked int8."""
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup, quantize_

    model = build.built()
    build.facts["num_params"] = sum(parameter.numel() for parameter in model.parameters())
    layers = dict(linears_of(model))
    if bits == 4 and (odd := [path for path, layer in layers.items() if layer.in_features % GROUP]):
        raise Unsupported(f"{odd[0]} cannot be quantised: groups of {GROUP} do not divide its input channels")
    if bits == 8:
        config, storage = Int8WeightOnlyConfig(), "int8, float32 scale per channel"
    else:
        config = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(GROUP))  # type: ignore[attr-defined]
        storage = f"int4 groups of {GROUP}, a byte per weight"
    quantize_(model, config, filter_fn=lambda module, path: path in layers)
    finish(build, num_layers=len(layers), storage=storage)
    _observe_weights(build)


def _observe_weights(build: Build) -> None:
    """The classes of the weights that stand in the model, with their numbers."""
    model = build.built()

    def classes() -> dict[str, int]:
        found = [type(weight).__name__ for weight in model.parameters()]
        return {name: found.count(name) for name in sorted(set(found))}

    build.observe(lambda: {"weight_classes": classes()})
