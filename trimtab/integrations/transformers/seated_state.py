"""A ragged state of which a pass may take any rows, the others costing nothing."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .state import SequenceState


class SeatedState(SequenceState):
    """Rows lie in seats, and a pass sees those of one end: a slice of the tensors, never a copy.

    Seating other rows moves as many as differ, so rows that stay with their model are never moved. Two forwards that
    share the state and use an end each do not disturb each other. Between `seat` and the next one, `lengths` and the
    tensors of `layer` are those of the seated rows, in the order that `seat` returned.
    """

    def __init__(self, batch_size: int, capacity: int = 0) -> None:
        self._all = [0] * batch_size
        self._row_of = list(range(batch_size))
        self._seated = slice(0, batch_size)
        super().__init__(batch_size, capacity)

    @property
    def lengths(self) -> list[int]:
        """Tokens that each seated row holds."""
        return self._all[self._seated]

    @lengths.setter
    def lengths(self, lengths: list[int]) -> None:
        self._all[self._seated] = lengths

    def length(self, row: int) -> int:
        """Tokens that a row holds, seated or not."""
        return self._all[self._row_of.index(row)]

    @property
    def seated_rows(self) -> list[int]:
        """The rows that passes take, in their order."""
        return self._row_of[self._seated]

    def seat(self, rows: Sequence[int], *, back: bool = False) -> list[int]:
        """Let the next passes run over `rows`.

        Args:
            rows: rows of the batch, each once.
            back: seat them at the last seats rather than the first.

        Returns:
            The same rows in the order in which passes take them.
        """
        start = len(self._all) - len(rows) if back else 0
        self._seated = slice(start, start + len(rows))
        wanted, seats = set(rows), range(start, start + len(rows))
        free = [seat for seat in seats if self._row_of[seat] not in wanted]
        standing = [seat for seat, row in enumerate(self._row_of) if row in wanted and seat not in seats]
        for a, b in zip(free, standing, strict=True):
            self._swap(a, b)
        return self.seated_rows

    def layer(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The seated rows' part of one layer; the first use makes room for all rows."""
        batch = len(self._all)
        if index not in self.keys:
            self.keys[index], self.values[index] = (
                self._grown(like[:1, :, :0].expand(batch, -1, -1, -1)) for like in (keys, values)
            )
        return self.keys[index][self._seated], self.values[index][self._seated]

    def select(self, rows: Sequence[int]) -> None:
        """Not for this state: rows that have ended are simply seated no more."""
        raise NotImplementedError("seat the rows that go on")

    def _swap(self, a: int, b: int) -> None:
        length = max(self._all[a], self._all[b])
        for tensors in (self.keys, self.values):
            for tensor in tensors.values():
                tensor[[a, b], :, :length] = tensor[[b, a], :, :length]
        for per_seat in (self._all, self._row_of):
            per_seat[a], per_seat[b] = per_seat[b], per_seat[a]
