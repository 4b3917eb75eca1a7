"""The alpha of dynamic logit fusion (Fan et al. 2024, arXiv 2406.15480), one search for each row and expert.

With P the large model, Q the small base, Q_t an expert, D = log Q_t - log Q and L(a) = log sum P exp(a D):

    P_a = softmax(log P + a D)
    a*  = argmin over [0, alpha_max] of (KL(P_a||P) - g_0)^2 + (KL(P||P_a) - g_1)^2
    KL(P_a||P) = a L'(a) - L(a)     rising by a L''(a)
    KL(P||P_a) = L(a) - a L'(0)     rising by L'(a) - L'(0)

where g is the mean over the experts of KL(Q_t||Q) and KL(Q||Q_t). Those are the same two formulas: Q_t is Q tilted by D
with a = 1. The decision rule on top of it, and what the objective means, are in decoding/fusion.py.

On a GPU one Triton program for each row and expert searches from end to end (gpu/fusion_alpha.py). Elsewhere
derivatives come with the values (tilted_moments.py), so cubics through a coarse grid of alphas show where the objective
is least, and a safeguarded Newton iteration ends there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from . import custom_op
from .dispatch import FLOATS, runs_triton
from .tilted_moments import tilted_moments

GRID = 6
"""Cells of the grid of alphas that are evaluated."""
SUBGRID = 16
"""Parts of each of them in which the cubics are read."""
NEWTON_STEPS = 40
PRECISION = 1e-5
"""Length of the last bracket or step, as a share of the largest alpha."""
NOTHING = 1e-10
"""Squared distances that are rounding."""


class Tilt(NamedTuple):
    """What fusion makes of the three models' logits before it looks for an alpha.

    Attributes:
        log_p: `[rows, vocab]` float32, of the large model; -inf where a token is excluded.
        base: `[rows, vocab]` float32, of the small base up to a constant, likewise.
        push: `[rows, experts, vocab]` float32, `D` less its mean under P, finite throughout.
    """

    log_p: Tensor
    base: Tensor
    push: Tensor


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


class Divergences(NamedTuple):
    """`(KL(P_a||P), KL(P||P_a))` and their first and second derivatives in a, each `[rows, directions, points, 2]`."""

    value: Tensor
    rise: Tensor
    bend: Tensor


def fusion_alpha(
    large: Tensor, base: Tensor, experts: Tensor, *, alpha_max: float = 2.0, parts: Tilt | None = None
) -> FusionAlpha:
    """The strength of each expert alone.

    Args:
        large: `[rows, vocab]`, float32, bfloat16 or float16, up to a constant per row; -inf excludes a token from all.
        base: `[rows, vocab]` finite logits.
        experts: `[experts, rows, vocab]` finite logits.
        alpha_max: end of the search, above 0.
        parts: `tilt` of the same three, where it is at hand already.

    Raises:
        InputError: shapes, dtypes or devices that do not fit, or an `alpha_max` that is no end.
    """
    _check(large, base, experts, alpha_max)
    if torch.compiler.is_compiling():
        return FusionAlpha(*_operator(large, base, experts, alpha_max))
    if parts is None or runs_triton(large):
        return FusionAlpha(*_run(large, base, experts, alpha_max))
    return _search(parts, alpha_max)


def _check(large: Tensor, base: Tensor, experts: Tensor, alpha_max: float) -> None:
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
    if not large.device == base.device == experts.device:
        raise InputError(f"large, base and experts lie on {large.device}, {base.device} and {experts.device}: move two")
    if not 0 < alpha_max < float("inf"):
        raise InputError(f"alpha_max is {alpha_max!r}: give a number above 0")


def _run(large: Tensor, base: Tensor, experts: Tensor, alpha_max: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if runs_triton(large):
        from .gpu import fusion_alpha as gpu

        return gpu.fusion_alpha(large, base, experts, alpha_max, PRECISION, NEWTON_STEPS)
    return _search(tilt(large, base, experts), alpha_max)


def _fake(large: Tensor, base: Tensor, experts: Tensor, alpha_max: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    alpha = large.new_empty(large.shape[0], experts.shape[0], dtype=torch.float32)
    return alpha, torch.empty_like(alpha), torch.empty_like(alpha, dtype=torch.bool), alpha.new_empty(*alpha.shape, 2)


_operator = custom_op.define(
    "fusion_alpha(Tensor large, Tensor base, Tensor experts, float alpha_max) -> (Tensor, Tensor, Tensor, Tensor)",
    _run,
    _fake,
)


# -- by the moments of a tilted distribution ---------------------------------------------------------------------------


def tilt(large: Tensor, base: Tensor, experts: Tensor) -> Tilt:
    """The distributions that the search and its result are built on; arguments as of `fusion_alpha`."""
    large, base = large.float(), base.float()
    push = experts.transpose(0, 1).float() - base[:, None]
    if large.numel() and large.amin() == -torch.inf:
        excluded = large == -torch.inf
        push.masked_fill_(excluded[:, None], 0.0)
        base = base.masked_fill(excluded, -torch.inf)
    # A constant of the push changes nothing; with L'(0) = 0 it also costs no digits.
    zero = tilted_moments(large, push, push.new_zeros(*push.shape[:2], 1))[:, :, 0]
    push -= zero[:, :, 1:2]
    return Tilt(large - zero[:, :1, 0], base, push)


def targets(parts: Tilt) -> Tensor:
    """KL(Q_t||Q) and KL(Q||Q_t), `[rows, experts, 2]` in nats."""
    push = parts.push
    at = tilted_moments(parts.base, push, push.new_tensor([0.0, 1.0]).expand(*push.shape[:2], 2))
    log_z, mean = at[..., 1, 0] - at[..., 0, 0], at[..., 1]
    return torch.stack([mean[..., 1] - log_z, log_z - mean[..., 0]], -1).clamp_(min=0.0)  # rounding


def divergences(log_p: Tensor, push: Tensor, alpha: Tensor) -> Divergences:
    """Of P tilted by each direction of `push`, whose mean under P is 0; arguments as of `along` and tilted_moments."""
    log_z, mean, variance, third = tilted_moments(log_p, push, alpha).unbind(-1)
    return Divergences(
        torch.stack([alpha * mean - log_z, log_z], -1),
        torch.stack([alpha * variance, mean], -1),
        torch.stack([variance + alpha * third, variance], -1),
    )


def _search(parts: Tilt, alpha_max: float) -> FusionAlpha:
    target = targets(parts)
    return FusionAlpha(*along(parts.log_p, parts.push, target.mean(1), alpha_max), target)


def along(log_p: Tensor, push: Tensor, target: Tensor, alpha_max: float) -> tuple[Tensor, Tensor, Tensor]:
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
    at = divergences(log_p, push, grid[1:].expand(*push.shape[:2], GRID))
    at = Divergences(*(F.pad(part, (0, 0, 1, 0)) for part in at))  # at 0 both are 0 and rise by 0
    value, cell = (at.value - target[:, None, None]).square().sum(-1).min(-1)
    best, width = grid[cell], alpha_max / GRID
    x = width * _least_of_cubics(at, target, width)
    low, high = (x - width).clamp_(min=0.0), (x + width).clamp_(max=alpha_max)
    done = value <= NOTHING
    for _ in range(NEWTON_STEPS):
        at = Divergences(*(part[:, :, 0] for part in divergences(log_p, push, x[..., None])))
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


def _least_of_cubics(at: Divergences, target: Tensor, width: float) -> Tensor:
    """Where both divergences, as cubics through the grid's values and slopes, come nearest to `target`, in cells."""
    s = torch.linspace(0.0, 1.0, SUBGRID + 1, device=target.device)
    basis = torch.stack(
        [(1 + 2 * s) * (1 - s) ** 2, s**2 * (3 - 2 * s), width * s * (1 - s) ** 2, width * s**2 * (s - 1)]
    )
    ends = torch.stack([at.value[:, :, :-1], at.value[:, :, 1:], at.rise[:, :, :-1], at.rise[:, :, 1:]], -1)
    read = ends @ basis  # [rows, directions, GRID, 2, SUBGRID + 1]
    nearest = (read - target[:, None, None, :, None]).square().sum(3).flatten(2).argmin(-1)
    return nearest // (SUBGRID + 1) + s[nearest % (SUBGRID + 1)]
