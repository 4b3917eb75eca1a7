"""One `generate` call: its rows, when each of them ends, and what is returned; shared by all methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteriaList
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria
from transformers.generation.streamers import BaseStreamer

from ...errors import InputError
from .padding import pad_batch, pad_right
from .runner import context_length
from .streaming import LockstepStream


class Generation:
    """Rows of one call as they grow.

    Attributes:
        prompts: token ids of each row without padding.
        shown: ids of each row as plain `generate` would show them to processors: the caller's padded prompt and the
            tokens so far.
        new: tokens so far of each row.
        active: rows that have not ended, in order.

    Args:
        input_ids: `[batch, length]` as `generate` prepared them.
        attention_mask: `[batch, length]`, or None if nothing is padded.
        config: the call's generation config.
        criteria: the call's stopping criteria.
        streamer: receives tokens as they are released.

    Raises:
        InputError: an empty prompt, a mask of another shape, or a prompt that leaves no room in the model's context.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        config: GenerationConfig,
        criteria: StoppingCriteriaList,
        streamer: BaseStreamer | None = None,
    ) -> None:
        self.input_ids = input_ids
        self.prompts = _unpadded(input_ids, attention_mask)
        limit = context_length(model)
        longest = max(map(len, self.prompts))
        if limit is not None and longest >= limit:
            raise InputError(
                f"the prompt has {longest} tokens and the model's context is {limit}: shorten the prompt by at least "
                f"{longest - limit + 1} tokens"
            )
        self.shown = input_ids.tolist()
        self.new: list[list[int]] = [[] for _ in self.prompts]
        self.active = list(range(len(self.prompts)))
        self.eos = _ids(config._eos_token_tensor)
        self.pad = next(iter(_ids(config._pad_token_tensor)), min(self.eos, default=0))
        # Padding does not use up context, but max_length counts it, as in plain generate.
        lengths = [c.max_length for c in criteria if isinstance(c, MaxLengthCriteria)]
        self._max_new = min([*lengths, config.max_length]) - input_ids.shape[1]
        self._context_room = [self._max_new if limit is None else limit - len(prompt) for prompt in self.prompts]
        self._criteria = [c for c in criteria if not isinstance(c, (MaxLengthCriteria, EosTokenCriteria))]
        for c in criteria:
            if isinstance(c, EosTokenCriteria):
                self.eos |= _ids(c.eos_token_id)
        self._stream = None if streamer is None else LockstepStream(streamer, self.pad)

    def room(self, row: int) -> int:
        """Tokens that the row may still get."""
        return min(self._max_new, self._context_room[row]) - len(self.new[row])

    def advance(self, emitted: Sequence[Sequence[int]]) -> list[int]:
        """Append tokens to the active rows, each up to where it ends.

        Args:
            emitted: tokens for each row of `active`.

        Returns:
            How many of them each row took.
        """
        rows, taken, open_ = self.active, [0] * len(self.active), set(self.active)
        for position in range(max(map(len, emitted))):
            stepped = [(slot, row) for slot, row in enumerate(rows) if row in open_ and position < len(emitted[slot])]
            for slot, row in stepped:
                token = emitted[slot][position]
                self.shown[row].append(token)
                self.new[row].append(token)
                taken[slot] += 1
                if token in self.eos or self.room(row) <= 0:
                    open_.discard(row)
            if self._criteria and stepped:
                ids = pad_batch(self.shown, [row for _, row in stepped], self.pad).to(self.input_ids.device)
                ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
                for criterion in self._criteria:
                    # the base class documents a bool tensor, older criteria return a plain bool
                    ended = ended | torch.as_tensor(criterion(ids, None), device=ids.device)
                open_ -= {row for _, row in stepped if ended[row]}
        self.active = [row for row in rows if row in open_]
        if self._stream is not None:
            self._stream.update(self.new, [row not in open_ for row in range(len(self.new))])
        return taken

    def sequences(self) -> Tensor:
        """`[batch, length + longest]` int64: the caller's ids and the new tokens, padded on the right."""
        return torch.cat([self.input_ids, pad_right(self.new, self.pad).to(self.input_ids)], dim=1)

    def stacked(self, rows: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
        """Per-row lists of `[vocab]` tensors as one `[batch, vocab]` tensor a step, zeros where a row has ended."""
        width = max(map(len, self.new))
        zero = torch.zeros_like(rows[0][0])
        return tuple(torch.stack([row[step] if step < len(row) else zero for row in rows]) for step in range(width))


def check_call(config: GenerationConfig, model_kwargs: dict[str, Any]) -> None:
    """Refuse what a method that owns its own decoding loop cannot do.

    Raises:
        InputError: beams, input embeddings, a filled cache, or attentions and hidden states asked for.
    """
    if (config.num_beams or 1) > 1:
        raise InputError(
            f"num_beams is {config.num_beams}: this method decodes greedily or by sampling, use num_beams=1"
        )
    if model_kwargs.get("inputs_embeds") is not None:
        raise InputError("inputs_embeds is given: this method reads token ids, pass input_ids")
    cache = model_kwargs.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        raise InputError("past_key_values holds tokens already: pass the whole text as input_ids and no cache")
    for name in ("output_attentions", "output_hidden_states"):
        if getattr(config, name, False):
            raise InputError(f"{name}=True: this method keeps no attentions or hidden states per step, leave it out")


def _unpadded(input_ids: Tensor, attention_mask: Tensor | None) -> list[list[int]]:
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise InputError(
            f"attention_mask is {list(attention_mask.shape)} and input_ids is {list(input_ids.shape)}: "
            "give one mask entry for each token"
        )
    rows: list[list[int]] = input_ids.tolist()
    if attention_mask is not None:
        rows = [
            [token for token, seen in zip(row, mask, strict=True) if seen]
            for row, mask in zip(rows, attention_mask.tolist(), strict=True)
        ]
    for index, row in enumerate(rows):
        if not row:
            raise InputError(f"prompt {index} is empty: give each row at least one token")
    return rows


def _ids(tokens: Tensor | None) -> set[int]:
    return set() if tokens is None else set(tokens.flatten().tolist())
