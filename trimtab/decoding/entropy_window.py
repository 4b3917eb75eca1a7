"""The entropy gate over a window of drafted tokens: entropy-adaptive decoding as speculative decoding.

The small model drafts K tokens, one pass of the large model over them gives its own distribution at each place. Who
writes at a place depends only on the entropies of the places before it, so the speakers of the whole window are known
before any token is chosen:

    place j: the small model's distribution where its turn is, the large model's elsewhere

Verifying the drafts against these distributions by the usual rejection rule gives tokens that are distributed as if the
two models had taken turns token by token. After the last draft only the large model has a distribution: the token that
speculative decoding adds there is kept where it is its turn, and left to the next window where it is not. So the text
does not depend on K. The pass over the window is the large model's catch-up.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .entropy_gate import GateSettings, GateState, Limits, advance


class Turns(NamedTuple):
    """Who writes in a window of `K` drafts.

    Attributes:
        large: `[rows, K + 1]` bool, whether the large model writes at a place; always after a row's last draft.
        own: `[rows, K + 1]` bool, whether that is its turn, or only for want of a draft.
        states: the gate before each place and after the last, `K + 2` of them.
    """

    large: Tensor
    own: Tensor
    states: list[GateState]

    def written(self, sampled: Tensor, drafts: Tensor) -> Tensor:
        """How many of the tokens that the rejection rule gave stay, `[rows]` int64.

        Args:
            sampled: `[rows]` tokens that it gave: the drafts it kept and one more.
            drafts: `[rows]` drafts that there were. Without any, the large model's token has to do, whose turn it be.
        """
        rows = torch.arange(len(sampled), device=sampled.device)
        bonus = (sampled == drafts + 1) & (drafts > 0) & ~self.own[rows, drafts]
        return sampled.long() - bonus.long()

    def switches(self, written: Tensor) -> Tensor:
        """How often the turn changed over so many tokens, `[rows]` int64."""
        large = torch.stack([state.large for state in self.states], 1)
        inside = torch.arange(large.shape[1] - 1, device=large.device) < written[:, None]
        return ((large[:, 1:] != large[:, :-1]) & inside).sum(1)

    def after(self, written: Tensor) -> GateState:
        """The gate of each row after so many tokens of the window, `[rows]`; 0 leaves it as it was."""
        rows = torch.arange(len(written), device=written.device)
        fields = zip(*self.states, strict=True)
        return GateState(*(torch.stack(list(field))[written.long(), rows] for field in fields))


def turns(
    state: GateState,
    small_bits: Tensor,
    large_bits: Tensor,
    drafts: Tensor,
    settings: GateSettings,
    limits: Limits | None = None,
) -> Turns:
    """Who writes at each place of a window.

    Args:
        state: the gate before the window.
        small_bits: `[rows, K]` entropies of the distributions that the drafts were drawn from.
        large_bits: `[rows, K + 1]` of the large model's, before each draft and after the last.
        drafts: `[rows]` int64, how many drafts a row really has, at most K.
        settings: of the gate.
        limits: thresholds of the rows' own.
    """
    states, large, own = [state], [], []
    for place in range(large_bits.shape[1]):
        turn = state.large
        forced = drafts <= place
        bits = large_bits[:, place]
        if place < small_bits.shape[1]:
            bits = torch.where(turn | forced, bits, small_bits[:, place])
        own.append(turn)
        large.append(turn | forced)
        state = advance(state, bits, settings, limits)
        states.append(state)
    return Turns(torch.stack(large, 1), torch.stack(own, 1), states)
