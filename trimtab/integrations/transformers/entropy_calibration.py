"""The entropy threshold at which the large model writes a wanted share of the tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
    """

    threshold: float
    large_share: float
    cost: float
    switches: int
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """A threshold and how it was found.

    Attributes:
        threshold: bits.
        large_share: measured at it.
        frontier: every threshold that was tried, ascending.
    """

    threshold: float
    large_share: float
    frontier: tuple[FrontierPoint, ...]


Probe = Callable[[float], tuple[FrontierPoint, list[list[float]]]]
"""Generates with a threshold; the measured point and the entropies of each row."""


def find_threshold(probe: Probe, large_share: float, *, window: int, tolerance: float, max_runs: int) -> Calibration:
    """Bisect for a share of the large model.

    The first probe lets the small model write alone: the largest rolling mean in its text is a threshold that is never
    exceeded, and the quantile of the wanted share is a good first guess. The share falls with the threshold only
    roughly, since another threshold makes another text; the nearest point found is taken.

    Args:
        probe: measures a threshold.
        large_share: wanted, 0 to 1.
        window: tokens in the rolling mean.
        tolerance: distance from `large_share` that is near enough.
        max_runs: probes to make at most, at least 2.

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
    means = sorted(mean for row in entropies for mean in _rolling_means(row, window))
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
    best = min(points, key=lambda point: abs(point.large_share - large_share))
    frontier = tuple(sorted(points, key=lambda point: point.threshold))
    return Calibration(best.threshold, best.large_share, frontier)


def _rolling_means(entropies: Sequence[float], window: int) -> list[float]:
    recent = [entropies[max(end - window, 0) : end] for end in range(1, len(entropies) + 1)]
    return [sum(values) / len(values) for values in recent]
