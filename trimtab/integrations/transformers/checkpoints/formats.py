"""What the formats of quantised checkpoints have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from ....errors import InputError
from ....kernels import linear_w4a16 as w4
from ....kernels.quantized_linear import Int4Linear, QuantizedLinear
from .tensor_files import FLOATS, TensorFiles


class Checkpoint(ABC):
    """A directory of one format.

    Args:
        about: `quantization_config` of its config.json.
        tensors: its files.

    Raises:
        InputError: settings that the format allows and trimtab's kernels do not compute.
    """

    marks: tuple[str, ...]
    """Last names of tensors that only a quantised linear has."""

    def __init__(self, about: dict[str, Any], tensors: TensorFiles) -> None:
        self.about, self.tensors = about, tensors
        self.config_file = tensors.directory / "config.json"

    def quantized(self) -> set[str]:
        """Names of the linears that the files hold in low bits."""
        return self.tensors.modules(*self.marks)

    @abstractmethod
    def read(self, name: str, linear: nn.Linear) -> QuantizedLinear:
        """The low-bit module for a linear.

        Args:
            name: of the linear.
            linear: the model's, perhaps on the meta device: sizes and dtype.

        Raises:
            InputError: a tensor is missing or does not fit; the message names its file and the rule.
        """

    def refuse(self, setting: str, rule: str) -> InputError:
        """An error about a setting in config.json."""
        return InputError(f"{self.config_file}: quantization_config has {setting}: {rule}")

    def group_size(self, value: Any) -> int:
        """Input channels of a group as config.json has it, -1 for all.

        Raises:
            InputError: it is neither.
        """
        if not isinstance(value, int) or (value <= 0 and value != -1):
            raise self.refuse(f"group_size {value!r}", "a number of channels, or -1 for all, is needed")
        return value

    def bias(self, name: str, linear: nn.Linear) -> Tensor | None:
        """`[out]` in the model's dtype, or None if the linear has none."""
        if linear.bias is None:
            return None
        rule = f"one for each of the {linear.out_features} output channels of {name}"
        return self.tensors.read(f"{name}.bias", [linear.out_features], FLOATS, rule).to(linear.weight.dtype)


class GroupedInt4(Checkpoint):
    """What GPTQ and AWQ share: qweight, qzeros and scales, and how a group is said.

    Attributes:
        group: input channels that share a scale, -1 for all.
    """

    group: int

    def packed(self, name: str, linear: nn.Linear, words: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor, str]:
        """Words, zero points and scales as they lie in the files, the group of each input channel, and the rule.

        Args:
            name: of the linear.
            linear: sizes.
            words: shape of qweight.

        Raises:
            InputError: a tensor is missing or does not fit.
        """
        size, out = linear.in_features, linear.out_features
        group = size if self.group == -1 else self.group
        groups = -(-size // group)
        rule = f"{name} has {size} input and {out} output channels, groups of {group}, 4 bits"
        weight = self.tensors.read(f"{name}.qweight", words, (torch.int32,), rule)
        zeros = self.tensors.read(f"{name}.qzeros", [groups, out // 8], (torch.int32,), rule)
        scale = self.tensors.read(f"{name}.scales", [groups, out], FLOATS, rule)
        return weight, zeros, scale, torch.arange(size) // group, rule

    def made(
        self, name: str, linear: nn.Linear, levels: Tensor, scale: Tensor, zeros: Tensor, group_of: Tensor
    ) -> Int4Linear:
        """The layer, by `int4_linear`; errors name the file of its qweight."""
        where = f"{self.tensors.where(f'{name}.qweight')}: {name}"
        return int4_linear(levels, scale, zeros, group_of, linear, self.bias(name, linear), where)


def no_outliers(linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Outlier channels and their weights of a layer that has none."""
    return torch.empty(0, dtype=torch.long), torch.empty(0, linear.out_features, dtype=linear.weight.dtype)


def nibbles(words: Tensor) -> Tensor:
    """`[..., n]` int32 words to `[..., n, 8]` int32 values 0..15, from the lowest bits up."""
    return words[..., None] >> torch.arange(0, 32, 4) & 15


def int4_linear(
    levels: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    group_of: Tensor,
    linear: nn.Linear,
    bias: Tensor | None,
    where: str,
) -> Int4Linear:
    """A layer of 4-bit levels with integer zero points.

    Args:
        levels: `[out, in]` int32, 0 to 15.
        scale: `[groups, out]`.
        zero_point: `[groups, out]` int32 levels that stand for 0; None for 8 everywhere.
        group_of: `[in]` int64, the group of each input channel, in any order.
        linear: the layer that it replaces.
        bias: `[out]` or None.
        where: file and layer, for the message.

    Raises:
        InputError: groups that the kernels cannot have.
    """
    groups, sizes = group_of.unique(return_counts=True)
    fitting = [group for group in w4.GROUPS if not (sizes % group).any()]
    if not fitting or int(groups[-1]) >= len(scale) or int(groups[0]) < 0:
        raise InputError(
            f"{where} has {len(groups)} groups of {int(sizes.min())} to {int(sizes.max())} of {linear.in_features} "
            f"input channels, numbered {int(groups[0])} to {int(groups[-1])}: groups 0 to {len(scale) - 1} of "
            f"multiples of {min(w4.GROUPS)} channels are needed"
        )
    order = None
    if (group_of.diff() < 0).any():  # channels of one group side by side, the activations in the same order
        order = group_of.argsort(stable=True)
        group_of, levels = group_of[order], levels[:, order]
    taken = group_of[:: fitting[-1]]
    scale = scale[taken].t()
    zero = None
    if zero_point is not None and (zero_point != 8).any():
        # float32: in half precision s (8 - z) would be rounded
        zero = scale.float() * (8 - zero_point[taken].t())
    scales_zeros = w4.stack_scales(scale, zero, scale.dtype if zero is None else torch.float32)
    return Int4Linear(w4.pack_blocks(levels), scales_zeros, linear.in_features, *no_outliers(linear), bias, order)
