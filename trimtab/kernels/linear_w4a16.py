"""Linear layer with 4-bit weights in groups and 16-bit activations.

    w[n, k] ~ s[n, g] * (q[n, k] - 8) + z[n, g]     q in 0..15, g = k // group

Asymmetric: `s = (max - min) / 15` and `z = min + 8 s` of each group of input channels. Symmetric: `s = max|w| / 7` and
no z. Integer zero points, as GPTQ and AWQ have them, are `z = s (8 - zero point)`.

There are two layouts of packed levels. Blocks are this project's own, the same on every device, and what the Triton
kernel reads: 128 input channels of an output channel are 32 words of 16 bits, word j holding channels j, 32 + j,
64 + j and 96 + j from its lowest bits up. On a CPU, and on a GPU without Triton, torch's own bfloat16 operators for
this format want theirs. `pack` chooses by the device.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from . import custom_op
from .dispatch import MAX_ROWS, check_activations, check_bias, runs_triton

GROUP = 32
"""Input channels that share a scale and a zero point, unless said otherwise."""
GROUPS = (32, 64, 128)

_ALIGN = 16  # torch packs output channels in blocks of 16 (CPU)
_LARGEST_TILE = 64  # and these, or parts of them, in tiles: of 64 with AVX-512, of less elsewhere
_BLOCK = 128


def largest_group(size: int) -> int | None:
    """The largest of GROUPS that divides so many input channels, or None."""
    return next((group for group in sorted(GROUPS, reverse=True) if size % group == 0), None)


def quantize_weight(weight: Tensor, group: int = GROUP) -> tuple[Tensor, Tensor, Tensor]:
    """Asymmetric 4 bits per group of input channels.

    Args:
        weight: `[out, in]`, any float dtype, `in` a multiple of `group`.
        group: one of `GROUPS`.

    Returns:
        `[out, in]` int32 levels 0..15, and `[out, in / group]` float32 scales and zero points.

    Raises:
        InputError: `in` is not a multiple of the group, or no such group.
    """
    low, high = (groups := _grouped(weight, group)).aminmax(dim=-1)
    scale = (high - low) / 15
    # a constant group has scale 0 and its value as zero point
    levels = ((groups - low[..., None]) / torch.where(scale > 0, scale, 1.0)[..., None]).round_().clamp_(0, 15)
    return levels.view(weight.shape).to(torch.int32), scale, low + 8 * scale


def quantize_weight_symmetric(weight: Tensor, group: int = GROUP) -> tuple[Tensor, Tensor]:
    """Symmetric 4 bits per group of input channels, levels 1..15.

    Args:
        weight: `[out, in]`, any float dtype, `in` a multiple of `group`.
        group: one of `GROUPS`.

    Returns:
        `[out, in]` int32 levels, and `[out, in / group]` float32 scales.

    Raises:
        InputError: `in` is not a multiple of the group, or no such group.
    """
    groups = _grouped(weight, group)
    scale = groups.abs().amax(-1) / 7
    levels = (groups / torch.where(scale > 0, scale, 1.0)[..., None]).round_().clamp_(-7, 7).add_(8)
    return levels.view(weight.shape).to(torch.int32), scale


def dequantize_weight(levels: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """`[out, in]` float32 weights that the format stands for."""
    out, size = levels.shape
    groups = (levels.float() - 8).view(out, scale.shape[1], -1) * scale.float()[..., None]
    return (groups if zero is None else groups + zero.float()[..., None]).view(out, size)


def pack(levels: Tensor, scale: Tensor, zero: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The layout of the fastest operator of the tensors' device.

    Args:
        levels: `[out, in]` int32.
        scale: `[out, in / group]`.
        zero: the same, or None if symmetric.

    Returns:
        Packed levels, and bfloat16 `[in / group, out, 2]`: scales and zero points.
    """
    if runs_triton(levels):
        return pack_blocks(levels), stack_scales(scale, zero, torch.bfloat16)
    if zero is None:
        zero = torch.zeros_like(scale)
    missing = -len(levels) % _ALIGN
    if missing:
        levels = torch.cat([levels, levels.new_full((missing, levels.shape[1]), 8)])
        scale, zero = (torch.cat([t, t.new_zeros(missing, t.shape[1])]) for t in (scale, zero))
    scales_zeros = stack_scales(scale, zero, torch.bfloat16)
    if levels.device.type == "cuda":
        pairs = (levels[:, ::2] << 4 | levels[:, 1::2]).to(torch.uint8)
        return torch.ops.aten._convert_weight_to_int4pack(pairs, 8), scales_zeros
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels, 1), scales_zeros


