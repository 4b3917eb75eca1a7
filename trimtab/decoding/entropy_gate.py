"""When to let the large model write: the rolling entropy of whichever model is writing.

Entropy-adaptive decoding, Simonds 2025, arXiv 2502.06833: `H_t = -sum p_t log2 p_t` of the active model, its mean over
the last w tokens, and the large model while that mean exceeds a threshold. The paper leaves minimum stay and
hysteresis open; both are settings here, and so is an exponential average instead of the window:
`sum_k d^k H_(t-k) / sum_k d^k` over all tokens so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


class EntropyGate:
    """Which model writes the next token of each row; rows switch independently.

    The entropy of a token decides about the tokens after it. Before `window` tokens are there, the mean is over those
    that are; it goes on across switches, so it mixes the two models' entropies where `min_stay < window`.

    Attributes:
        large: `[rows]` bool, whether the large model writes the next token.
        mean: `[rows]` float64 bits, the rolling mean after the last token; 0 before the first.

    Args:
        rows: number of rows.
        settings: thresholds and lengths.
    """

    def __init__(self, rows: int, settings: GateSettings) -> None:
        self._settings = settings
        self._upper = settings.threshold
        self._lower = settings.threshold if settings.lower_threshold is None else settings.lower_threshold
        self._min_stay = settings.window if settings.min_stay is None else settings.min_stay
        self.large = torch.full((rows,), settings.start_large)
        self.mean = torch.zeros(rows, dtype=torch.float64)
        self._recent = torch.zeros(rows, settings.window, dtype=torch.float64)
        self._weight = torch.zeros(rows, dtype=torch.float64)  # sum of d^k
        self._tokens = torch.zeros(rows, dtype=torch.long)
        self._stay = torch.zeros(rows, dtype=torch.long)

    def update(self, entropy: Tensor, rows: Sequence[int]) -> None:
        """Take in the entropy of one more token of some rows and decide about their next ones.

        Args:
            entropy: `[len(rows)]` bits, on any device.
            rows: the rows that got a token, each once.
        """
        index = torch.tensor(rows)
        self._average(entropy.double().cpu(), index)
        mean, large = self.mean[index], self.large[index]
        self._stay[index] += 1
        wanted = torch.where(large, mean > self._lower, mean > self._upper)
        switch = (wanted != large) & (self._stay[index] >= self._min_stay)
        self.large[index] = large ^ switch
        self._stay[index] = self._stay[index].masked_fill(switch, 0)

    def _average(self, entropy: Tensor, index: Tensor) -> None:
        window, decay = self._settings.window, self._settings.decay
        if decay is not None:
            self._weight[index] = decay * self._weight[index] + 1
            self.mean[index] += (entropy - self.mean[index]) / self._weight[index]
            return
        self._recent[index, self._tokens[index] % window] = entropy
        self._tokens[index] += 1
        self.mean[index] = self._recent[index].sum(-1) / self._tokens[index].clamp(max=window)


def rolling_means(entropies: Sequence[float], settings: GateSettings) -> list[float]:
    """What a gate compares with its thresholds after each of a row's tokens, in bits."""
    gate, means = EntropyGate(1, settings), []
    for bits in entropies:
        gate.update(torch.tensor([bits], dtype=torch.float64), [0])
        means.append(gate.mean.item())
    return means
