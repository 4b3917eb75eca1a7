"""Linear layer with int8 weights and activations as they are.

    y[m, n] = s[n] * sum_k x[m, k] * wq[n, k]  (+ bias[n])

Weights: symmetric int8 per output channel, those of linear_w8a8.py. Neither operand of a product is rounded: int8 is
exact in every float format, and sums are float32. On a GPU the weights are read in 8 bits and become the activations'
dtype in registers. A CPU has no such product: it takes the weights to float32 first, which is slow; there
`linear_w8a8(..., bits=16)` is the fast way to nearly the same result.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import custom_op
from .dispatch import MAX_ROWS, check_activations, check_int8_weight, runs_triton


def linear_w8a16(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T` with int8 weights; the fastest path of the device that `x` lies on.

    Args:
        x: `[tokens, in]`, float32, bfloat16 or float16.
        weight: `[out, in]` int8, contiguous; from `linear_w8a8.quantize_weight`.
        scale: `[out]` float32.
        bias: `[out]` or None.

    Returns:
        `[tokens, out]` in the dtype of `x`; inf and nan as in the product with `weight * scale`.

    Raises:
        InputError: a shape, dtype or device that does not fit.
    """
    check_int8_weight(weight, scale, bias)
    check_activations(x, weight.shape[1], weight)
    result: Tensor = (
        _operator(x, weight, scale, bias) if torch.compiler.is_compiling() else _run(x, weight, scale, bias)
    )
    return result


def linear_w8a16_reference(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same product in float64."""
    out = (x.double() @ weight.double().T) * scale.double()
    return out if bias is None else out + bias.double()


def _run(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    if runs_triton(x) and len(x) <= MAX_ROWS:
        from .gpu import linear_w8a16 as gpu

        return gpu.linear_w8a16(x, weight, scale, bias)
    wide = x.dtype if x.is_cuda else torch.float32
    out = F.linear(x.to(wide), weight.to(wide)).float() * scale
    return (out if bias is None else out + bias).to(x.dtype)


def _fake(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


_operator = custom_op.define("linear_w8a16(Tensor x, Tensor weight, Tensor scale, Tensor? bias) -> Tensor", _run, _fake)
