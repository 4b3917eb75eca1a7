"""The low-bit linears beside torch's own, at the rows of a verification window and the shapes of known models.

    PYTHONPATH=. python bench/kernels.py --json bench/results/kernels.json --plot bench/results/kernels.png
    PYTHONPATH=. python bench/kernels.py --device cpu --json bench/results/kernels_cpu.json

Every point is a median of calls that take turns with those of the other arms, and that each meet a copy of the weights
that no cache holds any more. The memory limit is that of a large copy (GPU) or a large sum (CPU) in the same process.
Needs torch, and matplotlib for the plot; Triton on a GPU.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.compare.provenance import load_average, provenance
from trimtab.kernels import linear_w4a16 as w4
from trimtab.kernels import linear_w8a8 as w8
from trimtab.kernels.linear_w8a16 import linear_w8a16

ROWS = (1, 2, 4, 8, 16, 32, 64)
SHAPES = {
    "Llama-3.1-8B qkv": (6144, 4096),
    "Llama-3.1-8B o": (4096, 4096),
    "Llama-3.1-8B gate_up": (28672, 4096),
    "Llama-3.1-8B down": (4096, 14336),
    "Qwen3-8B gate_up": (24576, 4096),
    "Qwen3-8B down": (4096, 12288),
    "Llama-3.1-70B/4 qkv": (2560, 8192),
    "Llama-3.1-70B/4 o": (8192, 2048),
    "Llama-3.1-70B/4 gate_up": (14336, 8192),
    "Llama-3.1-70B/4 down": (8192, 7168),
    "SmolLM2-135M gate_up": (3072, 576),
    "SmolLM2-135M down": (576, 1536),
}
CPU_ROWS = (1, 4, 8, 16, 64)
CPU_SHAPES = {"4096x4096": (4096, 4096), "14336x4096": (14336, 4096)}

Call = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Point:
    """One arm on one shape.

    Attributes:
        arm: what ran.
        shape: name of the layer.
        rows: tokens.
        out: output channels.
        size: input channels.
        seconds: median.
        low: 10th percentile.
        high: 90th percentile.
        gigabytes_per_second: of the weights with their scales, as stored.
        memory_share: of the memory limit of this run.
        ratio: seconds of bf16 over seconds of this arm.
        ratio_float32: likewise of float32, where it ran.
    """

    arm: str
    shape: str
    rows: int
    out: int
    size: int
    seconds: float
    low: float
    high: float
    gigabytes_per_second: float
    memory_share: float
    ratio: float
    ratio_float32: float | None


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to compute a linear layer: calls on copies of its weights, and the bytes of one copy."""

    calls: list[Call]
    dtype: torch.dtype
    bytes: int


def arms(out: int, size: int, device: torch.device, cache: int) -> Iterator[tuple[str, Arm]]:
    """Every arm that runs here, its weights copied until `cache` bytes lie between two uses of one."""
    weight = torch.randn(out, size, device=device) * size**-0.5
    if device.type == "cpu":
        yield "torch float32", _arm(lambda w: lambda x: F.linear(x, w), (weight,), torch.float32, cache)
    half = weight.to(torch.bfloat16)
    yield "torch bf16", _arm(lambda w: lambda x: F.linear(x, w), (half,), torch.bfloat16, cache)
    levels, scale = w8.quantize_weight(weight)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    for name, bits in (("W8A8", 8), ("W8A8, 16-bit activations", 16)):
        yield name, _arm(_w8a8(bits), (levels, scale), dtype, cache)
    if device.type == "cpu":
        yield "torch int8 (_int_mm)", _arm(_torch_int8, (levels, scale), dtype, cache)
        yield "W4A16 g32", _arm(_w4a16(out), w4.pack(*w4.quantize_weight(weight)), dtype, cache)
        return
    yield "W8A16", _arm(lambda q, s: lambda x: linear_w8a16(x, q, s), (levels, scale), dtype, cache)
    for group in (128, 32):
        if size % group == 0:
            parts = w4.quantize_weight(weight, group)
            yield f"W4A16 g{group}", _arm(_w4a16(out), w4.pack(*parts), dtype, cache)
    if size % 8 == 0 and out % 8 == 0:
        yield "torch int8 (_int_mm)", _arm(_torch_int8, (levels, scale), dtype, cache)
    if size % 128 == 0 and out % 16 == 0:
        quantized, step, zero = w4.quantize_weight(weight, 128)
        pairs = (quantized[:, ::2] << 4 | quantized[:, 1::2]).to(torch.uint8)
        packed = torch.ops.aten._convert_weight_to_int4pack(pairs, 8)
        scales = torch.stack([step.t(), zero.t()], dim=-1).to(torch.bfloat16).contiguous()
        yield "torch int4 (_weight_int4pack_mm) g128", _arm(_torch_int4, (packed, scales), dtype, cache)


