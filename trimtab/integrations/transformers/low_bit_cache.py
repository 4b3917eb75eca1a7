"""Low-bit copies of models, made once and kept for later calls."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel

from .low_bit import LowBitModel
from .weights_stamp import weights_stamp


class LowBitCache:
    """One low-bit copy a model, made again when the model's weights have changed; threads may share it.

    Args:
        make: quantises or loads the copy of a model.
    """

    def __init__(self, make: Callable[[PreTrainedModel], LowBitModel]) -> None:
        self._make = make
        self._made: weakref.WeakKeyDictionary[PreTrainedModel, tuple[Any, LowBitModel]] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def of(self, model: PreTrainedModel) -> LowBitModel:
        """The low-bit copy of `model`."""
        stamp = weights_stamp(model)
        with self._lock:
            known = self._made.get(model)
            if known is None or known[0] != stamp:
                self._made[model] = known = (stamp, self._make(model))
            return known[1]
