"""GPTQ checkpoints (Frantar et al. 2022, arXiv 2210.17323), as AutoGPTQ and GPTQModel write them.

    qweight [in / 8, out] int32    eight input channels a word, from the lowest bits up
    qzeros  [groups, out / 8] int32    eight output channels a word; in format 1 zero points less 1
    scales  [groups, out]
    g_idx   [in] int32    the group of each input channel; without it channel i is in group i // group_size
    w[n, k] = scales[g, n] (q[k, n] - z[g, n])

With `desc_act` channels were quantised in order of their activations, and those of one group lie apart: they are put
side by side here, and the layer reads its input in that order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ....kernels.quantized_linear import Int4Linear
from .formats import GroupedInt4, nibbles
from .tensor_files import TensorFiles

_ONE_EACH = 0x11111111


class Gptq(GroupedInt4):
    """`quant_method` "gptq", 4 bits."""

    marks = ("qweight", "qzeros", "scales", "g_idx")

    def __init__(self, about: dict[str, Any], tensors: TensorFiles) -> None:
        super().__init__(about, tensors)
        if about.get("bits") != 4:
            raise self.refuse(f"bits {about.get('bits')!r}", "trimtab reads GPTQ of 4 bits")
        if about.get("dynamic"):
            raise self.refuse("settings of single modules (dynamic)", "trimtab reads GPTQ of one setting for all")
        form = about.get("checkpoint_format") or about.get("format") or "gptq"
        if form not in ("gptq", "gptq_v2"):
            raise self.refuse(f"checkpoint_format {form!r}", 'trimtab reads "gptq" and "gptq_v2"')
        self._less_one = form == "gptq"
        self.group = self.group_size(about.get("group_size", -1))

    def read(self, name: str, linear: nn.Linear) -> Int4Linear:
        """The low-bit module for a linear."""
        size, out = linear.in_features, linear.out_features
        words, zeros, scale, group_of, rule = self.packed(name, linear, [size // 8, out])
        if f"{name}.g_idx" in self.tensors:
            group_of = self.tensors.read(f"{name}.g_idx", [size], (torch.int32, torch.int64), rule).long()
        if self._less_one:
            zeros = zeros + _ONE_EACH  # whole words, as GPTQModel takes it away: a 0 has borrowed from its neighbour
        levels = nibbles(words.t()).flatten(1)
        return self.made(name, linear, levels, scale, nibbles(zeros).flatten(1), group_of)
