"""Which of the ids that a logits processor is handed are padding, prompt and new tokens.

`generate` shows a processor the padded batch and nothing else: neither the mask nor where the prompt ends. Both stand
in the frame of the `generate` call that is running the processor, so they are read there.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from transformers import PreTrainedModel

from ...errors import InputError
from .generate_frames import generate_given


class Row(NamedTuple):
    """One row without its padding."""

    prompt: list[int]
    new: list[int]


class _Prompts(NamedTuple):
    ids: list[list[int]] | None
    mask: list[list[int]] | None
    width: int


class PromptRows:
    """Takes the padding off the rows that a processor sees.

    Args:
        model: whose pad and BOS tokens to assume where nothing else says what is padding.
        attention_mask: `[batch, prompt length]` of the prompts, for decoding loops other than `generate`.

    Raises:
        InputError: the mask is not a matrix.
    """

    def __init__(self, model: PreTrainedModel, attention_mask: Tensor | None) -> None:
        if attention_mask is not None and attention_mask.dim() != 2:
            raise InputError(
                f"attention_mask has shape {list(attention_mask.shape)}: give the prompts' mask, [batch, prompt length]"
            )
        self._mask = attention_mask
        configs = (model.generation_config, model.config)
        self._pad = _token("pad_token_id", configs)
        if self._pad is None:  # generate pads with EOS then
            self._pad = _token("eos_token_id", configs)
        self._bos = _token("bos_token_id", configs)

    def __call__(self, processor: object, input_ids: Tensor, *, split: bool = False) -> list[Row]:
        """The rows of `input_ids` `[batch, length]`; with `split` the end of the prompts must be known.

        Without `split` everything may be in `Row.prompt`. `processor` is what `generate(logits_processor=[...])` got;
        it is not kept: a cycle with it would hold its models' keys and values until a collection of garbage.

        Raises:
            InputError: there are no ids, the mask does not fit them, a prompt is empty, or its end is not known.
        """
        if input_ids.dim() != 2 or input_ids.shape[1] == 0:
            raise InputError(
                f"input_ids has shape {list(input_ids.shape)}: the auxiliary models read token ids, so pass input_ids "
                "and no inputs_embeds to generate"
            )
        shown: list[list[int]] = input_ids.tolist()
        prompts = self._find(processor, len(shown))
        if prompts is None:
            if split:
                raise InputError(
                    "attention_mask is None outside generate: pass the prompts' mask, which says where they end"
                )
            return [Row(tokens, []) for tokens in self._without_pad_run(shown)]
        rows = [_row(tokens, prompts, index, len(shown)) for index, tokens in enumerate(shown)]
        for index, row in enumerate(rows):
            if not row.prompt:
                raise InputError(f"prompt {index} is empty: give each row at least one token")
        return rows

    def _find(self, processor: object, rows: int) -> _Prompts | None:
        found = _prompts_of_generate(processor)
        if self._mask is None:
            return found
        if rows % len(self._mask):
            raise InputError(
                f"attention_mask has {len(self._mask)} rows for a batch of {rows}: give one row for each prompt"
            )
        width = self._mask.shape[1]
        ids = found.ids if found is not None and found.width == width else None
        return _Prompts(ids, self._mask.tolist(), width)

    def _without_pad_run(self, shown: list[list[int]]) -> list[list[int]]:
        runs = [_run(tokens, self._pad) for tokens in shown]
        if self._pad is not None and self._pad == self._bos:
            # The longest prompt has no padding: what all rows begin with is text.
            common = min(runs)
            runs = [run - common for run in runs]
            if any(runs):
                warnings.warn(
                    f"token {self._pad} is both padding and BOS, so where the prompts begin is a guess: "
                    "pass attention_mask=",
                    stacklevel=3,
                )
        return [tokens[min(run, len(tokens) - 1) :] for tokens, run in zip(shown, runs, strict=True)]


def _prompts_of_generate(processor: object) -> _Prompts | None:
    found = generate_given(processor)
    if found is None:
        return None
    ids, mask = found["input_ids"], found["model_kwargs"].get("attention_mask")
    return _Prompts(ids.tolist(), None if mask is None else mask.tolist(), ids.shape[1])


def _row(shown: list[int], prompts: _Prompts, index: int, rows: int) -> Row:
    ids = None if prompts.ids is None else prompts.ids[index * len(prompts.ids) // rows]
    # A decoding method whose rows advance unevenly fills the shorter ones at the start.
    start = 0
    if ids is not None and shown[: prompts.width] != ids:
        last = len(shown) - prompts.width
        start = next((k for k in range(1, last + 1) if shown[k : k + prompts.width] == ids), 0)
    end = start + prompts.width
    prompt = shown[start:end]
    if prompts.mask is not None:
        mask = prompts.mask[index * len(prompts.mask) // rows]
        prompt = [token for token, seen in zip(prompt, mask, strict=False) if seen]
    return Row(prompt, shown[end:])


def _run(tokens: Sequence[int], pad: int | None) -> int:
    return next((index for index, token in enumerate(tokens) if token != pad), len(tokens))


def _token(name: str, configs: Sequence[object]) -> int | None:
    for config in configs:
        value = getattr(config, name, None)
        if value is not None:
            return int(value[0]) if isinstance(value, (list, tuple)) else int(value)
    return None
