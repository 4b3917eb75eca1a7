"""A linear layer in low-bit weights, with the outlier input channels kept in full precision.

A few input channels of a language model carry activations a hundred times larger than the rest (Dettmers et al. 2022,
arXiv 2208.07339). Rounding errors of their weights and, through the per-token scale, of all other activations are
what costs quality, so these channels leave the low-bit product and are multiplied in the layer's own precision.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import linear_w4a16 as w4
from . import linear_w8a8 as w8
from .dispatch import MAX_ROWS, runs_triton
from .linear_w8a8 import ActivationBits
from .linear_w8a16 import linear_w8a16


class QuantizedLinear(nn.Module):
    """`x @ weight.T + bias` with low-bit weights; made by `quantize.quantize_linear`.

    Attributes:
        in_features: input channels.
        out_features: output channels.
        outliers: `[n]` int64, input channels in full precision.
        outlier_weight: `[n, out]`, their weights.
        bias: `[out]` or None.
    """

    in_features: int
    out_features: int
    outliers: Tensor
    outlier_weight: Tensor
    bias: Tensor | None
    _of_the_format: tuple[str, ...] = ()  # float buffers whose dtype `module.to(dtype)` leaves as it is

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

    def extra_repr(self) -> str:
        """What `print(model)` shows of it."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def _product(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        kept = {name: getattr(self, name) for name in self._of_the_format}
        super()._apply(fn, recurse)
        for name, tensor in kept.items():
            moved = getattr(self, name)
            if moved.dtype != tensor.dtype:
                setattr(self, name, tensor.to(moved.device))
        return self


class Int8Linear(QuantizedLinear):
    """Int8 weights per output channel (linear_w8a8.py, linear_w8a16.py)."""

    weight: Tensor
    scale: Tensor
    _of_the_format = ("scale",)

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
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.activation_bits = activation_bits

    def extra_repr(self) -> str:
        """What `print(model)` shows of it."""
        return f"{super().extra_repr()}, activation_bits={self.activation_bits}"

    def _product(self, x: Tensor) -> Tensor:
        if self.activation_bits == 16 and runs_triton(x) and len(x) <= MAX_ROWS:
            return linear_w8a16(x, self.weight, self.scale)  # activations as they are, and half the rows of two planes
        return w8.linear_w8a8(x, self.weight, self.scale, bits=self.activation_bits)


class Int4Linear(QuantizedLinear):
    """4-bit weights in groups of input channels (linear_w4a16.py).

    State dict and files hold the blocks of `linear_w4a16.pack_blocks`, which every machine reads. The first product
    turns them into the layout of its device's operator, which takes their place.

    Args:
        packed: `[out, ceil(in / 128), 32]` int16 blocks.
        scales_zeros: `[in / group, out, 2]` of any float dtype, or `[in / group, out, 1]` if symmetric.
        in_features: input channels, a multiple of the number of groups.
        order: `[in]` int64, the input channel that each channel of the weights reads; None if they read their own.
    """

    packed: Tensor
    scales_zeros: Tensor
    order: Tensor | None
    _of_the_format = ("scales_zeros",)

    def __init__(
        self,
        packed: Tensor,
        scales_zeros: Tensor,
        in_features: int,
        outliers: Tensor,
        outlier_weight: Tensor,
        bias: Tensor | None,
        order: Tensor | None = None,
    ) -> None:
        super().__init__(outliers, outlier_weight, bias)
        self.in_features, self.out_features = in_features, len(packed)
        self.register_buffer("packed", packed)
        self.register_buffer("scales_zeros", scales_zeros)
        self.register_buffer("order", order)
        self._operands: tuple[Tensor, Tensor] | None = None

    @property
    def group(self) -> int:
        """Input channels that share a scale."""
        return self.in_features // len(self.scales_zeros)

    def extra_repr(self) -> str:
        """What `print(model)` shows of it."""
        symmetric = self.scales_zeros.shape[2] == 1
        return f"{super().extra_repr()}, group={self.group}, symmetric={symmetric}, reordered={self.order is not None}"

    def blocks(self) -> Tensor:
        """`packed` as it was given, `[out, ceil(in / 128), 32]` int16."""
        if self.packed.dtype == torch.int16:
            return self.packed
        return w4.pack_blocks(w4.unpack(self.packed, self.out_features, self.in_features))

    def dequantized(self) -> Tensor:
        """`[out, in]` float32 weights that it stands for, outliers aside."""
        levels = w4.unpack_blocks(self.blocks(), self.in_features)
        weight = w4.dequantize_weight(levels, *self._scale_and_zero())
        return weight if self.order is None else weight[:, self.order.argsort()]

    def _product(self, x: Tensor) -> Tensor:
        if self.order is not None:
            x = x.index_select(1, self.order)
        packed, scales_zeros = self._operands or self._prepared()
        return w4.linear_w4a16(x, packed, scales_zeros, self.out_features)

    def _prepared(self) -> tuple[Tensor, Tensor]:
        if runs_triton(self.packed) or torch.compiler.is_compiling():
            return self.packed, self.scales_zeros
        with _PREPARING:
            if self._operands is None:
                levels = w4.unpack_blocks(self.packed, self.in_features)
                self._operands = w4.pack(levels, *self._scale_and_zero())
                self.packed = self._operands[0]
            return self._operands

    def _scale_and_zero(self) -> tuple[Tensor, Tensor | None]:
        planes = [plane.t() for plane in self.scales_zeros.unbind(2)]
        return planes[0], planes[1] if len(planes) == 2 else None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        if fn(self.packed.new_empty(0)).device != self.packed.device:
            self._forget_layout()
        return super()._apply(fn, recurse)

    def _forget_layout(self) -> None:
        self.packed, self._operands = self.blocks(), None

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}packed"] = self.blocks()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._forget_layout()
        super()._load_from_state_dict(*args, **kwargs)


# of the module, not of a layer: locks can be neither copied nor pickled
_PREPARING = threading.Lock()
