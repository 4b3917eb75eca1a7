"""Quantise linear layers: weights in, low-bit modules out; one group of them, or all of a model in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import InputError
from . import linear_w4a16 as w4
from . import linear_w8a8 as w8
from .quantized_linear import Int4Linear, Int8Linear, QuantizedLinear
from .smoothing import Prompts, smooth_

Bits = Literal[4, 8]
Format = Literal["w8a8", "w8a16", "w4a16"]


def quantize_linear(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    *,
    bits: Bits,
    activation_bits: w8.ActivationBits = 16,
    magnitude: Tensor | None = None,
    outliers: int = 0,
    group: int = w4.GROUP,
) -> QuantizedLinear:
    """One low-bit linear for weights that read the same input; outputs side by side.

    Args:
        weights: `[out_i, in]` each, any float dtype.
        biases: `[out_i]` or None each.
        bits: of the weights, 8 (per output channel) or 4 (groups of input channels).
        activation_bits: with 8-bit weights, 8 or 16; 4-bit weights multiply bfloat16 activations.
        magnitude: `[in]`, the largest activation seen in each input channel; needed for outliers.
        outliers: number of input channels to keep in full precision, those of largest magnitude.
        group: with 4-bit weights, input channels that share a scale and a zero point: 32, 64 or 128.

    Raises:
        InputError: 4 bits and `in` is no multiple of the group.
    """
    weight = torch.cat(list(weights)).detach()
    bias = None
    if any(b is not None for b in biases):
        bias = torch.cat(
            [w.new_zeros(len(w)) if b is None else b for w, b in zip(weights, biases, strict=True)]
        ).detach()
    index = torch.empty(0, dtype=torch.long, device=weight.device)
    if magnitude is not None and outliers:
        index = magnitude.topk(min(outliers, len(magnitude))).indices.sort().values
    outlier_weight = weight[:, index].t().contiguous()
    rest = weight.index_fill(1, index, 0.0) if len(index) else weight
    if bits == 8:
        return Int8Linear(*w8.quantize_weight(rest), index, outlier_weight, bias, activation_bits)
    levels, scale, zero = w4.quantize_weight(rest, group)
    scales_zeros = w4.stack_scales(scale, zero, torch.bfloat16)
    return Int4Linear(w4.pack_blocks(levels), scales_zeros, weight.shape[1], index, outlier_weight, bias)


@torch.no_grad()
def quantize_(
    model: nn.Module,
    format: Format = "w8a8",
    *,
    group: int = 128,
    skip: Sequence[str] = ("lm_head",),
    calibration: Prompts | None = None,
    alpha: float = 0.5,
) -> nn.Module:
    """Replace the `nn.Linear` modules of a model by low-bit ones, in place, layer by layer.

    Args:
        model: any module; nothing else of it changes.
        format: `w8a8`: int8 weights and activations, one scale a token; `w8a16`: int8 weights, activations of 16 bits
            (linear_w8a8.py) or as they are (GPU, linear_w8a16.py); `w4a16`: 4-bit weights with zero points.
        group: with `w4a16`, input channels that share a scale: 32, 64 or 128. It has to divide every layer's.
        skip: linears to leave as they are: names (`"lm_head"`, `"model.layers.0.mlp.down_proj"`), or any run of whole
            parts of names (`"mlp"`, `"layers.0"`).
        calibration: with `w8a8`, token ids of some prompts. Outliers of the activations they cause are moved into the
            weights first (SmoothQuant, smoothing.py); the architecture has to be one of `smoothing.SMOOTHED`.
        alpha: how far they are moved, 0 to 1; 0.5 is the paper's.

    Returns:
        `model`.

    Raises:
        InputError: an argument out of range, a name in `skip` that the model lacks, no linear to quantise, one that
            the format cannot hold, or a calibration that cannot be run. The model is unchanged then.
    """
    if format not in get_args(Format):
        raise InputError(f"format is {format!r}: give one of {', '.join(get_args(Format))}")
    linears = _linears(model, skip)
    if format == "w4a16":
        _check_groups(linears, group)
    if calibration is not None:
        if format != "w8a8":
            raise InputError(
                f"calibration is given with format {format!r}, whose activations keep 16 bits: leave it out"
            )
        smooth_(model, calibration, alpha)
    made: dict[int, QuantizedLinear] = {}
    for name, linear in linears.items():
        if id(linear) not in made:  # one module may have two names
            made[id(linear)] = quantize_linear(
                [linear.weight],
                [linear.bias],
                bits=4 if format == "w4a16" else 8,
                activation_bits=8 if format == "w8a8" else 16,
                group=group,
            )
        model.set_submodule(name, made[id(linear)])
    return model


def _linears(model: nn.Module, skip: Sequence[str]) -> dict[str, nn.Linear]:
    if isinstance(skip, str):
        raise InputError(f"skip is the string {skip!r}: give a list of names, [{skip!r}]")
    modules = dict(model.named_modules(remove_duplicate=False))
    for entry in skip:
        # the default has to fit models without a head, too
        if entry != "lm_head" and not any(_matches(entry, name) for name in modules):
            raise InputError(
                f"skip names {entry!r}, which is no part of the name of any module of {type(model).__name__}"
            )
    found = {
        name: module
        for name, module in modules.items()
        if name and type(module) is nn.Linear and not any(_matches(entry, name) for entry in skip)
    }
    if not found:
        raise InputError(
            f"model {type(model).__name__} has no torch.nn.Linear to quantise beside what skip={tuple(skip)!r} names"
        )
    return found


def _matches(entry: str, name: str) -> bool:
    return f".{entry}." in f".{name}."


def _check_groups(linears: dict[str, nn.Linear], group: int) -> None:
    if group not in w4.GROUPS:
        raise InputError(f"group is {group!r}: give one of {', '.join(map(str, w4.GROUPS))}")
    for name, linear in linears.items():
        if linear.in_features % group:
            fitting = w4.largest_group(linear.in_features)
            remedy = f"use group={fitting}" if fitting else "name it in skip, or use 8 bits"
            raise InputError(f"{name} has {linear.in_features} input channels, no multiple of group={group}: {remedy}")
