"""Ragged, rollback-able key-value state of a batch of sequences."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class SequenceState:
    """Keys and values of `batch_size` sequences, of which row b holds `lengths[b]` tokens.

    Each layer is one `[batch, heads, capacity, dim]` tensor for keys and one for values, allocated by its first
    write in the dtype and on the device of what is written. What lies beyond a row's length is stale and never
    attended to, so forgetting tokens costs nothing: `lengths` is the whole truth. Several forwards (the same model
    at two precisions) may share one state.

    Args:
        batch_size: number of sequences.
        capacity: tokens a row to make room for at once; more are made room for when they come.
    """

    def __init__(self, batch_size: int, capacity: int = 0) -> None:
        self.lengths = [0] * batch_size
        self.capacity = max(capacity, 1)
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    @property
    def batch_size(self) -> int:
        """Number of rows."""
        return len(self.lengths)

    def reserve(self, length: int) -> None:
        """Make room for `length` tokens a row; grows by doubling, so that appending stays linear in all."""
        if length <= self.capacity:
            return
        self.capacity = max(length, 2 * self.capacity)
        self.keys = {layer: self._grown(old) for layer, old in self.keys.items()}
        self.values = {layer: self._grown(old) for layer, old in self.values.items()}

    def layer(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The tensors of one layer, allocated like `[batch, heads, any, dim]` `keys` and `values` on first use."""
        if index not in self.keys:
            self.keys[index], self.values[index] = self._grown(keys[:, :, :0]), self._grown(values[:, :, :0])
        return self.keys[index], self.values[index]

    def _grown(self, old: Tensor) -> Tensor:
        batch, heads, length, dim = old.shape
        # Zeros, not empty: stale slots are masked, but 0 * nan would still reach the output of attention.
        grown = old.new_zeros(batch, heads, self.capacity, dim)
        grown[:, :, :length] = old
        return grown

    def rollback(self, lengths: Sequence[int]) -> None:
        """Forget everything beyond `lengths[b]` in row b.

        Raises:
            ValueError: a length is negative or beyond what the row holds.
        """
        if len(lengths) != self.batch_size:
            raise ValueError(f"rollback: lengths has {len(lengths)} entries for {self.batch_size} rows")
        for row, (new, old) in enumerate(zip(lengths, self.lengths, strict=True)):
            if not 0 <= new <= old:
                raise ValueError(f"rollback: lengths[{row}] is {new}, the row holds {old} tokens: give 0..{old}")
        self.lengths = list(lengths)

    def select(self, rows: Sequence[int]) -> None:
        """Keep only `rows`, in that order: finished rows leave the batch and stop costing time."""
        self.keys = {layer: old[list(rows)] for layer, old in self.keys.items()}
        self.values = {layer: old[list(rows)] for layer, old in self.values.items()}
        self.lengths = [self.lengths[row] for row in rows]


class Window:
    """Where the tokens of one forward pass go and what each of them sees.

    Token w of row b stands at position `state.lengths[b] + w`. Rows shorter than the window are padded on the
    right; the padding writes stale slots only and no later token sees it.

    Attributes:
        positions: `[batch, window]` int64.
        kv_length: number of key-value slots that attention has to read.
    """

    def __init__(self, state: SequenceState, width: int, device: torch.device) -> None:
        starts = state.lengths
        self.width = width
        self.kv_length = max(starts) + width
        state.reserve(self.kv_length)
        self._state = state
        # One row, or rows of one length, are written as a slice: far cheaper than a scatter.
        self._start = starts[0] if min(starts) == max(starts) else None
        self.positions = torch.tensor(starts, device=device)[:, None] + torch.arange(width, device=device)
        self._rows = None if self._start is not None else torch.arange(len(starts), device=device)[:, None]
        self._masks: dict[tuple[int | None, torch.dtype], Tensor | None] = {}

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store `[batch, heads, window, dim]` keys and values; return all of them, `[batch, heads, kv_length, dim]`."""
        all_keys, all_values = self._state.layer(layer, keys, values)
        if self._start is not None:
            all_keys[:, :, self._start : self.kv_length] = keys
            all_values[:, :, self._start : self.kv_length] = values
        else:
            all_keys[self._rows, :, self.positions] = keys.transpose(1, 2)
            all_values[self._rows, :, self.positions] = values.transpose(1, 2)
        return all_keys[:, :, : self.kv_length], all_values[:, :, : self.kv_length]

    def tensors(self, layers: int, heads: int, dim: int, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values of all layers, `[batch, heads, capacity, dim]`, for a forward that writes them itself."""
        empty = torch.empty(len(self.positions), heads, 0, dim, dtype=dtype, device=self.positions.device)
        pairs = [self._state.layer(index, empty, empty) for index in range(layers)]
        return [keys for keys, _ in pairs], [values for _, values in pairs]

    def visible(self, sliding_window: int | None) -> Tensor | None:
        """Boolean `[batch, 1, window, kv_length]`, True where a token may look; None if everywhere."""
        reach = sliding_window if sliding_window is not None and sliding_window < self.kv_length else None
        if self.width == 1 and self._start is not None and reach is None:
            return None
        slots = torch.arange(self.kv_length, device=self.positions.device)
        here = self.positions[:, None, :, None]
        seen = slots <= here
        return seen if reach is None else seen & (slots > here - reach)

    def additive_mask(self, sliding_window: int | None, dtype: torch.dtype, repeats: int = 1) -> Tensor | None:
        """`visible` as 0 / -inf `[batch, 1, repeats * window, kv_length]`, made once for all layers."""
        key = (sliding_window, dtype)
        if key not in self._masks:
            seen = self.visible(sliding_window)
            self._masks[key] = (
                None
                if seen is None
                else torch.zeros(seen.shape, dtype=dtype, device=seen.device)
                .masked_fill_(~seen, -torch.inf)
                .repeat(1, 1, repeats, 1)
            )
        return self._masks[key]
