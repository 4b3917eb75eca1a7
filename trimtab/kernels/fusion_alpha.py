"""The alpha of dynamic logit fusion (Fan et al. 2024, arXiv 2406.15480), one search for each row and expert.

With P the large model, Q the small base, Q_t an expert, D = log Q_t - log Q and L(a) = log sum P exp(a D):

    a* = argmin over [0, alpha_max] of (KL(P_a||P) - g_0)^2 + (KL(P||P_a) - g_1)^2
    KL(P_a||P) = a L'(a) - L(a)        KL(P||P_a) = L(a) - a L'(0)

where g is the mean over the experts of KL(Q_t||Q) and KL(Q||Q_t). Both divergences rise with a, so that every minimum
lies between the two roots: a grid brackets them, a second one in the bracket finds the lowest cell, and a safeguarded
Newton iteration ends in it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from . import custom_op
from .dispatch import FLOATS, runs_triton

CELLS = 8
NEWTON_STEPS = 40
PRECISION = 1e-5


class FusionAlpha(NamedTuple):
    """Of each row and expert.

    Attributes:
        alpha: `[rows, experts]` float32.
        distance: `[rows, experts]` float32, squared, to the mean of the targets.
        converged: `[rows, experts]` bool, whether the search ended by its own precision.
        target: `[rows, experts, 2]` float32, KL(Q_t||Q) and KL(Q||Q_t) in nats.
    """

    alpha: Tensor
    distance: Tensor
    converged: Tensor
    target: Tensor


def fusion_alpha(
    large: Tensor, base: Tensor, experts: Tensor, *, alpha_max: float = 2.0, precision: float = PRECISION
) -> FusionAlpha:
    """The strength of each expert alone.

    Args:
        large: `[rows, vocab]`, float32, bfloat16 or float16, up to a constant per row; -inf excludes a token from all.
        base: `[rows, vocab]` finite logits.
        experts: `[experts, rows, vocab]` finite logits.
        alpha_max: end of the search.
        precision: width of the last bracket or step, as a share of `alpha_max`.

    Raises:
        InputError: shapes or dtypes that do not fit.
    """
    if large.dim() != 2 or base.shape != large.shape or experts.shape[1:] != large.shape or not large.shape[-1]:
        raise InputError(
            f"large, base and experts have shapes {tuple(large.shape)}, {tuple(base.shape)} and "
            f"{tuple(experts.shape)}; [rows, vocab] twice and [experts, rows, vocab] are needed"
        )
    if any(x.dtype not in FLOATS for x in (large, base, experts)):
        raise InputError(
            f"large, base and experts are {large.dtype}, {base.dtype} and {experts.dtype}; float32, bfloat16 and "
            "float16 are read: convert them"
        )
    run = _operator if torch.compiler.is_compiling() else _run
    return FusionAlpha(*run(large, base, experts, alpha_max, precision))


def fusion_alpha_reference(
    large: Tensor, base: Tensor, experts: Tensor, alpha_max: float, precision: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same search by torch's own operators, in the dtype of its arguments."""
    log_p = large.log_softmax(-1)
    allowed = log_p > -torch.inf
    log_q = base.masked_fill(~allowed, -torch.inf).log_softmax(-1)
    log_e = experts.masked_fill(~allowed, -torch.inf).log_softmax(-1).transpose(0, 1)  # [rows, experts, vocab]
    push = torch.where(allowed[:, None], log_e - log_q[:, None], 0.0)
    target = torch.stack([(log_e.exp() * push).sum(-1), -(log_q.exp()[:, None] * push).sum(-1)], dim=-1).clamp(min=0.0)
    push = torch.where(allowed[:, None], push - (log_p.exp()[:, None] * push).sum(-1, keepdim=True), 0.0)
    log_p = log_p[:, None]
    goal = target.mean(1, keepdim=True)

    def moments(alpha: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        tilted = log_p + alpha[..., None] * push
        log_z = tilted.logsumexp(-1)
        weight = (tilted - log_z[..., None]).exp()
        mean = (weight * push).sum(-1)
        off = push - mean[..., None]
        rest = torch.stack([alpha * mean - log_z, log_z], dim=-1) - goal
        return rest, mean, (weight * off**2).sum(-1), (weight * off**3).sum(-1)

    def grid(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        alphas = torch.stack([torch.lerp(low, high, cell / CELLS) for cell in range(CELLS + 1)])
        return alphas, torch.stack([moments(alpha)[0] for alpha in alphas])

    low, high = push.new_zeros(push.shape[:2]), push.new_full(push.shape[:2], alpha_max)
    alphas, rest = grid(low, high)
    low = torch.where((rest <= 0).all(-1), alphas, 0.0).amax(0)
    high = torch.where((rest >= 0).all(-1), alphas, alpha_max).amin(0)
    alphas, rest = grid(low, high)
    value, cell = rest.square().sum(-1).min(0)
    best, low, high = (alphas.gather(0, (cell + move).clamp(0, CELLS)[None])[0] for move in (0, -1, 1))
    x, done = best, high <= low
    for _ in range(NEWTON_STEPS):
        rest, mean, variance, skew = moments(x)
        distance = rest.square().sum(-1)
        best, value = torch.where(distance < value, x, best), torch.minimum(distance, value)
        rise = torch.stack([x * variance, mean], dim=-1)
        slope = (rest * rise).sum(-1)
        bend = rise.square().sum(-1) + rest[..., 0] * (variance + x * skew) + rest[..., 1] * variance
        low, high = torch.where(slope < 0, x, low), torch.where(slope > 0, x, high)
        newton = x - slope / bend
        following = torch.where((bend > 0) & (newton > low) & (newton < high), newton, (low + high) / 2)
        near = torch.minimum((following - x).abs(), high - low) <= precision * alpha_max
        done = done | near | (value <= 1e-10)
        x = torch.where(done, x, following)
    return best, value, done, target


def _run(
    large: Tensor, base: Tensor, experts: Tensor, alpha_max: float, precision: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if runs_triton(large):
        from .gpu import fusion_alpha as gpu

        return gpu.fusion_alpha(large, base, experts, alpha_max, precision, NEWTON_STEPS)
    return fusion_alpha_reference(large.float(), base.float(), experts.float(), alpha_max, precision)


def _fake(
    large: Tensor, base: Tensor, experts: Tensor, alpha_max: float, precision: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    alpha = large.new_empty(large.shape[0], experts.shape[0], dtype=torch.float32)
    return alpha, torch.empty_like(alpha), torch.empty_like(alpha, dtype=torch.bool), alpha.new_empty(*alpha.shape, 2)


_operator = custom_op.define(
    "fusion_alpha(Tensor large, Tensor base, Tensor experts, float alpha_max, float precision)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _run,
    _fake,
)
