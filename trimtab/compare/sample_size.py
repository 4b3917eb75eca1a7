"""How many prompts a difference of a given size needs, from those that were measured."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .bootstrap import LEVEL, Array

POWER = 0.9
"""Planned for; spreads with heavy tails leave 0.8 of it, as the tests show."""
_CONFIDENCE = 0.9
_MOST = 10_000_000


def prompts_for_ratio(spread: float, measured: int, change: float, *, power: float = POWER) -> int:
    """Prompts after which a ratio's 95% interval excludes 1.

    Args:
        spread: standard deviation between prompts of the ratio's logarithm, as `spread_of_log` gives it.
        measured: prompts that it is from, at least 2. The spread of few prompts may be low by chance: its upper 90%
            bound is taken, which keeps the power in nine of ten pilots (Browne, Statistics in Medicine 14, 1995).
        change: to be found, 0.05 for 5%.
        power: share of the runs that find it.
    """
    from scipy.stats import chi2, t

    spread *= math.sqrt((measured - 1) / float(chi2.ppf(1 - _CONFIDENCE, measured - 1)))
    effect = abs(math.log1p(change)) if change > 0 else abs(math.log1p(-abs(change)))
    return _least(
        lambda n: (float(t.ppf((1 + LEVEL) / 2, n - 1)) + float(t.ppf(power, n - 1))) * spread <= effect * math.sqrt(n)
    )


def prompts_for_points(gained: int, lost: int, measured: int, change: float, *, power: float = POWER) -> int:
    """Prompts after which McNemar's exact test finds a difference of two shares (Connor, Biometrics 43, 1987).

    Args:
        gained: prompts that B alone got right.
        lost: prompts that A alone got right.
        measured: all prompts so far. The share of discordant prompts is taken at its upper 90% bound.
        change: to be found, 0.05 for 5 points.
        power: share of the runs that find it.
    """
    from scipy.stats import beta, norm

    seen = gained + lost
    discordant = float(beta.ppf(_CONFIDENCE, seen + 1, measured - seen)) if seen < measured else 1.0
    change = abs(change)
    discordant = max(discordant, change)
    level, reach = float(norm.ppf((1 + LEVEL) / 2)), float(norm.ppf(power))
    wanted = (level * math.sqrt(discordant) + reach * math.sqrt(discordant - change**2)) ** 2 / change**2
    # the exact test loses about one discordant prompt in each direction against the normal approximation
    return math.ceil(wanted + 2 / discordant)


def spread_of_log(above: Array, below: Array) -> float:
    """Standard deviation between prompts of the logarithm of a ratio of means, to first order.

    Args:
        above: `[measurement, prompt]`, as `bootstrap.ratio` takes it.
        below: the same of the divisor.
    """
    scaled = above / above.mean(axis=1, keepdims=True)
    return float(np.std(scaled.sum(axis=0) - (below / below.mean(axis=1, keepdims=True)).sum(axis=0), ddof=1))


def _least(enough: Callable[[int], bool]) -> int:
    """The least n of at least 2 for which `enough(n)`, which stays true above it."""
    high = 2
    while not enough(high):
        if high > _MOST:
            return high
        high *= 2
    low = high // 2
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return max(high, 2)
