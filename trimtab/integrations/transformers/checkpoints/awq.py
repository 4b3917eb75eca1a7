"""AWQ checkpoints (Lin et al. 2023, arXiv 2306.00978) in AutoAWQ's GEMM layout.

qweight [in, out / 8] int32    eight output channels a word: 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits up
qzeros  [in / group, out / 8] int32    zero points in the same order
scales  [in / group, out]
w[n, k] = scales[g, n] (q[k, n] - z[g, n])
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ....kernels.quantized_linear import Int4Linear
from .formats import Checkpoint, int4_linear, nibbles
from .tensor_files import FLOATS, TensorFiles

_PLACES = [0, 4, 1, 5, 2, 6, 3, 7]
"""Where in a word output channels 0 to 7 are."""

_INT32 = (torch.int32,)


class Awq(Checkpoint):
    """`quant_method` "awq", 4 bits, `version` "gemm"."""

    marks = ("qweight", "qzeros", "scales")

    def __init__(self, about: dict[str, Any], tensors: TensorFiles) -> None:
        super().__init__(about, tensors)
        bits = about.get("bits", about.get("w_bit"))
        if bits != 4:
            raise self.refuse(f"bits {bits!r}", "trimtab reads AWQ of 4 bits")
        version = str(about.get("version") or about.get("checkpoint_format") or about.get("format") or "gemm").lower()
        if version != "gemm":
            raise self.refuse(f"version {version!r}", 'trimtab reads AWQ\'s layout "gemm"')
        if about.get("dynamic"):
            raise self.refuse("settings of single modules (dynamic)", "trimtab reads AWQ of one setting for all")
        group = about.get("group_size", about.get("q_group_size"))
        if not isinstance(group, int) or (group <= 0 and group != -1):
            raise self.refuse(f"group_size {group!r}", "a number of channels, or -1 for all, is needed")
        self._group = group

    def read(self, name: str, linear: nn.Linear) -> Int4Linear:
        """The low-bit module for a linear."""
        size, out = linear.in_features, linear.out_features
        group = size if self._group == -1 else self._group
        groups = -(-size // group)
        rule = f"{name} has {size} input and {out} output channels, groups of {group}, 4 bits"
        words = self.tensors.read(f"{name}.qweight", [size, out // 8], _INT32, rule)
        zeros = self.tensors.read(f"{name}.qzeros", [groups, out // 8], _INT32, rule)
        scale = self.tensors.read(f"{name}.scales", [groups, out], FLOATS, rule)
        group_of = torch.arange(size) // group
        where = f"{self.tensors.where(f'{name}.qweight')}: {name}"
        levels = _in_order(words).t().contiguous()
        return int4_linear(levels, scale, _in_order(zeros), group_of, linear, self.bias(name, linear), where)


def _in_order(words: Tensor) -> Tensor:
    """`[rows, out / 8]` words to `[rows, out]` values."""
    return nibbles(words)[..., _PLACES].flatten(1)
