"""Linear layers with weights in int8 or int4: quantised once, multiplied without ever being a float matrix in memory.

    layer = Int8Linear.from_linear(linear)          # or Int4Linear
    y = layer(x)                                    # x [..., K] in fp32 or bf16 -> [..., N] in the same dtype

Legend: N outputs, K inputs, G = K / 32 groups, P = K / 2 packed bytes, M rows of activations.

Both formats are symmetric, without zero points:
- int8: `q_NK` int8 in [-127, 127], `scale_N` fp32 per output, max|w| / 127.
- int4: `scale_NG` fp16 per group of 32 inputs, integers in [-8, 7]; in `q_NP` byte j (0..15) of a group holds element
  j in its low and element j + 16 in its high half, each as value + 8.

Bytes that must move per product: int8 N * K + 4 N, int4 0.5625 * N * K; the 26M model's matrices are 26 MB and 14.5 MB.

How it multiplies. On a CPU with up to MAX_ROWS rows: C++ (`kernels/cpu`), activations quantised to 8 bits per 64 (int8)
or 32 (int4) values of a row, products summed exactly in integers. On a CPU with more rows (a prompt): int8 quantises
each row of the activations and runs oneDNN's int8 product (AMX where the processor has it), for which the first
prompt makes a second copy of the weights in oneDNN's order; on x86 without VNNI, where oneDNN's sums saturate, it
expands the weights to fp32 for each product; int4 expands them always, to bf16 where the processor multiplies bf16 and
to fp32 elsewhere, and runs torch's product of that dtype. On CUDA: the Triton kernels of `kernels.quantized_matvec`,
and for a prompt torch's product with the weights expanded. Activations in 8 bits change the numbers a little: that is
part of the declared loss.

Refuses: K that is no multiple of 32 for int4, biases (ValueError), devices other than CPU and CUDA (RuntimeError).
"""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.cpu import ops

GROUP = 32
MAX_ROWS = 16  # beyond that a matrix product reads the weights once where the C++ loops would compute row by row


