"""The weights of a Llama-type decoder as plain tensors, independent of where they came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .quantized_linear import Int8Linear, QuantizedLinear


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


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Linears that read the same input, each computed by itself; outputs side by side."""

    parts: tuple[FloatLinear | QuantizedLinear, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """`[tokens, in] -> [tokens, sum of out_i]`."""
        return torch.cat([part(x) for part in self.parts], dim=-1)


Linear = FloatLinear | QuantizedLinear | SideBySide
"""`[tokens, in] -> [tokens, out]`."""


def linear_of(modules: Sequence[nn.Module]) -> Linear:
    """The own weights of linears that read the same input, in full precision or low bits, as they lie.

    Int8 layers of one kind become one product: their weights are moved into one tensor, of which each layer keeps its
    part.
    """
    floats = [module for module in modules if isinstance(module, nn.Linear)]
    if len(floats) == len(modules):
        return FloatLinear(tuple(linear.weight for linear in floats), tuple(linear.bias for linear in floats))
    int8 = [module for module in modules if isinstance(module, Int8Linear) and not len(module.outliers)]
    alike = {(layer.activation_bits, layer.bias is None) for layer in int8}
    if len(int8) == len(modules) > 1 and len(alike) == 1:
        return _joined(int8)
    parts = tuple(linear_of([module]) if isinstance(module, nn.Linear) else module for module in modules)
    return parts[0] if len(parts) == 1 else SideBySide(parts)  # type: ignore[arg-type, return-value]


def _joined(layers: Sequence[Int8Linear]) -> Int8Linear:
    weight = _rows([layer.weight for layer in layers])
    for layer, rows in zip(layers, weight.split([layer.out_features for layer in layers]), strict=True):
        layer.weight = rows
    biases = [layer.bias for layer in layers if layer.bias is not None]
    return Int8Linear(
        weight,
        torch.cat([layer.scale for layer in layers]),
        layers[0].outliers,
        torch.cat([layer.outlier_weight for layer in layers], dim=1),
        torch.cat(biases) if biases else None,
        layers[0].activation_bits,
    )


def _rows(parts: Sequence[Tensor]) -> Tensor:
    """The rows of all parts as one tensor; the one that they are parts of already, if so."""
    first, size = parts[0], parts[0].shape[1]
    ends = [part.data_ptr() + part.numel() for part in parts]  # int8: a byte each
    adjacent = all(part.data_ptr() == end for part, end in zip(parts[1:], ends, strict=False))
    # two tensors of different storages can lie next to each other by chance
    if adjacent and len({part.untyped_storage().data_ptr() for part in parts}) == 1:
        return first.as_strided((sum(map(len, parts)), size), (size, 1))
    return torch.cat(list(parts))


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
