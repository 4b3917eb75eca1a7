"""When to let the large model write: the rolling entropy of whichever model is writing.

Entropy-adaptive decoding, Simonds 2025, arXiv 2502.06833: `H_t = -sum p_t log2 p_t` of the active model, its mean over
the last w tokens, and the large model while that mean exceeds a threshold. The paper leaves minimum stay and
hysteresis open; both are settings here, and so is an exponential average instead of the window:
`sum_k d^k H_(t-k) / sum_k d^k` over all tokens so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from ..kernels import entropy


def entropy_bits(logits: Tensor, vocab_size: int | None = None) -> Tensor:
    """Shannon entropy of `softmax(logits)` in bits.

    Args:
        logits: `[rows, vocab]`, float32, bfloat16 or float16, `-inf` for impossible tokens; computed in float32.
        vocab_size: ids that stand for tokens, the first of each row; padding of the output head comes after them.

    Returns:
        `[rows]` float32.
    """
    return entropy.entropy_bits(logits[:, :vocab_size])


def relative_cost(large_share: float, small_cost: float) -> float:
    """The paper's cost of a token, 1 for the large model alone: `large_share + (1 - large_share) * small_cost`.

    Args:
        large_share: of the tokens.
        small_cost: a token of the small model in tokens of the large one.
    """
    return large_share + (1 - large_share) * small_cost


@dataclass(frozen=True, slots=True)
class GateSettings:
    """When a row changes models.

    Attributes:
        threshold: bits; the small model hands over when the rolling mean exceeds it. 0 and more.
        window: tokens in the rolling mean, at least 1. The paper uses 5.
        min_stay: tokens that a model writes before it may hand over, at least 1; None is `window`.
        lower_threshold: bits; the large model hands back when the mean does not exceed it, 0 to `threshold`; None is
            `threshold`.
        start_large: the large model writes first.
        decay: d of the exponential average, 0 up to 1 exclusive; None is the window. It looks back some `1 / (1 - d)`
            tokens; `window` then only stands for a `min_stay` that is not given.

    Raises:
        InputError: a value is out of range.
    """

    threshold: float
    window: int = 5
    min_stay: int | None = None
    lower_threshold: float | None = None
    start_large: bool = False
    decay: float | None = None

    def __post_init__(self) -> None:
        for name, bits in (("threshold", self.threshold), ("lower_threshold", self.lower_threshold)):
            if bits is not None and (not isinstance(bits, (int, float)) or not bits >= 0):
                raise InputError(f"{name} is {bits!r}: give an entropy in bits, 0 or more")
        for name, tokens in (("window", self.window), ("min_stay", self.min_stay)):
            if tokens is not None and (not isinstance(tokens, int) or tokens < 1):
                raise InputError(f"{name} is {tokens!r}: give a whole number of at least 1")
        if self.decay is not None and not (isinstance(self.decay, (int, float)) and 0 <= self.decay < 1):
            raise InputError(f"decay is {self.decay!r}: give a number from 0 up to, but not including, 1")
        if self.lower_threshold is not None and self.lower_threshold > self.threshold:
            raise InputError(
                f"lower_threshold is {self.lower_threshold:g} and threshold is {self.threshold:g}: "
                "give a lower_threshold of at most the threshold"
            )

    @property
    def lower(self) -> float:
        """Bits that the mean must not exceed for the large model to hand back."""
        return self.threshold if self.lower_threshold is None else self.lower_threshold


Limits = tuple[Tensor, Tensor]
"""`[rows]` bits each: above the first the small model hands over, at the second and below the large one hands back."""


class GateState(NamedTuple):
    """What a gate knows of some rows; tensors on one device.

    Attributes:
        large: `[rows]` bool, whether the large model writes the next token.
        mean: `[rows]` float64 bits, the rolling mean after the last token; 0 before the first.
        recent: `[rows, window]` float64, the last entropies, as a ring.
        weight: `[rows]` float64, sum of `d^k` of the exponential average.
        tokens: `[rows]` int64, tokens seen.
        stay: `[rows]` int64, tokens since the last switch.
    """

    large: Tensor
    mean: Tensor
    recent: Tensor
    weight: Tensor
    tokens: Tensor
    stay: Tensor

    @classmethod
    def start(cls, rows: int, settings: GateSettings, device: torch.device | str = "cpu") -> GateState:
        """Before the first token."""
        none = torch.zeros(rows, dtype=torch.float64, device=device)
        count = torch.zeros(rows, dtype=torch.long, device=device)
        recent = none.new_zeros(rows, settings.window)
        return cls(torch.full_like(count, settings.start_large, dtype=torch.bool), none, recent, none, count, count)

    def take(self, rows: Tensor) -> GateState:
        """Some of the rows."""
        return GateState(*(field[rows] for field in self))

    def write(self, rows: Tensor, state: GateState) -> GateState:
        """A copy in which `rows` (distinct) are those of `state`."""
        return GateState(*(mine.index_copy(0, rows, other) for mine, other in zip(self, state, strict=True)))


def advance(state: GateState, entropy: Tensor, settings: GateSettings, limits: Limits | None = None) -> GateState:
    """Take in the entropy of one more token of each row and decide about the next ones.

    No value is read on the host, so that a GPU need not be waited for.

    Args:
        state: before the token.
        entropy: `[rows]` bits, of the model that wrote it.
        settings: window or decay, least stay, thresholds.
        limits: thresholds of the rows' own, instead of those of `settings`.
    """
    tokens, stay, recent, weight = state.tokens + 1, state.stay + 1, state.recent, state.weight
    entropy = entropy.double()
    if settings.decay is not None:
        weight = settings.decay * weight + 1
        mean = state.mean + (entropy - state.mean) / weight
    else:
        place = (state.tokens % settings.window)[:, None]
        recent = recent.scatter(1, place, entropy[:, None])
        mean = recent.sum(-1) / tokens.clamp(max=settings.window)
    upper, lower = limits or (settings.threshold, settings.lower)
    wanted = torch.where(state.large, mean > lower, mean > upper)
    least = settings.window if settings.min_stay is None else settings.min_stay
    switch = (wanted != state.large) & (stay >= least)
    return GateState(state.large ^ switch, mean, recent, weight, tokens, stay.masked_fill(switch, 0))


class EntropyGate:
    """Which model writes the next token of each row; rows switch independently.

    The entropy of a token decides about the tokens after it. Before `window` tokens are there, the mean is over those
    that are; it goes on across switches, so it mixes the two models' entropies where `min_stay < window`.

    Args:
        rows: number of rows.
        settings: thresholds and lengths.
    """

    def __init__(self, rows: int, settings: GateSettings) -> None:
        self._settings = settings
        self._state = GateState.start(rows, settings)

    @property
    def large(self) -> Tensor:
        """`[rows]` bool, whether the large model writes the next token."""
        return self._state.large

    @property
    def mean(self) -> Tensor:
        """`[rows]` float64 bits, the rolling mean after the last token; 0 before the first."""
        return self._state.mean

    def update(self, entropy: Tensor, rows: Sequence[int]) -> None:
        """Take in the entropy of one more token of some rows and decide about their next ones.

        Args:
            entropy: `[len(rows)]` bits, on any device.
            rows: the rows that got a token, each once.
        """
        index = torch.tensor(rows, dtype=torch.long)
        self._state = self._state.write(index, advance(self._state.take(index), entropy.cpu(), self._settings))


def rolling_means(entropies: Sequence[float], settings: GateSettings) -> list[float]:
    """What a gate compares with its thresholds after each of a row's tokens, in bits."""
    gate, means = EntropyGate(1, settings), []
    for bits in entropies:
        gate.update(torch.tensor([bits], dtype=torch.float64), [0])
        means.append(gate.mean.item())
    return means
