"""Seconds by phase, kept by the statistics of every method."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Timed:
    """What has `seconds` and adds to them."""

    seconds: dict[str, float]

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the time of a block to `seconds[phase]`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start
