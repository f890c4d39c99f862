"""Modules that the options around fused kernels put in the place of the model's own, whoever wrote the kernel.

    fuse_norms(build, triton_rms_norm)                              # every norm is one call
    fuse_residuals(build, triton_rms_norm, triton_add_rms_norm)     # and every addition to the stream is inside one
    fuse_swiglu(build, triton_swiglu)                               # silu(gate) * up is one call

The kernels are parameters; `kernels.reference` has their plain twins. All of it works for both generations, mixtures of
experts, a prompt, cached steps and training, and keeps the state dict's keys. `fuse_swiglu` refuses a model whose
activation is not silu.

Legend: B batch, T positions, E hidden_size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from harness.backends._torch import Build
from harness.core import Unsupported
from minimind.cache import KeyValueCache
from minimind.feedforward import FeedForward
from minimind.model import Block
from minimind.norm import RMSNorm, RMSNormCastFirst


class RMSNormKernel(Protocol):
    """x / sqrt(mean(x^2) + eps) * weight; `cast_first` is MiniMind2's cast order (see `kernels.reference`)."""

    def __call__(
        self, input: Tensor, normalized_shape: Sequence[int], weight: Tensor, eps: float, *, cast_first: bool
    ) -> Tensor: ...


class AddRMSNormKernel(Protocol):
    """(norm of the sum, sum) of input + residual; the sum has input's dtype, and the norm sees the rounded sum."""

    def __call__(
        self,
        input: Tensor,
        residual: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor,
        eps: float,
        *,
        cast_first: bool,
    ) -> tuple[Tensor, Tensor]: ...


class SwiGLUKernel(Protocol):
    """silu(gate) * up, elementwise."""

    def __call__(self, gate: Tensor, up: Tensor) -> Tensor: ...


class KernelNorm(nn.Module):
    """A norm whose forward is one call of a kernel. Takes over the norm's own Parameter, eps, cast order and mode."""

    def __init__(self, norm: RMSNorm, kernel: RMSNormKernel) -> None:
        super().__init__()
        self.weight = norm.weight
        self.eps = norm.eps
        self.cast_first = isinstance(norm, RMSNormCastFirst)
        self.kernel = kernel
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        return self.kernel(x, self.weight.shape, self.weight, self.eps, cast_first=self.cast_first)


# The stream between two blocks: a tensor, or what was added last beside what it is to be added to.
Stream = Tensor | tuple[Tensor, Tensor]


class StreamNorm(KernelNorm):
    """The norm of a stream that may still be a sum of two; one kernel adds and normalises."""

    def __init__(self, norm: RMSNorm, kernel: RMSNormKernel, adding: AddRMSNormKernel) -> None:
        super().__init__(norm, kernel)
        self.adding = adding

    def both(self, stream: Stream) -> tuple[Tensor, Tensor]:
        """The norm of the stream, and the stream as one tensor."""
        if isinstance(stream, Tensor):
            return super().forward(stream), stream
        added, before = stream
        return self.adding(added, before, self.weight.shape, self.weight, self.eps, cast_first=self.cast_first)

    def forward(self, stream: Stream) -> Tensor:
        return self.both(stream)[0]


class FusedBlock(nn.Module):
    """A block that leaves its last addition to the norm that comes next, in the next block or at the model's end."""

    def __init__(self, block: Block, kernel: RMSNormKernel, adding: AddRMSNormKernel) -> None:
        super().__init__()
        self.self_attn = block.self_attn
        self.input_layernorm = StreamNorm(block.input_layernorm, kernel, adding)
        self.post_attention_layernorm = StreamNorm(block.post_attention_layernorm, kernel, adding)
        self.mlp = block.mlp
        self.train(block.training)

    def forward(
        self, stream: Stream, rotation: tuple[Tensor, Tensor], visibility: Any, cache: KeyValueCache | None
    ) -> tuple[Stream, Tensor | None]:
        """As `minimind.model.Block.forward`, with the stream [B, T, E] as one tensor or two."""
        normed_BTE, x_BTE = self.input_layernorm.both(stream)
        attended_BTE = self.self_attn(normed_BTE, rotation, visibility, cache)
        normed_BTE, x_BTE = self.post_attention_layernorm.both((attended_BTE, x_BTE))
        output = self.mlp(normed_BTE)
        mixed_BTE, aux_loss = output if isinstance(output, tuple) else (output, None)
        return (mixed_BTE, x_BTE), aux_loss


class KernelFeedForward(nn.Module):
    """down(swiglu(gate(x), up(x))) with the product and its activation in one kernel."""

    def __init__(self, mlp: FeedForward, kernel: SwiGLUKernel) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self.dropout = mlp.dropout
        self.kernel = kernel
        self.train(mlp.training)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.dropout(self.down_proj(self.kernel(self.gate_proj(x), self.up_proj(x))))
        return output


def fuse_norms(build: Build, kernel: RMSNormKernel) -> None:
    """Module stage: every RMSNorm becomes one call of `kernel`."""
    build.replace_modules(RMSNorm, lambda norm: KernelNorm(norm, kernel))


def fuse_residuals(build: Build, kernel: RMSNormKernel, adding: AddRMSNormKernel) -> None:
    """Module stage: every RMSNorm becomes one call, and those of the stream do the addition before them too."""
    body = build.built().model
    build.replace_modules(Block, lambda block: FusedBlock(block, kernel, adding))
    body.add_module("norm", StreamNorm(body.norm, kernel, adding))
    fuse_norms(build, kernel)


def fuse_swiglu(build: Build, kernel: SwiGLUKernel) -> None:
    """Module stage: every FeedForward, experts included, calls `kernel`. Raises Unsupported unless it is a SwiGLU."""
    if build.config.hidden_act != "silu":
        raise Unsupported(
            f"the fused kernel computes silu(gate) * up; this model has hidden_act={build.config.hidden_act}"
        )
    build.replace_modules(FeedForward, lambda mlp: KernelFeedForward(mlp, kernel))


def needs_triton() -> None:
    """Raise Unsupported, with the reason, where triton is installed but cannot be imported."""
    from kernels._triton import WHY_NO_TRITON

    if WHY_NO_TRITON is not None:
        raise Unsupported(WHY_NO_TRITON)
