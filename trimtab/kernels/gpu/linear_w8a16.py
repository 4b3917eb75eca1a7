"""`linear_w8a16` in Triton: int8 weights go to the activations' dtype in registers, the scale comes after the sum."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import tuning
from .convert import dot_levels, int8_to_float, levels_dtype
from .tiles import check_device, is_last, steps_of, store_part, store_tile, sum_parts, workspace


@triton.jit(do_not_specialize=["M"])
def kernel(
    x, weight, scale, bias, y, partial, arrivals, M, N, K, stride_x,
    HAS_BIAS: tl.constexpr, EVEN_K: tl.constexpr, LEVELS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT_K: tl.constexpr,
):  # fmt: skip
    """y[m, n] = s[n] sum_k x[m, k] wq[n, k] + bias[n].

    Args:
        x: `[M, K]`, rows `stride_x` apart.
        weight: `[N, K]` int8.
        scale: `[N]`.
        bias: `[N]` or unused.
        y: `[M, N]`.
        partial: workspace of the split, float32.
        arrivals: its counters.
        HAS_BIAS: whether `bias` is one.
        EVEN_K: whether the steps end where the input channels do.
        LEVELS: what levels are converted to.
    """
    column_tile, part, row_tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    columns = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    # beyond the edge the last row is read again, and not stored: cheaper than a mask in the loop
    w_start = weight + tl.minimum(columns, N - 1).to(tl.int64)[:, None] * K
    x_start = x + tl.minimum(rows, M - 1).to(tl.int64)[None, :] * stride_x
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    first, end = steps_of(part, K, BLOCK_K, SPLIT_K)
    for step in range(first, end):
        at = step * BLOCK_K + k
        if EVEN_K:
            w = tl.load(w_start + at[None, :], eviction_policy="evict_first")
            xs = tl.load(x_start + at[:, None], eviction_policy="evict_last")
        else:
            w = tl.load(w_start + at[None, :], mask=(at < K)[None, :], other=0, eviction_policy="evict_first")
            xs = tl.load(x_start + at[:, None], mask=(at < K)[:, None], other=0.0, eviction_policy="evict_last")
        acc = dot_levels(int8_to_float(w, LEVELS), xs, acc)
    tile = row_tile * tl.num_programs(0) + column_tile
    s = tl.load(scale + columns, mask=columns < N, other=0.0).to(tl.float32)[:, None]
    if SPLIT_K == 1:
        store_tile(acc * s, y, bias, rows, columns, M, N, HAS_BIAS)
    else:
        store_part(acc, partial, tile, part, SPLIT_K, BLOCK_N * BLOCK_M)
        if is_last(arrivals, tile, SPLIT_K):
            total = sum_parts(acc, partial, tile, SPLIT_K, BLOCK_N * BLOCK_M)
            store_tile(total * s, y, bias, rows, columns, M, N, HAS_BIAS)


def linear_w8a16(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, config: tuning.Config | None = None
) -> Tensor:
    """As `linear_w8a16` of the package above; `config` is looked up when it is not given."""
    check_device(x)
    (rows, size), out = x.shape, len(weight)
    y = x.new_empty(rows, out)
    if not rows or not out:
        return y
    if x.stride(1) != 1:
        x = x.contiguous()
    config = config or tuning.lookup("linear_w8a16", rows, out, size, x.dtype, x.device)
    tiles = triton.cdiv(out, config.block_n), triton.cdiv(rows, config.block_m)
    partial, arrivals = workspace(config, tiles[0] * tiles[1], 1, torch.float32, x.device)
    kernel[tiles[0], config.split_k, tiles[1]](
        x, weight, scale, scale if bias is None else bias, y, partial, arrivals, rows, out, size, x.stride(0),
        HAS_BIAS=bias is not None, EVEN_K=size % config.block_k == 0, LEVELS=levels_dtype(x.dtype), **config.options(),
    )  # fmt: skip
    return y
