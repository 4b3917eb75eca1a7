"""Linear layer with int8 weights and int8 activations, the matrix product of low-bit verification.

    y[m, n] = a[m] * s[n] * sum_k xq[m, k] * wq[n, k]  (+ bias[n])

Weights: symmetric int8 per output channel, `s[n] = max_k |w[n, k]| / 127`. Activations: symmetric per token, quantised
on the fly, in one of two precisions:

- 8 bits: `a[m] = max_k |x[m, k]| / 127`, one int8 plane; the format of Huang & Wen 2026, arXiv 2603.01399.
- 16 bits: `x ~ a * (256 * hi + lo)` with `a[m] = max_k |x[m, k]| / 32512` and two int8 planes, multiplied as twice the
  rows. At the few rows of a verification window the product is bound by reading the weights, so the second plane costs
  little, and it needs neither calibration nor special treatment of outlier channels.

The integer part is exact: int32 accumulation. A token that holds inf or nan has no scale and gives nan throughout.
"""

from __future__ import annotations

import functools
from typing import Literal

import torch
from torch import Tensor

from . import custom_op
from .dispatch import MAX_ROWS, check_activations, check_int8_weight, runs_triton
from .native import linear as native

ActivationBits = Literal[8, 16]

_LEVELS = 127
_LEVELS_16 = 127 * 256  # the high plane must stay within int8 after rounding


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 per output channel.

    Args:
        weight: `[out, in]`, any float dtype.

    Returns:
        `[out, in]` int8 and `[out]` float32 scales; an all-zero channel gets scale 1.
    """
    weight = weight.float()
    scale = weight.abs().amax(1) / _LEVELS
    scale = torch.where(scale > 0, scale, 1.0)
    return (weight / scale[:, None]).round_().clamp_(-_LEVELS, _LEVELS).to(torch.int8), scale


def quantize_activation(x: Tensor, bits: ActivationBits) -> tuple[Tensor, Tensor]:
    """Symmetric int8 planes per token.

    Args:
        x: `[tokens, in]`, any float dtype.
        bits: 8 for one plane, 16 for two.

    Returns:
        `[tokens, in]` int8, or `[2 * tokens, in]` with the high plane first; and `[tokens, 1]` float32 scales.
    """
    # a fresh row-major tensor: the byte views below and _int_mm read strides, also those of sizes 0 and 1
    x = torch.empty(x.shape, dtype=torch.float32, device=x.device).copy_(x)
    levels = _LEVELS if bits == 8 else _LEVELS_16
    scale = x.abs().amax(-1, keepdim=True).clamp_(min=1e-30).div_(levels)
    scaled = (x / scale).round_()
    if bits == 8:
        return scaled.to(torch.int8), scale
    # high = round(scaled / 256), low = the rest: in int16 these are the two bytes, read as signed.
    # Both fresh and filled in place: what torch returns for no tokens may have strides of 0, which have no byte view.
    low = torch.empty(x.shape, dtype=torch.int16, device=x.device).copy_(scaled)
    high = torch.empty_like(low, memory_format=torch.contiguous_format).copy_(low).add_(128)
    high = high.view(torch.int8).view(*x.shape, 2)[..., 1]
    return torch.cat([high, low.view(torch.int8).view(*x.shape, 2)[..., 0]]), scale


def linear_w8a8(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, *, bits: ActivationBits = 16
) -> Tensor:
    """Low-bit `x @ weight.T`; the fastest path of the device that `x` lies on.

    Args:
        x: `[tokens, in]`, float32, bfloat16 or float16.
        weight: `[out, in]` int8, contiguous.
        scale: `[out]` float32.
        bias: `[out]` or None.
        bits: precision of the activations, 8 or 16.

    Returns:
        `[tokens, out]` in the dtype of `x`.

    Raises:
        InputError: a shape, dtype or device that does not fit.
    """
    check_int8_weight(weight, scale, bias)
    check_activations(x, weight.shape[1], weight)
    if torch.compiler.is_compiling():
        result: Tensor = _operator(x, weight, scale, bias, bits)
        return result
    return _run(x, weight, scale, bias, bits)


def _run(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, bits: ActivationBits) -> Tensor:
    if runs_triton(x) and len(x) <= MAX_ROWS:
        from .gpu import linear_w8a8 as gpu

        return gpu.linear_w8a8(x, weight, scale, bias, bits)
    if not len(x):
        return x.new_zeros(0, len(weight))
    if x.device.type == "cpu" and len(x) <= MAX_ROWS and weight.numel() and native.available():
        return native.linear_w8a8(x, weight, scale, bias, bits)
    return _torch(x, weight, scale, bias, bits)


def _torch(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, bits: ActivationBits) -> Tensor:
    planes, token_scale = quantize_activation(x, bits)
    sums = _int8_matmul(planes, weight)
    if bits == 8:
        out = sums.float()
    else:
        tokens = len(x)
        out = torch.add(sums[tokens:].float(), sums[:tokens].float(), alpha=256.0)
    out = out.mul_(token_scale).mul_(scale)
    if bias is not None:
        out = out.add_(bias)
    return out.to(x.dtype)


def _fake(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, bits: int) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


_operator = custom_op.define(
    "linear_w8a8(Tensor x, Tensor weight, Tensor scale, Tensor? bias, int bits) -> Tensor", _run, _fake
)


def linear_w8a8_reference(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same product with exact activations, in float64: what rounding is measured against."""
    out = (x.double() @ weight.double().T) * scale.double()
    return out if bias is None else out + bias.double()


def _int8_matmul(a: Tensor, weight: Tensor) -> Tensor:
    """`[rows, in] int8 @ [out, in].T int8 -> [rows, out] int32`, exact."""
    rows, (out, size) = len(a), weight.shape
    if size == 1:  # _int_mm takes the stride of a dimension of size 1 at its word and reads elsewhere
        return a.int() * weight.int().t()
    if a.device.type == "cuda":
        # cuBLASLt wants more than 16 rows, and sizes in multiples of 8
        if size % 8 or out % 8:
            return (a.double() @ weight.t().double()).to(torch.int32)
        padded = a if rows > 16 else torch.cat([a, a.new_zeros(17 - rows, size)])
        return torch._int_mm(padded, weight.t())[:rows]
    if a.device.type == "cpu" and not _cpu_matmul_is_exact():
        # float64 holds every int32 sum; slow, but the only exact product torch has on such a machine
        return (a.double() @ weight.t().double()).to(torch.int32)
    return torch._int_mm(a, weight.t())


@functools.cache
def _cpu_matmul_is_exact() -> bool:
    """Whether oneDNN's int8 product is exact here: without VNNI instructions it saturates in int16."""
    extreme = torch.full((32, 64), _LEVELS, dtype=torch.int8)
    signs = torch.tensor([1, -1], dtype=torch.int8).repeat(16)[:, None]
    expected = ((extreme * signs).int() @ extreme.int().t()).tolist()
    return bool(torch._int_mm(extreme * signs, extreme.t()).tolist() == expected)
