"""Entropy of the next token and the margin of the best one, in one pass over the logits.

    H = log2 sum_v exp x_v - (sum_v x_v exp x_v) / (ln 2 sum_v exp x_v)        margin = x_(1) - x_(2)

Excluded tokens, with logit -inf, count for nothing.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from . import custom_op
from .dispatch import FLOATS, runs_triton


class Entropy(NamedTuple):
    """Of each row.

    Attributes:
        entropy: `[rows]` float32, bits.
        token: `[rows]` int64, that of the largest logit, the lowest of equals.
        first: `[rows]` float32, the largest logit.
        second: `[rows]` float32, the second largest, equal to the first if two are.
        margin: `[rows]` float32, their difference; inf if there is but one token.
    """

    entropy: Tensor
    token: Tensor
    first: Tensor
    second: Tensor
    margin: Tensor


def entropy(logits: Tensor) -> Entropy:
    """Entropy, best token and margin of each row.

    Args:
        logits: `[rows, vocab]`, float32, bfloat16 or float16; on a GPU read once. A row with nan, inf or nothing but
            -inf has no distribution: its entropy is nan.

    Raises:
        InputError: another shape or dtype, or no vocabulary.
    """
    _check(logits)
    bits, values, token = (_operator if torch.compiler.is_compiling() else _run)(logits)
    return Entropy(bits, token, values[:, 0], values[:, 1], values[:, 0] - values[:, 1])


def entropy_bits(logits: Tensor) -> Tensor:
    """The entropy alone, `[rows]` float32 in bits; argument and errors as of `entropy`."""
    _check(logits)
    if torch.compiler.is_compiling() or runs_triton(logits):
        return entropy(logits).entropy
    return _bits(logits.float())


def entropy_reference(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bits, the two largest logits and the best token, in the dtype of `logits`, by torch's own operators."""
    values = logits.topk(min(2, logits.shape[1]), dim=-1).values
    if values.shape[1] == 1:
        values = torch.cat([values, torch.full_like(values, -torch.inf)], dim=-1)
    return _bits(logits), values, logits.argmax(-1)


def _bits(logits: Tensor) -> Tensor:
    return (torch.special.entr(logits.softmax(-1)).sum(-1) / math.log(2)).clamp_(min=0.0)  # rounding


def _check(logits: Tensor) -> None:
    if logits.dim() != 2 or not logits.shape[1]:
        raise InputError(f"logits has shape {tuple(logits.shape)}, [rows, vocab] is needed: flatten leading dimensions")
    if logits.dtype not in FLOATS:
        raise InputError(f"logits is {logits.dtype}, float32, bfloat16 and float16 are read: convert it")


def _run(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if runs_triton(logits):
        from .gpu import entropy as gpu

        return gpu.entropy(logits)
    return entropy_reference(logits.float())


def _fake(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows = logits.shape[0]
    return (
        logits.new_empty(rows, dtype=torch.float32),
        logits.new_empty(rows, 2, dtype=torch.float32),
        logits.new_empty(rows, dtype=torch.int64),
    )


_operator = custom_op.define("entropy(Tensor logits) -> (Tensor, Tensor, Tensor)", _run, _fake)
