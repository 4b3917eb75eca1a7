"""Ctrl-C that is not lost.

Python raises KeyboardInterrupt wherever the main thread happens to be, and C code that asks an object for an attribute
(`PyObject_HasAttr`) clears whatever comes up there: about one in a dozen interrupts of a generation had no effect.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Self

import torch
from torch import Tensor


class Interrupts:
    """Remembers an interrupt, and raises it again after the next token.

    Use it as a context around `generate`, and as one of its `stopping_criteria`. Outside the main thread, where no
    interrupt is raised, it does nothing.
    """

    def __init__(self) -> None:
        self._came = False

    def __enter__(self) -> Self:
        self._here = threading.current_thread() is threading.main_thread()
        if self._here:
            self._before = signal.signal(signal.SIGINT, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._here:
            signal.signal(signal.SIGINT, self._before)
        if self._came and kind is None:
            raise KeyboardInterrupt

    def __call__(self, input_ids: Tensor, scores: object, **_: object) -> Tensor:
        """Bool `[rows]`, never true: for `stopping_criteria`."""
        if self._came:
            raise KeyboardInterrupt
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self._came = True
        raise KeyboardInterrupt
