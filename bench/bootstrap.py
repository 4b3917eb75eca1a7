"""Percentile bootstrap over prompts, for figures that are made of sums over prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RESAMPLES = 10_000
LEVEL = 0.95
SEED = 20_260_301


class Interval(NamedTuple):
    """A figure and its 95% interval; no bounds where one prompt cannot say how much prompts differ."""

    value: float
    low: float | None
    high: float | None

    def as_dict(self) -> dict[str, float | None]:
        """Plain data for JSON."""
        return self._asdict()


def bootstrap(
    columns: Sequence[Sequence[float]],
    figure: Callable[[Array], Any],
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = SEED,
) -> Interval:
    """Resample prompts, with all their measurements together.

    Args:
        columns: `[measurement, prompt]`, for instance tokens and seconds of two arms.
        figure: from the sums `[measurement, ...]` to `[...]`, for instance the ratio of two rates.
        resamples: how many times.
        level: of the interval.
        seed: the same data give the same interval.
    """
    data = np.asarray(columns, dtype=np.float64)
    value = float(figure(data.sum(axis=1)))
    prompts = data.shape[1]
    if prompts < 2:
        return Interval(value, None, None)
    # A resample is how often each prompt was drawn, so all its sums are one matrix product.
    draws = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.asarray(figure(data @ draws.T.astype(np.float64)))
    tail = (1 - level) / 2
    low, high = np.quantile(values[np.isfinite(values)], [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def share(counts: Sequence[float], totals: Sequence[float]) -> Interval:
    """Sum of counts over sum of totals."""
    return bootstrap([counts, totals], lambda sums: sums[0] / sums[1])


def rate_ratio(
    tokens: Sequence[float], seconds: Sequence[float], base_tokens: Sequence[float], base_seconds: Sequence[float]
) -> Interval:
    """Tokens per second of one arm over those of another on the same prompts."""
    return bootstrap(
        [tokens, seconds, base_tokens, base_seconds],
        lambda sums: (sums[0] / sums[1]) / (sums[2] / sums[3]),
    )
