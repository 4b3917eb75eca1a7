"""Measured scores of prompts at every temperature, as a row of a `ScoreTable` for each ability, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from .score_table import ScoreTable, size_class
from .temperature import ABILITIES, mutation_temperature

RESAMPLES = 10_000
LEVEL = 0.95


class AbilityFit(NamedTuple):
    """What was measured of one ability.

    Attributes:
        prompts: how many.
        scores: `[grid]` float64 means over prompts.
        low: `[grid]` float64 lower bounds of the 95% intervals; None with a single prompt.
        high: likewise, upper bounds.
        mutation: the temperature where quality falls off; inf where it does not.
        mutation_low: lower bound of its 95% interval; None with a single prompt.
        mutation_high: likewise, upper bound.
    """

    prompts: int
    scores: Tensor
    low: Tensor | None
    high: Tensor | None
    mutation: float
    mutation_low: float | None
    mutation_high: float | None


def check_grid(grid: Sequence[float]) -> None:
    """Refuse temperatures that cannot be measured or compared.

    Raises:
        InputError: fewer than two, one that is not positive and finite, not ascending, or none up to 1.
    """
    shown = ", ".join(f"{value:g}" for value in grid)
    if len(grid) < 2:
        raise InputError(f"temperatures are [{shown}]: give at least two")
    for value in grid:
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"temperatures hold {value:g}: give numbers above 0; greedy decoding has no temperature")
    if any(later <= earlier for earlier, later in pairwise(grid)):
        raise InputError(f"temperatures are [{shown}]: give them in ascending order, each once")
    if grid[0] > 1:
        raise InputError(f"temperatures start at {grid[0]:g}: give one up to 1, which the fall-off is measured against")


def fit_ability(scores: Tensor, grid: Tensor, *, seed: int = 0) -> AbilityFit:
    """Mean scores of one ability with percentile bootstrap intervals over prompts.

    Whole prompts are drawn, with their scores at all temperatures together: samples of one prompt are alike, and the
    temperatures are compared on the same prompts.

    Args:
        scores: `[prompts, grid]`, means over the samples of a prompt.
        grid: `[grid]` ascending temperatures.
        seed: of the resampling.
    """
    scores, grid = scores.double(), grid.double()
    prompts = len(scores)
    mean = scores.mean(0)
    mutation = float(mutation_temperature(mean, grid))
    if prompts < 2:
        return AbilityFit(prompts, mean, None, None, mutation, None, None)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(prompts, (RESAMPLES, prompts), generator=generator)
    # how often each prompt was drawn: the means of all resamples are then one matrix product
    counts = torch.zeros(RESAMPLES, prompts, dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    means = counts @ scores / prompts
    tails = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    low, high = means.quantile(tails, dim=0)
    # the nearest resample, since a mean between a temperature and "never" is neither
    falls = mutation_temperature(means, grid).sort().values
    first, last = (falls[round(float(tail) * (RESAMPLES - 1))] for tail in tails)
    return AbilityFit(prompts, mean, low, high, mutation, float(first), float(last))


def score_record(
    model: str,
    parameters: float,
    grid: Sequence[float],
    fits: dict[str, AbilityFit],
    default: ScoreTable,
    **about: Any,
) -> dict[str, Any]:
    """A table of one model, in the format that `ScoreTable.read` takes.

    An ability that was not measured, or whose score is 0 at every temperature, takes the mean row of the model's size
    class in `default`, interpolated to `grid` and constant beyond its ends; `borrowed` says which did.

    Args:
        model: its name.
        parameters: how many it has.
        grid: ascending temperatures.
        fits: by ability.
        default: where rows are borrowed.
        about: further fields of the record, for provenance.
    """
    lent = dict(zip(ABILITIES, default.relative(parameters), strict=True))
    measured = {ability for ability, fit in fits.items() if float(fit.scores.max()) > 0}
    borrowed = [ability for ability in ABILITIES if ability not in measured]
    rows = {
        ability: fits[ability].scores if ability in measured else interpolated(lent[ability], default.grid, grid)
        for ability in ABILITIES
    }
    return about | {
        "temperatures": list(grid),
        "models": {
            model: {
                "parameters": parameters,
                "scores": {ability: _rounded(row) for ability, row in rows.items()},
                "borrowed": borrowed,
                "borrowed_from": size_class(parameters) if borrowed else None,
                "measured": {ability: _plain(fit) for ability, fit in fits.items()},
            }
        },
    }


def interpolated(row: Tensor, known: Tensor, grid: Sequence[float]) -> Tensor:
    """Values of a piecewise linear curve, constant beyond its ends.

    Args:
        row: `[known]` values.
        known: `[known]` ascending temperatures where they hold.
        grid: temperatures that are asked for.

    Returns:
        `[len(grid)]` float64.
    """
    row, known = row.double(), known.double()
    if len(known) == 1:
        return row.expand(len(grid)).clone()
    at = torch.tensor(grid, dtype=torch.float64).clamp(float(known[0]), float(known[-1]))
    right = torch.searchsorted(known, at).clamp(1, len(known) - 1)
    share = (at - known[right - 1]) / (known[right] - known[right - 1])
    return torch.lerp(row[right - 1], row[right], share)


def _plain(fit: AbilityFit) -> dict[str, Any]:
    """Plain data for JSON; a score that never falls off is null."""

    def temperature(value: float | None) -> float | None:
        return None if value is None or math.isinf(value) else value

    interval = None
    if fit.low is not None and fit.high is not None:
        interval = [list(pair) for pair in zip(_rounded(fit.low), _rounded(fit.high), strict=True)]
    bounds = None
    if fit.mutation_low is not None:
        bounds = [temperature(fit.mutation_low), temperature(fit.mutation_high)]
    return {
        "prompts": fit.prompts,
        "interval_95": interval,
        "mutation_temperature": temperature(fit.mutation),
        "mutation_interval_95": bounds,
    }


def _rounded(row: Tensor) -> list[float]:
    return [round(float(value), 6) for value in row]
