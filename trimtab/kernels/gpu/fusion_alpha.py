"""`fusion_alpha` in Triton: a program for each row searches by itself, and stops when it has converged.

The search reads the row again for each pass. Nothing of a row stays on the chip between passes, a vocabulary of 150,000
being more than a multiprocessor holds; it stays in the second-level cache. A pass evaluates all the points of a grid at
once: it reads each logit once for them all, and has the exponentials of equally spaced alphas to compute and no more.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import check_device

BLOCK = 1024
WIDE = 4096
"""Tokens that a pass for one alpha reads at once: 8 for each thread, 16 bytes of bfloat16."""
_POINTS = tl.constexpr(16)  # of a grid, a power of 2


@triton.jit
def normalizers(row, other, V, BLOCK: tl.constexpr):
    """log sum exp of a row over the tokens that `other`, the large model's row, does not exclude."""
    lane = tl.arange(0, BLOCK)
    low = float("-inf")
    m = tl.full((BLOCK,), low, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for at in range(0, V, BLOCK):
        inside = at + lane < V
        x = tl.load(row + at + lane, mask=inside, other=low).to(tl.float32)
        x = tl.where(tl.load(other + at + lane, mask=inside, other=low).to(tl.float32) > low, x, low)
        larger = tl.maximum(m, x)
        shift = tl.where(larger > low, larger, 0.0)
        total = total * tl.exp(m - shift) + tl.exp(x - shift)
        m = larger
    top = tl.max(m, 0)
    return top + tl.log(tl.sum(total * tl.exp(m - top), 0))


@triton.jit
def targets_kernel(
    large, base, experts, norms, center, target, V, stride_large, stride_base, stride_expert, stride_row,
    EXPERTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """For a row and an expert: the three log-normalisers, the mean of the push under P, and the two divergences.

    Args:
        large: `[rows, V]`, rows `stride_large` apart.
        base: the same.
        experts: `[experts, rows, V]`.
        norms: `[rows, experts, 3]` float32 of large, base and expert.
        center: `[rows, experts]` float32, E_P[log Q_t - log Q].
        target: `[rows, experts, 2]` float32, KL(Q_t||Q) and KL(Q||Q_t).
    """
    row, expert = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    p_row, q_row = large + row * stride_large, base + row * stride_base
    e_row = experts + expert * stride_expert + row * stride_row
    norm_p, norm_q = normalizers(p_row, p_row, V, BLOCK), normalizers(q_row, p_row, V, BLOCK)
    norm_e = normalizers(e_row, p_row, V, BLOCK)
    lane = tl.arange(0, BLOCK)
    low = float("-inf")
    mean_p = tl.zeros((BLOCK,), tl.float32)
    mean_q = tl.zeros((BLOCK,), tl.float32)
    mean_e = tl.zeros((BLOCK,), tl.float32)
    for at in range(0, V, BLOCK):
        inside = at + lane < V
        log_p = tl.load(p_row + at + lane, mask=inside, other=low).to(tl.float32) - norm_p
        log_q = tl.load(q_row + at + lane, mask=inside, other=0.0).to(tl.float32) - norm_q
        log_e = tl.load(e_row + at + lane, mask=inside, other=0.0).to(tl.float32) - norm_e
        allowed = log_p > low
        push = tl.where(allowed, log_e - log_q, 0.0)
        mean_p += tl.exp(log_p) * push
        mean_q += tl.where(allowed, tl.exp(log_q), 0.0) * push
        mean_e += tl.where(allowed, tl.exp(log_e), 0.0) * push
    place = row * EXPERTS + expert
    tl.store(norms + place * 3, norm_p)
    tl.store(norms + place * 3 + 1, norm_q)
    tl.store(norms + place * 3 + 2, norm_e)
    tl.store(center + place, tl.sum(mean_p, 0))
    tl.store(target + place * 2, tl.maximum(tl.sum(mean_e, 0), 0.0))
    tl.store(target + place * 2 + 1, tl.maximum(-tl.sum(mean_q, 0), 0.0))


@triton.jit
def grid(p_row, q_row, e_row, V, constant_p, constant_push, low_alpha, high_alpha, BLOCK: tl.constexpr):
    """The two divergences at `_POINTS` alphas from low to high; one read of the row."""
    point = tl.arange(0, _POINTS)
    alpha = low_alpha + (high_alpha - low_alpha) * point.to(tl.float32) / (_POINTS - 1)
    lane = tl.arange(0, BLOCK)
    low = float("-inf")
    m = tl.full((_POINTS,), low, tl.float32)
    total = tl.zeros((_POINTS,), tl.float32)
    first = tl.zeros((_POINTS,), tl.float32)
    for at in range(0, V, BLOCK):
        inside = at + lane < V
        log_p = tl.load(p_row + at + lane, mask=inside, other=low).to(tl.float32) - constant_p
        log_q = tl.load(q_row + at + lane, mask=inside, other=0.0).to(tl.float32)
        log_e = tl.load(e_row + at + lane, mask=inside, other=0.0).to(tl.float32)
        push = tl.where(log_p > low, log_e - log_q - constant_push, 0.0)
        tilted = log_p[None, :] + alpha[:, None] * push[None, :]
        larger = tl.maximum(m, tl.max(tilted, 1))
        shift = tl.where(larger > low, larger, 0.0)
        weight = tl.exp(tilted - shift[:, None])
        keep = tl.exp(m - shift)
        total = total * keep + tl.sum(weight, 1)
        first = first * keep + tl.sum(weight * push[None, :], 1)
        m = larger
    log_z = m + tl.log(total)
    return alpha, alpha * first / total - log_z, log_z


@triton.jit
def moments(p_row, q_row, e_row, V, constant_p, constant_push, alpha, BLOCK: tl.constexpr):
    """log Z, and the first three moments of the push about 0, at one alpha; a lane each keeps its own largest."""
    lane = tl.arange(0, BLOCK)
    low = float("-inf")
    m = tl.full((BLOCK,), low, tl.float32)
    zeroth = tl.zeros((BLOCK,), tl.float32)
    first = tl.zeros((BLOCK,), tl.float32)
    second = tl.zeros((BLOCK,), tl.float32)
    third = tl.zeros((BLOCK,), tl.float32)
    for at in range(0, V, BLOCK):
        inside = at + lane < V
        log_p = tl.load(p_row + at + lane, mask=inside, other=low).to(tl.float32) - constant_p
        log_q = tl.load(q_row + at + lane, mask=inside, other=0.0).to(tl.float32)
        log_e = tl.load(e_row + at + lane, mask=inside, other=0.0).to(tl.float32)
        push = tl.where(log_p > low, log_e - log_q - constant_push, 0.0)
        tilted = log_p + alpha * push
        larger = tl.maximum(m, tilted)
        shift = tl.where(larger > low, larger, 0.0)
        keep, weight = tl.exp(m - shift), tl.exp(tilted - shift)
        zeroth = zeroth * keep + weight
        first = first * keep + weight * push
        second = second * keep + weight * push * push
        third = third * keep + weight * push * push * push
        m = larger
    top = tl.max(m, 0)
    weight = tl.exp(m - top)
    total = tl.sum(zeroth * weight, 0)
    mean = tl.sum(first * weight, 0) / total
    square, cube = tl.sum(second * weight, 0) / total, tl.sum(third * weight, 0) / total
    variance = tl.maximum(square - mean * mean, 0.0)
    return top + tl.log(total), mean, variance, cube - 3.0 * mean * square + 2.0 * mean * mean * mean


@triton.jit
def search_kernel(
    large, base, experts, norms, center, goal, alpha_out, distance_out, converged_out, V,
    stride_large, stride_base, stride_expert, stride_row, alpha_max, precision, newton_steps,
    EXPERTS: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """For a row and an expert: the alpha in [0, alpha_max] whose two divergences come nearest to `goal`.

    Two grids find the cell of the lowest distance, a safeguarded Newton iteration ends in it.

    Args:
        goal: `[rows, 2]` float32.
        alpha_out: `[rows, experts]` float32.
        distance_out: `[rows, experts]` float32, squared.
        converged_out: `[rows, experts]` int8.
    """
    row, expert = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    p_row, q_row = large + row * stride_large, base + row * stride_base
    e_row = experts + expert * stride_expert + row * stride_row
    place = row * EXPERTS + expert
    constant_p = tl.load(norms + place * 3)
    constant_push = tl.load(norms + place * 3 + 2) - tl.load(norms + place * 3 + 1) + tl.load(center + place)
    goal_0, goal_1 = tl.load(goal + row * 2), tl.load(goal + row * 2 + 1)

    alpha, forward, backward = grid(p_row, q_row, e_row, V, constant_p, constant_push, 0.0, alpha_max, BLOCK)
    below = (forward <= goal_0) & (backward <= goal_1)
    above = (forward >= goal_0) & (backward >= goal_1)
    low = tl.max(tl.where(below, alpha, 0.0), 0)
    high = tl.min(tl.where(above, alpha, alpha_max), 0)

    alpha, forward, backward = grid(p_row, q_row, e_row, V, constant_p, constant_push, low, high, BLOCK)
    apart = (forward - goal_0) * (forward - goal_0) + (backward - goal_1) * (backward - goal_1)
    value = tl.min(apart, 0)
    cell = tl.min(tl.where(apart == value, tl.arange(0, _POINTS), _POINTS - 1), 0)
    width = (high - low) / (_POINTS - 1)
    x = low + width * cell.to(tl.float32)
    best = x
    high = tl.minimum(x + width, high)
    low = tl.maximum(x - width, low)
    done = high - low <= 0
    step = 0
    while (step < newton_steps) & (done == 0):
        log_z, mean, variance, skew = moments(p_row, q_row, e_row, V, constant_p, constant_push, x, WIDE)
        rest_0, rest_1 = x * mean - log_z - goal_0, log_z - goal_1
        distance = rest_0 * rest_0 + rest_1 * rest_1
        best = tl.where(distance < value, x, best)
        value = tl.minimum(distance, value)
        rise_0, rise_1 = x * variance, mean
        slope = rest_0 * rise_0 + rest_1 * rise_1
        bend = rise_0 * rise_0 + rise_1 * rise_1 + rest_0 * (variance + x * skew) + rest_1 * variance
        low, high = tl.where(slope < 0, x, low), tl.where(slope > 0, x, high)
        newton = x - slope / tl.where(bend > 0, bend, 1.0)
        inside = (bend > 0) & (newton > low) & (newton < high)
        following = tl.where(inside, newton, (low + high) / 2)
        done = (tl.abs(following - x) <= precision) | (high - low <= precision) | (value <= 1e-10)
        x = following
        step += 1
    tl.store(alpha_out + place, best)
    tl.store(distance_out + place, value)
    tl.store(converged_out + place, done.to(tl.int8))


def fusion_alpha(
    large: Tensor, base: Tensor, experts: Tensor, alpha_max: float, precision: float, newton_steps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `fusion_alpha` of the package above: alpha, squared distance, converged, target."""
    check_device(large, argument="large")
    large, base, experts = (x if x.stride(-1) == 1 else x.contiguous() for x in (large, base, experts))
    count, rows, vocab = experts.shape
    norms = large.new_empty(rows, count, 3, dtype=torch.float32)
    center = large.new_empty(rows, count, dtype=torch.float32)
    target = large.new_empty(rows, count, 2, dtype=torch.float32)
    alpha, distance = torch.empty_like(center), torch.empty_like(center)
    converged = torch.empty_like(center, dtype=torch.int8)
    if not rows:
        return alpha, distance, converged.bool(), target
    strides = large.stride(0), base.stride(0), experts.stride(0), experts.stride(1)
    block = min(BLOCK, triton.next_power_of_2(vocab))
    targets_kernel[rows, count](
        large, base, experts, norms, center, target, vocab, *strides, EXPERTS=count, BLOCK=block, num_warps=4
    )
    # every expert is matched against the mean of all, which the launch before this one had to finish
    search_kernel[rows, count](
        large, base, experts, norms, center, target.mean(1), alpha, distance, converged, vocab, *strides,
        alpha_max, precision * alpha_max, newton_steps, EXPERTS=count, BLOCK=block,
        WIDE=min(WIDE, triton.next_power_of_2(vocab)), num_warps=16,
    )  # fmt: skip
    return alpha, distance, converged.bool(), target
