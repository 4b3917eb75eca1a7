"""Linear layer with 4-bit weights in groups and 16-bit activations.

    w[n, k] ~ s[n, g] * (q[n, k] - 8) + z[n, g]     q in 0..15, g = k // group

Asymmetric: `s = (max - min) / 15` and `z = min + 8 s` of each group of input channels. The products run in torch's
own bfloat16 operators for this format, on CPU and GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 32
"""Input channels that share a scale and a zero point."""

_ALIGN = 16  # torch packs output channels in blocks of 16 (CPU)


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Asymmetric 4 bits per group of `GROUP` input channels.

    Args:
        weight: `[out, in]`, any float dtype, `in` a multiple of `GROUP`.

    Returns:
        `[out, in]` int32 levels 0..15, and `[out, in / GROUP]` float32 scales and zero points.

    Raises:
        ValueError: `in` is not a multiple of `GROUP`.
    """
    out, size = weight.shape
    if size % GROUP:
        raise ValueError(f"weight has {size} input channels, 4-bit groups need a multiple of {GROUP}: use 8 bits")
    groups = weight.float().view(out, size // GROUP, GROUP)
    low, high = groups.aminmax(dim=-1)
    scale = (high - low) / 15
    # a constant group has scale 0 and its value as zero point
    levels = ((groups - low[..., None]) / torch.where(scale > 0, scale, 1.0)[..., None]).round_().clamp_(0, 15)
    return levels.view(out, size).to(torch.int32), scale, low + 8 * scale


def dequantize_weight(levels: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """`[out, in]` float32 weights that the format stands for."""
    out, size = levels.shape
    groups = (levels.float() - 8).view(out, size // GROUP, GROUP)
    return (groups * scale[..., None] + zero[..., None]).view(out, size)


def pack(levels: Tensor, scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
    """The layout of the operator of the tensors' device: packed levels, and bfloat16 `[in / GROUP, out, 2]`."""
    missing = -len(levels) % _ALIGN
    if missing:
        levels = torch.cat([levels, levels.new_full((missing, levels.shape[1]), 8)])
        scale, zero = (torch.cat([t, t.new_zeros(missing, t.shape[1])]) for t in (scale, zero))
    scales_zeros = torch.stack([scale.t(), zero.t()], dim=-1).to(torch.bfloat16).contiguous()
    if levels.device.type == "cuda":
        pairs = (levels[:, ::2] << 4 | levels[:, 1::2]).to(torch.uint8)
        return torch.ops.aten._convert_weight_to_int4pack(pairs, 8), scales_zeros
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels, 1), scales_zeros


def linear_w4a16(x: Tensor, packed: Tensor, scales_zeros: Tensor, out_features: int) -> Tensor:
    """`x @ w.T` with packed 4-bit weights.

    Args:
        x: `[tokens, in]`, any float dtype; rounded to bfloat16.
        packed: from `pack`, on the device of `x`.
        scales_zeros: from `pack`.
        out_features: output channels without the padding that `pack` added.

    Returns:
        `[tokens, out_features]` in the dtype of `x`.
    """
    half = x.to(torch.bfloat16).contiguous()
    if x.device.type == "cuda":
        out = torch.ops.aten._weight_int4pack_mm(half, packed, GROUP, scales_zeros)
    else:
        out = torch.ops.aten._weight_int4pack_mm_for_cpu(half, packed, GROUP, scales_zeros)
    return out[:, :out_features].to(x.dtype)
