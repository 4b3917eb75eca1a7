"""One int8 linear of `linear.c`, and the layout in which it reads the weights.

Where the machine has AVX-512 VNNI, weights are packed: `[chunks of 32 output channels, words of 4 input channels, 32,
4]` bytes of w + 128, filled up with w = 0. A chunk is one stream of memory, and a vector of it the same four input
channels of 16 output channels, whose sums are then the lanes of one accumulator. Elsewhere weights are read as they
lie.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .build import library

_CHUNK = 32  # ROWS of linear.h
_WORD = 4
_POINTER, _INT, _LONG = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64

_packed = WeakTensorKeyDictionary()


def available() -> bool:
    """Whether `linear_w8a8` can be called on this machine."""
    return library() is not None


def packed(weight: Tensor) -> Tensor:
    """`[out, in]` int8 weights as linear.c reads them: made once for each tensor and version of its contents, and kept
    for as long as the tensor lives."""
    if not _functions().packs:
        return weight
    if weight.is_inference():  # has no version: a change in place would go unseen
        return pack(weight)
    state = weight.data_ptr(), weight._version
    found = _packed.get(weight)
    if found is None or found[0] != state:
        _packed[weight] = found = state, pack(weight)
    made: Tensor = found[1]
    return made


def pack(weight: Tensor) -> Tensor:
    """`[out, in]` int8 to `[ceil(out / 32), ceil(in / 4), 32, 4]` int8, the highest bit of each flipped."""
    whole = F.pad(weight, (0, -weight.shape[1] % _WORD, 0, -weight.shape[0] % _CHUNK))
    words = whole.view(torch.int32).view(-1, _CHUNK, whole.shape[1] // _WORD).transpose(1, 2).contiguous()
    return words.view(torch.int8).view(*words.shape, _WORD) ^ -128


def linear_w8a8(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, bits: int) -> Tensor:
    """As `linear_w8a8` of the package above, on the CPU."""
    functions = _functions()
    rows, size, out_features = len(x), x.shape[1], len(weight)
    threads = torch.get_num_threads()
    weight = packed(weight)
    x32, scale = x.detach().float().contiguous(), scale.contiguous()
    bias = None if bias is None else bias.float().contiguous()
    out = torch.empty(rows, out_features)
    memory = torch.empty(functions.floats(rows, size, threads))
    functions.linear_w8a8(
        x32.data_ptr(),
        weight.data_ptr(),
        scale.data_ptr(),
        None if bias is None else bias.data_ptr(),
        out.data_ptr(),
        memory.data_ptr(),
        rows,
        size,
        out_features,
        bits // 8,
        threads,
    )
    return out.to(x.dtype)


class _Functions:
    """What linear.c exports, with its types."""

    def __init__(self, native: ctypes.CDLL) -> None:
        self.linear_w8a8: Callable[..., Any] = _typed(
            native.linear_w8a8, [_POINTER] * 6 + [_LONG] * 3 + [_INT] * 2, None
        )
        self.floats: Callable[..., Any] = _typed(native.linear_floats, [_LONG] * 3, ctypes.c_size_t)
        self.packs = bool(_typed(native.packs_int8, [], _INT)())


def _typed(function: Any, arguments: list[Any], result: Any) -> Any:
    function.argtypes, function.restype = arguments, result
    return function


@functools.cache
def _functions() -> _Functions:
    native = library()
    assert native is not None, "ask available() first"
    return _Functions(native)
