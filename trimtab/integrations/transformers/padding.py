"""Ragged rows as one rectangular tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pad_right(rows: Sequence[Sequence[int]], pad: int = 0) -> Tensor:
    """`[batch, longest]` int64 on the CPU, shorter rows filled at the end."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], dtype=torch.long)


def pad_left(rows: Sequence[Sequence[int]], pad: int = 0) -> Tensor:
    """`[batch, longest]` int64 on the CPU, shorter rows filled at the start."""
    width = max(map(len, rows))
    return torch.tensor([[*[pad] * (width - len(row)), *row] for row in rows], dtype=torch.long)
