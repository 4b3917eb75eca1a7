"""One step of a Llama with random weights, its linears in any of the formats: what bench/decode_step.py times.

A step takes the hidden states of `window` tokens for each sequence of a batch, adds their keys and values to a cache of
`context` tokens, and ends in the best token of every position: decoding with a window of 1, verification above. The
shapes are those of a real model; values do not matter to the time that dense products take.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from trimtab.kernels import linear_w4a16 as w4
from trimtab.kernels import linear_w8a8 as w8
from trimtab.kernels.linear_w8a16 import linear_w8a16

FORMATS = ("bf16", "W8A16", "W8A8", "W8A8-16", "W4A16")
GROUP = 128

Linear = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a Llama; the defaults are Llama-3.1-8B's.

    Attributes:
        layers: number of decoder layers.
        hidden: channels of the residual stream, a multiple of `heads`.
        intermediate: channels of the gated unit.
        heads: query heads.
        kv_heads: key and value heads, a divisor of `heads`.
        vocab: rows of the output head.
    """

    layers: int = 32
    hidden: int = 4096
    intermediate: int = 14336
    heads: int = 32
    kv_heads: int = 8
    vocab: int = 128_256

    @property
    def head_size(self) -> int:
        """Channels of a head."""
        return self.hidden // self.heads

    def linears(self) -> dict[str, tuple[int, int]]:
        """Output and input channels of a layer's linears, those with one input in one."""
        qkv = (self.heads + 2 * self.kv_heads) * self.head_size
        return {
            "qkv": (qkv, self.hidden),
            "o": (self.hidden, self.hidden),
            "gate_up": (2 * self.intermediate, self.hidden),
            "down": (self.hidden, self.intermediate),
        }


@dataclass(slots=True)
class Weights:
    """A model in one format.

    Attributes:
        layers: the linears of each layer by name.
        head: the output head.
        bytes: of all of them as stored, scales included: what a step has to read.
    """

    layers: list[dict[str, Linear]]
    head: Linear
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Cache:
    """Keys and values, `[batch, kv_heads, context + window, head_size]` bfloat16 for each layer, the window last."""

    keys: list[Tensor]
    values: list[Tensor]
    window: int

    @property
    def bytes(self) -> int:
        """What a step reads of it."""
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values))


def random_weights(
    shape: Shape, formats: tuple[str, ...], device: torch.device, *, quantize_head: bool = False
) -> dict[str, Weights]:
    """The same random model in each format; int8 formats share their weights.

    Args:
        shape: of the model.
        formats: some of `FORMATS`.
        device: where to put it.
        quantize_head: also the output head; it stays in bfloat16 otherwise, as `quantize_` leaves it.
    """
    made = {name: Weights([], lambda x: x) for name in formats}
    for _ in range(shape.layers):
        layers: dict[str, dict[str, Linear]] = {name: {} for name in formats}
        for part, size in shape.linears().items():
            for name, (linear, used) in _linears(size, formats, device).items():
                layers[name][part] = linear
                made[name].bytes += used
        for name in formats:
            made[name].layers.append(layers[name])
    size = (shape.vocab, shape.hidden)
    heads = _linears(size, formats if quantize_head else ("bf16",), device)
    for name in formats:
        made[name].head, used = heads[name if quantize_head else "bf16"]
        made[name].bytes += used
    return made


def random_cache(shape: Shape, batch: int, context: int, window: int, device: torch.device) -> Cache:
    """A cache that `context` tokens went into, and that has room for the window."""
    size = (batch, shape.kv_heads, context + window, shape.head_size)

    def tensors() -> list[Tensor]:
        return [torch.randn(size, device=device, dtype=torch.bfloat16) for _ in range(shape.layers)]

    return Cache(tensors(), tensors(), window)


