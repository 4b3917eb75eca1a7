"""Quantise linear layers: weights in, low-bit modules out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from . import linear_w4a16 as w4
from . import linear_w8a8 as w8
from .quantized_linear import Int4Linear, Int8Linear, QuantizedLinear

Bits = Literal[4, 8]


def quantize_linear(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    *,
    bits: Bits,
    activation_bits: w8.ActivationBits = 16,
    magnitude: Tensor | None = None,
    outliers: int = 0,
) -> QuantizedLinear:
    """One low-bit linear for weights that read the same input; outputs side by side.

    Args:
        weights: `[out_i, in]` each, any float dtype.
        biases: `[out_i]` or None each.
        bits: of the weights, 8 (per output channel) or 4 (groups of input channels).
        activation_bits: with 8-bit weights, 8 or 16; 4-bit weights multiply bfloat16 activations.
        magnitude: `[in]`, the largest activation seen in each input channel; needed for outliers.
        outliers: number of input channels to keep in full precision, those of largest magnitude.

    Raises:
        ValueError: 4 bits and `in` is no multiple of the group.
    """
    weight = torch.cat(list(weights)).detach()
    bias = None
    if any(b is not None for b in biases):
        bias = torch.cat(
            [w.new_zeros(len(w)) if b is None else b for w, b in zip(weights, biases, strict=True)]
        ).detach()
    index = torch.empty(0, dtype=torch.long, device=weight.device)
    if magnitude is not None and outliers:
        index = magnitude.topk(min(outliers, len(magnitude))).indices.sort().values
    outlier_weight = weight[:, index].t().contiguous()
    rest = weight.index_fill(1, index, 0.0)
    if bits == 8:
        return Int8Linear(*w8.quantize_weight(rest), index, outlier_weight, bias, activation_bits)
    return Int4Linear(*w4.pack(*w4.quantize_weight(rest)), len(weight), index, outlier_weight, bias)
