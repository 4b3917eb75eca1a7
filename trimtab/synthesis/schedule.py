"""Which texts are generated together, so that a run that was cut off goes on in the same batches."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from random import Random


def batches(counts: Sequence[int], size: int) -> list[tuple[int, int]]:
    """The first index of each batch and the one after its last.

    Args:
        counts: how many texts were asked for, by each run on the data set, rising. A batch ends at each of them.
        size: texts of a batch at most.
    """
    if not counts:
        return []
    ends = sorted({*range(size, counts[-1], size), *counts})
    return list(zip([0, *ends], ends, strict=False))


def whole_batches(schedule: Sequence[tuple[int, int]], done: int) -> int:
    """How many of the `done` first texts stand in batches that are complete."""
    ends = [end for _, end in schedule]
    return ([0, *ends])[bisect_right(ends, done)]


def random_for(*key: object) -> Random:
    """A generator that depends on nothing but the key."""
    return Random("/".join(map(str, key)))


def torch_seed(*key: object) -> int:
    """A seed for torch, below 2**63, likewise."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def seed_order(seed: int, seeds: int, index: int) -> int:
    """Which seed text `index` starts from: all of them once in random order, then again in another."""
    lap, position = divmod(index, seeds)
    order = list(range(seeds))
    random_for(seed, "order", lap).shuffle(order)
    return order[position]
