"""The alphas that fusion's search chooses, on `/metrics`; counted in a thread, so that no step waits for the device."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .metrics import Histogram

INTERVAL = 0.5
"""Seconds between two writes."""
BUCKETS = tuple(step / 8 for step in range(17))
"""From 0, which is an expert that is not heard, to 2, where the search ends by default."""

ALPHAS = Histogram(
    "trimtab:fusion_alpha",
    "Alpha that was chosen by search, at each scored position.",
    BUCKETS,
    ("model_name", "expert"),
)


class AlphaMetrics:
    """Counts alphas of one engine.

    Args:
        model: its name in requests.
        experts: their names.
    """

    def __init__(self, model: str, experts: Sequence[str]) -> None:
        self._model, self._experts = model, tuple(experts)
        self._inbox: queue.SimpleQueue[tuple[Tensor, Tensor, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="trimtab-alpha", daemon=True).start()

    def add(self, alpha: Tensor, counted: Tensor) -> None:
        """Those of one step; returns without waiting for the device.

        Args:
            alpha: `[rows, experts]`.
            counted: `[rows]` bool; the others are left out.
        """
        copies = [tensor.detach().to("cpu", non_blocking=True, copy=True) for tensor in (alpha, counted)]
        ready = None
        if alpha.device.type != "cpu":
            ready = torch.Event(alpha.device)
            ready.record()
        self._inbox.put((copies[0], copies[1], ready))

    def _run(self) -> None:
        while True:
            steps = [self._inbox.get()]
            time.sleep(INTERVAL)  # then one write for all steps in between
            while not self._inbox.empty():
                steps.append(self._inbox.get())
            for _, _, ready in steps:
                if ready is not None:
                    ready.synchronize()
            chosen = torch.cat([alpha[counted] for alpha, counted, _ in steps])
            if len(chosen):
                for name, values in zip(self._experts, chosen.T.tolist(), strict=True):
                    ALPHAS.observe(*values, model_name=self._model, expert=name)
