"""The weights of a Llama-type decoder as plain tensors, independent of where they came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .quantized_linear import QuantizedLinear


@dataclass(frozen=True, slots=True)
class FloatLinear:
    """Linears that read the same input, in the model's own precision; outputs side by side.

    Attributes:
        weights: `[out_i, in]` each.
        biases: `[out_i]` or None each.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """`[tokens, in] -> [tokens, sum of out_i]`."""
        outs = [F.linear(x, weight, bias) for weight, bias in zip(self.weights, self.biases, strict=True)]
        return outs[0] if len(outs) == 1 else torch.cat(outs, dim=-1)


Linear = FloatLinear | QuantizedLinear
"""`[tokens, in] -> [tokens, out]`."""


@dataclass(frozen=True, slots=True)
class RMSNorm:
    """`x / rms(x) * weight`, in float32 inside; `rounded_first`: to the input's dtype before the weight, not after."""

    weight: Tensor
    eps: float
    rounded_first: bool

    def __call__(self, x: Tensor) -> Tensor:
        """`[..., size] -> [..., size]`, normalised over the last dimension."""
        if x.dtype == torch.float32:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        if self.rounded_first:
            return F.rms_norm(x.float(), self.weight.shape, None, self.eps).to(x.dtype) * self.weight
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps).to(x.dtype)


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One pre-norm transformer block; a norm that the architecture lacks is None."""

    attention_norm: RMSNorm
    qkv: Linear
    query_norm: RMSNorm | None
    key_norm: RMSNorm | None
    output: Linear
    after_attention_norm: RMSNorm | None
    mlp_norm: RMSNorm
    gate_up: Linear
    down: Linear
    after_mlp_norm: RMSNorm | None
    sliding_window: int | None
    rope: str


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """All that lies between the embedded tokens and the logits.

    Attributes:
        activation: of the gated MLP.
        scaling: factor of query-key products.
    """

    layers: tuple[LayerWeights, ...]
    norm: RMSNorm
    head: Linear
    heads: int
    kv_heads: int
    head_dim: int
    activation: Literal["silu", "gelu_tanh"]
    scaling: float
