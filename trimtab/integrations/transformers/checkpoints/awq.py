"""AWQ checkpoints (Lin et al. 2023, arXiv 2306.00978) in AutoAWQ's GEMM layout.

qweight [in, out / 8] int32    eight output channels a word: 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits up
qzeros  [in / group, out / 8] int32    zero points in the same order
scales  [in / group, out]
w[n, k] = scales[g, n] (q[k, n] - z[g, n])
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ....kernels.quantized_linear import Int4Linear
from .formats import GroupedInt4, nibbles
from .tensor_files import TensorFiles

_PLACES = [0, 4, 1, 5, 2, 6, 3, 7]
"""Where in a word output channels 0 to 7 are."""


class Awq(GroupedInt4):
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
        self.group = self.group_size(about.get("group_size", about.get("q_group_size")))

    def read(self, name: str, linear: nn.Linear) -> Int4Linear:
        """The low-bit module for a linear."""
        shape = [linear.in_features, linear.out_features // 8]
        words, zeros, scale, group_of, _ = self.packed(name, linear, shape)
        return self.made(name, linear, _in_order(words).t().contiguous(), scale, _in_order(zeros), group_of)


def _in_order(words: Tensor) -> Tensor:
    """`[rows, out / 8]` words to `[rows, out]` values."""
    return nibbles(words)[..., _PLACES].flatten(1)
