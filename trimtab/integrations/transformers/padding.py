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


def pad_batch(rows: Sequence[Sequence[int]], current: Sequence[int], pad: int) -> Tensor:
    """The whole batch as plain `generate` shows it at the step of the `current` rows: `[batch, width]` int64, CPU.

    The longest current row gives the width and shorter ones are filled at the start; the other rows, whose results
    nobody reads, are cut to it or filled at the end, as ended rows are in plain `generate`.
    """
    width = max(len(rows[row]) for row in current)
    shown = [[*row[:width], *[pad] * (width - len(row))] for row in rows]
    for row in current:
        shown[row] = [*[pad] * (width - len(rows[row])), *rows[row]]
    return torch.tensor(shown, dtype=torch.long)
