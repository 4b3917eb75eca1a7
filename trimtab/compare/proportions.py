"""Right and wrong answers of two sides to the same prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .bootstrap import LEVEL, Interval, mean

_EXACT = 20
"""Signs that are all tried; above it they are drawn."""
_FLIPS = 100_000
_SEED = 20_260_302


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p value of McNemar's exact test: of the prompts that one side alone got right, was it as often either?

    Args:
        gained: prompts that B alone got right.
        lost: prompts that A alone got right.
    """
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def difference(gained: int, lost: int, prompts: int, *, level: float = LEVEL) -> Interval:
    """Share of right answers of B less that of A.

    The hull of two intervals. Tango's score interval (Statistics in Medicine 17, 1998) holds its level from no
    discordant prompt at all, but may exclude 0 where McNemar's exact test shows nothing; the exact interval given the
    number of discordant prompts (Clopper and Pearson's) excludes 0 exactly where that test does, but has no width
    without discordant prompts.

    Args:
        gained: prompts that B alone got right.
        lost: prompts that A alone got right.
        prompts: all.
        level: of the interval.
    """
    value = (gained - lost) / prompts
    low, high = _score_bounds(gained, lost, prompts, level)
    if discordant := gained + lost:
        from scipy.stats import binomtest

        exact = binomtest(gained, discordant).proportion_ci(level, method="exact")
        scale = discordant / prompts
        low, high = min(low, (2 * exact.low - 1) * scale), max(high, (2 * exact.high - 1) * scale)
    return Interval(value, low, high)


def _score_bounds(gained: int, lost: int, prompts: int, level: float) -> tuple[float, float]:
    from scipy.optimize import brentq
    from scipy.stats import norm

    critical = float(norm.ppf((1 + level) / 2))
    value = (gained - lost) / prompts

    def score(delta: float) -> float:
        # the share of prompts that A alone gets right, at its likeliest given the difference
        half = -gained - lost + (2 * prompts - gained + lost) * delta
        root = math.sqrt(max(half * half + 8 * prompts * lost * delta * (1 - delta), 0.0))
        only_a = max((root - half) / (4 * prompts), 0.0)
        variance = prompts * (2 * only_a + delta * (1 - delta))
        distance = gained - lost - prompts * delta
        if delta == value:
            return 0.0
        return distance / math.sqrt(variance) if variance > 1e-12 else math.copysign(math.inf, distance)

    def bound(end: float, target: float) -> float:
        if value == end or abs(score(end + (value - end) * 1e-9)) < abs(target):
            return end
        near, far = value, end + (value - end) * 1e-9
        return float(brentq(lambda delta: score(delta) - target, min(near, far), max(near, far), xtol=1e-10))

    return bound(-1.0, critical), bound(1.0, -critical)


def paired(a: Sequence[float], b: Sequence[float], *, level: float = LEVEL) -> tuple[Interval, float]:
    """Mean score of B less that of A, and the p value that they are exchangeable.

    Scores of 0 and 1 give `difference` and `mcnemar`. Others, of a graded scorer or of several sampled rounds, give
    the bootstrap-t interval and the sign-flip test, which is McNemar's where the scores are 0 and 1; the interval is
    stretched to 0 where the test shows nothing.

    Args:
        a: by prompt, the mean over its rounds.
        b: the same of the other side.
        level: of the interval.
    """
    if {*a, *b} <= {0.0, 1.0}:
        gained = sum(x < y for x, y in zip(a, b, strict=True))
        lost = sum(x > y for x, y in zip(a, b, strict=True))
        return difference(gained, lost, len(a), level=level), mcnemar(gained, lost)
    changes = [y - x for x, y in zip(a, b, strict=True)]
    p_value = sign_flip(changes)
    interval = mean(changes, level=level)
    if interval.low is None or interval.high is None:
        return interval, p_value
    low, high = interval.low, interval.high
    if not any(changes):  # no prompt scored otherwise; still, the next one might
        return Interval(0.0, *_score_bounds(0, 0, len(a), level)), p_value
    if p_value >= 1 - level:
        low, high = min(low, 0.0), max(high, 0.0)
    return Interval(interval.value, max(low, -1.0), min(high, 1.0)), p_value


def sign_flip(changes: Sequence[float]) -> float:
    """Two-sided p value of the sign-flip test: had each change been as likely the other way, would the sum be as large?

    Exact up to 20 changes that are not 0, above it 100,000 drawn flips.
    """
    sizes = np.array([abs(change) for change in changes if change])
    if not len(sizes):
        return 1.0
    seen = abs(sum(changes)) - 1e-9
    if len(sizes) <= _EXACT:
        signs = 1 - 2 * ((np.arange(2 ** len(sizes))[:, None] >> np.arange(len(sizes))) & 1)
        return float((np.abs(signs @ sizes) >= seen).mean())
    generator = np.random.default_rng(_SEED)
    hits = sum(
        int((np.abs((1 - 2 * generator.integers(0, 2, (1000, len(sizes)))) @ sizes) >= seen).sum())
        for _ in range(_FLIPS // 1000)
    )
    return (hits + 1) / (_FLIPS + 1)
