"""Tile sizes of the GPU kernels: measured ones from a file, safe ones by rule.

A measured entry holds for one operation, class of rows, weight shape, dtype, group, GPU and major versions of Triton
and CUDA. `python -m trimtab.kernels.tune` measures and writes them to the user's cache; entries that come with the
package are in tuned.json. Nothing is measured at import or inside a request, and a missing entry is no error.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch

from ..paths import cache_dir

Operation = Literal["linear_w8a8", "linear_w8a16", "linear_w4a16"]

KERNEL_VERSION = 1
"""Raised when a kernel changes so that what was measured no longer holds."""

_DEFAULT_MULTIPROCESSORS = 132
_SHIPPED = Path(__file__).with_name("tuned.json")
_MIN_STEPS = 4  # of a part of the split: less does not fill the pipeline


@dataclass(frozen=True, slots=True)
class Config:
    """How a matrix kernel is cut up.

    Attributes:
        block_m: tokens of a tile, a power of 2 from 16.
        block_n: outputs of a tile, a power of 2 from 16.
        block_k: input channels of a step, a power of 2 from 32; of 4-bit weights always the 128 of a packed block.
        split_k: programs that share the input channels of a tile.
        warps: of a program.
        stages: loads in flight, in steps.
    """

    block_m: int
    block_n: int
    block_k: int
    split_k: int = 1
    warps: int = 4
    stages: int = 4

    def options(self) -> dict[str, Any]:
        """Keyword arguments of the kernels."""
        return {
            "BLOCK_M": self.block_m,
            "BLOCK_N": self.block_n,
            "BLOCK_K": self.block_k,
            "SPLIT_K": self.split_k,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }


def row_class(rows: int) -> int:
    """The power of 2 from 1 to 64 that stands for a number of rows."""
    return min(64, 1 << max(rows - 1, 0).bit_length())


def lookup(
    operation: Operation, rows: int, out: int, size: int, dtype: torch.dtype, device: torch.device, group: int = 0
) -> Config:
    """The measured tile sizes of this case, else those of `default`.

    Args:
        operation: the kernel.
        rows: tokens.
        out: output channels.
        size: input channels.
        dtype: of the activations.
        device: that runs it.
        group: input channels that share a scale, 0 for all.
    """
    return _lookup(operation, row_class(rows), out, size, dtype, device, group)


@functools.lru_cache(maxsize=4096)
def _lookup(
    operation: Operation, rows: int, out: int, size: int, dtype: torch.dtype, device: torch.device, group: int
) -> Config:
    name, multiprocessors = _device(device)
    entry = _entries().get(key(operation, rows, out, size, dtype, name, group))
    return entry or default(operation, rows, out, size, dtype, multiprocessors)


def key(operation: str, rows: int, out: int, size: int, dtype: torch.dtype, device: str, group: int = 0) -> str:
    """What an entry is filed under; `rows` is rounded up to its class."""
    number = str(dtype).removeprefix("torch.")
    case = operation, f"m{row_class(rows)}", f"n{out}", f"k{size}", number, f"g{group}", device
    return "/".join((*case, *_versions()))


def default(operation: Operation, rows: int, out: int, size: int, dtype: torch.dtype, multiprocessors: int) -> Config:
    """Tile sizes by rule; chosen by reasoning and by what compiles without spills, not measured.

    A row of a tile is 128 bytes of weights or 64 of packed ones, so that every request is for whole sectors. The steps
    in flight on the programs of one multiprocessor are 64 KiB and more, twice what an H100 has to have under way to
    keep its memory busy. Where weights are converted, two warps keep the tile off the Hopper-only product, whose layout
    would have them read byte by byte. The input channels are split until each multiprocessor has two programs.
    """
    block_m = max(16, row_class(rows))
    block_n, block_k, warps, stages = 64, 128, 4, 4
    if operation == "linear_w8a16":
        # float32 activations take three times the registers
        warps, block_k = 2, 64 if dtype == torch.float32 else 128
    elif operation == "linear_w4a16" and block_m < 32:
        warps, stages = 2, 4 if dtype == torch.float32 else 6
    tiles = -(-out // block_n) * -(-rows // block_m)
    steps = -(-size // block_k)
    split_k = 1
    while tiles * split_k < 2 * multiprocessors and steps >= 2 * split_k * _MIN_STEPS and split_k < 16:
        split_k *= 2
    return Config(block_m, block_n, block_k, split_k, warps, stages)


# -- entries -----------------------------------------------------------------------------------------------------------


def user_file() -> Path:
    """Where entries measured on this machine are kept."""
    return cache_dir() / "kernels" / "tuned.json"


_LOADED: dict[str, Config] | None = None
_LOCK = threading.Lock()


def _entries() -> Mapping[str, Config]:
    global _LOADED
    with _LOCK:
        if _LOADED is None:
            _LOADED = _read(_SHIPPED) | _read(user_file())
        return _LOADED


def _read(path: Path) -> dict[str, Config]:
    """The usable entries of a file; one that is damaged, or not there, has none."""
    try:
        entries = json.loads(path.read_text())["entries"]
        return {name: Config(**entry["config"]) for name, entry in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def record(entries: Mapping[str, tuple[Config, float]], path: Path | None = None) -> Path:
    """Add measured entries to a file, and use them from now on.

    Args:
        entries: configuration and its median seconds, by `key`.
        path: the file; the user's own by default.
    """
    global _LOADED
    path = path or user_file()
    try:
        kept = json.loads(path.read_text())["entries"]
    except (OSError, ValueError, KeyError, TypeError):
        kept = {}
    kept |= {name: {"config": asdict(config), "seconds": seconds} for name, (config, seconds) in entries.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    # in one move: another process may be reading
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".json", delete=False) as file:
        json.dump({"entries": kept}, file, indent=1, sort_keys=True)
    os.replace(file.name, path)
    with _LOCK:
        _LOADED = None
    _lookup.cache_clear()
    return path


def device_name(device: torch.device) -> str:
    """As entries name it."""
    return _device(device)[0]


@functools.cache
def _device(device: torch.device) -> tuple[str, int]:
    if device.type != "cuda" or not torch.cuda.is_available():
        return device.type, _DEFAULT_MULTIPROCESSORS
    properties = torch.cuda.get_device_properties(device)
    return properties.name.replace("/", "-"), properties.multi_processor_count


@functools.cache
def _versions() -> tuple[str, ...]:
    try:
        triton = ".".join(version("triton").split(".")[:2])
    except PackageNotFoundError:
        triton = "none"
    return f"triton{triton}", f"cuda{torch.version.cuda or 'none'}", f"kernels{KERNEL_VERSION}"
