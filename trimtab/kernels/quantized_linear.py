"""A linear layer in low-bit weights, with the outlier input channels kept in full precision.

A few input channels of a language model carry activations a hundred times larger than the rest (Dettmers et al. 2022,
arXiv 2208.07339). Rounding errors of their weights and, through the per-token scale, of all other activations are
what costs quality, so these channels leave the low-bit product and are multiplied in the layer's own precision.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import linear_w4a16 as w4
from . import linear_w8a8 as w8
from .linear_w8a8 import ActivationBits


class QuantizedLinear(nn.Module):
    """`x @ weight.T + bias` with low-bit weights; made by `quantize.quantize_linear`.

    Attributes:
        outliers: `[n]` int64, input channels in full precision.
        outlier_weight: `[n, out]`, their weights.
        bias: `[out]` or None.
    """

    outliers: Tensor
    outlier_weight: Tensor
    bias: Tensor | None

    def __init__(self, outliers: Tensor, outlier_weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("outliers", outliers)
        self.register_buffer("outlier_weight", outlier_weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in] -> [..., out]` in the dtype of `x`."""
        rows = x.reshape(-1, x.shape[-1])
        if len(self.outliers):
            out = self._product(rows.index_fill(1, self.outliers, 0.0))
            out = torch.addmm(out, rows.index_select(1, self.outliers), self.outlier_weight)
        else:
            out = self._product(rows)
        if self.bias is not None:
            out = out + self.bias
        return out.view(*x.shape[:-1], out.shape[-1])

    def _product(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Int8Linear(QuantizedLinear):
    """Int8 weights per output channel (linear_w8a8.py)."""

    weight: Tensor
    scale: Tensor

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor,
        outliers: Tensor,
        outlier_weight: Tensor,
        bias: Tensor | None,
        activation_bits: ActivationBits,
    ) -> None:
        super().__init__(outliers, outlier_weight, bias)
        if weight.is_inference():  # nothing derived from it could be kept (native/linear.py)
            with torch.inference_mode(False):
                weight = weight.clone()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.activation_bits = activation_bits

    def _product(self, x: Tensor) -> Tensor:
        return w8.linear_w8a8(x, self.weight, self.scale, bits=self.activation_bits)


class Int4Linear(QuantizedLinear):
    """4-bit weights in groups of input channels, in the layout of torch's operator (linear_w4a16.py)."""

    packed: Tensor
    scales_zeros: Tensor

    def __init__(
        self,
        packed: Tensor,
        scales_zeros: Tensor,
        out_features: int,
        outliers: Tensor,
        outlier_weight: Tensor,
        bias: Tensor | None,
    ) -> None:
        super().__init__(outliers, outlier_weight, bias)
        self.out_features = out_features
        self.register_buffer("packed", packed)
        self.register_buffer("scales_zeros", scales_zeros)

    def _product(self, x: Tensor) -> Tensor:
        return w4.linear_w4a16(x, self.packed, self.scales_zeros, self.out_features)
