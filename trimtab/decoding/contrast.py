"""Weighted sums of log-probabilities: one model's distribution, pushed by what others say of the next token.

`score = sum_k c_k log p_k`, renormalised. Proxy tuning, dynamic logit fusion (fusion.py), contrastive decoding and
STEER are choices of the `c_k`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def contrast(terms: Sequence[tuple[float | Tensor, Tensor]]) -> Tensor:
    """`log_softmax(sum_k c_k x_k)` over the tokens to which the first term gives any probability.

    Args:
        terms: pairs `(c_k, x_k)`: a number or `[rows, 1]`, and `[rows, vocab]` float32 log-probabilities, logits or
            differences of either. The first may be -inf (a token that an earlier processor forbade), the others not.

    Returns:
        `[rows, vocab]` float32 log-probabilities, -inf where the first term is.
    """
    (weight, first), *rest = terms
    score = weight * first
    for weight, term in rest:
        # in place: a vocabulary-wide copy costs more than the addition
        score = score.addcmul_(weight, term) if isinstance(weight, Tensor) else score.add_(term, alpha=weight)
    if first.amin() == -torch.inf:  # 0 * -inf is no number
        score.masked_fill_(first == -torch.inf, -torch.inf)
    return score.log_softmax(-1)


def steer(
    expert: Tensor,
    base: Tensor | None,
    negative: Tensor | None,
    *,
    gamma: float | Tensor,
    eta: float | Tensor,
    balanced: bool = False,
) -> Tensor:
    """STEER, O'Neill et al. 2023, arXiv 2308.07645, as the authors' code computes it.

    `(1 + gamma) log p_E - gamma log p_B - eta log p_N`; `balanced` puts `1 + gamma + eta` before the first term, so
    that the coefficients sum to 1. Without it they sum to `1 - eta`, which also flattens the distribution.

    Args:
        expert: `[rows, vocab]` float32 log-probabilities of the expert.
        base: of its base; may be None with `gamma=0`.
        negative: of the expert after the negative context; may be None with `eta=0`.
        gamma: a number, or `[rows, 1]` with one for each row.
        eta: likewise.
        balanced: whether the coefficients sum to 1.

    Returns:
        `[rows, vocab]` log-probabilities.
    """
    terms: list[tuple[float | Tensor, Tensor]] = [(1 + gamma + (eta if balanced else 0.0), expert)]
    if base is not None:
        terms.append((-gamma, base))
    if negative is not None:
        terms.append((-eta, negative))
    return contrast(terms)


def plausible(scores: Tensor, beta: float | Tensor) -> Tensor:
    """Bool `[rows, vocab]`: `p >= beta * max p` under `softmax(scores)` (Li et al. 2022, arXiv 2210.15097, eq. 4).

    `beta` is a number, or `[rows, 1]` with 0 for rows where all are.
    """
    return scores >= scores.amax(-1, keepdim=True) + (beta.log() if isinstance(beta, Tensor) else math.log(beta))


def widened(log_probs: Tensor, width: int) -> Tensor:
    """`log_probs` with -inf for the ids up to `width` that not all models have."""
    return torch.nn.functional.pad(log_probs, (0, width - log_probs.shape[-1]), value=-torch.inf)
