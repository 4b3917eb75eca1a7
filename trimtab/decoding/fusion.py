"""How strongly small experts push a large model, chosen at every token.

Dynamic logit fusion, Fan et al. 2024, arXiv 2406.15480. With `P` the large model, `Q` the small base, `Q_t` its
experts and `D_t = log Q_t - log Q`:

    P_a = softmax(log P + sum_t a_t D_t)                                                            (eq. 6)
    a*  = argmin sum_t [KL(P_a||P) - KL(Q_t||Q)]^2 + [KL(P||P_a) - KL(Q||Q_t)]^2

Up to a constant the sum is `T` times the squared distance of `(KL(P_a||P), KL(P||P_a))` to the mean of the experts'
two values. kernels/fusion_alpha.py searches along one expert. The paper walks a grid of step 0.1, and with several
experts lets one be active at a time.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..kernels.fusion_alpha import NOTHING, PRECISION, along, divergences, fusion_alpha, targets, tilt
from .contrast import contrast

Active = Literal["one", "all"]

JOINT_STEPS = 100


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
    alpha: float | Tensor | None = None,
    alpha_max: float = 2.0,
    active: Active = "one",
) -> Fusion:
    """One step of fusion for all rows; `alpha=None` searches, a number is static proxy tuning.

    Tokens that `large` excludes (-inf) are excluded from all the distributions.

    Args:
        large: `[rows, vocab]` float32 scores, up to a constant per row.
        base: `[rows, vocab]` float32 finite logits of the small base.
        experts: `[experts, rows, vocab]` float32 finite logits.
        alpha: for all experts: a number, `[rows]` with one for each row, or None.
        alpha_max: the search covers `[0, alpha_max]`.
        active: `one`: the paper's rule, a single expert has an alpha above 0, found by one search for each;
            `all`: the minimum over all alphas together, never above that of `one`.
    """
    parts = tilt(large, base, experts)
    log_p, push = parts.log_p, parts.push
    if alpha is not None:
        target = targets(parts)
        chosen = torch.as_tensor(alpha, dtype=push.dtype, device=push.device).view(-1, 1).expand(push.shape[:2])
        converged = torch.ones(len(push), dtype=torch.bool, device=push.device)
    else:
        found = fusion_alpha(large, base, experts, alpha_max=alpha_max, parts=parts)
        target, alone = found.target, torch.diag_embed(found.alpha)  # [rows, search, expert]
        if active == "all" and push.shape[1] > 1:
            chosen, converged = _all_active(log_p, push, target.mean(1), alpha_max, alone)
        else:
            chosen = alone[torch.arange(len(alone), device=alone.device), found.distance.argmin(-1)]
            converged = found.converged.all(-1)
    direction = chosen[:, None] @ push  # [rows, 1, vocab]
    divergence = divergences(log_p, direction, chosen.new_ones(len(chosen), 1, 1)).value[:, 0, 0]
    log_probs = contrast([(1.0, log_p), (1.0, direction[:, 0])])
    objective = (divergence[:, None] - target).square().sum((1, 2))
    return Fusion(log_probs, chosen, divergence, target, objective, converged)


# -- all experts together ----------------------------------------------------------------------------------------------


def _all_active(log_p: Tensor, push: Tensor, target: Tensor, alpha_max: float, alone: Tensor) -> tuple[Tensor, Tensor]:
    """Levenberg-Marquardt in the box `[0, alpha_max]^experts`, from each expert alone and from equal alphas.

    The valley of two divergences can have several minima; the best of the descents is taken.
    """
    equal = along(log_p, push.sum(1, keepdim=True), target, alpha_max)[0]
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
    found, values = start.clone(), push.new_empty(len(push))
    converged = torch.zeros(len(push), dtype=torch.bool, device=push.device)
    rows = torch.arange(len(push), device=push.device)  # those still on their way: a few take many steps
    alpha, damping = start, push.new_full((len(push),), 1e-3)
    rest, rises = _residual(log_p, push, target, alpha)
    for _ in range(JOINT_STEPS):
        value = rest.square().sum(-1)
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
        done = ((tried - alpha).abs().amax(-1) <= PRECISION * alpha_max) | (value <= NOTHING)
        found[rows], values[rows], converged[rows] = alpha, value, done
        if bool(done.all()):
            break
        if bool(done.any()):
            kept = ~done
            rows, log_p, push, target = rows[kept], log_p[kept], push[kept], target[kept]
            alpha, damping, tried = alpha[kept], damping[kept], tried[kept]
            rest, rises, value = rest[kept], rises[kept], value[kept]
        tried_rest, tried_rises = _residual(log_p, push, target, tried)
        better = tried_rest.square().sum(-1) < value
        alpha = torch.where(better[:, None], tried, alpha)
        rest = torch.where(better[:, None], tried_rest, rest)
        rises = torch.where(better[:, None, None], tried_rises, rises)
        damping = torch.where(better, damping / 10, damping * 10).clamp(1e-6, 1e8)
    return found, values, converged


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
