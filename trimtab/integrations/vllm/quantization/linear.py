"""A linear layer of vLLM whose float weights become trimtab's low-bit ones as soon as they are loaded.

vLLM keeps the weights of such a layer on no device until the checkpoint's arrive, and hands them over layer by layer:
no more than one layer is ever there in both precisions. Tested with vLLM 0.31 and 0.32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.layers.quantization.online.fp8 import OnlineLinearBase
from vllm.model_executor.utils import replace_parameter

from ....errors import InputError
from ....kernels import linear_w4a16 as w4
from ....kernels.quantize import quantize_linear
from .config import Format

NAME = "low_bit"
"""Of the module that a layer gets."""


class LowBitLinearMethod(OnlineLinearBase):
    """`x W^T` by kernels/linear_w8a8.py or linear_w4a16.py.

    Tensor parallelism needs nothing of its own: each rank quantises its share, with scales of its own.

    Args:
        format: `w8a8`, `w8a16` or `w4a16`.
        group: input channels of 4-bit weights that share a scale.
    """

    activation_quant_key = None  # activations are quantised inside the product

    def __init__(self, format: Format, group: int) -> None:
        super().__init__()
        self._format, self._group = format, group

    def create_weights(
        self, layer: torch.nn.Module, input_size_per_partition: int, *sizes: object, **more: object
    ) -> None:
        """Refuse a layer that the format cannot hold, before anything is loaded.

        Raises:
            InputError: a group does not divide the layer's input channels.
        """
        if self._format == "w4a16" and input_size_per_partition % self._group:
            fitting = w4.largest_group(input_size_per_partition)
            raise InputError(
                f"group {self._group} does not divide the {input_size_per_partition} input channels of "
                f"{getattr(layer, 'prefix', 'a linear')}: "
                + (f"give {fitting}" if fitting else "leave it out by ignore")
            )
        super().create_weights(layer, input_size_per_partition, *sizes, **more)

    def process_weights_after_loading(self, layer: Any) -> None:
        """Make the low-bit weights and let go of the float ones."""
        if hasattr(layer, NAME):
            return
        made = quantize_linear(
            [layer.weight.data],
            [None],  # vLLM hands the bias over with the input
            bits=4 if self._format == "w4a16" else 8,
            activation_bits=8 if self._format == "w8a8" else 16,
            group=self._group,
        )
        layer.add_module(NAME, made)
        replace_parameter(layer, "weight", torch.nn.Parameter(layer.weight.data.new_empty(0), requires_grad=False))

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`[..., in]` to `[..., out]` in the dtype of `x`."""
        out: Tensor = getattr(layer, NAME)(x)
        return out if bias is None else out + bias
