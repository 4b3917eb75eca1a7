"""`linear_w4a16` in Triton: levels go to the activations' dtype in registers, group scales act on sums of a group.

A packed block is 128 input channels of one output: 32 words of 16 bits, word j holding channels j, 32 + j, 64 + j and
96 + j from its lowest bits up. Read one bit field at a time, a block is four runs of 32 channels, and each run lies
within one group whether a group has 32, 64 or 128 channels: one layout, and no element moves between threads.

Levels less 8 are exact in every dtype, so weights are never rounded: with p the sum of x (q - 8) over a group and c
that of x, a group adds s p + z c. The second sum comes from a product with ones, in the tensor cores' own layout.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import tuning
from .convert import dot_levels, int4_to_float, levels_dtype
from .tiles import check_device, is_last, steps_of, store_part, store_tile, sum_parts, workspace

RUNS = 4
RUN = 32
BLOCK = RUNS * RUN


@triton.jit(do_not_specialize=["M"])
def kernel(
    x, packed, scale, zero, bias, y, partial, arrivals, M, N, K, blocks,
    stride_x, stride_scale_group, stride_scale_out, stride_zero_group, stride_zero_out,
    GROUP: tl.constexpr, HAS_ZERO: tl.constexpr, HAS_BIAS: tl.constexpr, EVEN_K: tl.constexpr, LEVELS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT_K: tl.constexpr,
):  # fmt: skip
    """y[m, n] = sum_g s[n, g] sum_{k in g} x[m, k] (q[n, k] - 8) + z[n, g] sum_{k in g} x[m, k]  (+ bias[n]).

    Args:
        x: `[M, K]`, rows `stride_x` apart.
        packed: `[N, blocks, 32]` int16.
        scale: `[K / GROUP, N]` by its strides.
        zero: the same, or unused.
        bias: `[N]` or unused.
        y: `[M, N]`.
        partial: workspace of the split, float32.
        arrivals: its counters.
        GROUP: 32, 64 or 128.
        HAS_ZERO: whether `zero` is one.
        HAS_BIAS: whether `bias` is one.
        EVEN_K: whether the last block is full.
        LEVELS: what levels are converted to.
        BLOCK_K: 128.
    """
    column_tile, part, row_tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    columns = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tl.arange(0, 32)
    # beyond the edge the last row is read again, and not stored: cheaper than a mask in the loop
    column = tl.minimum(columns, N - 1).to(tl.int64)
    w_start = packed + column[:, None] * (blocks * 32) + j[None, :]
    x_start = x + tl.minimum(rows, M - 1).to(tl.int64)[None, :] * stride_x + j[:, None]
    ones = tl.full((BLOCK_N, 32), 1.0, LEVELS)
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    p = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    c = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    first, end = steps_of(part, K, BLOCK_K, SPLIT_K)
    for block in range(first, end):
        levels = int4_to_float(tl.load(w_start + block * 32, eviction_policy="evict_first"), LEVELS)
        for run in tl.static_range(4):
            start = block * 128 + run * 32
            if EVEN_K:
                xs = tl.load(x_start + start, eviction_policy="evict_last")
            else:
                xs = tl.load(x_start + start, mask=(start + j < K)[:, None], other=0.0, eviction_policy="evict_last")
            if (run * 32) % GROUP == 0:
                p = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
                c = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
            p = dot_levels(levels[run], xs, p)
            if HAS_ZERO:
                c = dot_levels(ones, xs, c)
            if (run * 32 + 32) % GROUP == 0:
                # a run beyond the last channel has sums of 0, whatever it is scaled by
                group = tl.minimum(start, K - 1) // GROUP
                s = tl.load(scale + group * stride_scale_group + column * stride_scale_out)
                acc += s.to(tl.float32)[:, None] * p
                if HAS_ZERO:
                    z = tl.load(zero + group * stride_zero_group + column * stride_zero_out)
                    acc += z.to(tl.float32)[:, None] * c
    tile = row_tile * tl.num_programs(0) + column_tile
    if SPLIT_K == 1:
        store_tile(acc, y, bias, rows, columns, M, N, HAS_BIAS)
    else:
        store_part(acc, partial, tile, part, SPLIT_K, BLOCK_N * BLOCK_M)
        if is_last(arrivals, tile, SPLIT_K):
            total = sum_parts(acc, partial, tile, SPLIT_K, BLOCK_N * BLOCK_M)
            store_tile(total, y, bias, rows, columns, M, N, HAS_BIAS)


def linear_w4a16(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bias: Tensor | None,
    group: int,
    config: tuning.Config | None = None,
) -> Tensor:
    """As `linear_w4a16` of the package above; `config` is looked up when it is not given."""
    check_device(x)
    (rows, size), (out, blocks) = x.shape, packed.shape[:2]
    y = x.new_empty(rows, out)
    if not rows or not out:
        return y
    if x.stride(1) != 1:
        x = x.contiguous()
    config = config or tuning.lookup("linear_w4a16", rows, out, size, x.dtype, x.device, group)
    tiles = triton.cdiv(out, config.block_n), triton.cdiv(rows, config.block_m)
    partial, arrivals = workspace(config, tiles[0] * tiles[1], 1, torch.float32, x.device)
    shift = scale if zero is None else zero
    kernel[tiles[0], config.split_k, tiles[1]](
        x, packed, scale, shift, scale if bias is None else bias, y, partial, arrivals, rows, out, size, blocks,
        x.stride(0), *scale.stride(), *shift.stride(),
        GROUP=group, HAS_ZERO=zero is not None, HAS_BIAS=bias is not None, EVEN_K=size % BLOCK == 0,
        LEVELS=levels_dtype(x.dtype), **config.options(),
    )  # fmt: skip
    return y
