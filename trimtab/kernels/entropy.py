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
        logits: `[rows, vocab]`, float32, bfloat16 or float16; read once. A row with nan, inf or nothing but -inf has
            no distribution: its entropy is nan.

    Raises:
        InputError: another shape or dtype, or no vocabulary.
    """
    if logits.dim() != 2 or not logits.shape[1]:
        raise InputError(f"logits has shape {tuple(logits.shape)}, [rows, vocab] is needed: flatten leading dimensions")
    if logits.dtype not in FLOATS:
        raise InputError(f"logits is {logits.dtype}, float32, bfloat16 and float16 are read: convert it")
    bits, values, token = (_operator if torch.compiler.is_compiling() else _run)(logits)
    return Entropy(bits, token, values[:, 0], values[:, 1], values[:, 0] - values[:, 1])


def entropy_reference(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bits, the two largest logits and the best token, in the dtype of `logits`, by torch's own operators."""
    log_p = logits.log_softmax(-1)
    bits = -torch.where(log_p > -torch.inf, log_p * log_p.exp(), torch.where(log_p.isnan(), log_p, 0.0)).sum(-1)
    values = logits.topk(min(2, logits.shape[1]), dim=-1).values
    if values.shape[1] == 1:
        values = torch.cat([values, torch.full_like(values, -torch.inf)], dim=-1)
    return (bits / math.log(2)).clamp(min=0.0), values, logits.argmax(-1)


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
