"""What the likeliest tokens' log-probabilities tell of the entropy of the whole distribution.

A server gives the log-probabilities of K tokens, not logits. Of the other R tokens their mass is known, r = 1 - sum
p_i, and that none is likelier than the K-th, c = p_K. Entropy is concave, so that over all distributions of r

    r log2(R / r)                                          is the most (all R alike), and
    -n c log2 c - f log2 f,  n = floor(r / c), f = r - n c,  the least (as few tokens as can hold r)

Between the two, the estimate is that of the power law of ranks that goes on from the K-th token and holds r,

    p(i) = c (i / K)^(b - 1), i = K + 1 ... K + R,  b such that sum_i p(i) = r

with its sums taken as integrals from K + 1/2 to K + R + 1/2. Nothing in it is fitted to a model.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import NamedTuple

_STEEPEST = -1e4
"""Of b: at a tail this steep the next token has less than the K-th's mass by far."""


class EntropyRange(NamedTuple):
    """Bits.

    Attributes:
        low: the entropy is at least this.
        estimate: by the power law.
        high: the entropy is at most this.
    """

    low: float
    estimate: float
    high: float


def entropy_range(top: Collection[float], vocab_size: int, *, beyond: Collection[float] = ()) -> EntropyRange:
    """Entropy of a distribution of which the likeliest tokens are known.

    Args:
        top: natural log-probabilities of the likeliest tokens, one at least.
        vocab_size: tokens that the distribution is over.
        beyond: of further tokens, none likelier than those of `top`: a sampled one, say.
    """
    known = [math.exp(value) for value in (*top, *beyond)]
    cap = min(known[: len(top)])
    bits = -sum(p * math.log2(p) for p in known if p > 0)
    mass, others = 1 - math.fsum(known), vocab_size - len(known)
    # float32 log-probabilities of a whole vocabulary need not sum to 1
    if others <= 0 or mass <= 0 or cap <= 0:
        return EntropyRange(bits, bits, bits)
    most = mass * math.log2(others / mass)
    if mass >= others * cap:  # by no more than rounding: all of the others are as likely as the K-th
        return EntropyRange(bits + most, bits + most, bits + most)
    full = math.floor(mass / cap)
    rest = mass - full * cap
    least = -full * cap * math.log2(cap) - (rest * math.log2(rest) if rest > 0 else 0.0)
    least = min(least, most)  # up to rounding
    tail = min(max(_tail_bits(mass, cap, len(top), others), least), most)
    return EntropyRange(bits + least, bits + tail, bits + most)


def _tail_bits(mass: float, cap: float, ranks: int, others: int) -> float:
    """`-sum p log2 p` over the tail of the power law."""
    begin, end = math.log((ranks + 0.5) / ranks), math.log((ranks + others + 0.5) / ranks)
    wanted = mass / (cap * ranks)
    steep, flat = _STEEPEST, 1.0
    if _power(steep, begin, end) >= wanted:
        return 0.0
    for _ in range(60):
        middle = (steep + flat) / 2
        if _power(middle, begin, end) < wanted:
            steep = middle
        else:
            flat = middle
    # p = c u^(b-1) with u = i / K: -log2 p = -log2 c + (1 - b) log2 u
    return mass * -math.log2(cap) + (1 - flat) * cap * ranks * _power_log(flat, begin, end) / math.log(2)


def _power(b: float, begin: float, end: float) -> float:
    """Integral of `u^(b - 1)`, from `exp(begin)` to `exp(end)`."""
    if abs(b) < 1e-9:
        return end - begin
    return (math.exp(b * end) - math.exp(b * begin)) / b


def _power_log(b: float, begin: float, end: float) -> float:
    """Integral of `u^(b - 1) ln u`, from `exp(begin)` to `exp(end)`."""
    if abs(b) < 1e-4:  # the closed form loses its digits
        return (end**2 - begin**2) / 2 + b * (end**3 - begin**3) / 3
    return (math.exp(b * end) * (end - 1 / b) - math.exp(b * begin) * (begin - 1 / b)) / b
