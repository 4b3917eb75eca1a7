"""One problem of any task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..jsonl import read_objects


@dataclass(frozen=True)
class Problem:
    """What a model is asked, and whether what it writes is right.

    Attributes:
        id: as its file names it.
        message: what the user says.
        reply: how the model's reply begins, given to it.
        stop: the reply is over where one of these appears.
        right: of the text that the model wrote after `reply`, which may end in a stop string.
    """

    id: str
    message: str
    reply: str
    stop: tuple[str, ...]
    right: Callable[[str], bool]

    def token_ids(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The message in the tokenizer's chat template, and the beginning of the reply."""
        chat = [{"role": "user", "content": self.message}]
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        return list(tokenizer(f"{text}{self.reply}", add_special_tokens=False)["input_ids"])


def records(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file.

    Raises:
        InputError: the file cannot be read, or a line is not a JSON object; the message has its number.
    """
    return [line.value for line in read_objects(path, "problems file")]
