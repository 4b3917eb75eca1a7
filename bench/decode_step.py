"""A whole decoding or verification step of an 8B-shaped Llama: bfloat16 against each low-bit format.

    PYTHONPATH=. python bench/decode_step.py --json bench/results/decode_step.json
    PYTHONPATH=. python bench/decode_step.py --device cpu --layers 2 --hidden 512 --intermediate 1024 --vocab 4096

Random weights (bench/random_llama.py): linears, norms, rotary positions, attention over a cache of `--context` tokens,
the output head and the best token of each position. On a GPU every arm is a CUDA graph; arms take turns, each replay in
front of the next arm's, and medians are compared. The memory limit is measured in the same run. Needs torch and Triton.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor

from bench.kernels import deciles, memory_limit, take_turns, timer
from bench.random_llama import FORMATS, Shape, Step, Weights, random_cache, random_weights
from trimtab.compare.provenance import load_average, provenance

WINDOWS = tuple(range(1, 9))
BATCHES = (1, 2, 4, 8, 16)


@dataclass(frozen=True, slots=True)
class Point:
    """One format at one batch and window.

    Attributes:
        format: of the linears.
        batch: sequences.
        window: tokens of each.
        seconds: of a step, median.
        low: 10th percentile.
        high: 90th percentile.
        gigabytes_per_second: of weights and cache, each read once.
        memory_share: of the memory limit of this run.
        ratio: seconds of bfloat16 at the same batch and window over these.
        ratio_decode: seconds of bfloat16 at the same batch and a window of 1 over these; None where that did not run.
    """

    format: str
    batch: int
    window: int
    seconds: float
    low: float
    high: float
    gigabytes_per_second: float
    memory_share: float
    ratio: float
    ratio_decode: float | None


def measure(
    shape: Shape,
    weights: dict[str, Weights],
    batches: Sequence[int],
    windows: Sequence[int],
    context: int,
    seconds: float,
    limit: float,
    device: torch.device,
) -> Iterator[Point]:
    """Every batch, window and format.

    Args:
        shape: of the model.
        weights: by format, bfloat16 among them.
        batches: sequences.
        windows: tokens of each, ascending.
        context: tokens in the cache before the window.
        seconds: for each point.
        limit: bytes per second.
        device: of the weights.
    """
    for batch in batches:
        decode: float | None = None
        for window in windows:
            cache = random_cache(shape, batch, context, window, device)
            x = torch.randn(batch, window, shape.hidden, device=device, dtype=torch.bfloat16)
            steps = {name: Step(shape, one, cache, x) for name, one in weights.items()}
            taken = take_turns({name: timer(_turn(step), device) for name, step in steps.items()}, seconds)
            medians = {name: statistics.median(times) for name, times in taken.items()}
            if window == 1:
                decode = medians["bf16"]
            for name, times in taken.items():
                rate = (weights[name].bytes + cache.bytes) / medians[name]
                yield Point(
                    format=name,
                    batch=batch,
                    window=window,
                    seconds=medians[name],
                    **deciles(times),
                    gigabytes_per_second=rate / 1e9,
                    memory_share=rate / limit,
                    ratio=medians["bf16"] / medians[name],
                    ratio_decode=None if decode is None else decode / medians[name],
                )


def _turn(step: Step) -> Callable[[int], Tensor]:
    return lambda _: step()


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cuda", "cpu"])
    for name, value in asdict(Shape()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    parser.add_argument("--context", type=int, default=1024, help="tokens in the cache before the window")
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--windows", type=int, nargs="+", default=list(WINDOWS))
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=FORMATS)
    parser.add_argument("--quantize-head", action="store_true", help="the output head too; it stays bfloat16 otherwise")
    parser.add_argument("--seconds", type=float, default=0.2, help="for each point")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    shape = Shape(**{name: getattr(options, name) for name in asdict(Shape())})
    if shape.hidden % shape.heads or shape.heads % shape.kv_heads or shape.head_size % 2:
        parser.error("--heads has to divide --hidden into even parts, and --kv-heads --heads")
    formats = tuple(name for name in FORMATS if name == "bf16" or name in options.formats)
    torch.manual_seed(0)
    limit = memory_limit(device)
    print(f"memory limit {limit / 1e9:.1f} GB/s; load {load_average()}; {shape}, context {options.context}", flush=True)
    points: list[Point] = []
    with torch.inference_mode():
        weights = random_weights(shape, formats, device, quantize_head=options.quantize_head)
        for name, one in weights.items():
            print(f"{name:<8} {one.bytes / 1e9:.3f} GB of weights", flush=True)
        print(
            f"{'format':<8} {'batch':>5} {'window':>6} {'ms':>9} {'GB/s':>8} {'limit':>6} {'x bf16':>7} {'x decode':>8}"
        )
        rest = (sorted(options.windows), options.context, options.seconds, limit, device)
        for point in measure(shape, weights, options.batches, *rest):
            points.append(point)
            decode = "" if point.ratio_decode is None else f"{point.ratio_decode:8.2f}"
            print(
                f"{point.format:<8} {point.batch:>5} {point.window:>6} {point.seconds * 1e3:>9.3f} "
                f"{point.gigabytes_per_second:>8.1f} {point.memory_share:>6.1%} {point.ratio:>7.2f} {decode:>8}",
                flush=True,
            )
    if options.json:
        found = {
            "provenance": provenance(),
            "shape": asdict(shape),
            "context": options.context,
            "quantize_head": options.quantize_head,
            "memory_limit": limit,
            "weights": {name: one.bytes for name, one in weights.items()},
            "points": [asdict(point) for point in points],
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
