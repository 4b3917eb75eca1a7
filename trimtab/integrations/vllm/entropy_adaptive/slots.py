"""The gates of all requests in an engine, on its device."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from ....decoding.entropy_gate import GateSettings, GateState, relative_cost
from ....decoding.entropy_window import Turns, turns


@dataclass(frozen=True, slots=True)
class Counts:
    """What was written, for one request or all.

    Attributes:
        small: tokens by the small model.
        large: tokens by the large model.
        switches: changes of turn; after the last token there may be one more.
        passes: passes of the large model that wrote something.
    """

    small: int = 0
    large: int = 0
    switches: int = 0
    passes: int = 0

    @property
    def large_share(self) -> float:
        """Tokens by the large model over all; nan before the first."""
        total = self.small + self.large
        return self.large / total if total else float("nan")

    def cost(self, small_to_large: float) -> float:
        """The paper's cost: parameters of the models that wrote the tokens, in those of the large one.

        Args:
            small_to_large: parameters of the small model over those of the large one.
        """
        return relative_cost(self.large_share, small_to_large)

    def as_dict(self) -> dict[str, int]:
        """For JSON."""
        return asdict(self)


class Saved(NamedTuple):
    """One slot's gate, `[1]` each, tokens left and counters."""

    state: GateState
    left: Tensor
    counts: Tensor


class GateSlots:
    """A gate, thresholds and counters for each slot.

    Args:
        settings: of the engine.
        slots: requests that can be kept.
        device: where the engine samples.
    """

    def __init__(self, settings: GateSettings, slots: int, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self._state = GateState.start(slots, settings, device)
        self._upper = torch.full((slots,), settings.threshold, dtype=torch.float64, device=device)
        self._lower = torch.full((slots,), settings.lower, dtype=torch.float64, device=device)
        self._left = torch.zeros(slots, dtype=torch.long, device=device)  # tokens that a request may still get
        self._counts = torch.zeros(slots, len(fields(Counts)), dtype=torch.long, device=device)
        self._total = torch.zeros(len(fields(Counts)), dtype=torch.long, device=device)

    def __len__(self) -> int:
        return len(self._counts)

    def grow(self) -> list[int]:
        """Twice as many slots; the new ones."""
        old = len(self)
        fresh = GateSlots(self.settings, old, self.device)
        self._state = GateState(*map(torch.cat, zip(self._state, fresh._state, strict=True)))
        self._upper, self._lower = torch.cat([self._upper, fresh._upper]), torch.cat([self._lower, fresh._lower])
        self._left, self._counts = torch.cat([self._left, fresh._left]), torch.cat([self._counts, fresh._counts])
        return list(range(old, len(self)))

    def begin(self, slot: int, threshold: float | None, most: int) -> None:
        """A new request takes a slot.

        Args:
            slot: any.
            threshold: its own in bits, or None for the engine's.
            most: tokens that it may get; those of a window beyond them are dropped, and not counted.
        """
        index = torch.tensor([slot], device=self.device)
        self._state = self._state.write(index, GateState.start(1, self.settings, self.device))
        self._upper[slot] = self.settings.threshold if threshold is None else threshold
        self._lower[slot] = self.settings.lower if threshold is None else threshold
        self._left[slot] = most
        self._counts[slot] = 0

    def save(self, slot: int) -> Saved:
        """What `restore` needs to go on with a request in another slot."""
        state = self._state.take(torch.tensor([slot], device=self.device))
        return Saved(state, self._left[slot].clone(), self._counts[slot].clone())

    def restore(self, slot: int, saved: Saved) -> None:
        """Go on with a request that was preempted; `begin` has set its threshold."""
        self._state = self._state.write(torch.tensor([slot], device=self.device), saved.state)
        self._left[slot], self._counts[slot] = saved.left, saved.counts

    def turns(self, slots: Tensor, small_bits: Tensor, large_bits: Tensor, drafts: Tensor) -> Turns:
        """Who writes in the next window of some requests; `decoding.entropy_window.turns` of their slots."""
        limits = self._upper[slots], self._lower[slots]
        return turns(self._state.take(slots), small_bits, large_bits, drafts, self.settings, limits)

    def end(self, slots: Tensor, window: Turns, written: Tensor) -> None:
        """So many tokens of the window stay, `[rows]`; 0 for a request that is still reading its prompt."""
        self._state = self._state.write(slots, window.after(written))
        counted = torch.minimum(written, self._left[slots])
        inside = torch.arange(window.large.shape[1], device=self.device) < counted[:, None]
        large = (window.large & inside).sum(1)
        new = torch.stack([counted - large, large, window.switches(counted), (counted > 0).long()], 1)
        self._counts.index_add_(0, slots, new)
        self._total += new.sum(0)
        self._left.index_add_(0, slots, -counted)

    def total(self) -> Counts:
        """What all requests have written; waits for the device."""
        return Counts(*self._total.tolist())

    def counts(self, slot: int) -> Counts:
        """What a request has written so far; waits for the device."""
        return Counts(*self._counts[slot].tolist())
