"""A temperature for each request: from what a prompt asks for and what each temperature is worth at that.

"Exploring the Impact of Temperature on Large Language Models: Hot or Cold?" 2025, arXiv 2506.07295: a classifier names
the ability that a prompt needs, a measured table says how well a model does at that ability at every temperature, and
the best temperature is taken. The paper looks at the likeliest ability alone (`rule="likeliest"`); the default here is
the score expected under all of them, so that a prompt between two abilities gets a temperature that serves both.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

ABILITIES = ("CR", "CT", "ICL", "IF", "MT", "SUMM")
"""Causal reasoning, creativity, in-context learning, instruction following, machine translation, summarisation."""

RULES = ("expected", "likeliest")


def relative_scores(scores: Tensor) -> Tensor:
    """Scores as a share of the best one on the grid, which makes abilities and models comparable.

    Args:
        scores: `[..., grid]`, more is better, on any scale with a meaningful zero; the best one positive.

    Returns:
        `[..., grid]` float64, at most 1.
    """
    scores = scores.double()
    return scores / scores.amax(-1, keepdim=True)


def choose_temperature(abilities: Tensor, scores: Tensor, grid: Tensor, rule: str = "expected") -> Tensor:
    """The temperature of the best score; of equal ones the lowest.

    `expected` takes argmax_T of sum_a p(a) score(a, T), `likeliest` argmax_T of score(argmax_a p(a), T).

    Args:
        abilities: `[rows, abilities]` probabilities.
        scores: `[abilities, grid]`, comparable between abilities (`relative_scores`).
        grid: `[grid]` temperatures.
        rule: one of `RULES`.

    Returns:
        `[rows]` float64 temperatures out of `grid`.
    """
    abilities, scores, grid = abilities.double(), scores.double(), grid.double()
    if rule == "likeliest":
        abilities = one_hot(abilities.argmax(-1), abilities.shape[-1])
    # no matrix product: its rounding may depend on the number of rows, and decide ties
    of_row = (abilities[:, :, None] * scores).sum(1)
    best = of_row == of_row.amax(-1, keepdim=True)
    return torch.where(best, grid, torch.inf).amin(-1)


def scale_logits(logits: Tensor, temperatures: Tensor, out: Tensor | None = None) -> Tensor:
    """Divide each row by its temperature.

    Args:
        logits: `[rows, vocab]`.
        temperatures: `[rows]`, positive.
        out: where the result goes, `logits` itself for one; None is a new tensor.

    Returns:
        `[rows, vocab]` of the logits' dtype.
    """
    return torch.div(logits, temperatures.to(logits)[:, None], out=out)


def mutation_temperature(scores: Tensor, grid: Tensor) -> Tensor:
    """Where quality falls off: the first temperature whose score is under half of the best one at T <= 1.

    The paper names the point and gives no formula; this one is trimtab's.

    Args:
        scores: `[..., grid]`, more is better, on a scale with a meaningful zero.
        grid: `[grid]` ascending temperatures, at least one of them up to 1.

    Returns:
        `[...]` float64 temperatures; inf where the score never falls so far.
    """
    scores, grid = scores.double(), grid.double()
    best = scores[..., grid <= 1].amax(-1, keepdim=True)
    return torch.where(scores < best / 2, grid, torch.inf).amin(-1)
