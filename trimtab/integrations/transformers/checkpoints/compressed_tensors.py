"""Checkpoints in compressed-tensors' formats, as LLM Compressor writes them.

int-quantized, W8A8:    weight [out, in] int8, weight_scale [out, 1]; activations per token, as they come
pack-quantized, W4A16:  weight_packed [out, in / 8] int32, eight input channels a word from the lowest bits up;
                        weight_scale [out, groups]; weight_zero_point [out / 8, groups] int32, packed along the
                        output channels; weight_g_idx [in] int32, perhaps: the group of each input channel
                        w[n, k] = weight_scale[n, g] (q[n, k] - z[n, g]), both q and z kept plus 8
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ....kernels.quantized_linear import Int8Linear, QuantizedLinear
from .formats import Checkpoint, int4_linear, nibbles, no_outliers
from .tensor_files import FLOATS, TensorFiles

_INT_QUANTIZED, _PACK_QUANTIZED = "int-quantized", "pack-quantized"
_INT32 = (torch.int32,)


class CompressedTensors(Checkpoint):
    """`quant_method` "compressed-tensors": W8A8 of integers, or W4A16; one scheme for all layers."""

    marks = ("weight_scale", "weight_packed", "weight_zero_point")

    def __init__(self, about: dict[str, Any], tensors: TensorFiles) -> None:
        super().__init__(about, tensors)
        for setting in ("kv_cache_scheme", "transform_config"):
            if about.get(setting):
                raise self.refuse(setting, "trimtab computes neither, quantise without")
        if (about.get("sparsity_config") or {}).get("format", "dense") != "dense":
            raise self.refuse("a sparsity_config", "trimtab reads dense weights")
        groups = [group or {} for group in (about.get("config_groups") or {}).values()]
        if any(group.get("output_activations") for group in groups):
            raise self.refuse("output_activations", "trimtab rounds no outputs, quantise without")
        schemes = [_essence(group) for group in groups]
        if not schemes or any(scheme != schemes[0] for scheme in schemes):
            raise self.refuse(f"{len(schemes)} schemes in config_groups", "trimtab reads files of one scheme for all")
        form = groups[0].get("format") or about.get("format")
        self.format = str(form)
        self.weights, self.activations = schemes[0]
        if self.format == _INT_QUANTIZED:
            self._check_w8a8()
        elif self.format == _PACK_QUANTIZED:
            self._check_w4a16()
        else:
            raise self.refuse(f"format {form!r}", f'trimtab reads "{_INT_QUANTIZED}" and "{_PACK_QUANTIZED}"')

    def quantized(self) -> set[str]:
        """Names of the linears that the files hold in low bits."""
        return super().quantized() | (self.tensors.int8_modules() if self.format == _INT_QUANTIZED else set())

    def read(self, name: str, linear: nn.Linear) -> QuantizedLinear:
        """The low-bit module for a linear."""
        return self._w8a8(name, linear) if self.format == _INT_QUANTIZED else self._w4a16(name, linear)

    def _check_w8a8(self) -> None:
        weights, activations = self.weights, self.activations
        if (weights["num_bits"], weights["type"], weights["symmetric"]) != (8, "int", True):
            raise self.refuse(f"weights {weights}", "int-quantized weights have to be symmetric integers of 8 bits")
        if weights["strategy"] not in ("channel", "tensor"):
            raise self.refuse(f"weights of strategy {weights['strategy']!r}", '"channel" or "tensor" is needed')
        if activations is None or (
            (activations["num_bits"], activations["type"], activations["symmetric"]) != (8, "int", True)
            or activations["strategy"] != "token"
            or activations["dynamic"] is not True
        ):
            raise self.refuse(
                f"input_activations {activations}", "8-bit symmetric integers, dynamic, one scale a token, are needed"
            )

    def _check_w4a16(self) -> None:
        weights = self.weights
        if (weights["num_bits"], weights["type"]) != (4, "int"):
            raise self.refuse(f"weights {weights}", "pack-quantized weights have to be integers of 4 bits")
        if weights["strategy"] not in ("group", "channel"):
            raise self.refuse(f"weights of strategy {weights['strategy']!r}", '"group" or "channel" is needed')
        if self.activations is not None:
            raise self.refuse(f"input_activations {self.activations}", "4-bit weights take 16-bit activations")

    def _w8a8(self, name: str, linear: nn.Linear) -> Int8Linear:
        size, out = linear.in_features, linear.out_features
        rule = f"{name} has {size} input and {out} output channels, int8, {self.weights['strategy']} scales"
        weight = self.tensors.read(f"{name}.weight", [out, size], (torch.int8,), rule)
        scales = [1] if self.weights["strategy"] == "tensor" else [out, 1]
        scale = self.tensors.read(f"{name}.weight_scale", scales, FLOATS, rule)
        scale = scale.float().flatten().expand(out).contiguous()
        return Int8Linear(weight, scale, *no_outliers(linear), self.bias(name, linear), 8)

    def _w4a16(self, name: str, linear: nn.Linear) -> QuantizedLinear:
        size, out = linear.in_features, linear.out_features
        group = size if self.weights["strategy"] == "channel" else self.weights["group_size"]
        groups = -(-size // group)
        rule = f"{name} has {size} input and {out} output channels, groups of {group}, 4 bits"
        words = self.tensors.read(f"{name}.weight_packed", [out, -(-size // 8)], _INT32, rule)
        scale = self.tensors.read(f"{name}.weight_scale", [out, groups], FLOATS, rule)
        zero = None
        if not self.weights["symmetric"]:
            packed = self.tensors.read(f"{name}.weight_zero_point", [-(-out // 8), groups], _INT32, rule)
            zero = nibbles(packed.t()).flatten(1)[:, :out]
        group_of = torch.arange(size) // group
        if f"{name}.weight_g_idx" in self.tensors:
            group_of = self.tensors.read(f"{name}.weight_g_idx", [size], (torch.int32, torch.int64), rule).long()
        levels = nibbles(words).flatten(1)[:, :size]
        where = f"{self.tensors.where(f'{name}.weight_packed')}: {name}"
        return int4_linear(levels, scale.t(), zero, group_of, linear, self.bias(name, linear), where)


def _essence(group: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What a scheme computes; its defaults are those of compressed-tensors' QuantizationArgs."""

    def of(part: dict[str, Any] | None) -> dict[str, Any] | None:
        if part is None:
            return None
        defaults = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": False}
        chosen = {key: part.get(key, value) for key, value in defaults.items()}
        size = part.get("group_size")
        strategy = part.get("strategy") or ("tensor" if size is None else "channel" if size == -1 else "group")
        return chosen | {"strategy": strategy, "group_size": size}

    return of(group.get("weights")) or {}, of(group.get("input_activations"))
