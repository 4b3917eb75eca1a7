"""A model and a ragged, rollback-able state: what every decoding method is written with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...errors import InputError
from . import decoder
from .module_forward import ModuleForward, check_supported
from .padding import pad_right
from .state import SequenceState, Window

Forward = Callable[[Tensor, Window, Tensor | None], Tensor]
"""`(tokens [batch, window], window, select) -> logits`; writes the window's keys and values."""

PREFILL_CHUNK = 256
"""Tokens a row in one prefill pass: bounds the memory of attention scores and masks, not of the result."""


def forward_of(model: PreTrainedModel) -> Forward:
    """The fastest forward pass that computes what `model` computes.

    Raises:
        InputError: the model's state cannot be ragged or rolled back.
    """
    check_supported(model)
    return decoder.LeanDecoder(model) if decoder.supports(model) else ModuleForward(model)


class Runner:
    """`extend` feeds each row its own new tokens, `rollback` forgets; rows of one batch have any lengths.

    Args:
        forward: what computes logits: `forward_of(model)` or a low-bit copy of it.
        state: keys and values to work on; runners may share one.
        device: where the tokens go.
        max_length: context length of the model in tokens, None if unlimited.
    """

    def __init__(
        self, forward: Forward, state: SequenceState, device: torch.device, max_length: int | None = None
    ) -> None:
        self._forward = forward
        self.state = state
        self._device = device
        self._max_length = max_length

    @classmethod
    def of(cls, model: PreTrainedModel, batch_size: int, *, capacity: int = 0) -> Runner:
        """A runner of `model` with a state of its own.

        Args:
            model: any transformers causal LM with full or sliding-window attention.
            batch_size: number of rows.
            capacity: tokens a row to allocate at once; it grows when needed.

        Raises:
            InputError: the model cannot be run this way; the message says why.
        """
        return cls(forward_of(model), SequenceState(batch_size, capacity), model.device, context_length(model))

    @property
    def lengths(self) -> list[int]:
        """Tokens that each row holds."""
        return list(self.state.lengths)

    @torch.no_grad()
    def extend(self, tokens: Tensor, counts: Sequence[int], select: Tensor | None = None) -> Tensor:
        """Append `counts[b]` tokens to row b and return the logits after each of them.

        Args:
            tokens: `[batch, window]` int64; row b uses its first `counts[b]` columns, the rest is padding.
            counts: new tokens of each row, 0 to window.
            select: `[batch]` int64 window indices; give it to compute the logits of only that token of each row.

        Returns:
            `[batch, window, vocab]` logits in the model's dtype (beyond `counts[b]` they mean nothing), or
            `[batch, vocab]` with `select`.

        Raises:
            InputError: a row would outgrow the model's context.
        """
        longest = max(length + count for length, count in zip(self.state.lengths, counts, strict=True))
        if self._max_length is not None and longest > self._max_length:
            raise InputError(
                f"the sequence of {longest} tokens is longer than the model's context of {self._max_length}: "
                "shorten the prompt or lower max_new_tokens"
            )
        tokens = tokens.to(self._device)
        window = Window(self.state, tokens.shape[1], self._device)
        logits = self._forward(tokens, window, select)
        self.state.lengths = [length + count for length, count in zip(self.state.lengths, counts, strict=True)]
        return logits

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Append a whole prompt to each row, in bounded chunks; logits `[batch, vocab]` after its last token.

        Args:
            prompts: token ids of each row, of any lengths from 1 on.
        """
        result: Tensor | None = None
        for start in range(0, max(map(len, prompts)), PREFILL_CHUNK):
            chunks = [prompt[start : start + PREFILL_CHUNK] for prompt in prompts]
            counts = [len(chunk) for chunk in chunks]
            last = torch.tensor([max(count - 1, 0) for count in counts], device=self._device)
            logits = self.extend(pad_right(chunks), counts, last)
            ends = torch.tensor([0 < len(prompt) - start <= PREFILL_CHUNK for prompt in prompts], device=logits.device)
            result = logits if result is None else torch.where(ends[:, None], logits, result)
        assert result is not None
        return result

    def rollback(self, lengths: Sequence[int]) -> None:
        """Forget everything beyond `lengths[b]` tokens in row b."""
        self.state.rollback(lengths)


def context_length(model: PreTrainedModel) -> int | None:
    """`max_position_embeddings` of the model, if it has one."""
    length: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return length