def quantize_int8(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """(q_NK int8, scale_N fp32): symmetric, one scale per row; a row of zeros gets scale 1."""
    wide = weight_NK.detach().float()
    scale_N = wide.abs().amax(dim=1) / 127
    scale_N = torch.where(scale_N > 0, scale_N, torch.ones_like(scale_N))
    q_NK = (wide / scale_N[:, None]).round().clamp(-127, 127).to(torch.int8)
    return q_NK.contiguous(), scale_N


def dequantize_int8(q_NK: Tensor, scale_N: Tensor) -> Tensor:
    """The fp32 matrix [N, K] that the quantised one stands for."""
    return q_NK.float() * scale_N[:, None]


def quantize_int4(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """(q_NP uint8, scale_NG fp16): symmetric, one scale per 32 values of a row. Raises ValueError for other widths.

    The scale is the value of largest magnitude, with its sign, over -8: that value is then exact, and the sixteenth
    level is used.
    """
    N, K = weight_NK.shape
    if K % GROUP:
        raise ValueError(f"int4 weights need a number of inputs that is a multiple of {GROUP}, not {K}")
    groups = weight_NK.detach().float().view(N, K // GROUP, GROUP)
    peak = groups.gather(2, groups.abs().argmax(dim=2, keepdim=True))
    scale = (peak / -8).half()
    # NOTE: divided by the scale as it is stored, so that its rounding to fp16 costs nothing twice.
    safe = torch.where(scale == 0, torch.ones_like(scale), scale)
    levels = ((groups / safe.float()).round().clamp(-8, 7) + 8).to(torch.uint8)
    packed = levels[:, :, : GROUP // 2] | (levels[:, :, GROUP // 2 :] << 4)
    return packed.reshape(N, K // 2), safe.squeeze(2)


def unpack_int4(q_NP: Tensor) -> Tensor:
    """The integers in [-8, 7], int8 [N, K]."""
    N, P = q_NP.shape
    bytes_ = q_NP.view(N, P // (GROUP // 2), GROUP // 2)
    levels = torch.cat((bytes_ & 15, bytes_ >> 4), dim=2).to(torch.int8) - 8
    return levels.view(N, 2 * P)


def dequantize_int4(q_NP: Tensor, scale_NG: Tensor) -> Tensor:
    """The fp32 matrix [N, K] that the quantised one stands for."""
    N, G = scale_NG.shape
    return (unpack_int4(q_NP).view(N, G, GROUP).float() * scale_NG.float()[:, :, None]).view(N, G * GROUP)


class Int8Linear(nn.Module):
    """A bias-free linear layer with int8 weights."""

    q_NK: Tensor
    scale_N: Tensor

    def __init__(self, q_NK: Tensor, scale_N: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features, self.in_features = q_NK.shape
        self.dtype = dtype
        self._packed: Tensor | None = None
        self.register_buffer("q_NK", q_NK)
        self.register_buffer("scale_N", scale_N)

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> Self:
        """Quantise a layer's weight. Raises ValueError for a bias."""
        _refuse_bias(linear)
        return cls(*quantize_int8(linear.weight), linear.weight.dtype)

    @property
    def weight(self) -> Tensor:
        """The dequantised matrix, computed at every call, in the dtype of the layer that was quantised."""
        return dequantize_int8(self.q_NK, self.scale_N).to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] to [..., N] in x's dtype."""
        rows = num_rows(x)
        if x.device.type == "cuda":
            return _on_cuda(x, rows, self)
        if rows <= MAX_ROWS:
            return ops.int8_linear(x, self.q_NK, self.scale_N)
        if not ops.multiplies_int8():
            return F.linear(x.float(), self.q_NK.float()).mul_(self.scale_N).to(x.dtype)
        if self._packed is None:
            self._packed = ops.int8_pack(self.q_NK, rows)
        return ops.int8_matmul(x, self._packed, self.scale_N)


class Int4Linear(nn.Module):
    """A bias-free linear layer with int4 weights in groups of 32."""

    q_NP: Tensor
    scale_NG: Tensor

    def __init__(self, q_NP: Tensor, scale_NG: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features, self.in_features = q_NP.shape[0], 2 * q_NP.shape[1]
        self.dtype = dtype
        self.register_buffer("q_NP", q_NP)
        self.register_buffer("scale_NG", scale_NG)

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> Self:
        """Quantise a layer's weight. Raises ValueError for a bias, or inputs that are no multiple of 32."""
        _refuse_bias(linear)
        return cls(*quantize_int4(linear.weight), linear.weight.dtype)

    @property
    def weight(self) -> Tensor:
        """The dequantised matrix, computed at every call, in the dtype of the layer that was quantised."""
        return dequantize_int4(self.q_NP, self.scale_NG).to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] to [..., N] in x's dtype."""
        rows = num_rows(x)
        if x.device.type == "cuda":
            return _on_cuda(x, rows, self)
        if rows <= MAX_ROWS:
            return ops.int4_linear(x, self.q_NP, self.scale_NG)
        return ops.int4_matmul(x, self.q_NP, self.scale_NG)


class Int8Embedding(nn.Module):
    """An embedding with int8 rows, one scale per row; the buffers of the quantised head where the two are tied."""

    q_NK: Tensor
    scale_N: Tensor

    def __init__(self, q_NK: Tensor, scale_N: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.register_buffer("q_NK", q_NK)
        self.register_buffer("scale_N", scale_N)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [...] to rows [..., K] in the dtype of the embedding that was quantised."""
        if ids.device.type == "cpu":
            return ops.int8_embedding(ids, self.q_NK, self.scale_N).to(self.dtype)
        return (self.q_NK[ids].float() * self.scale_N[ids][..., None]).to(self.dtype)


class Int4Embedding(nn.Module):
    """An embedding with int4 rows in groups of 32; the buffers of the quantised head where the two are tied."""

    q_NP: Tensor
    scale_NG: Tensor

    def __init__(self, q_NP: Tensor, scale_NG: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.register_buffer("q_NP", q_NP)
        self.register_buffer("scale_NG", scale_NG)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [...] to rows [..., K] in the dtype of the embedding that was quantised."""
        if ids.device.type == "cpu":
            return ops.int4_embedding(ids, self.q_NP, self.scale_NG).to(self.dtype)
        flat = ids.reshape(-1)
        rows = dequantize_int4(self.q_NP[flat], self.scale_NG[flat])
        return rows.view(*ids.shape, -1).to(self.dtype)


def num_rows(x: Tensor) -> int:
    """Rows of activations in x [..., K]."""
    return x.numel() // max(x.shape[-1], 1)


def _refuse_bias(linear: nn.Linear) -> None:
    if linear.bias is not None:
        raise ValueError("quantised linear layers have no bias")


def _on_cuda(x: Tensor, rows: int, layer: Int8Linear | Int4Linear) -> Tensor:
    """Few rows by the Triton kernels; a prompt with the weight dequantised for this call."""
    if rows > MAX_ROWS:
        return F.linear(x, layer.weight.to(x.dtype))
    from kernels import quantized_matvec

    if isinstance(layer, Int8Linear):
        return quantized_matvec.int8_linear(x, layer.q_NK, layer.scale_N)
    return quantized_matvec.int4_linear(x, layer.q_NP, layer.scale_NG)
