"""A model beside the one that `generate` runs: logits after any texts, at the price of what is new in them.

What it keeps is a function of the token ids alone. Each text takes over the row that shares the longest prefix with
it, the rest is forgotten and what is new is fed. That one rule covers an ordinary step, beams that are reordered,
drafts that are taken back, probes, and the next call of `generate`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...errors import InputError
from .module_forward import check_supported
from .runner import Runner
from .weights_stamp import weights_stamp


class AuxiliaryModel:
    """Logits of the next token after each of a batch of texts; each thread has keys and values of its own.

    Args:
        model: a causal LM with full or sliding-window attention.

    Attributes:
        forwarded: tokens fed so far, all rows and threads.

    Raises:
        InputError: the model's state cannot be ragged or rolled back.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        check_supported(model)
        self.model = model
        self.forwarded = 0
        self._kept = threading.local()

    @property
    def width(self) -> int:
        """Logits of one position."""
        width: int = self.model.config.get_text_config().vocab_size
        return width

    def logits(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """`[len(texts), width]` float32 logits after each text.

        Args:
            texts: token ids of any lengths from 1 on; equal texts are computed once.

        Raises:
            InputError: an id that the model does not have, or a text longer than its context.
        """
        keys = [tuple(text) for text in texts]
        unique = list(dict.fromkeys(keys))
        runner, kept = self._runner_for(unique)
        rest = [text[length:] for text, length in zip(unique, kept, strict=True)]
        largest = max(map(max, rest))
        if largest >= self.width:
            raise InputError(
                f"token {largest} is not among the {self.width} of {type(self.model).__name__}: "
                "use models of one tokenizer"
            )
        # Until the pass has gone through, nothing is known of what the state holds.
        self._kept.texts = None
        logits = runner.prefill(rest).float()
        self._kept.texts = unique
        self.forwarded += sum(map(len, rest))
        if len(unique) == len(keys):
            return logits
        index = {text: row for row, text in enumerate(unique)}
        return logits[torch.tensor([index[key] for key in keys], device=logits.device)]

    def _runner_for(self, texts: list[tuple[int, ...]]) -> tuple[Runner, list[int]]:
        """A runner whose row b holds the first `kept[b]` tokens of text b, fewer than all of them."""
        old: list[tuple[int, ...]] = getattr(self._kept, "texts", None) or []
        sources = [_longest_prefix(text, row, old) for row, text in enumerate(texts)]
        kept = [min(length, len(text) - 1) for text, (_, length) in zip(texts, sources, strict=True)]
        stepped = bool(old) and all(
            length == len(old[row]) == len(text) - 1 for text, (row, length) in zip(texts, sources, strict=True)
        )
        # A step cannot have changed the weights, a training step between two calls can.
        stamp = getattr(self._kept, "stamp", None) if stepped else weights_stamp(self.model)
        if not any(kept) or stamp != getattr(self._kept, "stamp", None):
            self._kept.stamp = stamp
            self._kept.runner = Runner.of(self.model, len(texts))
            return self._kept.runner, [0] * len(texts)
        runner: Runner = self._kept.runner
        rows = [row for row, _ in sources]
        if rows != list(range(len(old))):
            runner.state.select(rows)
        runner.rollback(kept)
        return runner, kept


def check_device(name: str, model: PreTrainedModel, device: torch.device, other: str) -> None:
    """Refuse models that lie on different devices.

    Raises:
        InputError: `model`, called `name`, is not on `device`, where `other` is.
    """
    if model.device != device:
        raise InputError(f"{name} is on {model.device} and {other} on {device}: move them to one device")


def _longest_prefix(text: tuple[int, ...], row: int, old: list[tuple[int, ...]]) -> tuple[int, int]:
    """Which of `old` shares the longest prefix with `text`, its own row first, and the length."""
    own = _shared(text, old[row]) if row < len(old) else 0
    if own >= len(text) - 1 or not old:
        return (row if row < len(old) else 0), own
    lengths = [_shared(text, other) for other in old]
    best = max(lengths)
    return (row, own) if best == own and row < len(old) else (lengths.index(best), best)


def _shared(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while low < high - 1:  # a[:low] == b[:low], a[:high] != b[:high]
        middle = (low + high) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle)
    return low