def pack_blocks(levels: Tensor) -> Tensor:
    """`[out, in]` levels to `[out, ceil(in / 128), 32]` int16 blocks, filled up with level 8."""
    fields = F.pad(levels.int(), (0, -levels.shape[1] % _BLOCK), value=8).unflatten(1, (-1, 4, 32))
    low, second, third, high = fields.unbind(2)
    return (low | second << 4 | third << 8 | high << 12).to(torch.int16)


def unpack_blocks(packed: Tensor, size: int) -> Tensor:
    """What `pack_blocks` packed: `[out, size]` int32 levels."""
    words = packed.int()
    fields = torch.stack([words & 15, words >> 4 & 15, words >> 8 & 15, words >> 12 & 15], dim=2)
    return fields.flatten(1)[:, :size]


def unpack(packed: Tensor, out: int, size: int) -> Tensor:
    """What `pack` packed: `[out, size]` int32 levels, from any layout of this device.

    torch keeps its layouts to itself, and they differ between instruction sets; every one of them goes by blocks of at
    most 64 output channels. The digits of each level's index, sent through the same conversion, say where it went.
    """
    if packed.dtype == torch.int16:
        return unpack_blocks(packed, size)
    whole = out // _LARGEST_TILE * _LARGEST_TILE
    levels = _nibbles(packed)
    first, last = levels[: whole * size].view(-1, _LARGEST_TILE * size), levels[None, whole * size :]
    parts = []
    for rows, part in ((_LARGEST_TILE, first), (out - whole, last)):
        if rows and part.numel():
            parts.append(part[:, _places(rows, size, packed.device)].view(-1, size))
    return torch.cat(parts).int()


