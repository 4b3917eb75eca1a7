"""What decides between a Triton kernel and torch's own operators, and the checks that every linear shares."""

from __future__ import annotations

import functools
import importlib.util

import torch
from torch import Tensor

from ..errors import InputError

MAX_ROWS = 256
"""Tokens up to which a weight is read in low bits for every 64 of them; above it the product is bound by arithmetic,
which torch's own matrix products are better at."""

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def runs_triton(x: Tensor) -> bool:
    """Whether `x` lies on a GPU that Triton is installed for."""
    return x.is_cuda and _usable(x.device)


@functools.cache
def _usable(device: torch.device) -> bool:
    if importlib.util.find_spec("triton") is None or torch.version.cuda is None:
        return False
    from .gpu.tiles import MIN_CAPABILITY

    return torch.cuda.get_device_capability(device) >= MIN_CAPABILITY


def check_activations(x: Tensor, size: int, weight: Tensor, name: str = "weight") -> None:
    """Refuse activations that do not fit the weight.

    Raises:
        InputError: `x` is not two-dimensional, of a dtype that the kernels do not read, on another device than the
            weight, or has another number of channels than `size`.
    """
    if x.dim() != 2:
        raise InputError(f"x has shape {tuple(x.shape)}, [tokens, in] is needed: flatten the leading dimensions")
    if x.dtype not in FLOATS:
        raise InputError(f"x is {x.dtype}, the kernels read float32, bfloat16 and float16: convert it")
    if x.shape[1] != size:
        raise InputError(f"x has {x.shape[1]} channels, {name} has {size}: they have to be equal")
    if x.device != weight.device:
        raise InputError(f"x lies on {x.device}, {name} on {weight.device}: move one of them")


def check_int8_weight(weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
    """Refuse what is no int8 weight with a scale for each output channel.

    Raises:
        InputError: a wrong shape, dtype or layout.
    """
    if weight.dim() != 2 or weight.dtype != torch.int8:
        raise InputError(f"weight is {weight.dtype} of shape {tuple(weight.shape)}, int8 [out, in] is needed")
    if not weight.is_contiguous():
        raise InputError("weight is not contiguous: the kernels read whole rows, call .contiguous() once")
    if scale.dtype != torch.float32 or scale.shape != weight.shape[:1]:
        raise InputError(f"scale is {scale.dtype} of shape {tuple(scale.shape)}, float32 [{len(weight)}] is needed")
    check_bias(bias, len(weight))


def check_bias(bias: Tensor | None, out: int) -> None:
    """Refuse a bias of the wrong shape.

    Raises:
        InputError: it is not `[out]`.
    """
    if bias is not None and bias.shape != (out,):
        raise InputError(f"bias has shape {tuple(bias.shape)}, [{out}] is needed: one for each output channel")
