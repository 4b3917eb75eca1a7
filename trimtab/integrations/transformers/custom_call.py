"""From the arguments that `generate` hands to a custom method to what it gets back; shared by all methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation import GenerateDecoderOnlyOutput, StopStringCriteria
from transformers.generation.streamers import BaseStreamer
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from .generation import Generation, check_call
from .streaming import streamer_of_generate
from .window_sampling import Verified


class CustomMethod:
    """What `generate(custom_generate=...)` calls: checks, rows, streamer and criteria here, decoding in a subclass.

    Attributes:
        streamer: the method's own, in place of `generate(streamer=...)`.
        stop_strings: the method's own.
        tokenizer: for `stop_strings`.
    """

    streamer: BaseStreamer | None
    stop_strings: str | list[str] | None
    tokenizer: PreTrainedTokenizerBase | None

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Tensor | GenerateDecoderOnlyOutput:
        """Called by `generate`, which has prepared every argument.

        Raises:
            InputError: the call asks for what a method with a decoding loop of its own cannot do.
        """
        streamer = self.streamer or streamer_of_generate()
        try:
            if self.streamer is not None:
                self.streamer.put(input_ids.cpu())
            check_call(generation_config, model_kwargs)
            criteria = StoppingCriteriaList(stopping_criteria)
            if self.stop_strings is not None:
                criteria.append(StopStringCriteria(self.tokenizer, self.stop_strings))
            # not a named parameter: generate would take it for an option of ours and pass it twice
            mask = model_kwargs.get("attention_mask")
            rows = Generation(model, input_ids, mask, generation_config, criteria, streamer)
            return self._decode(model, rows, logits_processor, generation_config)
        finally:
            # a TextIteratorStreamer's consumer waits for this, also when something was raised
            if streamer is not None:
                streamer.end()

    def _decode(
        self, model: PreTrainedModel, rows: Generation, processors: LogitsProcessorList, config: GenerationConfig
    ) -> Tensor | GenerateDecoderOnlyOutput:
        raise NotImplementedError


class ScoreRecord:
    """The scores and logits of released tokens, if the call asks for them.

    Attributes:
        wanted: whether it does.
    """

    def __init__(self, rows: Generation, config: GenerationConfig) -> None:
        self._rows, self._config = rows, config
        self.wanted = bool(config.return_dict_in_generate and (config.output_scores or config.output_logits))
        self._scores: list[list[Tensor]] = [[] for _ in rows.prompts]
        self._logits: list[list[Tensor]] = [[] for _ in rows.prompts]

    def add(self, verified: Verified, before: Sequence[int], taken: Sequence[int]) -> None:
        """Keep those of the first `taken` tokens of each of the rows `before`."""
        if not self.wanted:
            return
        for slot, (row, count) in enumerate(zip(before, taken, strict=True)):
            self._scores[row] += verified.scores[slot][:count]
            self._logits[row] += verified.logits[slot][:count]

    def fields(self) -> dict[str, Any]:
        """`sequences`, `scores` and `logits` of the output."""
        return {
            "sequences": self._rows.sequences(),
            "scores": self._rows.stacked(self._scores) if self.wanted and self._config.output_scores else None,
            "logits": self._rows.stacked(self._logits) if self.wanted and self._config.output_logits else None,
        }
