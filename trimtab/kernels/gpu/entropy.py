"""`entropy` in Triton: one pass over each row, split among programs where the rows are few.

A part of a row leaves its largest logit m, l = sum exp(x - m), t = sum (x - m) exp(x - m), and its two best. Parts
are put together as an online softmax is (Milakov & Gimelshein 2018, arXiv 1805.02867), by a second, small launch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import check_device

BLOCK = 4096
_MAX_PARTS = 64
_PROGRAMS = 264  # two for each multiprocessor of an H100
_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def parts_kernel(
    logits, sums, best, rows, vocab, stride, share,
    BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One part of one row: `sums[row, part] = (m, l, t, first, second)`, `best[row, part]` the token of `first`.

    Args:
        logits: `[rows, vocab]`, rows `stride` apart.
        sums: `[rows, PARTS, 5]` float32.
        best: `[rows, PARTS]` int32.
        share: tokens of a part, a multiple of `BLOCK`.
    """
    row, part = tl.program_id(0), tl.program_id(1)
    start = logits + row.to(tl.int64) * stride
    lane = tl.arange(0, BLOCK)
    low = float("-inf")
    m = tl.full((BLOCK,), low, tl.float32)  # each lane its own; put together at the end
    l = tl.zeros((BLOCK,), tl.float32)  # noqa: E741 - the letter of the paper
    t = tl.zeros((BLOCK,), tl.float32)
    first = tl.full((BLOCK,), low, tl.float32)
    second = tl.full((BLOCK,), low, tl.float32)
    where = tl.full((BLOCK,), 2147483647, tl.int32)
    bad = tl.zeros((BLOCK,), tl.float32)
    for at in range(part * share, tl.minimum(part * share + share, vocab), BLOCK):
        token = at + lane
        x = tl.load(start + token, mask=token < vocab, other=low, eviction_policy="evict_first").to(tl.float32)
        bad = tl.where((x == x) & (x < float("inf")), bad, float("nan"))
        x = tl.where(x == x, x, low)
        larger = tl.maximum(m, x)
        # -inf less -inf is nan, and stands for nothing at all
        shift = tl.where(larger > low, larger, 0.0)
        old, new = tl.exp2((m - shift) * _LOG2E), tl.exp2((x - shift) * _LOG2E)
        moved = tl.where(m > low, m - shift, 0.0)
        t = old * (t + moved * l) + tl.where(x > low, (x - shift) * new, 0.0)
        l = l * old + new  # noqa: E741
        m = larger
        beats = x > first
        second = tl.maximum(second, tl.minimum(first, x))
        where = tl.where(beats, token, where)
        first = tl.maximum(first, x)
    top = tl.max(m, 0)
    shift = tl.where(top > low, top, 0.0)
    weight = tl.exp2((m - shift) * _LOG2E)
    moved = tl.where(m > low, m - shift, 0.0)
    total = tl.sum(l * weight, 0)
    mean = tl.sum(weight * (t + moved * l), 0)
    token = tl.min(tl.where(first == top, where, 2147483647), 0)
    # the lane of the best token keeps its second; every other lane offers its first
    runner_up = tl.max(tl.where((first == top) & (where == token), second, first), 0)
    base = sums + (row * PARTS + part) * 5
    tl.store(base, top + tl.sum(bad, 0))
    tl.store(base + 1, total)
    tl.store(base + 2, mean)
    tl.store(base + 3, top)
    tl.store(base + 4, runner_up)
    tl.store(best + row * PARTS + part, token)


@triton.jit
def rows_kernel(sums, best, entropy, values, tokens, PARTS: tl.constexpr, WIDTH: tl.constexpr):
    """The parts of one row together: entropy in bits, the two largest logits, and the token of the largest."""
    row = tl.program_id(0)
    part = tl.arange(0, WIDTH)
    inside = part < PARTS
    base = sums + (row * PARTS + part) * 5
    low = float("-inf")
    m = tl.load(base, mask=inside, other=low)
    l = tl.load(base + 1, mask=inside, other=0.0)  # noqa: E741 - the letter of the paper
    t = tl.load(base + 2, mask=inside, other=0.0)
    first = tl.load(base + 3, mask=inside, other=low)
    second = tl.load(base + 4, mask=inside, other=low)
    where = tl.load(best + row * PARTS + part, mask=inside, other=2147483647)
    bad = tl.sum(tl.where(m == m, 0.0, float("nan")), 0)
    top = tl.max(first, 0)
    shift = tl.where(top > low, top, 0.0)
    weight = tl.where(first > low, tl.exp2((first - shift) * _LOG2E), 0.0)
    moved = tl.where(first > low, first - shift, 0.0)
    total = tl.sum(l * weight, 0)
    mean = tl.sum(weight * (t + moved * l), 0) / total
    bits = tl.maximum((tl.log(total) - mean) * _LOG2E, 0.0)
    tl.store(entropy + row, tl.where(top > low, bits, float("nan")) + bad)
    token = tl.min(tl.where(first == top, where, 2147483647), 0)
    runner_up = tl.max(tl.where((first == top) & (where == token), second, first), 0)
    tl.store(values + row * 2, top + bad)
    tl.store(values + row * 2 + 1, runner_up + bad)
    tl.store(tokens + row, token.to(tl.int64))


def entropy(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Entropy `[rows]` in bits, the two largest logits `[rows, 2]`, the token of the largest `[rows]`."""
    check_device(logits, argument="logits")
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    rows, vocab = logits.shape
    bits, values = logits.new_empty(rows, dtype=torch.float32), logits.new_empty(rows, 2, dtype=torch.float32)
    tokens = logits.new_empty(rows, dtype=torch.int64)
    if not rows:
        return bits, values, tokens
    block = min(BLOCK, triton.next_power_of_2(vocab))
    blocks = triton.cdiv(vocab, block)
    share = triton.cdiv(blocks, min(blocks, _MAX_PARTS, triton.cdiv(_PROGRAMS, rows))) * block
    parts = triton.cdiv(vocab, share)
    sums = logits.new_empty(rows, parts, 5, dtype=torch.float32)
    best = logits.new_empty(rows, parts, dtype=torch.int32)
    parts_kernel[rows, parts](
        logits, sums, best, rows, vocab, logits.stride(0), share, BLOCK=block, PARTS=parts, num_warps=8
    )
    rows_kernel[(rows,)](sums, best, bits, values, tokens, PARTS=parts, WIDTH=triton.next_power_of_2(parts))
    return bits, values, tokens
