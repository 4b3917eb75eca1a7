"""Measure tile sizes on the GPU at hand and keep the best in the user's cache.

    python -m trimtab.kernels.tune --shapes 4096x4096 28672x4096 --rows 1 8 16

Each candidate runs in a CUDA graph over copies of the weights that exceed the second-level cache. What the compiler
refuses, for lack of shared memory say, is passed over.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..errors import InputError
from . import linear_w4a16 as w4
from . import linear_w8a8 as w8
from .tuning import Config, Operation, device_name, key, record, row_class

OPERATIONS: tuple[Operation, ...] = ("linear_w8a8", "linear_w8a16", "linear_w4a16")
_CACHE = 256 * 2**20
_GROUP = 128


def candidates(operation: Operation, rows: int) -> Iterator[Config]:
    """What is tried: all that could keep a GPU's memory busy."""
    block_k = (128,) if operation == "linear_w4a16" else (64, 128, 256)
    for block_n, k, split, warps, stages in itertools.product(
        (32, 64, 128), block_k, (1, 2, 4, 8), (2, 4, 8), (3, 4, 6)
    ):
        yield Config(max(16, row_class(rows)), block_n, k, split, warps, stages)


def tune(operation: Operation, rows: int, out: int, size: int, dtype: torch.dtype) -> tuple[str, Config, float]:
    """The fastest candidate, with its key and its median seconds.

    Raises:
        InputError: no candidate runs.
    """
    device = torch.device("cuda", torch.cuda.current_device())
    weight = torch.randn(out, size, device=device)
    x = torch.randn(rows, size, device=device).to(dtype)
    group = _GROUP if operation == "linear_w4a16" else 0
    call = _calls(operation, weight, x)
    found: list[tuple[float, Config]] = []
    for config in candidates(operation, rows):
        try:
            found.append((_seconds(call, config), config))
        except Exception as error:  # whatever Triton raises for a tile that does not fit
            if "out of memory" in str(error):
                raise
    if not found:
        raise InputError(f"no tile of {operation} runs on {device_name(device)}: is Triton's version supported?")
    seconds, best = min(found, key=lambda pair: pair[0])
    return key(operation, rows, out, size, dtype, device_name(device), group), best, seconds


def _calls(operation: Operation, weight: Tensor, x: Tensor) -> Callable[[int, Config], Tensor]:
    from .gpu import linear_w4a16 as gpu4
    from .gpu import linear_w8a8 as gpu8
    from .gpu import linear_w8a16 as gpu16

    if operation == "linear_w4a16":
        levels, scale, zero = w4.quantize_weight(weight, _GROUP)
        packed = w4.pack_blocks(levels)
        scales, zeros = scale.t().contiguous().bfloat16(), zero.t().contiguous().bfloat16()
        copies = _copies(packed)
        return lambda i, c: gpu4.linear_w4a16(x, copies[i % len(copies)], scales, zeros, None, _GROUP, c)
    quantized, step = w8.quantize_weight(weight)
    copies = _copies(quantized)
    if operation == "linear_w8a8":
        return lambda i, c: gpu8.linear_w8a8(x, copies[i % len(copies)], step, None, 16, c)
    return lambda i, c: gpu16.linear_w8a16(x, copies[i % len(copies)], step, None, c)


def _copies(weight: Tensor) -> list[Tensor]:
    return [weight.clone() for _ in range(min(64, -(-_CACHE // (weight.numel() * weight.element_size()))))]


def _seconds(call: Callable[[int, Config], Tensor], config: Config, repeats: int = 32) -> float:
    call(0, config)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for index in range(repeats):
            call(index, config)
    graph.replay()
    taken = []
    for _ in range(5):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end) / 1e3 / repeats)
    return statistics.median(taken)


def main() -> None:
    """Tune the cases of the command line, and write each as it is found."""
    parser = argparse.ArgumentParser(description="Measure tile sizes of the GPU kernels.")
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    parser.add_argument("--shapes", nargs="+", required=True, help="OUTxIN, as 4096x14336")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 16])
    parser.add_argument("--dtype", choices=["bfloat16", "float16"], default="bfloat16")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no GPU is at hand: there is nothing to measure, the rule of tuning.default holds")
    for operation, shape, rows in itertools.product(options.operations, options.shapes, options.rows):
        out, size = map(int, shape.split("x"))
        name, config, seconds = tune(operation, rows, out, size, getattr(torch, options.dtype))
        record({name: (config, seconds)})
        print(f"{name}: {config} {seconds * 1e6:.1f} us", flush=True)


if __name__ == "__main__":
    main()