def _places(out: int, size: int, device: torch.device) -> Tensor:
    """`[out * size]` int64: where `pack` puts each level, in the order of `_nibbles`."""
    index = torch.arange(out * size, device=device).view(out, size)
    scale = torch.zeros(out, size // min(GROUPS), device=device)

    def packed(levels: Tensor) -> Tensor:
        return _nibbles(pack(levels.int(), scale)[0])

    source = torch.zeros_like(packed(index * 0), dtype=torch.int64)
    for digit in range(0, (out * size - 1).bit_length(), 4):
        source |= packed(index >> digit & 15).long() << digit
    ours = (packed(index * 0) == 0).nonzero()[:, 0]  # output channels that fill the last block up hold level 8
    places = torch.empty(out * size, dtype=torch.int64, device=device)
    places[source[ours]] = ours
    return places


def _nibbles(packed: Tensor) -> Tensor:
    flat = packed.contiguous().view(torch.uint8).flatten()
    return torch.stack([flat & 15, flat >> 4], dim=1).flatten()


def linear_w4a16(
    x: Tensor, packed: Tensor, scales_zeros: Tensor, out_features: int, bias: Tensor | None = None
) -> Tensor:
    """`x @ w.T` with packed 4-bit weights.

    Args:
        x: `[tokens, in]`, float32, bfloat16 or float16; torch's own operators round it to bfloat16.
        packed: from `pack`, on the device of `x`; or from `pack_blocks`.
        scales_zeros: from `pack`, or `[in / group, out, 2]` of any float dtype, or `[in / group, out, 1]` if symmetric.
        out_features: output channels without the padding that `pack` added.
        bias: `[out_features]` or None.

    Returns:
        `[tokens, out_features]` in the dtype of `x`.

    Raises:
        InputError: a shape, dtype or device that does not fit.
    """
    _check(x, packed, scales_zeros, out_features, bias)
    if torch.compiler.is_compiling():
        result: Tensor = _operator(x, packed, scales_zeros, out_features, bias)
        return result
    return _run(x, packed, scales_zeros, out_features, bias)


def linear_w4a16_reference(x: Tensor, levels: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """The same product in float64, of scales and zero points as they are."""
    return x.double() @ dequantize_weight(levels, scale, zero).double().T


def _run(x: Tensor, packed: Tensor, scales_zeros: Tensor, out_features: int, bias: Tensor | None) -> Tensor:
    group = x.shape[1] // len(scales_zeros)
    if packed.dtype == torch.int16:
        scale, zero = scales_zeros[..., 0], scales_zeros[..., 1] if scales_zeros.shape[2] == 2 else None
        if runs_triton(x) and len(x) <= MAX_ROWS:
            from .gpu import linear_w4a16 as gpu

            return gpu.linear_w4a16(x, packed, scale, zero, bias, group)
        levels = unpack_blocks(packed, x.shape[1])
        weight = dequantize_weight(levels, scale.t(), None if zero is None else zero.t())
        wide = x.dtype if x.is_cuda else torch.float32
        out = F.linear(x.to(wide), weight.to(wide))
    else:
        half = x.to(torch.bfloat16).contiguous()
        operator = "_weight_int4pack_mm" if x.is_cuda else "_weight_int4pack_mm_for_cpu"
        out = getattr(torch.ops.aten, operator)(half, packed, group, scales_zeros)[:, :out_features]
    if bias is not None:
        out = out + bias
    return torch.empty(out.shape, dtype=x.dtype, device=x.device).copy_(out)


def _fake(x: Tensor, packed: Tensor, scales_zeros: Tensor, out_features: int, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], out_features)


_operator = custom_op.define(
    "linear_w4a16(Tensor x, Tensor packed, Tensor scales_zeros, int out_features, Tensor? bias) -> Tensor", _run, _fake
)


def _grouped(weight: Tensor, group: int) -> Tensor:
    out, size = weight.shape
    if group not in GROUPS:
        raise InputError(f"group is {group}, 4-bit groups have {', '.join(map(str, GROUPS))} input channels")
    if size % group:
        raise InputError(f"weight has {size} input channels, 4-bit groups need a multiple of {group}: use 8 bits")
    return weight.float().reshape(out, size // group, group)


def stack_scales(scale: Tensor, zero: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`[out, in / group]` scales and zero points, side by side as `[in / group, out, 2]`; `[..., 1]` if symmetric."""
    return torch.stack([scale.t()] if zero is None else [scale.t(), zero.t()], dim=-1).to(dtype).contiguous()


def _check(x: Tensor, packed: Tensor, scales_zeros: Tensor, out_features: int, bias: Tensor | None) -> None:
    if scales_zeros.dim() != 3 or scales_zeros.shape[2] not in (1, 2) or not scales_zeros.is_floating_point():
        raise InputError(
            f"scales_zeros is {scales_zeros.dtype} of shape {tuple(scales_zeros.shape)}, "
            "float [in / group, out, 1 or 2] is needed"
        )
    check_activations(x, x.shape[-1] if x.dim() else 0, packed, "packed")
    groups, size = len(scales_zeros), x.shape[1]
    if not groups or size % groups or size // groups not in GROUPS:
        raise InputError(
            f"x has {size} channels in {groups} groups of scales_zeros, groups have {', '.join(map(str, GROUPS))}"
        )
    check_bias(bias, out_features)
    if packed.dtype == torch.int16 and packed.dim() == 3:
        if packed.shape != (out_features, -(-size // _BLOCK), 32) or not packed.is_contiguous():
            raise InputError(
                f"packed has shape {tuple(packed.shape)}, [{out_features}, {-(-size // _BLOCK)}, 32] in one piece is "
                f"what {size} channels need: make it with pack_blocks"
            )
        if scales_zeros.shape[1] != out_features:
            raise InputError(f"scales_zeros has {scales_zeros.shape[1]} output channels, packed has {out_features}")
    elif packed.is_cuda != (packed.dtype == torch.int32):
        raise InputError(f"packed lies on {packed.device} in another device's layout: call pack on the device itself")
