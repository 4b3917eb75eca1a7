"""Moments of a direction under a distribution that is tilted along it: the vocabulary-wide part of logit fusion.

With `p_a = softmax(base + a push)`, for each row, direction and a:

    log Z(a) = log sum exp(base + a push)       mean = E[push]       variance = E[(push - mean)^2]
    third    = E[(push - mean)^3]               expectations under p_a

They are log Z and its first three derivatives in a, so a root or minimum of anything built on log Z costs one call a
step. On the CPU one pass of tilted_moments.c gives all four, elsewhere torch's operators do.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from .native.build import library


def tilted_moments(base: Tensor, push: Tensor, alpha: Tensor) -> Tensor:
    """The fastest path of the device that `base` lies on.

    Args:
        base: `[rows, vocab]` float32 scores, up to a constant per row; -inf excludes a token, not all of a row.
        push: `[rows, directions, vocab]` float32, finite.
        alpha: `[rows, directions, points]` float32.

    Returns:
        `[rows, directions, points, 4]` float32: log Z, mean, variance, third central moment.
    """
    if base.device.type == "cpu" and base.dtype == push.dtype == torch.float32 and library() is not None:
        return _native(base.contiguous(), push.contiguous(), alpha.float().contiguous())
    return _torch(base, push, alpha)


def _native(base: Tensor, push: Tensor, alpha: Tensor) -> Tensor:
    native = library()
    assert native is not None
    out = torch.empty(*alpha.shape, 4)
    native.tilted_moments(
        *(ctypes.c_void_p(tensor.data_ptr()) for tensor in (base, push, alpha, out)),
        *map(ctypes.c_int64, (*alpha.shape, base.shape[-1])),
        ctypes.c_int32(torch.get_num_threads()),
    )
    return out


def _torch(base: Tensor, push: Tensor, alpha: Tensor) -> Tensor:
    """Point after point, in two buffers of the size of `push`."""
    weight, product = torch.empty_like(push), torch.empty_like(push)
    found = []
    for a in alpha.unbind(-1):
        torch.mul(push, a[..., None], out=weight).add_(base[:, None])
        top = weight.amax(-1, keepdim=True)
        total = weight.sub_(top).exp_().sum(-1)
        # sums, which torch adds pairwise: its dot products of a whole vocabulary are good to three digits
        mean = torch.mul(weight, push, out=product).sum(-1) / total
        second = product.mul_(push).sum(-1) / total
        third = product.mul_(push).sum(-1) / total
        variance = second - mean.square()
        found.append(
            torch.stack([total.log() + top[..., 0], mean, variance, third - mean * (3 * variance + mean.square())], -1)
        )
    return torch.stack(found, -2)
