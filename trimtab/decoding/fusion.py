"""How strongly small experts push a large model, chosen at every token.

Dynamic logit fusion, Fan et al. 2024, arXiv 2406.15480. With `P` the large model, `Q` the small base, `Q_t` its
experts and `D_t = log Q_t - log Q`:

    P_a = softmax(log P + sum_t a_t D_t)                                                            (eq. 6)
    a*  = argmin sum_t [KL(P_a||P) - KL(Q_t||Q)]^2 + [KL(P||P_a) - KL(Q||Q_t)]^2

Up to a constant the sum is `T` times the squared distance of `(KL(P_a||P), KL(P||P_a))` to the mean of the experts'
two values. Along a direction d, with `L(a) = log sum P exp(a d)` and moments of d under `P_a`:

    KL(P_a||P) = a L'(a) - L(a)     rising by a L''(a)
    KL(P||P_a) = L(a) - a L'(0)     rising by L'(a) - L'(0)

Derivatives come with the values (kernels/tilted_moments.py), so cubics through a coarse grid of alphas show where the
objective is least, and a safeguarded Newton iteration ends there. The experts' own divergences are the same two
formulas: `Q_t` is `Q` tilted by `D_t` with a = 1. The paper walks a grid of step 0.1, and with several experts lets one
be active at a time.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.tilted_moments import tilted_moments
from .contrast import contrast

Active = Literal["one", "all"]

GRID = 6
"""Cells of the grid of alphas that are evaluated."""
SUBGRID = 16
"""Parts of each of them in which the cubics are read."""
NEWTON_STEPS = 40
JOINT_STEPS = 100
PRECISION = 1e-5
"""Length of the last bracket or step, as a share of the largest alpha."""
NOTHING = 1e-10
"""Squared distances that are rounding."""


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
    push = experts.transpose(0, 1) - base[:, None]  # [rows, experts, vocab]
    if large.amin() == -torch.inf:
        excluded = large == -torch.inf
        push.masked_fill_(excluded[:, None], 0.0)
        base = base.masked_fill(excluded, -torch.inf)
    # A constant of the push changes nothing; with L'(0) = 0 it also costs no digits.
    zero = tilted_moments(large, push, push.new_zeros(*push.shape[:2], 1))[:, :, 0]
    log_p = large - zero[:, :1, 0]
    push -= zero[:, :, 1:2]
    target = _targets(base, push)

    if alpha is not None:
        chosen = push.new_full(push.shape[:2], alpha)
        converged = torch.ones(len(push), dtype=torch.bool, device=push.device)
    else:
        alone, distance, converged = _each_alone(log_p, push, target.mean(1), alpha_max)
        if active == "all" and push.shape[1] > 1:
            chosen, converged = _all_active(log_p, push, target.mean(1), alpha_max, alone)
        else:
            chosen = alone[torch.arange(len(alone), device=alone.device), distance.argmin(-1)]
    direction = chosen[:, None] @ push  # [rows, 1, vocab]
    divergence = _divergences(log_p, direction, chosen.new_ones(len(chosen), 1, 1)).value[:, 0, 0]
    log_probs = contrast([(1.0, log_p), (1.0, direction[:, 0])])
    objective = (divergence[:, None] - target).square().sum((1, 2))
    return Fusion(log_probs, chosen, divergence, target, objective, converged)


# -- along one direction -----------------------------------------------------------------------------------------------


class _Divergences(NamedTuple):
    """`(KL(P_a||P), KL(P||P_a))` and their first and second derivatives in a, each `[rows, directions, points, 2]`."""

    value: Tensor
    rise: Tensor
    bend: Tensor


def _divergences(log_p: Tensor, push: Tensor, alpha: Tensor) -> _Divergences:
    log_z, mean, variance, third = tilted_moments(log_p, push, alpha).unbind(-1)  # L'(0) is 0
    return _Divergences(
        torch.stack([alpha * mean - log_z, log_z], -1),
        torch.stack([alpha * variance, mean], -1),
        torch.stack([variance + alpha * third, variance], -1),
    )


def _targets(base: Tensor, push: Tensor) -> Tensor:
    """KL(Q_t||Q) and KL(Q||Q_t), `[rows, experts, 2]`; `base` may be off by a constant."""
    at = tilted_moments(base, push, push.new_tensor([0.0, 1.0]).expand(*push.shape[:2], 2))
    log_z, mean = at[..., 1, 0] - at[..., 0, 0], at[..., 1]
    return torch.stack([mean[..., 1] - log_z, log_z - mean[..., 0]], -1).clamp_(min=0.0)  # rounding


def _each_alone(log_p: Tensor, push: Tensor, target: Tensor, alpha_max: float) -> tuple[Tensor, Tensor, Tensor]:
    """One search for each expert: alphas `[rows, search, expert]`, distances `[rows, search]`, converged `[rows]`."""
    alpha, value, converged = _along(log_p, push, target, alpha_max)
    return torch.diag_embed(alpha), value, converged.all(-1)


def _along(log_p: Tensor, push: Tensor, target: Tensor, alpha_max: float) -> tuple[Tensor, Tensor, Tensor]:
    """Alpha of the least squared distance to `target`, that distance, and whether the search converged.

    Args:
        log_p: `[rows, vocab]`.
        push: `[rows, directions, vocab]`.
        target: `[rows, 2]`.
        alpha_max: end of the search.

    Returns:
        `[rows, directions]` each.
    """
    grid = torch.linspace(0.0, alpha_max, GRID + 1, device=push.device)
    at = _divergences(log_p, push, grid[1:].expand(*push.shape[:2], GRID))
    at = _Divergences(*(F.pad(part, (0, 0, 1, 0)) for part in at))  # at 0 both are 0 and rise by 0
    value, cell = (at.value - target[:, None, None]).square().sum(-1).min(-1)
    best, width = grid[cell], alpha_max / GRID
    x = width * _least_of_cubics(at, target, width)
    low, high = (x - width).clamp_(min=0.0), (x + width).clamp_(max=alpha_max)
    done = value <= NOTHING
    for _ in range(NEWTON_STEPS):
        at = _Divergences(*(part[:, :, 0] for part in _divergences(log_p, push, x[..., None])))
        rest = at.value - target[:, None]
        distance = rest.square().sum(-1)
        best, value = torch.where(distance < value, x, best), torch.minimum(distance, value)
        slope = (rest * at.rise).sum(-1)
        bend = (at.rise.square() + rest * at.bend).sum(-1)
        low, high = torch.where(slope < 0, x, low), torch.where(slope > 0, x, high)
        newton = x - slope / bend
        inside = (bend > 0) & (newton > low) & (newton < high)
        following = torch.where(inside, newton, (low + high) / 2)
        # below rounding, distances and slopes cannot be told apart, however flat the valley
        still = (bend > 0) & (slope.abs() <= bend * PRECISION * alpha_max) | (high - low <= PRECISION * alpha_max)
        done = done | still | (value <= NOTHING)
        x = torch.where(done, x, following)
        if bool(done.all()):
            break
    return best, value, done


def _least_of_cubics(at: _Divergences, target: Tensor, width: float) -> Tensor:
    """Where both divergences, as cubics through the grid's values and slopes, come nearest to `target`, in cells."""
    s = torch.linspace(0.0, 1.0, SUBGRID + 1, device=target.device)
    basis = torch.stack(
        [(1 + 2 * s) * (1 - s) ** 2, s**2 * (3 - 2 * s), width * s * (1 - s) ** 2, width * s**2 * (s - 1)]
    )
    ends = torch.stack([at.value[:, :, :-1], at.value[:, :, 1:], at.rise[:, :, :-1], at.rise[:, :, 1:]], -1)
    read = ends @ basis  # [rows, directions, GRID, 2, SUBGRID + 1]
    nearest = (read - target[:, None, None, :, None]).square().sum(3).flatten(2).argmin(-1)
    return nearest // (SUBGRID + 1) + s[nearest % (SUBGRID + 1)]


# -- all experts together ----------------------------------------------------------------------------------------------


def _all_active(log_p: Tensor, push: Tensor, target: Tensor, alpha_max: float, alone: Tensor) -> tuple[Tensor, Tensor]:
    """Levenberg-Marquardt in the box `[0, alpha_max]^experts`, from each expert alone and from equal alphas.

    The valley of two divergences can have several minima; the best of the descents is taken.
    """
    equal = _along(log_p, push.sum(1, keepdim=True), target, alpha_max)[0]
    starts = [*alone.unbind(1), equal.expand(-1, alone.shape[2])]
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
        done = done | ((tried - alpha).abs().amax(-1) <= PRECISION * alpha_max) | (value <= NOTHING)
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
