"""How strongly small experts push a large model, chosen at every token.

Dynamic logit fusion, Fan et al. 2024, arXiv 2406.15480. With `P` the large model, `Q` the small base, `Q_t` its
experts and `D_t = log Q_t - log Q`:

    P_a = softmax(log P + sum_t a_t D_t)                                                            (eq. 6)
    a*  = argmin sum_t [KL(P_a||P) - KL(Q_t||Q)]^2 + [KL(P||P_a) - KL(Q||Q_t)]^2

Up to a constant the sum is `T` times the squared distance of `(KL(P_a||P), KL(P||P_a))` to the mean of the experts'
two values. Along a direction d, with `L(a) = log sum P exp(a d)` and moments of d under `P_a`:

    KL(P_a||P) = a L'(a) - L(a)     rising by a L''(a)
    KL(P||P_a) = L(a) - a L'(0)     rising by L'(a) - L'(0)

Both rise, so every minimum lies between the two roots. A grid brackets the roots, a second one inside the bracket
finds the cell of the lowest value, a safeguarded Newton iteration ends in it. The paper walks a grid of step 0.1,
and with several experts lets one be active at a time.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .contrast import contrast

Active = Literal["one", "all"]

GRID = 8
"""Cells of each of the two grids."""
NEWTON_STEPS = 40
JOINT_STEPS = 100
PRECISION = 1e-5
"""Width of the last bracket or step, as a share of the largest alpha."""


class Fusion(NamedTuple):
    """What was chosen, for each row.

    Attributes:
        log_probs: `[rows, vocab]` float32, `log P_a`.
        alpha: `[rows, experts]`.
        divergence: `[rows, 2]`, KL(P_a||P) and KL(P||P_a) in nats.
        target: `[rows, experts, 2]`, KL(Q_t||Q) and KL(Q||Q_t).
        objective: `[rows]`, the sum that alpha minimises.
        converged: `[rows]` bool, whether the search ended by its own precision; a fixed alpha always does.
    """

    log_probs: Tensor
    alpha: Tensor
    divergence: Tensor
    target: Tensor
    objective: Tensor
    converged: Tensor


def fuse(
    large: Tensor,
    base: Tensor,
    experts: Tensor,
    *,
    alpha: float | None = None,
    alpha_max: float = 2.0,
    active: Active = "one",
) -> Fusion:
    """One step of fusion for all rows; `alpha=None` searches, a number is static proxy tuning.

    Tokens that `large` excludes (-inf) are excluded from all the distributions.

    Args:
        large: `[rows, vocab]` float32 scores, up to a constant per row.
        base: `[rows, vocab]` float32 finite logits of the small base.
        experts: `[experts, rows, vocab]` float32 finite logits.
        alpha: for all experts, or None.
        alpha_max: the search covers `[0, alpha_max]`.
        active: `one`: the paper's rule, a single expert has an alpha above 0, found by one search for each;
            `all`: the minimum over all alphas together, never above that of `one`.
    """
    log_p = large.log_softmax(-1)
    allowed = log_p > -torch.inf
    log_q = base.masked_fill(~allowed, -torch.inf).log_softmax(-1)
    log_experts = experts.masked_fill(~allowed, -torch.inf).log_softmax(-1).transpose(0, 1)  # [rows, experts, vocab]
    push = torch.where(allowed[:, None], log_experts - log_q[:, None], 0.0)
    target = torch.stack([(log_experts.exp() * push).sum(-1), -(log_q.exp()[:, None] * push).sum(-1)], dim=-1)
    target = target.clamp(min=0.0)  # rounding
    # A constant of the push changes nothing; with L'(0) = 0 it also costs no digits.
    push = torch.where(allowed[:, None], push - (log_p.exp()[:, None] * push).sum(-1, keepdim=True), 0.0)

    if alpha is not None:
        chosen = push.new_full(push.shape[:2], alpha)
        converged = torch.ones_like(allowed[:, 0])
    else:
        alone, distance, converged = _each_alone(log_p, push, target.mean(1), alpha_max)
        if active == "all" and push.shape[1] > 1:
            chosen, converged = _all_active(log_p, push, target.mean(1), alpha_max, alone)
        else:
            chosen = alone[torch.arange(len(alone), device=alone.device), distance.argmin(-1)]
    log_probs = contrast([(1.0, log_p), *((chosen[:, t, None], push[:, t]) for t in range(push.shape[1]))])
    divergence = _moments(log_p, (chosen[:, :, None] * push).sum(1), chosen.new_ones(len(chosen))).divergence
    objective = (divergence[:, None] - target).square().sum((1, 2))
    return Fusion(log_probs, chosen, divergence, target, objective, converged)


# -- along one direction -----------------------------------------------------------------------------------------------


class _Moments(NamedTuple):
    divergence: Tensor  # [rows, 2]
    mean: Tensor  # L'(a); L'(0) is 0
    variance: Tensor  # L''(a)
    skew: Tensor  # L'''(a)


def _moments(log_p: Tensor, push: Tensor, alpha: Tensor) -> _Moments:
    tilted = log_p + alpha[:, None] * push
    log_z = tilted.logsumexp(-1)
    weight = (tilted - log_z[:, None]).exp()
    mean = (weight * push).sum(-1)
    off = push - mean[:, None]
    spread = weight * off.square()
    divergence = torch.stack([alpha * mean - log_z, log_z], dim=-1)
    return _Moments(divergence, mean, spread.sum(-1), (spread * off).sum(-1))


def _each_alone(log_p: Tensor, push: Tensor, target: Tensor, alpha_max: float) -> tuple[Tensor, Tensor, Tensor]:
    """One search for each expert: alphas `[rows, search, expert]`, distances `[rows, search]`, converged `[rows]`."""
    rows, experts, _ = push.shape
    alpha, value, converged = _along(
        log_p.repeat_interleave(experts, 0), push.flatten(0, 1), target.repeat_interleave(experts, 0), alpha_max
    )
    return (
        torch.diag_embed(alpha.view(rows, experts)),
        value.view(rows, experts),
        converged.view(rows, experts).all(-1),
    )


def _along(log_p: Tensor, push: Tensor, target: Tensor, alpha_max: float) -> tuple[Tensor, Tensor, Tensor]:
    """Alpha of the least squared distance to `target`, that distance, and whether the search converged: `[rows]`."""
    points, reached = _grid(log_p, push, push.new_zeros(len(push)), push.new_full((len(push),), alpha_max))
    below, above = (reached <= target).all(-1), (reached >= target).all(-1)
    low = torch.where(below, points, 0.0).amax(0)
    high = torch.where(above, points, alpha_max).amin(0)
    points, reached = _grid(log_p, push, low, high)
    value, cell = (reached - target).square().sum(-1).min(0)
    best, low, high = (points.gather(0, (cell + move).clamp(0, GRID)[None])[0] for move in (0, -1, 1))
    x, done = best, high - low <= 0
    for _ in range(NEWTON_STEPS):
        at = _moments(log_p, push, x)
        rest = at.divergence - target
        distance = rest.square().sum(-1)
        best, value = torch.where(distance < value, x, best), torch.minimum(distance, value)
        rise = torch.stack([x * at.variance, at.mean], dim=-1)
        slope = (rest * rise).sum(-1)
        bend = rise.square().sum(-1) + rest[:, 0] * (at.variance + x * at.skew) + rest[:, 1] * at.variance
        low, high = torch.where(slope < 0, x, low), torch.where(slope > 0, x, high)
        newton = x - slope / bend
        inside = (bend > 0) & (newton > low) & (newton < high)
        following = torch.where(inside, newton, (low + high) / 2)
        # distances below rounding cannot be told apart, however flat the valley
        done = done | ((following - x).abs() <= PRECISION * alpha_max) | (high - low <= PRECISION * alpha_max)
        done = done | (value <= 1e-10)
        x = torch.where(done, x, following)
        if bool(done.all()):
            break
    return best, value, done


def _grid(log_p: Tensor, push: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """`GRID + 1` alphas from low to high, `[points, rows]`, and the divergences there, `[points, rows, 2]`."""
    points = torch.stack([torch.lerp(low, high, cell / GRID) for cell in range(GRID + 1)])
    return points, torch.stack([_divergence(log_p, push, alpha) for alpha in points])


def _divergence(log_p: Tensor, push: Tensor, alpha: Tensor) -> Tensor:
    """`_moments(...).divergence` in half the passes over the vocabulary."""
    tilted = torch.addcmul(log_p, alpha[:, None], push)
    top = tilted.amax(-1, keepdim=True)
    weight = tilted.sub_(top).exp_()
    total = weight.sum(-1)
    log_z = total.log() + top[:, 0]
    mean = (weight[:, None] @ push[:, :, None])[:, 0, 0] / total
    return torch.stack([alpha * mean - log_z, log_z], dim=-1)


# -- all experts together ----------------------------------------------------------------------------------------------


def _all_active(log_p: Tensor, push: Tensor, target: Tensor, alpha_max: float, alone: Tensor) -> tuple[Tensor, Tensor]:
    """Levenberg-Marquardt in the box `[0, alpha_max]^experts`, from each expert alone and from equal alphas.

    The valley of two divergences can have several minima; the best of the descents is taken.
    """
    equal, _, _ = _along(log_p, push.sum(1), target, alpha_max)
    starts = [*alone.unbind(1), equal[:, None].expand(alone.shape[0], alone.shape[2])]
    alphas, values, converged = (
        torch.stack(part) for part in zip(*(_descend(log_p, push, target, alpha_max, s) for s in starts), strict=True)
    )
    best, rows = values.argmin(0), torch.arange(len(equal), device=equal.device)
    return alphas[best, rows], converged[best, rows]


def _descend(
    log_p: Tensor, push: Tensor, target: Tensor, alpha_max: float, start: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Alphas `[rows, experts]`, their squared distance to `target` and whether the row came to rest."""
    eye = torch.eye(push.shape[1], device=push.device)
    alpha, damping = start, push.new_full((len(push),), 1e-3)
    rest, rises = _residual(log_p, push, target, alpha)
    value, done = rest.square().sum(-1), torch.zeros_like(damping, dtype=torch.bool)
    for _ in range(JOINT_STEPS):
        slope = (rises.transpose(1, 2) @ rest[:, :, None])[:, :, 0]
        # an alpha at an end of its range that wants to go beyond it stays there
        held = ((alpha <= 0) & (slope > 0)) | ((alpha >= alpha_max) & (slope < 0))
        free = torch.where(held[:, None], 0.0, rises)
        square = free.transpose(1, 2) @ free
        scale = square.diagonal(dim1=1, dim2=2).amax(-1).clamp(min=1e-12)
        step = torch.linalg.solve(
            square + (damping * scale)[:, None, None] * eye, torch.where(held, 0.0, -slope)[:, :, None]
        )[:, :, 0]
        tried = (alpha + step).clamp(0.0, alpha_max)
        tried_rest, tried_rises = _residual(log_p, push, target, tried)
        better = tried_rest.square().sum(-1) < value
        done = done | ((tried - alpha).abs().amax(-1) <= PRECISION * alpha_max) | (value <= 1e-10)
        take = better & ~done
        alpha = torch.where(take[:, None], tried, alpha)
        rest = torch.where(take[:, None], tried_rest, rest)
        rises = torch.where(take[:, None, None], tried_rises, rises)
        value = rest.square().sum(-1)
        damping = torch.where(better, damping / 10, damping * 10).clamp(1e-6, 1e8)
        if bool(done.all()):
            break
    return alpha, value, done


def _residual(log_p: Tensor, push: Tensor, target: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Divergences less the target `[rows, 2]`, and their gradients in alpha `[rows, 2, experts]`."""
    tilted = log_p + (alpha[:, :, None] * push).sum(1)
    log_z = tilted.logsumexp(-1)
    weight = (tilted - log_z[:, None]).exp()[:, None]
    mean = (weight * push).sum(-1)
    off = push - mean[:, :, None]
    covariance = (weight * off) @ off.transpose(1, 2)
    divergence = torch.stack([(alpha * mean).sum(-1) - log_z, log_z], dim=-1)
    return divergence - target, torch.stack([(covariance @ alpha[:, :, None])[:, :, 0], mean], dim=1)
