"""Checkpoints of `save_quantized`: the tensors of each low-bit module, by the names of its state dict.

    w8a8, w8a16    weight [out, in] int8, scale [out] float32
    w4a16          packed [out, ceil(in / 128), 32] int16 (linear_w4a16.py), scales_zeros [in / group, out, 2 or 1],
                   order [in] int64, perhaps
    all            bias [out], outliers [n] int64 and outlier_weight [n, out], where there are some

`quantization_config` in config.json: `quant_method` "trimtab", `version`, and `modules`: the format of each, by name.
"""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor, nn

from ....kernels.linear_w4a16 import GROUPS
from ....kernels.quantize import Format
from ....kernels.quantized_linear import Int4Linear, Int8Linear, QuantizedLinear
from .formats import Checkpoint, no_outliers
from .tensor_files import FLOATS, TensorFiles

METHOD = "trimtab"
VERSION = 1
"""Raised when the meaning of a file changes."""


class Own(Checkpoint):
    """`quant_method` "trimtab"."""

    def __init__(self, about: dict[str, Any], tensors: TensorFiles) -> None:
        super().__init__(about, tensors)
        if about.get("version") != VERSION:
            raise self.refuse(f"version {about.get('version')!r}", f"this trimtab reads {VERSION}: save it again")
        modules = about.get("modules")
        if not isinstance(modules, dict) or any(format not in get_args(Format) for format in modules.values()):
            raise self.refuse("no modules with their formats", f"each has to be one of {', '.join(get_args(Format))}")
        self._formats: dict[str, Format] = modules

    def quantized(self) -> set[str]:
        """Names of the linears that the files hold in low bits."""
        return set(self._formats)

    def read(self, name: str, linear: nn.Linear) -> QuantizedLinear:
        """The low-bit module for a linear."""
        size, out = linear.in_features, linear.out_features
        rule = f"{name} has {size} input and {out} output channels in {self._formats[name]}"
        outliers, outlier_weight = no_outliers(linear)
        if f"{name}.outliers" in self.tensors:
            count = self.tensors.shape(f"{name}.outliers")
            outliers = self.tensors.read(f"{name}.outliers", count, (torch.int64,), rule)
            outlier_weight = self.tensors.read(f"{name}.outlier_weight", [*count, out], FLOATS, rule)
        rest = (outliers, outlier_weight.to(linear.weight.dtype), self.bias(name, linear))
        if self._formats[name] == "w4a16":
            return self._int4(name, rule, size, out, rest)
        weight = self.tensors.read(f"{name}.weight", [out, size], (torch.int8,), rule)
        scale = self.tensors.read(f"{name}.scale", [out], (torch.float32,), rule)
        return Int8Linear(weight, scale, *rest, 8 if self._formats[name] == "w8a8" else 16)

    def _int4(
        self, name: str, rule: str, size: int, out: int, rest: tuple[Tensor, Tensor, Tensor | None]
    ) -> Int4Linear:
        packed = self.tensors.read(f"{name}.packed", [out, -(-size // 128), 32], (torch.int16,), rule)
        shapes = [[size // group, out, planes] for group in GROUPS if not size % group for planes in (2, 1)]
        scales = f"{name}.scales_zeros"
        found = self.tensors.shape(scales) if scales in self.tensors else shapes[0]
        scales_zeros = self.tensors.read(scales, found if found in shapes else shapes[0], FLOATS, rule)
        order = None
        if f"{name}.order" in self.tensors:
            order = self.tensors.read(f"{name}.order", [size], (torch.int64,), rule)
        return Int4Linear(packed, scales_zeros, size, *rest, order)


def format_of(module: QuantizedLinear) -> Format:
    """The format of a module, as `modules` in config.json names it."""
    if isinstance(module, Int8Linear):
        return "w8a8" if module.activation_bits == 8 else "w8a16"
    return "w4a16"
