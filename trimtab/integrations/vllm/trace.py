"""What a processor did to each request, as JSON lines; written in a thread, so that no step waits for a disk."""

from __future__ import annotations

import atexit
import json
import logging
import queue
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError

QUIET = 10.0
"""Seconds without a new token after which a request's line is written, if its end was not seen before."""

logger = logging.getLogger(__name__)


class Stay:
    """One request's time in the batch: what is said about it, and what was measured at each of its tokens.

    Args:
        head: of the line, plain data.
        series: name of the list of measurements.
    """

    def __init__(self, head: dict[str, Any], series: str) -> None:
        self.head, self.series = head, series
        self.values: dict[int, float] = {}
        self.touched = 0.0

    def line(self) -> str:
        """The line, once there is something to say."""
        positions = sorted(self.values)
        values = [round(self.values[position], 4) for position in positions]
        return json.dumps(self.head | {"first_token": positions[0], self.series: values})


class Trace:
    """Appends a line for each request's stay in the batch.

    vLLM tells a processor neither a request's name nor its end: a request that is preempted leaves the batch as one
    that ends does. Its line is written when it leaves, another one if it comes back, `first_token` saying where each
    begins.

    Args:
        path: of the file, appended to.

    Raises:
        InputError: the file cannot be opened.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            # unbuffered: several engines may append to one file, and a write is whole
            self._file = Path(path).open("ab", buffering=0)  # noqa: SIM115 - open as long as the engine
        except OSError as error:
            raise InputError(f"trace is {str(path)!r}, which cannot be written: {error}") from error
        self._inbox: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="trimtab-trace", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def add(self, stays: dict[int, Stay], keys: Tensor, positions: Tensor, values: Tensor) -> None:
        """Measurements of one step; returns without waiting for the device.

        Args:
            stays: by key.
            keys: `[rows]` integers; rows whose key is not in `stays` are left out.
            positions: `[rows]` integers, which generated token is being measured; negative ones are left out, a later
                measurement of the same token replaces an earlier one.
            values: `[rows]`.
        """
        copies = [tensor.detach().to("cpu", non_blocking=True, copy=True) for tensor in (keys, positions, values)]
        ready = None
        if values.device.type != "cpu":
            ready = torch.Event(values.device)
            ready.record()
        self._inbox.put((dict(stays), ready, *copies))

    def end(self, stays: Sequence[Stay]) -> None:
        """These requests have left the batch."""
        if stays:
            self._inbox.put((stays,))

    def close(self) -> None:
        """Write what there is and stop; further calls do nothing."""
        if self._thread.is_alive():
            self._inbox.put(())
            self._thread.join(timeout=10)

    def _run(self) -> None:
        open_stays: set[Stay] = set()
        running = True
        while running:
            ended: set[Stay] = set()
            try:
                message = self._inbox.get(timeout=QUIET)
            except queue.Empty:
                message = None
            if message == ():
                running, ended = False, open_stays
            elif message is not None and len(message) == 1:
                ended = set(message[0])
            elif message is not None:
                open_stays |= _measured(*message)
            late = time.monotonic() - QUIET
            done = {stay for stay in open_stays if stay in ended or stay.touched < late}
            open_stays = open_stays - done
            self._write(sorted(done, key=lambda stay: stay.touched))
        self._file.close()

    def _write(self, stays: Sequence[Stay]) -> None:
        if not stays:
            return
        lines = "".join(stay.line() + "\n" for stay in stays if stay.values)
        for stay in stays:
            stay.values.clear()
        try:
            self._file.write(lines.encode())
        except OSError as error:  # a full disk must not stop an engine
            logger.warning("trimtab's trace cannot be written: %s", error)


def _measured(stays: dict[int, Stay], ready: Any, keys: Tensor, positions: Tensor, values: Tensor) -> set[Stay]:
    if ready is not None:
        ready.synchronize()
    touched = set()
    for key, position, value in zip(keys.tolist(), positions.tolist(), values.tolist(), strict=True):
        if position >= 0 and (stay := stays.get(key)) is not None:
            stay.values[position] = value
            stay.touched = time.monotonic()
            touched.add(stay)
    return touched
