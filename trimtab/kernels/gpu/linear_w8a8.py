"""`linear_w8a8` in Triton: activations to int8 planes in one kernel, the int32 product and its scales in the next."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import tuning
from .tiles import check_device, is_last, steps_of, store_part, store_tile, sum_parts, workspace

_QUANTIZE_BLOCK = 4096
_ROUND = tl.constexpr(12582912.0)  # 1.5 * 2**23: added and taken away, it leaves the nearest integer, ties to even


@triton.jit(do_not_specialize=["M"])
def quantize_kernel(x, planes, step, M, K, stride_x, LEVELS: tl.constexpr, PLANES: tl.constexpr, BLOCK: tl.constexpr):
    """One row to int8: step a = max|x| / LEVELS, planes of round(x / a); a row with inf or nan gets the step nan.

    Args:
        x: `[M, K]`, rows `stride_x` apart.
        planes: `[PLANES * M, K]` int8, the high plane first.
        step: `[M]` float32.
    """
    row = tl.program_id(0)
    x_row = x + row.to(tl.int64) * stride_x
    k = tl.arange(0, BLOCK)
    peak = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, K, BLOCK):
        value = tl.abs(tl.load(x_row + start + k, mask=start + k < K, other=0.0).to(tl.float32))
        # nan is not above inf, and a maximum may pass over it
        peak = tl.maximum(peak, tl.where(value < float("inf"), value, float("inf")))
    top = tl.max(peak, 0)
    a = tl.div_rn(tl.maximum(top, 1e-30), LEVELS)
    a = tl.where(top < float("inf"), a, float("nan"))
    tl.store(step + row, a)
    high_row = planes + row.to(tl.int64) * K
    for start in range(0, K, BLOCK):
        inside = start + k < K
        value = tl.load(x_row + start + k, mask=inside, other=0.0).to(tl.float32)
        level = tl.where(top < float("inf"), tl.div_rn(value, a), 0.0)
        level = ((level + _ROUND) - _ROUND).to(tl.int32)
        if PLANES == 1:
            tl.store(high_row + start + k, level.to(tl.int8), mask=inside)
        else:
            high = (level + 128) >> 8
            tl.store(high_row + start + k, high.to(tl.int8), mask=inside)
            low_row = high_row + M.to(tl.int64) * K
            tl.store(low_row + start + k, (level - high * 256).to(tl.int8), mask=inside)


@triton.jit(do_not_specialize=["M"])
def kernel(
    planes, step, weight, scale, bias, y, partial, arrivals, M, N, K,
    HAS_BIAS: tl.constexpr, EVEN_K: tl.constexpr, PLANES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT_K: tl.constexpr,
):  # fmt: skip
    """y[m, n] = a[m] s[n] (256 sum_k hi[m, k] wq[n, k] + sum_k lo[m, k] wq[n, k]) + bias[n]; without `lo`, hi alone.

    Args:
        planes: `[PLANES * M, K]` int8.
        step: `[M]` float32, a.
        weight: `[N, K]` int8.
        scale: `[N]` float32.
        bias: `[N]` or unused.
        y: `[M, N]`.
        partial: workspace of the split, int32.
        arrivals: its counters.
        HAS_BIAS: whether `bias` is one.
        EVEN_K: whether the steps end where the input channels do.
    """
    column_tile, part, row_tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    columns = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    # beyond the edge the last row is read again, and not stored: cheaper than a mask in the loop
    w_start = weight + tl.minimum(columns, N - 1).to(tl.int64)[:, None] * K
    high_start = planes + tl.minimum(rows, M - 1).to(tl.int64)[None, :] * K
    low_start = planes + (tl.minimum(rows, M - 1) + M).to(tl.int64)[None, :] * K
    high = tl.zeros((BLOCK_N, BLOCK_M), tl.int32)
    low = tl.zeros((BLOCK_N, BLOCK_M), tl.int32)
    first, end = steps_of(part, K, BLOCK_K, SPLIT_K)
    for at_step in range(first, end):
        at = at_step * BLOCK_K + k
        if EVEN_K:
            w = tl.load(w_start + at[None, :], eviction_policy="evict_first")
            high = tl.dot(w, tl.load(high_start + at[:, None], eviction_policy="evict_last"), high)
            if PLANES == 2:
                low = tl.dot(w, tl.load(low_start + at[:, None], eviction_policy="evict_last"), low)
        else:
            inside = at < K
            w = tl.load(w_start + at[None, :], mask=inside[None, :], other=0, eviction_policy="evict_first")
            xs = tl.load(high_start + at[:, None], mask=inside[:, None], other=0, eviction_policy="evict_last")
            high = tl.dot(w, xs, high)
            if PLANES == 2:
                xs = tl.load(low_start + at[:, None], mask=inside[:, None], other=0, eviction_policy="evict_last")
                low = tl.dot(w, xs, low)
    tile = row_tile * tl.num_programs(0) + column_tile
    a = tl.load(step + rows, mask=rows < M, other=0.0)[None, :]
    s = tl.load(scale + columns, mask=columns < N, other=0.0)[:, None]
    SIZE: tl.constexpr = BLOCK_N * BLOCK_M
    if SPLIT_K == 1:
        store_tile(_sum(high, low, PLANES) * a * s, y, bias, rows, columns, M, N, HAS_BIAS)
    else:
        store_part(high, partial, tile, part, SPLIT_K, SIZE)
        low_partial = partial + tl.num_programs(2).to(tl.int64) * tl.num_programs(0) * SPLIT_K * SIZE
        if PLANES == 2:
            store_part(low, low_partial, tile, part, SPLIT_K, SIZE)
        if is_last(arrivals, tile, SPLIT_K):
            high = sum_parts(high, partial, tile, SPLIT_K, SIZE)
            if PLANES == 2:
                low = sum_parts(low, low_partial, tile, SPLIT_K, SIZE)
            store_tile(_sum(high, low, PLANES) * a * s, y, bias, rows, columns, M, N, HAS_BIAS)


@triton.jit
def _sum(high, low, PLANES: tl.constexpr):
    if PLANES == 1:
        return high.to(tl.float32)
    else:  # noqa: RET505 - Triton compiles both branches of an if without else
        return high.to(tl.float32) * 256.0 + low.to(tl.float32)


def quantize_activation(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """As `quantize_activation` of the package above, the step nan for a row that holds inf or nan."""
    check_device(x)
    if x.stride(-1) != 1:
        x = x.contiguous()
    (rows, size), planes = x.shape, bits // 8
    levels = torch.empty(planes * rows, size, dtype=torch.int8, device=x.device)
    step = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    block = min(_QUANTIZE_BLOCK, triton.next_power_of_2(size))
    quantize_kernel[(rows,)](
        x, levels, step, rows, size, x.stride(0), LEVELS=float(127 if bits == 8 else 127 * 256), PLANES=planes,
        BLOCK=block, num_warps=8 if block > 1024 else 4,
    )  # fmt: skip
    return levels, step


def linear_w8a8(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, bits: int, config: tuning.Config | None = None
) -> Tensor:
    """As `linear_w8a8` of the package above; `config` is looked up when it is not given."""
    check_device(x)
    (rows, size), out, planes = x.shape, len(weight), bits // 8
    y = x.new_empty(rows, out)
    if not rows or not out:
        return y
    levels, step = quantize_activation(x, bits)
    config = config or tuning.lookup("linear_w8a8", rows, out, size, x.dtype, x.device)
    tiles = triton.cdiv(out, config.block_n), triton.cdiv(rows, config.block_m)
    partial, arrivals = workspace(config, tiles[0] * tiles[1], planes, torch.int32, x.device)
    kernel[tiles[0], config.split_k, tiles[1]](
        levels, step, weight, scale, scale if bias is None else bias, y, partial, arrivals, rows, out, size,
        HAS_BIAS=bias is not None, EVEN_K=size % config.block_k == 0, PLANES=planes, **config.options(),
    )  # fmt: skip
    return y
