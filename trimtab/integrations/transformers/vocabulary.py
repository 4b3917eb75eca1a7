"""Whether two loaded models read the same token ids.

A model does not carry its tokenizer, but one that was loaded from a directory names it, and `tokenizer.json` in there
has the vocabulary. Models that were made in memory are taken at their word.
"""

from __future__ import annotations

import weakref

from transformers import PreTrainedModel

from ...vocabularies import check_same_ids
from .generate_frames import generate_given


def check_same_vocabulary(name: str, model: PreTrainedModel, other_name: str, other: PreTrainedModel) -> None:
    """Refuse two models whose tokenizers give a common token different ids.

    Tokens that only one of them has (a fine-tuned model's own markers) do not count.

    Args:
        name: of `model`, for the message.
        model: loaded from anywhere.
        other_name: of `other`.
        other: the one it is compared with.

    Raises:
        InputError: names a token and its two ids.
    """
    directories = getattr(model, "name_or_path", ""), getattr(other, "name_or_path", "")
    if all(directories):  # an empty name is the working directory, whose files are not the model's
        check_same_ids(name, directories[0], other_name, directories[1])


class GeneratingModel:
    """Compares the model that runs a processor with the processor's own, when it first sees it.

    Args:
        name: of `model`, for the message.
        model: the processor's.
    """

    def __init__(self, name: str, model: PreTrainedModel) -> None:
        self._name, self._model = name, model
        self._seen: weakref.ref[PreTrainedModel] | None = None

    def check(self, processor: object) -> None:
        """Within a `generate` that was given this processor; nothing is known of the model elsewhere.

        Raises:
            InputError: as `check_same_vocabulary`.
        """
        known = generate_given(processor)
        generating = None if known is None else known["self"]
        if generating is None or (self._seen is not None and self._seen() is generating):
            return
        check_same_vocabulary(self._name, self._model, "the model that generates", generating)
        self._seen = weakref.ref(generating)
