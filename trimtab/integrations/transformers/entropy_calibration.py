"""The entropy threshold at which the large model writes a wanted share of the tokens."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...decoding.entropy_gate import GateSettings, rolling_means
from ...errors import InputError


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """What one threshold gave on the calibration prompts.

    Attributes:
        threshold: bits.
        large_share: of the tokens, those that the large model wrote.
        cost: the paper's metric, 1 for the large model alone.
        switches: of the model, all prompts.
        tokens: all prompts.
        seconds: of the whole probe.
        quality: of the texts, if a measure was given.
    """

    threshold: float
    large_share: float
    cost: float
    switches: int
    tokens: int
    seconds: float
    quality: float | None = None


@dataclass(frozen=True, slots=True)
class Calibration:
    """A threshold and how it was found.

    Attributes:
        threshold: bits.
        large_share: measured at it.
        frontier: every threshold that was tried, ascending; the last is infinite, the small model alone.
        large_alone: plain `generate` of the large model, if quality was measured; its threshold is minus infinity.
    """

    threshold: float
    large_share: float
    frontier: tuple[FrontierPoint, ...]
    large_alone: FrontierPoint | None = None


Probe = Callable[[float], tuple[FrontierPoint, list[list[float]]]]
"""Generates with a threshold; the measured point and the entropies of each row."""


Texts = Sequence[Sequence[int]]
Quality = Callable[[Texts, Texts], float]
"""Of the new tokens for each prompt, given those that the large model writes alone: a number, more is better."""


def agreement(texts: Texts, large_texts: Texts) -> float:
    """Share of the large model's own tokens that come before the first one that differs, mean over the prompts, 0 to 1.

    It says how long a text stays the large model's, not whether what follows is worse.
    """
    shares = []
    for text, own in zip(texts, large_texts, strict=True):
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(text, own, strict=False))
        shares.append(sum(1 for _ in same) / max(len(own), 1))
    return sum(shares) / len(shares)


def find_threshold(
    probe: Probe, large_share: float, *, gate: GateSettings, tolerance: float, max_runs: int, fill: bool = False
) -> Calibration:
    """Bisect for a share of the large model.

    The first probe lets the small model write alone: the largest rolling mean in its text is a threshold that is never
    exceeded, and the quantile of the wanted share is a good first guess. The share falls with the threshold only
    roughly, since another threshold makes another text; the nearest point found is taken.

    Args:
        probe: measures a threshold.
        large_share: wanted, 0 to 1.
        gate: how the mean rolls.
        tolerance: distance from `large_share` that is near enough.
        max_runs: probes to make at most, at least 2.
        fill: spend the probes that are left over all other shares, for a whole frontier.

    Raises:
        InputError: a number is out of range.
    """
    if not 0 <= large_share <= 1:
        raise InputError(f"large_share is {large_share!r}: give a share of the tokens, 0 to 1")
    if not tolerance >= 0:
        raise InputError(f"tolerance is {tolerance!r}: give 0 or more")
    if not isinstance(max_runs, int) or max_runs < 2:
        raise InputError(f"max_runs is {max_runs!r}: give a whole number of at least 2")
    alone, entropies = probe(math.inf)
    means = sorted(mean for row in entropies for mean in rolling_means(row, gate))
    low, high = 0.0, means[-1]
    points = [alone]
    threshold = means[round((1 - large_share) * (len(means) - 1))]
    while len(points) < max_runs and abs(points[-1].large_share - large_share) > tolerance:
        point, _ = probe(threshold)
        points.append(point)
        if point.large_share > large_share:
            low = threshold
        else:
            high = threshold
        threshold = (low + high) / 2
    left = max_runs - len(points) if fill else 0
    for step in range(1, left + 1):
        points.append(probe(means[round((1 - step / (left + 1)) * (len(means) - 1))])[0])
    best = min(points, key=lambda point: abs(point.large_share - large_share))
    frontier = tuple(sorted(points, key=lambda point: point.threshold))
    return Calibration(best.threshold, best.large_share, frontier)