class Step:
    """A step on tensors that stay where they are, as a CUDA graph needs.

    Args:
        shape: of the model.
        weights: in one format.
        cache: the window's places are written over at every call.
        x: `[batch, window, hidden]` bfloat16, embedded tokens.
    """

    def __init__(self, shape: Shape, weights: Weights, cache: Cache, x: Tensor) -> None:
        self._shape, self._weights, self._cache, self._x = shape, weights, cache, x
        self._norm = torch.ones(shape.hidden, device=x.device, dtype=x.dtype)
        length = cache.keys[0].shape[2]
        position = torch.arange(length - cache.window, length, device=x.device)
        rate = 500_000.0 ** (-torch.arange(0, shape.head_size, 2, device=x.device) / shape.head_size)
        angle = (position[:, None] * rate).repeat(1, 2)
        self._cos, self._sin = angle.cos().to(x.dtype)[:, None], angle.sin().to(x.dtype)[:, None]
        # one token sees all of the cache, and needs no mask
        self._mask = causal_lower_right(cache.window, length) if cache.window > 1 else None

    def __call__(self) -> Tensor:
        """`[batch, window]` int64, the best token at each position."""
        x = self._x
        for index, layer in enumerate(self._weights.layers):
            x = x + layer["o"](self._attention(index, layer["qkv"](self._normed(x))))
            gate, up = layer["gate_up"](self._normed(x)).chunk(2, dim=-1)
            x = x + layer["down"](F.silu(gate) * up)
        return self._weights.head(self._normed(x)).argmax(-1)

    def _normed(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self._norm, 1e-5)

    def _attention(self, index: int, qkv: Tensor) -> Tensor:
        shape, keys, values = self._shape, self._cache.keys[index], self._cache.values[index]
        by_head = qkv.unflatten(-1, (-1, shape.head_size))  # [batch, window, heads, head_size]
        q, k, v = by_head.split([shape.heads, shape.kv_heads, shape.kv_heads], dim=2)
        window = self._cache.window
        keys[:, :, -window:] = self._rotated(k).transpose(1, 2)
        values[:, :, -window:] = v.transpose(1, 2)
        out = F.scaled_dot_product_attention(
            self._rotated(q).transpose(1, 2), keys, values, attn_mask=self._mask, enable_gqa=True
        )
        return out.transpose(1, 2).flatten(2)

    def _rotated(self, x: Tensor) -> Tensor:
        """Rotary positions, halves apart as in Llama's checkpoints (Su et al. 2021, arXiv 2104.09864)."""
        left, right = x.chunk(2, dim=-1)
        return x * self._cos + torch.cat([-right, left], dim=-1) * self._sin


def _linears(
    size: tuple[int, int], formats: tuple[str, ...], device: torch.device
) -> dict[str, tuple[Linear, int]]:  # fmt: skip
    """One random matrix `[out, in]` in each format, and the bytes that it takes."""
    out = size[0]
    # of 1 / sqrt(in), so that the residual stream stays in range
    weight = torch.randn(size, device=device, dtype=torch.bfloat16).mul_(size[1] ** -0.5)
    made: dict[str, tuple[Linear, int]] = {}
    if "bf16" in formats:
        made["bf16"] = (lambda x: F.linear(x, weight)), _bytes(weight)
    if any(name.startswith("W8") for name in formats):
        levels, scale = w8.quantize_weight(weight)
        used = _bytes(levels, scale)
        eight: dict[str, Linear] = {
            "W8A16": lambda x: linear_w8a16(x, levels, scale),
            "W8A8": lambda x: w8.linear_w8a8(x, levels, scale, bits=8),
            "W8A8-16": lambda x: w8.linear_w8a8(x, levels, scale, bits=16),
        }
        made |= {name: (_on_rows(eight[name], out), used) for name in formats if name in eight}
    if "W4A16" in formats:
        packed, scales_zeros = w4.pack(*w4.quantize_weight(weight, GROUP))
        four = _on_rows(lambda x: w4.linear_w4a16(x, packed, scales_zeros, out), out)
        made["W4A16"] = four, _bytes(packed, scales_zeros)
    return made


def _on_rows(linear: Linear, out: int) -> Linear:
    """`linear` takes `[tokens, in]`, what it becomes any leading dimensions."""
    return lambda x: linear(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], out)


def _bytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