def _w8a8(bits: int) -> Callable[..., Call]:
    def make(weight: Tensor, scale: Tensor) -> Call:
        if weight.device.type == "cpu":  # the first call packs the weights, which is no part of the product
            w8.linear_w8a8(torch.zeros(1, weight.shape[1]), weight, scale)
        return lambda x: w8.linear_w8a8(x, weight, scale, bits=16 if bits == 16 else 8)

    return make


def _w4a16(out: int) -> Callable[..., Call]:
    return lambda packed, scales: lambda x: w4.linear_w4a16(x, packed, scales, out)


def _torch_int4(packed: Tensor, scales: Tensor) -> Call:
    return lambda x: torch.ops.aten._weight_int4pack_mm(x, packed, 128, scales)


def _torch_int8(weight: Tensor, scale: Tensor) -> Call:
    def call(x: Tensor) -> Tensor:
        planes, step = w8.quantize_activation(x, 8)
        if x.is_cuda and len(x) <= 16:
            planes = torch.cat([planes, planes.new_zeros(17 - len(x), planes.shape[1])])
        return (torch._int_mm(planes, weight.t())[: len(x)] * step * scale).to(x.dtype)

    return call


def _arm(make: Callable[..., Call], tensors: tuple[Tensor, ...], dtype: torch.dtype, cache: int) -> Arm:
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    copies = min(64, max(1, -(-cache // size)))
    return Arm([make(*(tensor.clone() for tensor in tensors)) for _ in range(copies)], dtype, size)


def timer(call: Callable[[int], object], device: torch.device, repeats: int = 1) -> Callable[[], float]:
    """What times `call(0)`, `call(1)`, ...: seconds of a single call on the CPU; on a GPU, where launches would count,
    those of a graph of `repeats` calls, a call each."""
    if device.type == "cpu":
        for index in range(2):
            call(index)
        turns = itertools.count(2)

        def once() -> float:
            index = next(turns)
            start = time.perf_counter()
            call(index)
            return time.perf_counter() - start

        return once
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for index in range(repeats):
            call(index)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for index in range(repeats):
            call(index)
    graph.replay()

    def replay() -> float:
        events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        events[0].record()
        graph.replay()
        events[1].record()
        events[1].synchronize()
        return events[0].elapsed_time(events[1]) / 1e3 / repeats

    return replay


def take_turns(timers: Mapping[str, Callable[[], float]], seconds: float, most: int = 200) -> dict[str, list[float]]:
    """Seconds of each arm, one call of each after the other, so that what slows the machine slows them all.

    Args:
        timers: by arm.
        seconds: for each arm; five rounds whatever they take.
        most: rounds.
    """
    taken: dict[str, list[float]] = {name: [] for name in timers}
    began, rounds = time.perf_counter(), 0
    while rounds < 5 or (time.perf_counter() - began < seconds * len(timers) and rounds < most):
        for name, timed in timers.items():
            taken[name].append(timed())
        rounds += 1
    return taken


def deciles(times: Sequence[float]) -> dict[str, float]:
    """The first and the ninth, as `low` and `high`."""
    ordered = sorted(times)
    return {"low": ordered[len(ordered) // 10], "high": ordered[-1 - len(ordered) // 10]}


def memory_limit(device: torch.device) -> float:
    """Bytes per second: a copy of 1 GiB, read and written, on a GPU; reading 256 MiB on a CPU, which weights are."""
    if device.type == "cuda":
        source = torch.empty(2**30, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        copying = timer(lambda _: target.copy_(source), device, 4)
        return 2 * len(source) / statistics.median(take_turns({"copy": copying}, 0.5)["copy"])
    values = torch.ones(2**26)
    return values.numel() * 4 / min(take_turns({"sum": timer(lambda _: values.sum(), device)}, 2.0)["sum"])


def measure(
    shapes: dict[str, tuple[int, int]], rows: tuple[int, ...], device: torch.device, limit: float, seconds: float
) -> Iterator[Point]:
    """Every arm, shape and number of rows."""
    cache = 256 * 2**20
    for shape, (out, size) in shapes.items():
        built = dict(arms(out, size, device, cache))
        for count in rows:
            timers = {name: timer(_on(arm, count, size, device), device, _repeats(arm)) for name, arm in built.items()}
            taken = take_turns(timers, seconds, 200 if device.type == "cpu" else 50)
            medians = {name: statistics.median(values) for name, values in taken.items()}
            for name, values in taken.items():
                rate = built[name].bytes / medians[name]
                single = medians.get("torch float32")
                yield Point(
                    arm=name,
                    shape=shape,
                    rows=count,
                    out=out,
                    size=size,
                    seconds=medians[name],
                    **deciles(values),
                    gigabytes_per_second=rate / 1e9,
                    memory_share=rate / limit,
                    ratio=medians["torch bf16"] / medians[name],
                    ratio_float32=None if single is None else single / medians[name],
                )


def _on(arm: Arm, rows: int, size: int, device: torch.device) -> Callable[[int], Tensor]:
    """The arm on one input, each time with another copy of its weights."""
    x = torch.randn(rows, size, device=device).to(arm.dtype)
    return lambda index: arm.calls[index % len(arm.calls)](x)


def _repeats(arm: Arm) -> int:
    return max(len(arm.calls), 20)


def plot(points: list[Point], path: Path, title: str) -> None:
    """Ratio to bf16 over the rows, one panel for each shape."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shapes = list(dict.fromkeys(point.shape for point in points))
    columns = min(4, len(shapes))
    lines = -(-len(shapes) // columns)
    figure, grid = plt.subplots(lines, columns, figsize=(4 * columns, 3.2 * lines), squeeze=False, sharex=True)
    names = list(dict.fromkeys(point.arm for point in points))
    for axes, shape in zip(grid.flat, shapes, strict=False):
        for name in names:
            chosen = [point for point in points if point.shape == shape and point.arm == name]
            axes.plot([p.rows for p in chosen], [p.ratio for p in chosen], marker="o", markersize=3, label=name)
        axes.set_title(shape, fontsize=9)
        axes.set_xscale("log", base=2)
        axes.grid(color="#dddddd", linewidth=0.6)
    grid[0, 0].set_ylabel("times as fast as bf16")
    figure.suptitle(title, fontsize=11)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.set_layout_engine("constrained")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cuda", "cpu"])
    parser.add_argument("--shapes", nargs="+", help="names, or parts of them")
    parser.add_argument("--rows", nargs="+", type=int)
    parser.add_argument("--seconds", type=float, help="for each point; default 0.05 on a GPU, 1 on a CPU")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    known = SHAPES if device.type == "cuda" else CPU_SHAPES
    wanted = options.shapes or list(known)
    shapes = {name: shape for name, shape in known.items() if any(part in name for part in wanted)}
    rows = tuple(options.rows or (ROWS if device.type == "cuda" else CPU_ROWS))
    limit = memory_limit(device)
    print(f"memory limit {limit / 1e9:.1f} GB/s; load {load_average()}", flush=True)
    points: list[Point] = []
    print(f"{'shape':<26} {'M':>3} {'arm':<38} {'us':>10} {'GB/s':>8} {'limit':>6} {'x bf16':>7} {'x fp32':>7}")
    for point in measure(shapes, rows, device, limit, options.seconds or (0.05 if device.type == "cuda" else 1.0)):
        points.append(point)
        single = "" if point.ratio_float32 is None else f"{point.ratio_float32:7.2f}"
        print(
            f"{point.shape:<26} {point.rows:>3} {point.arm:<38} {point.seconds * 1e6:>10.1f} "
            f"{point.gigabytes_per_second:>8.1f} {point.memory_share:>6.1%} {point.ratio:>7.2f} {single:>7}",
            flush=True,
        )
    origin = provenance()
    found = {"provenance": origin, "memory_limit": limit, "points": [asdict(point) for point in points]}
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1))
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(asdict(points[0])))
            writer.writeheader()
            writer.writerows(asdict(point) for point in points)
    if options.plot:
        name = torch.cuda.get_device_name() if device.type == "cuda" else origin["cpu"]
        plot(points, options.plot, f"Low-bit linears on {name}")


if __name__ == "__main__":
    main()
