"""What the matrix kernels share: the split of the input channels, and the launch.

A tile is `[BLOCK_N outputs, BLOCK_M tokens]`: the weights are the left operand, so that the few tokens of a
verification window fill the narrow side of the tensor cores' tile and not the wide one.

With few outputs there are too few tiles to keep every multiprocessor reading, so the input channels are split among
programs. Each writes its part of the sum, and whichever comes last adds the parts in their order: the result does not
depend on who was last, and there is no second launch.
"""

from __future__ import annotations

import threading

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...errors import InputError
from ..tuning import Config
from .convert import INTERPRETED

MIN_CAPABILITY = (8, 0)


@triton.jit
def steps_of(part, K, BLOCK_K: tl.constexpr, SPLIT_K: tl.constexpr):
    """First and last + 1 of the steps along the input channels that are this program's."""
    steps = tl.cdiv(K, BLOCK_K)
    share = tl.cdiv(steps, SPLIT_K)
    return part * share, tl.minimum(part * share + share, steps)


@triton.jit
def local_offsets(BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr):
    """`[BLOCK_N, BLOCK_M]` offsets of a tile stored by itself."""
    return tl.arange(0, BLOCK_N)[:, None] * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]


@triton.jit
def store_part(acc, partial, tile, part, SPLIT_K: tl.constexpr, SIZE: tl.constexpr):
    """Leave a part of the sum of a tile of `SIZE` elements in the workspace."""
    base = partial + (tile * SPLIT_K + part).to(tl.int64) * SIZE
    tl.store(base + local_offsets(acc.shape[0], acc.shape[1]), acc)


@triton.jit
def is_last(arrivals, tile, SPLIT_K: tl.constexpr):
    """Whether all other parts of the tile are in the workspace; the counter is left at 0 for the next launch."""
    tl.debug_barrier()  # every thread's stores come before the one atomic that releases them
    last = tl.atomic_add(arrivals + tile, 1, sem="acq_rel") == SPLIT_K - 1
    if last:
        tl.store(arrivals + tile, 0)
    return last


@triton.jit
def sum_parts(acc, partial, tile, SPLIT_K: tl.constexpr, SIZE: tl.constexpr):
    """The parts of a tile, added in their order; `acc` gives shape and dtype."""
    total = tl.zeros_like(acc)
    for part in range(SPLIT_K):
        base = partial + (tile * SPLIT_K + part).to(tl.int64) * SIZE
        # past the first-level cache, which other multiprocessors do not write to
        total += tl.load(base + local_offsets(acc.shape[0], acc.shape[1]), cache_modifier=".cg")
    return total


@triton.jit
def store_tile(
    acc, y, bias, rows, columns, M, N, HAS_BIAS: tl.constexpr
):  # fmt: skip
    """Add the bias to a float32 tile and write what lies within `[M, N]`."""
    if HAS_BIAS:
        acc += tl.load(bias + columns, mask=columns < N, other=0.0).to(tl.float32)[:, None]
    where = y + rows.to(tl.int64)[None, :] * N + columns[:, None]
    tl.store(where, acc.to(y.dtype.element_ty), mask=(rows < M)[None, :] & (columns < N)[:, None])


def check_device(x: Tensor, *, argument: str = "x") -> None:
    """Refuse what Triton cannot run.

    Raises:
        InputError: the tensor lies on a CPU, or on a GPU older than `MIN_CAPABILITY`.
    """
    if INTERPRETED:
        return
    if not x.is_cuda:
        raise InputError(f"{argument} lies on {x.device}, a GPU kernel needs it on cuda: move it, or use the CPU path")
    capability = torch.cuda.get_device_capability(x.device)
    if capability < MIN_CAPABILITY:
        needed = ".".join(map(str, MIN_CAPABILITY))
        raise InputError(
            f"{argument} lies on a GPU of compute capability {capability[0]}.{capability[1]}, the kernels need "
            f"{needed} or newer: run the model in its own precision there"
        )


def workspace(config: Config, tiles: int, planes: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Room for the parts of every tile, and the counters of arrivals, zero; two empty tensors without a split."""
    if config.split_k == 1:
        nothing = torch.empty(0, dtype=dtype, device=device)
        return nothing, nothing
    size = tiles * config.split_k * config.block_n * config.block_m * planes
    return torch.empty(size, dtype=dtype, device=device), _arrivals(tiles, device)


_COUNTERS: dict[tuple[torch.device, int], Tensor] = {}
_COUNTERS_LOCK = threading.Lock()


def _arrivals(tiles: int, device: torch.device) -> Tensor:
    """Zeroed counters. Each launch leaves them at zero, so launches in one stream share them; a captured graph, which
    may be replayed beside another, gets its own."""
    if device.type != "cuda":
        return torch.zeros(tiles, dtype=torch.int32, device=device)
    if torch.cuda.is_current_stream_capturing():
        return torch.zeros(tiles, dtype=torch.int32, device=device)
    key = device, torch.cuda.current_stream(device).cuda_stream
    with _COUNTERS_LOCK:
        counters = _COUNTERS.get(key)
        if counters is None or len(counters) < tiles:
            counters = _COUNTERS[key] = torch.zeros(max(tiles, 4096), dtype=torch.int32, device=device)
    return counters
